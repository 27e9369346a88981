"""Several worker processes behind one front: balance, a worker that is killed, a nursery that is killed, the parent's death."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from appliance.config.settings import Listener
from appliance.errors import SpoolRefused
from appliance.receive.limits import Limits
from tests.support import objects
from tests.support.acceptor import (
    Box,
    ask,
    associated,
    config,
    echo,
    echoing,
    last_words,
    receiving,
    served,
    session,
)
from tests.support.scu import IMPLICIT, VERIFICATION, Lost, Scanner
from tests.support.waiting import wait_until

ECHO = [(VERIFICATION, IMPLICIT)]
LIMITS = Limits(scan=0.05, tick=0.2, restarts=2, restart_window=3.0)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with receiving(tmp_path, workers=3, limits=LIMITS) as made:
        yield made


def load(box: Box) -> list[int]:
    """Associations of each worker."""
    assert box.receiver._crew is not None
    return sorted(len(member.tickets) for member in box.receiver._crew._members)


def where(box: Box, count: int) -> list[int]:
    """Descriptors that are TCP connections of each worker, once there are `count` in all."""
    def connections() -> list[int]:
        found = [len(psutil.Process(pid).net_connections("tcp")) for pid in box.receiver.pids]
        return found if sum(found) == count else []

    return wait_until(connections, 10, "connections")


def test_associations_go_to_the_least_loaded_worker(box: Box):
    assert len(set(box.receiver.pids)) == 3 and os.getpid() not in box.receiver.pids
    with contextlib.ExitStack() as stack:
        for _ in range(9):
            stack.enter_context(session(box.port))
        assert load(box) == [3, 3, 3]
        assert where(box, 9) == [3, 3, 3]
        assert box.receiver.associations == 9
    wait_until(lambda: load(box) == [0, 0, 0] and box.receiver.associations == 0, 10, "given back")


def test_objects_from_all_workers_are_in_one_ledger(box: Box):
    reports = [objects.sr(n) for n in range(30)]
    with contextlib.ExitStack() as stack:
        scanners = [stack.enter_context(session(box.port, *reports)) for _ in range(6)]
        assert [scanners[n % 6].store(report) for n, report in enumerate(reports)] == [0] * 30
    with contextlib.closing(box.ledger()) as ledger:
        wait_until(lambda: ledger.counts().accepted == 30, 10, "rows")
    assert {custody.digest for custody, _ in box.held()} == {report.digest() for report in reports}


@pytest.mark.requirement("hazard: a worker is killed")
def test_kill_9_of_a_worker_ends_its_associations_and_nobody_elses(box: Box):
    report = objects.sr(1)
    scanners = [associated(box.port, report) for _ in range(6)]
    assert [scanner.echo() for scanner in scanners] == [0] * 6
    before = box.receiver.pids
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: before[0] not in box.receiver.pids, 10, "its end")
    with echoing(box.port):
        alive, dead = 0, 0
        for scanner in scanners:
            try:
                assert scanner.store(report) == 0
                alive += 1
            except Lost:
                dead += 1
        assert (alive, dead) == (4, 2)
        wait_until(lambda: len(box.receiver.pids) == 3 and before[0] not in box.receiver.pids, 10, "another worker")
    assert set(before[1:]) < set(box.receiver.pids)
    for scanner in scanners:
        scanner.release()
    wait_until(lambda: box.receiver.associations == 0, 10, "places given back")
    assert box.receiver.progress()


@pytest.mark.requirement("hazard: a worker is killed")
def test_an_object_whose_status_was_given_survives_the_kill(box: Box):
    reports = [objects.sr(n) for n in range(10)]
    with contextlib.suppress(Lost), session(box.port, *reports) as scanner:
        for report in reports:
            assert scanner.store(report) == 0
        for pid in box.receiver.pids:
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(box.receiver.pids) == 3, 10, "other workers")
    with contextlib.closing(box.ledger()) as ledger:
        wait_until(lambda: ledger.counts().accepted == 10, 10, "recovered")     # rows that were owed are made again


@pytest.mark.requirement("hazard: a worker is killed")
def test_a_worker_that_dies_again_and_again_is_restarted_at_a_bounded_rate(box: Box):
    crew = box.receiver._crew
    assert crew is not None
    member = crew._members[0]
    for _ in range(LIMITS.restarts + 1):
        wait_until(lambda: member.ready, 10, "a fresh worker")
        pid = member.pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: pid not in box.receiver.pids, 10, "its end")
    assert member.channel is None                                  # that was once too often
    echo(box.port)                                                 # the others work on
    assert box.receiver.progress()
    wait_until(lambda: member.ready, 15, "its time has passed")


@pytest.mark.requirement("hazard: a worker is killed")
def test_the_nursery_may_die_too(box: Box):
    crew = box.receiver._crew
    assert crew is not None and crew._nursery is not None
    crew._nursery.kill()
    crew._nursery.wait()
    echo(box.port)
    victim = box.receiver.pids[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in box.receiver.pids and len(box.receiver.pids) == 3, 10, "a worker of a new nursery")
    echo(box.port)


def test_when_no_worker_is_up_the_answer_is_transient(tmp_path: Path):
    with receiving(tmp_path, workers=2, limits=Limits(scan=0.05, tick=0.2, restarts=0, restart_window=3.0)) as box:
        for pid in box.receiver.pids:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not box.receiver.pids, 10, "their end")
        assert ask(box.port, ECHO) == (2, 3, 2)
        assert not box.receiver.progress()
        wait_until(lambda: len(box.receiver.pids) == 2, 15, "their time has passed")
        echo(box.port)


def test_limits_count_over_all_workers(tmp_path: Path):
    tight = Listener(id="lan", address="127.0.0.1", ports=(0,), unknown="admit", max_associations=2, max_per_address=2)
    with receiving(tmp_path, config(tight), workers=2, limits=LIMITS) as box:
        for _ in range(5):
            with Scanner(box.port, ECHO), Scanner(box.port, ECHO):
                assert ask(box.port, ECHO) == (2, 3, 2)
            wait_until(lambda: box.receiver.associations == 0, 10, "given back")


def test_a_new_configuration_reaches_every_worker_and_those_that_come_after(box: Box):
    strict = Listener(id="lan", address="127.0.0.1", ports=(0,), unknown="refuse")
    inside = [associated(box.port) for _ in range(3)]
    box.configure(strict)
    assert [ask(box.port, ECHO) for _ in range(6)] == [(1, 1, 3)] * 6
    assert [scanner.echo() for scanner in inside] == [0] * 3
    victim = box.receiver.pids[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in box.receiver.pids and len(box.receiver.pids) == 3, 10, "another worker")
    assert [ask(box.port, ECHO) for _ in range(6)] == [(1, 1, 3)] * 6
    for scanner in inside:
        scanner.close()


def test_a_spool_that_no_worker_can_open_is_an_error_at_the_start(tmp_path: Path):
    with receiving(tmp_path, workers=2, limits=LIMITS) as box:
        identity = box.spool.path / "SPOOL-ID"
        kept = identity.read_text()
        identity.write_text(kept.replace(box.spool.uuid[:8], "00000000"))
        try:
            from appliance.receive.receiver import Receiver
            other = Receiver(lambda: config(), box.spool, box.clock, box.run, workers=2, limits=LIMITS)
            with pytest.raises(SpoolRefused):
                other.start()
        finally:
            identity.write_text(kept)


def test_stopping_ends_idle_associations_of_all_workers(tmp_path: Path):
    with receiving(tmp_path, workers=2, limits=LIMITS) as box:
        scanners = [associated(box.port) for _ in range(4)]
        workers = [psutil.Process(pid) for pid in box.receiver.pids]
        assert box.receiver.stop(2)
        for scanner in scanners:
            assert last_words(scanner)[:1] == b"\x07"
            scanner.close()
        assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)


def test_when_the_front_is_killed_its_workers_end(tmp_path: Path):
    with served(tmp_path, workers=2, limits=LIMITS) as server:
        scanner = associated(server.port)
        children = psutil.Process(server.pid).children(recursive=True)
        assert len(children) == 3                                  # the nursery and two workers
        os.kill(server.pid, signal.SIGKILL)
        server.process.wait()
        psutil.wait_procs(children, timeout=10)
        assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
        scanner.close()
