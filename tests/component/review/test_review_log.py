"""A log that nobody reads any more (a stuck journal, a pager that was left): no scanner waits for it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.spool.layout import Spool
from appliance.telemetry import log
from tests.support.acceptor import ROOT, echo
from tests.support.waiting import wait_until

SERVER = """
import sys
from appliance.telemetry import log
from tests.support.acceptor import program
log.set_up("debug")
program()
"""


@pytest.mark.requirement("hazard: a log that nobody reads")
def test_echo_is_answered_although_nobody_reads_the_log(tmp_path: Path) -> None:
    Spool.init(tmp_path / "spool", clock=SystemClock())
    (tmp_path / "run").mkdir()
    unread, stderr = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(tmp_path), "1", "{}", "32"], cwd=ROOT, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=stderr, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        port = json.loads(process.stdout.readline())[0]
        os.set_blocking(stderr, False)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(stderr, b"x" * 4096)
        os.set_blocking(stderr, True)
        assert max(echo(port) for _ in range(40)) < 5      # an association that waits keeps its place; there are 32
    finally:
        os.close(unread)
        os.close(stderr)
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


@pytest.mark.requirement("hazard: a log that nobody reads")
def test_lost_lines_are_counted_and_long_ones_come_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with os.fdopen(writing, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        log.set_up("info")
        try:
            say = log.Log("x")
            long = "y" * 10_000
            say.info(long)
            assert os.read(reading, 1 << 16).decode().split(": ")[1].strip() == long
            os.set_blocking(writing, False)
            with pytest.raises(BlockingIOError):
                while True:
                    os.write(writing, b"\n" * 4096)
            os.set_blocking(writing, True)
            for _ in range(3):
                say.info("nobody reads this")
            wait_until(lambda: len(os.read(reading, 1 << 20)) > 0, 10)
            say.info("here again")
            assert os.read(reading, 1 << 20).decode().split("\n")[:2] == [
                "warning log: 3 lines were lost: nobody read them", "info x: here again"]
        finally:
            logging.getLogger(log.ROOT).handlers.clear()
    os.close(reading)
