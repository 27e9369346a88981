"""Several worker processes: one whose intake is closed takes no scanner away from the others."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from pathlib import Path

import pytest

from appliance.errors import SpoolFault
from appliance.receive import channel, health
from appliance.receive.limits import Limits
from tests.support import objects
from tests.support.acceptor import echo, receiving, session
from tests.support.scu import Lost
from tests.support.waiting import wait_until

LIMITS = Limits(scan=0.05, tick=0.2, restarts=2, restart_window=3.0)


@pytest.mark.requirement("I6")
def test_a_worker_that_is_out_of_intake_gets_no_scanners_while_another_takes_them(tmp_path: Path):
    """It rejects at once, so it would be the least loaded one for ever, and all scanners would be sent away."""
    report = objects.sr(1)
    with receiving(tmp_path, workers=2, limits=LIMITS) as box:
        box.spool.object_path(40).write_bytes(b"a file that the ledger knows nothing of")
        crew = box.receiver._crew
        assert crew is not None

        def one_is_out() -> bool:
            with contextlib.suppress(Lost), session(box.port, report) as one, session(box.port, report) as other:
                one.store(report)                 # two at once, so that each worker has one
                other.store(report)
            return any(m.report is not None and m.report.out_of_intake for m in crew._members)

        wait_until(one_is_out, 20, "one of them out of intake", every=0.05)
        wait_until(lambda: "older than the objects" in health.read(box.run).out_of_intake, 10, "the keeper can know")
        with contextlib.ExitStack() as stack:
            scanners = [stack.enter_context(session(box.port, report)) for _ in range(4)]
            assert [scanner.store(report) for scanner in scanners] == [0] * 4
        assert len(box.receiver.pids) == 2


@pytest.mark.requirement("hazard: no descriptors left")
def test_a_worker_that_cannot_be_begun_for_want_of_descriptors_does_not_end_the_front(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with receiving(tmp_path, workers=2, limits=LIMITS) as box:
        crew = box.receiver._crew
        assert crew is not None
        asked: list[int] = []

        def none_left() -> tuple[socket.socket, socket.socket]:
            asked.append(1)
            raise OSError(errno.EMFILE, "too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(channel, "pair", none_left)
            os.kill(box.receiver.pids[0], signal.SIGKILL)
            wait_until(lambda: asked, 10, "a worker is to be begun again")
            echo(box.port)
        wait_until(lambda: len(box.receiver.pids) == 2, 15, "it is begun once there are descriptors again")
        echo(box.port)


@pytest.mark.requirement("I6")
def test_an_intake_that_closes_is_told_to_the_keeper(tmp_path: Path):
    with receiving(tmp_path) as box:
        assert health.read(box.run) == health.Condition()
        box.intake.fault(SpoolFault("the disk is gone"))
        wait_until(lambda: health.read(box.run).out_of_intake == "the disk is gone", 10, "the keeper can know")
