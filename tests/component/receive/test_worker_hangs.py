"""A worker process whose main thread stands still, or is gone, gates the watchdog's ping: it takes sockets and answers none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.receive.limits import Limits
from tests.support import hang
from tests.support.acceptor import Box, receiving
from tests.support.waiting import wait_until

LIMITS = Limits(scan=0.05, tick=0.2)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with receiving(tmp_path, workers=2, limits=LIMITS) as made:
        yield made


@pytest.mark.requirement("Watchdog chain: a worker that stands still gates the ping")
def test_a_main_thread_that_stands_still_gates_the_ping_and_one_that_goes_on_does_not(box: Box) -> None:
    receiver = box.receiver
    wait_until(receiver.progress, 20, "progress")
    with subprocess.Popen([sys.executable, hang.__file__, "freeze", str(receiver.pids[0])], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as frozen:
        assert frozen.stdout is not None
        assert frozen.stdout.readline() == b"frozen\n"
        wait_until(lambda: not receiver.progress(), 20, "no progress")
    wait_until(receiver.progress, 20, "progress again")


@pytest.mark.requirement("Watchdog chain: a dead thread gates the ping")
def test_a_main_thread_that_is_gone_while_its_process_lives_gates_the_ping(box: Box) -> None:
    receiver = box.receiver
    wait_until(receiver.progress, 20, "progress")
    subprocess.run([sys.executable, hang.__file__, "kill", str(receiver.pids[0])], check=True, timeout=20)
    wait_until(lambda: not receiver.progress(), 20, "no progress")
    assert receiver._crew is not None and receiver._crew._members[0].channel is not None, "it has not ended: others would see"
