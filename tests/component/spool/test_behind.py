"""Large objects: written by a thread behind the one that receives, and every failure of it met in time."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from blake3 import blake3

from appliance.dicom.part10 import HEAD
from appliance.errors import SpoolFault, SpoolFull
from appliance.spool import behind, writer
from appliance.spool.behind import BUFFERS, Behind
from appliance.spool.buffers import CAPACITY, Buffer
from tests.component.spool.test_writer import WATCHED, Yard, finish
from tests.support.disk import FaultyOs
from tests.support.waiting import wait_until


@pytest.fixture
def yard() -> Yard:
    return Yard()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FaultyOs:
    faulty = FaultyOs(*WATCHED)
    monkeypatch.setattr(writer, "os", faulty)
    return faulty


def slow(disk: FaultyOs) -> threading.Event:
    """Writes wait for the event."""
    go_on = threading.Event()

    def pwrite(fd: int, view: memoryview, offset: int) -> int:
        assert go_on.wait(20)
        return os.pwrite(fd, view, offset)

    disk.stand_in("pwrite", pwrite)
    return go_on


def test_an_object_is_taken_while_it_is_written(yard: Yard, tmp_path: Path, disk: FaultyOs) -> None:
    go_on = slow(disk)
    data = os.urandom(BUFFERS * CAPACITY + 5)
    slot = yard.writer(tmp_path / "slot")
    slot.write(data)                                  # nothing is on the disk yet
    go_on.set()
    custody = finish(slot)
    assert custody.digest == blake3(data).digest()
    assert (tmp_path / "slot").read_bytes()[HEAD:] == data
    assert disk.names("behind").count("pwrite") == BUFFERS and disk.names("MainThread")[-2:] == ["fdatasync", "close"]


@pytest.mark.requirement("I6")
@pytest.mark.parametrize("end", ["finish", "abandon", "more"])
def test_an_io_error_behind_us_closes_intake_however_the_object_ends(yard: Yard, tmp_path: Path, disk: FaultyOs, end: str
                                                                     ) -> None:
    disk.fail("pwrite", errno.EIO)
    slot = yard.writer(tmp_path / "slot")
    slot.write(bytes(2 * CAPACITY))
    if end == "abandon":
        slot.abandon("peer went away")
    else:
        with pytest.raises(SpoolFault):
            if end == "more":
                slot.write(bytes(4 * CAPACITY))
            finish(slot)
    assert len(yard.faults) == 1 and not yard.owed and not yard.voids and yard.lent == 0
    assert disk.names().count("pwrite") == 1          # nothing is written behind a write that failed


def test_no_room_behind_us_voids_the_slot(yard: Yard, tmp_path: Path, disk: FaultyOs) -> None:
    disk.fail("pwrite", errno.ENOSPC, after=1)
    slot = yard.writer(tmp_path / "slot")
    with pytest.raises(SpoolFull):
        slot.write(bytes(9 * CAPACITY))
        finish(slot)
    assert [number for number, _ in yard.voids] == [9] and not yard.faults and yard.lent == 0
    assert (tmp_path / "slot").stat().st_size == 0


def test_no_room_by_quota_waits_for_what_is_being_written(yard: Yard, tmp_path: Path, disk: FaultyOs) -> None:
    """A cut in the middle of a write would leave the bytes of an instance that was given up."""
    go_on = slow(disk)
    slot = yard.writer(tmp_path / "slot")
    slot.write(bytes(CAPACITY + 1))
    yard.full = True
    threading.Timer(0.2, go_on.set).start()
    with pytest.raises(SpoolFull):
        slot.write(bytes(2 * CAPACITY))
    assert (tmp_path / "slot").stat().st_size == 0
    assert disk.names().index("ftruncate") > disk.names().index("pwrite") and len(yard.voids) == 1


@pytest.mark.requirement("I6")
def test_a_fault_behind_us_outweighs_a_quota(yard: Yard, tmp_path: Path, disk: FaultyOs) -> None:
    disk.fail("pwrite", errno.EIO)
    slot = yard.writer(tmp_path / "slot")
    slot.write(bytes(CAPACITY + 1))
    yard.full = True
    with pytest.raises(SpoolFault):
        slot.write(bytes(2 * CAPACITY))
    assert len(yard.faults) == 1 and not yard.voids


def test_without_a_thread_it_writes_by_itself(yard: Yard, tmp_path: Path, disk: FaultyOs, monkeypatch: pytest.MonkeyPatch
                                              ) -> None:
    monkeypatch.setattr(behind, "take", lambda: None)
    slot = yard.writer(tmp_path / "slot")
    data = os.urandom(3 * CAPACITY + 9)
    slot.write(data)
    finish(slot)
    assert (tmp_path / "slot").read_bytes()[HEAD:] == data and set(disk.names("behind")) == set()


def test_threads_and_buffers_are_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behind, "_idle", [])
    before = set(threading.enumerate())               # what others of this process have lent is none of ours
    many = [behind.take() for _ in range(6)]
    new = set(threading.enumerate()) - before
    assert sum(thread.name == "behind" for thread in new) == 6
    for one in many:
        assert one is not None
        behind.give(one)
    assert len(behind._idle) == behind.KEPT
    wait_until(lambda: sum(thread.is_alive() for thread in new) <= behind.KEPT, 10, "the rest end")
    for kept in behind._idle:
        kept.end()


def test_what_is_idle_for_long_ends_and_what_is_lent_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behind, "_idle", [])
    monkeypatch.setattr(behind, "IDLE_SECONDS", 0.02)
    before = set(threading.enumerate())
    lent, kept = behind.take(), behind.take()
    assert lent is not None and kept is not None
    behind.give(kept)
    wait_until(lambda: len(set(threading.enumerate()) - before) == 1 and not behind._idle, 10, "the idle one ends")
    done: list[str] = []
    lent.begin(Buffer(), lambda: done.append("late"))
    lent.wait()
    assert done == ["late"]
    behind.give(lent)
    wait_until(lambda: not set(threading.enumerate()) - before, 10, "the other one ends, now that it is back")


def test_what_was_begun_behind_a_failure_is_not_done_and_the_next_borrower_begins_afresh() -> None:
    one, done = Behind(), []

    def fail() -> None:
        raise OSError(errno.EIO, "injected")

    buffer = one.begin(Buffer(), fail)
    one.begin(buffer, lambda: done.append("behind the failure"))
    with pytest.raises(OSError, match="injected"):
        one.wait()
    one.wait()
    one.begin(Buffer(), lambda: done.append("afresh"))
    one.wait()
    assert done == ["afresh"]
    one.end()
