"""Intake: slots ahead of need, rows behind it, and when it closes."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from appliance.clock import SECOND, ManualClock, SystemClock
from appliance.errors import LedgerFault, SpoolFault, SpoolFull
from appliance.model import Custody
from appliance.spool import intake as intake_module
from appliance.spool import slots, writer
from appliance.spool.buffers import CAPACITY
from appliance.spool.debt import COMMIT_AFTER, COMMIT_ROWS, Debt
from appliance.spool.intake import Intake
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from tests.support.disk import FaultyOs
from tests.support.spools import CT_CLASS, EXPLICIT, SOURCE, accept, files, fresh, intake_of
from tests.support.waiting import wait_until

DEADLINE = 20.0


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return fresh(tmp_path / "spool")


def counts(spool: Spool) -> tuple[int, int, int, int]:
    with Ledger.open(spool.ledger_path, SystemClock(), read_only=True) as ledger:
        c = ledger.counts()
        return c.granted, c.open, c.void, c.accepted


class Gate:
    """Holds up a verb of the ledger until it is opened."""

    def __init__(self, intake: Intake, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()
        self.batches: list[int] = []
        ledger = intake._ledger
        real = getattr(ledger, verb)

        def held(rows: Sequence[Custody]) -> None:
            self.batches.append(len(rows))
            self.reached.set()
            assert self.open.wait(DEADLINE)
            real(rows)

        monkeypatch.setattr(ledger, verb, held)


def custody(number: int) -> Custody:
    return Custody(number, 1, number, 0, CT_CLASS, b"1.2", EXPLICIT, 1, bytes(32), SOURCE)


# Debt

@pytest.mark.requirement("bounded debt")
def test_statuses_wait_beyond_the_bound_of_rows() -> None:
    debt = Debt(4, 1.0)
    tickets = [debt.owe(custody(n), 10) for n in range(4)]
    assert not any(debt.must_wait(ticket, 10) for ticket in tickets)
    fifth = debt.owe(custody(5), 10)
    assert debt.must_wait(fifth, 10)
    rows, _ = debt.collect()
    assert debt.must_wait(fifth, 10), "rows that are being committed are still owed"
    debt.settled(rows)
    assert not debt.must_wait(fifth, 10) and debt.outstanding == 0


@pytest.mark.requirement("bounded debt")
def test_statuses_wait_beyond_the_bound_of_age() -> None:
    debt = Debt(256, 1.0)
    debt.owe(custody(1), SECOND)
    second = debt.owe(custody(2), 2 * SECOND)
    assert not debt.must_wait(second, 2 * SECOND)
    assert debt.must_wait(second, 2 * SECOND + 1)
    rows, _ = debt.collect()
    third = debt.owe(custody(3), 2 * SECOND + 1)
    assert debt.must_wait(third, 2 * SECOND + 1), "the group under way is the oldest"
    debt.settled(rows)
    assert not debt.must_wait(third, 2 * SECOND + 1)


def test_a_group_is_due_by_rows_or_by_age() -> None:
    debt = Debt(256, 1.0)
    assert debt.due(5) == -1
    debt.void(9, "x", 5)
    assert debt.due(5) == COMMIT_AFTER
    assert debt.due(5 + COMMIT_AFTER) == 0 == debt.due(5 + 2 * COMMIT_AFTER)
    debt.collect()
    for n in range(COMMIT_ROWS):
        assert debt.due(5) != 0
        debt.owe(custody(n), 5)
    assert debt.due(5) == 0


# Life

def test_rows_come_in_groups_behind_the_statuses(spool: Spool) -> None:
    groups: list[int] = []
    with intake_of(spool, on_accepted=lambda: groups.append(1)) as intake:
        made = [accept(intake, os.urandom(100), b"1.%d" % n) for n in range(50)]
        assert len({c.number for c in made}) == 50
    assert 1 <= len(groups) < 50
    granted, opened, void, accepted = counts(spool)
    assert (opened, accepted) == (0, 50) and granted == void + accepted
    assert sum(size > 0 for size in files(spool).values()) == 50


@pytest.mark.requirement("bounded debt")
def test_finish_waits_while_the_ledger_lags(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most `max_debt` successes are out without a row; one more waits until the ledger has caught up."""
    with intake_of(spool, max_debt=5, max_debt_seconds=1000) as intake:
        gate = Gate(intake, "accepted", monkeypatch)
        returned: list[int] = []
        done = threading.Event()

        def scan() -> None:
            returned.extend(accept(intake, b"x", b"1.%d" % n).number for n in range(8))
            done.set()

        thread = threading.Thread(target=scan)
        thread.start()
        assert gate.reached.wait(DEADLINE)
        wait_until(lambda: intake.outstanding == 6)
        assert len(returned) == 5 and not done.is_set()
        gate.open.set()
        assert done.wait(DEADLINE)
        thread.join(DEADLINE)
    assert len(returned) == 8


@pytest.mark.requirement("bounded debt")
def test_a_ledger_that_never_answers_is_a_failure_status_in_time(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "DEBT_SECONDS", 0.05)
    with intake_of(spool, max_debt=0) as intake:
        gate = Gate(intake, "accepted", monkeypatch)
        with pytest.raises(SpoolFault, match="does not keep up"):
            accept(intake)
        assert not intake.out_of_intake
        gate.open.set()


@pytest.mark.requirement("I6")
def test_a_ledger_write_error_stops_intake(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    with intake_of(spool, max_debt=0) as intake:
        def broken(rows: object) -> None:
            raise LedgerFault("disk I/O error")
        with monkeypatch.context() as patch:
            patch.setattr(intake._ledger, "accepted", broken)
            with pytest.raises(SpoolFault, match="disk I/O error"):
                accept(intake, b"durable all the same")
        with pytest.raises(SpoolFault, match="disk I/O error"):
            intake.take()
        assert intake.out_of_intake == "disk I/O error"
        assert not intake.stop()
    with intake_of(spool) as intake:
        assert intake.recovery.adopted == 1, "what was durable is adopted at the next start"
        assert not intake.out_of_intake


@pytest.mark.requirement("I6")
def test_a_bug_in_the_maintenance_thread_closes_intake_too(spool: Spool) -> None:
    def broken() -> None:
        raise ZeroDivisionError("bug")

    with intake_of(spool, on_accepted=broken) as intake:
        accept(intake)
        wait_until(lambda: intake.out_of_intake)
        assert "ZeroDivisionError" in intake.out_of_intake and isinstance(intake.error, ZeroDivisionError)
        with pytest.raises(SpoolFault):
            intake.take()


@pytest.mark.requirement("I6")
def test_an_io_error_takes_the_whole_spool_out_of_intake(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    with intake_of(spool) as intake:
        good = accept(intake, b"before")
        other = intake.take()
        other.write(bytes(100))
        faulty = FaultyOs("fdatasync", "pwrite")
        faulty.fail("fdatasync", errno.EIO)
        monkeypatch.setattr(writer, "os", faulty)
        with pytest.raises(SpoolFault):
            accept(intake, b"during")
        faulty.heal()
        with pytest.raises(SpoolFault):
            other.finish(CT_CLASS, b"1.2", EXPLICIT, SOURCE)
        with pytest.raises(SpoolFault):
            intake.take()
        assert faulty.names().count("fdatasync") == 1 and faulty.names().count("pwrite") == 1
    monkeypatch.undo()
    with intake_of(spool) as intake:
        assert intake.recovery.adopted <= 2
        assert accept(intake, b"after").number > good.number


def test_stop_closes_unused_numbers_and_keeps_none_open(spool: Spool) -> None:
    with intake_of(spool, ready=8) as intake:
        accept(intake)
        assert intake.stop()
        with pytest.raises(SpoolFault, match="not running"):
            intake.take()
        assert not spool.is_alive(intake.owner)
    granted, opened, void, accepted = counts(spool)
    assert (opened, accepted, void) == (0, 1, granted - 1)


def test_stop_leaves_an_instance_under_way_to_its_writer(spool: Spool) -> None:
    """Its owner stays alive, so that nobody judges a number that is still being written."""
    with intake_of(spool) as intake:
        half = intake.take()
        half.write(b"x")
        assert not intake.stop(0.05)
        assert spool.is_alive(intake.owner)
        half.finish(CT_CLASS, b"1.2", EXPLICIT, SOURCE)
        assert intake.stop(DEADLINE)
        assert not spool.is_alive(intake.owner)
    assert counts(spool)[3] == 1


def test_a_closed_intake_keeps_its_numbers_while_a_writer_is_at_it(spool: Spool) -> None:
    with intake_of(spool, ready=4) as intake:
        half = intake.take()
        half.write(b"x")
        intake.fault(SpoolFault("elsewhere"))
        assert not intake.stop(DEADLINE)
        assert spool.is_alive(intake.owner)
        half.abandon("out of intake")
        intake.stop(DEADLINE)
        assert not spool.is_alive(intake.owner)


def test_abandoned_instances_cost_no_numbers(spool: Spool) -> None:
    """Hazard: a peer that begins instances and goes away, all day long."""
    with intake_of(spool, ready=8) as intake:
        for _ in range(500):
            half = intake.take()
            half.write(b"x" * 1000)
            half.abandon("peer went away")
        assert intake.in_flight == 0
    granted, opened, _, accepted = counts(spool)
    assert granted <= 64 and (opened, accepted) == (0, 0)


def test_an_abandoned_large_instance_is_void_and_empty(spool: Spool) -> None:
    with intake_of(spool, ready=8) as intake:
        half = intake.take()
        half.write(bytes(CAPACITY + 1))
        half.abandon("peer went away")
    with Ledger.open(spool.ledger_path, SystemClock(), read_only=True) as ledger:
        assert [e.body for e in ledger.history(half.number) if e.kind == "void"] or half.number in ledger.unswept()
    assert files(spool)[half.number] == 0


def test_two_intakes_share_nothing_but_the_ledger(spool: Spool) -> None:
    with intake_of(spool, ready=8) as one, intake_of(spool, ready=8) as other:
        assert other.recovery.owners == 0
        numbers = [accept(intake).number for _ in range(40) for intake in (one, other)]
    assert len(set(numbers)) == 80
    assert counts(spool)[3] == 80


def test_many_threads(spool: Spool) -> None:
    found: list[Custody] = []
    with intake_of(spool, ready=4) as intake:
        def scan(k: int) -> None:
            found.extend(accept(intake, os.urandom(n * 997), b"1.%d.%d" % (k, n)) for n in range(25))
        threads = [threading.Thread(target=scan, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        assert intake.in_flight == 0
    assert len({c.number for c in found}) == 200
    assert counts(spool)[3] == 200


# Slots

def test_the_accepting_thread_makes_and_syncs_no_names(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    with intake_of(spool, ready=8) as intake:
        makes = FaultyOs("open", "fsync", "mkdir", "rename", "unlink")
        writes = FaultyOs("open", "fsync", "fdatasync", "mkdir", "rename", "unlink")
        monkeypatch.setattr(slots, "os", makes)
        monkeypatch.setattr(writer, "os", writes)
        for _ in range(100):
            accept(intake)
    me = threading.current_thread().name
    assert makes.names(me) == [] and makes.names("intake")
    assert writes.names(me) == ["fdatasync"] * 100


@pytest.mark.requirement("hazard: directory sync")
def test_a_folder_is_synced_before_its_slots_are_used(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    watched = FaultyOs()
    watched.stand_in("open", lambda *a, **k: (order.append("open"), os.open(*a, **k))[1])
    watched.stand_in("fsync", lambda fd: (order.append("fsync"), os.fsync(fd))[1])
    monkeypatch.setattr(slots, "os", watched)
    real_put = slots.SlotPool.put

    def put(self: slots.SlotPool, made: list[slots.Slot]) -> None:
        if order:
            order.append("ready")
        real_put(self, made)

    monkeypatch.setattr(slots.SlotPool, "put", put)
    with intake_of(spool, ready=8):
        pass
    assert order[-1] == "ready" and order[-2] == "fsync" and "open" in order


@pytest.mark.requirement("I2")
def test_numbers_are_granted_before_their_files_exist(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    watched = FaultyOs()

    def made(name: str, flags: int, *rest: int, **where: int) -> int:
        if name.endswith(".dcm"):
            seen.append(counts(spool)[0])
            assert int(name[:16], 16) <= seen[-1]
        return os.open(name, flags, *rest, **where)

    watched.stand_in("open", made)
    monkeypatch.setattr(slots, "os", watched)
    with intake_of(spool, ready=8) as intake:
        for _ in range(60):
            accept(intake)
    assert len(seen) >= 60


@pytest.mark.requirement("numbers are used once")
def test_a_number_whose_file_exists_is_never_taken(spool: Spool) -> None:
    """A rolled-back ledger grants numbers again: their objects are not touched, and intake stays closed."""
    spool.object_path(3).write_bytes(b"an acknowledged object")
    before = len(os.listdir("/proc/self/fd"))
    with intake_of(spool, start=False) as intake:
        with pytest.raises(SpoolFault, match="older than the objects"):
            intake.start()
        assert not spool.is_alive(1)
    assert len(os.listdir("/proc/self/fd")) == before
    assert spool.object_path(3).read_bytes() == b"an acknowledged object"


@pytest.mark.parametrize(("code", "error"), [(errno.ENOSPC, SpoolFull), (errno.EDQUOT, SpoolFull), (errno.EIO, SpoolFault),
                                             (errno.EMFILE, SpoolFault)])
@pytest.mark.parametrize("call", ["open", "fsync"])
def test_slots_that_cannot_be_made(spool: Spool, monkeypatch: pytest.MonkeyPatch, call: str, code: int,
                                   error: type[Exception]) -> None:
    with intake_of(spool, ready=4) as intake:
        wait_until(lambda: intake.ready >= 4)
        faulty = FaultyOs()
        faulty.fail(call, code)
        monkeypatch.setattr(slots, "os", faulty)
        with pytest.raises(error):
            for _ in range(100):
                accept(intake)
        faulty.heal()
        if error is SpoolFull:
            assert not intake.out_of_intake
            accept(intake)
        else:
            assert intake.out_of_intake
            with pytest.raises(SpoolFault):
                intake.take()


def test_a_grant_that_fails_closes_intake(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    with intake_of(spool, ready=4) as intake:
        def broken(*_: object) -> int:
            raise LedgerFault("disk I/O error")
        monkeypatch.setattr(intake._ledger, "grant", broken)
        with pytest.raises(SpoolFault, match="disk I/O error"):
            for _ in range(600):
                accept(intake)


def test_a_hung_sync_can_be_seen(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    with intake_of(spool, ready=4) as intake:
        hung, go = threading.Event(), threading.Event()
        faulty = FaultyOs()

        def fdatasync(fd: int) -> None:
            hung.set()
            assert go.wait(DEADLINE)
            os.fdatasync(fd)

        faulty.stand_in("fdatasync", fdatasync)
        monkeypatch.setattr(writer, "os", faulty)
        assert intake.stuck_since() == 0
        before = SystemClock().boot_ns()
        thread = threading.Thread(target=accept, args=(intake,))
        thread.start()
        assert hung.wait(DEADLINE)
        assert before <= intake.stuck_since() <= SystemClock().boot_ns()
        go.set()
        thread.join(DEADLINE)
        assert intake.stuck_since() == 0


def test_custody_has_the_time_of_the_last_byte_and_the_boot(spool: Spool) -> None:
    clock = ManualClock()
    clock.advance(100)
    with intake_of(spool, clock, ready=4, max_debt_seconds=1e6) as intake:
        made = accept(intake)
        assert (made.since_boot, made.wall) == (clock.boot_ns(), clock.wall_ns())
    clock.reboot()
    with intake_of(spool, clock, ready=4, max_debt_seconds=1e6) as intake:
        assert accept(intake).boot == made.boot + 1
