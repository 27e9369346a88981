"""Power cuts at every point of accepting images, on ext4 and XFS, around the page cache and through it.

The real intake runs on a file system whose every write and flush is recorded;
the disks that a power cut may leave are built from that record, mounted, and
started up. Whatever was acknowledged before the cut must be there, bit for bit,
and every number must be accounted for. That these tests can fail is a test, too.

DCMGATE_CRASH_STATES sets how many states each of them looks at.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import pytest

from appliance.clock import SystemClock
from appliance.errors import DcmgateError
from appliance.model import Custody
from appliance.spool import schema, writer
from appliance.spool.balance import balance
from appliance.spool.buffers import CAPACITY
from appliance.spool.intake import Intake
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from appliance.spool.reader import verify
from tests.support.crash import Images, RecordedDisk, State, mounted, need_root_and_loops, states
from tests.support.disk import FaultyOs
from tests.support.spools import SOURCE, accept, fresh, intake_of

STATES = int(os.environ.get("DCMGATE_CRASH_STATES", "48"))
SEED = int(os.environ.get("DCMGATE_CRASH_SEED", "20260101"))


@dataclass
class Run:
    """What happened on a recorded disk, from `start` to `end`, and which successes were given at which position."""

    disk: RecordedDisk
    start: int = 0
    end: int = 0
    acknowledged: list[tuple[int, Custody]] = field(default_factory=list)

    def accept(self, intake: Intake, data: bytes, uid: bytes) -> None:
        custody = accept(intake, data, uid)
        self.acknowledged.append((self.disk.position, custody))

    def promised(self, state: State) -> list[Custody]:
        """What had been acknowledged when the power failed."""
        return [custody for position, custody in self.acknowledged if position <= state.crash]


def scan(run: Run, intake: Intake, dice: random.Random, name: int, count: int) -> None:
    """One scanner: objects of all sizes, and now and then one that breaks off."""
    for n in range(count):
        if dice.random() < 0.15:
            half = intake.take()
            half.write(dice.randbytes(dice.choice((1000, CAPACITY + 1, 2 * CAPACITY))))
            half.abandon("peer went away")
        run.accept(intake, dice.randbytes(dice.choice((0, 700, 20_000, 200_000, CAPACITY + 5000))), b"1.%d.%d" % (name, n))


def a_shift(run: Run, *, direct: bool = True) -> None:
    """Three scanners, then the receiver dies with rows owed, then another one and the keeper's checkpoint."""
    dice = random.Random(SEED)
    spool = fresh(run.disk.mount / "spool")
    os.sync()
    run.start = run.disk.position
    with Ledger.open(spool.ledger_path, SystemClock()) as ledger:
        dead = Intake(spool, ledger, SystemClock(), ready=8)
        dead.direct = direct
        dead.start()
        threads = [threading.Thread(target=scan, args=(run, dead, random.Random(SEED + k), k, 8)) for k in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        half = dead.take()
        half.write(dice.randbytes(CAPACITY + 1))
        die(dead)
        os.close(half._slot.fd)
    with Ledger.open(spool.ledger_path, SystemClock(), checkpointer=True) as ledger:
        intake = Intake(spool, ledger, SystemClock(), ready=8)
        intake.direct = direct
        intake.start()
        scan(run, intake, dice, 7, 4)
        ledger.checkpoint()
        scan(run, intake, dice, 8, 4)
        intake.stop(10)
    run.end = run.disk.position


def die(intake: Intake) -> None:
    """What a killed process leaves: nothing more is written, its lock is gone."""
    intake._close("killed")
    assert intake._thread is not None and intake._owner_lock is not None
    intake._thread.join(20)
    intake._slots.close()
    intake._owner_lock.release()


def start_up(path: Path, promised: list[Custody]) -> None:
    """Everything that has to be true of a spool after a power cut. AssertionError, or one of our errors, if it is not."""
    spool = Spool.open(path)
    with intake_of(spool, ready=4) as intake:
        ledger = intake._ledger
        for custody in promised:
            assert verify(spool, custody.number) == custody
            row = ledger.object(custody.number)
            assert row is not None, f"{custody.number} was acknowledged and is not in the ledger"
            assert row.custody.digest == custody.digest and row.custody.sop_instance == custody.sop_instance
        held = ledger.present(0, 10_000)
        for row in held:
            verify(spool, row.number, row.custody)
        assert accept(intake, b"after the power cut").number not in {row.number for row in held}
        found = balance(spool, ledger, deep=True)
        assert found.unaccounted == 0, found.discrepancies
    with Ledger.open(spool.ledger_path, SystemClock(), read_only=True) as ledger:
        assert ledger.verify_chain().whole and not ledger.quick_check(full=True)
        counts = ledger.counts()
        assert counts.granted == counts.void + counts.accepted and counts.open == 0
        assert counts.accepted == len(held) + 1 >= len(promised) + 1


def losses(run: Run, work: Path, count: int, *, first_only: bool = False) -> Iterator[str]:
    """Every state that does not hold what it should, and why."""
    records = run.disk.records(run.end)
    images = Images(run.disk, records, work / "crashed")
    mount = work / "after"
    mount.mkdir()
    for state in states(records, run.start, count, random.Random(SEED)):
        with mounted(images.build(state), mount, run.disk.kind):
            try:
                start_up(mount / "spool", run.promised(state))
            except (AssertionError, DcmgateError) as e:
                yield f"flush {state.flush}, crash {state.crash}, {len(state.kept)} later writes kept: {e}"
                if first_only:
                    return


@contextmanager
def recorded(work: Path, kind: str, work_to_do: Callable[[Run], None], base: Path | None = None) -> Iterator[Run]:
    with RecordedDisk(work, kind, base) as disk:
        run = Run(disk)
        work_to_do(run)
    yield run


@pytest.fixture
def work(tmp_path: Path) -> Path:
    need_root_and_loops(tmp_path)
    return tmp_path


@pytest.mark.requirement("I1")
@pytest.mark.requirement("I2")
@pytest.mark.slow
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "cached"])
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_nothing_acknowledged_is_lost(work: Path, kind: str, direct: bool) -> None:
    with recorded(work, kind, lambda run: a_shift(run, direct=direct)) as run:
        assert len(run.acknowledged) == 32
        assert list(losses(run, work, STATES)) == []


@pytest.mark.requirement("I1")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_nothing_is_lost_when_the_power_fails_again_during_start_up(work: Path, kind: str) -> None:
    """Crash states of the recovery of crash states: cuts, adoptions and quarantine moves are interrupted, too."""
    with recorded(work, kind, a_shift) as first:
        records = first.disk.records(first.end)
        images = Images(first.disk, records, work / "crashed once")
        for n, state in enumerate(states(records, first.start, max(2, STATES // 8), random.Random(SEED + 1))):
            again = work / f"again{n}"
            again.mkdir()
            promised = first.promised(state)

            def start(run: Run, promised: list[Custody] = promised) -> None:
                run.acknowledged = [(0, custody) for custody in promised]
                run.start = run.disk.position
                start_up(run.disk.mount / "spool", promised)
                run.end = run.disk.position

            with recorded(again, kind, start, images.build(state)) as second:
                assert list(losses(second, again, 6)) == []


# The test of the test

def no_sync_of_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = FaultyOs()
    lazy.stand_in("fdatasync", lambda fd: None)
    monkeypatch.setattr(writer, "os", lazy)


def no_sync_of_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    real = schema.connect

    def connect(*args: Any, **kw: Any) -> apsw.Connection:
        db = real(*args, **kw)
        db.execute("PRAGMA synchronous = NORMAL")
        return db

    monkeypatch.setattr(schema, "connect", connect)


def success_before_the_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sync is done all right, but the status does not wait for it."""
    late = FaultyOs()
    pool = ThreadPoolExecutor(1)

    def fdatasync(fd: int) -> None:
        copy = os.dup(fd)
        pool.submit(lambda: (time.sleep(0.01), os.fdatasync(copy), os.close(copy)))

    late.stand_in("fdatasync", fdatasync)
    monkeypatch.setattr(writer, "os", late)
    monkeypatch.setattr(late, "finish", pool.shutdown, raising=False)


@pytest.mark.requirement("hazard: the quick way to a lying test")
@pytest.mark.requirement("hazard: directory sync")
@pytest.mark.slow
@pytest.mark.parametrize("mistake", [no_sync_of_objects, no_sync_of_the_ledger, success_before_the_sync])
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_missing_sync_is_found(work: Path, kind: str, mistake: Callable[[pytest.MonkeyPatch], None]) -> None:
    with RecordedDisk(work, kind) as disk:
        run = Run(disk)
        with pytest.MonkeyPatch.context() as patch:
            mistake(patch)
            a_shift(run)
            getattr(writer.os, "finish", lambda: None)()
    assert list(losses(run, work, 96, first_only=True)) != []


@pytest.mark.requirement("hazard: the quick way to a lying test")
def test_the_sampler_keeps_what_was_flushed_and_nothing_else(work: Path) -> None:
    """Of three files, one synced, one synced and changed after it, one not synced: the states differ as they should."""
    def three(run: Run) -> None:
        run.start = run.disk.position
        for name in "abc":
            fd = os.open(run.disk.mount / name, os.O_RDWR | os.O_CREAT)
            os.pwrite(fd, b"1" * 8192, 0)
            if name != "c":
                os.fsync(fd)
                run.acknowledged.append((run.disk.position, Custody(0, 0, 0, 0, b"", name.encode(), "", 0, b"", SOURCE)))
            os.close(fd)
        run.end = run.disk.position

    with recorded(work, "ext4", three) as run:
        records = run.disk.records(run.end)
        images = Images(run.disk, records, work / "crashed")
        mount = work / "after"
        mount.mkdir()
        seen: set[tuple[str, ...]] = set()
        for state in states(records, run.start, 40, random.Random(SEED)):
            with mounted(images.build(state), mount, run.disk.kind):
                there = tuple(name for name in "abc" if (mount / name).exists() and (mount / name).read_bytes() == b"1" * 8192)
                assert set(there) >= {custody.sop_instance.decode() for custody in run.promised(state)}
                seen.add(there)
        assert ("a",) in seen and ("a", "b") in seen and () in seen
