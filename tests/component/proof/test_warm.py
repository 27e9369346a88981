"""A program that is forked instead of started is the program: output, exit status, signals, a session of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import objects
from tests.support.gateway import Gateway
from tests.support.scu import Scanner, contexts_of
from tests.support.waiting import free_port, wait_until
from tests.support.warm import Nursery, nursery


@pytest.fixture(scope="module")
def starts() -> Iterator[Nursery]:
    with nursery() as found:
        yield found


def test_a_command_answers_as_one_that_was_started(starts: Nursery, tmp_path: Path) -> None:
    status, said, complained = starts.run(["--version"], tmp_path / "answer")
    assert (status, complained) == (0, "") and said.startswith("dcmgate ")
    status, said, complained = starts.run(["--config", str(tmp_path / "none.toml"), "balance"], tmp_path / "answer")
    assert status not in (0, -9) and said == "" and complained.startswith("dcmgate: ")


def test_a_stage_takes_an_image_and_ends_as_it_is_told(starts: Nursery, tmp_path: Path) -> None:
    peer = {"id": "pacs", "type": "dimse", "address": "127.0.0.1", "port": free_port(), "called": "P", "default": True}
    with Gateway(tmp_path, [peer]) as gateway:
        log, instance = tmp_path / "receiver.log", objects.sr(1)
        for number, end in ((signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)):
            process = starts.start(["--config", str(gateway.config), "--json", "receiver"], log)
            wait_until(lambda: log.exists() and b'{"ready": ' in log.read_bytes(), 20, "the receiver is ready")
            assert process.poll() is None and os.getpgid(process.pid) == process.pid != os.getpgid(0)
            with Scanner(gateway.port, contexts_of([instance])) as scanner:
                assert scanner.store(instance) == 0
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.01)
            os.killpg(process.pid, number)
            assert process.wait(20) == end == process.poll()
            log.unlink()
