"""SlotWriter: what reaches the disk, in which calls, and what every failing call leads to."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from blake3 import blake3

from appliance.clock import ManualClock
from appliance.dicom.part10 import HEAD, parse_head
from appliance.errors import HeadError, SpoolError, SpoolFault, SpoolFull
from appliance.model import Custody, Source
from appliance.spool import writer
from appliance.spool.buffers import CAPACITY, Buffer, BufferPool
from appliance.spool.slots import Slot
from appliance.spool.writer import DIRECT_FROM, SlotWriter
from tests.support.disk import FaultyOs
from tests.support.waiting import wait_until

SOURCE = Source(listener="main", calling="CT1", called="GATE", raw_calling=b"CT1".ljust(16), raw_called=b"GATE".ljust(16),
                address="127.0.0.1", port=104)
WATCHED = ("open", "pwrite", "ftruncate", "fdatasync", "fsync", "close", "mkdir", "rename", "unlink")


class Yard:
    """An intake that only takes notes."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.boot = 3
        self.direct = True
        self.owed: list[Custody] = []
        self.voids: list[tuple[int, str]] = []
        self.back: list[int] = []
        self.faults: list[SpoolFault] = []
        self.buffers = BufferPool()
        self.lent = 0
        self.full = False

    def reserve(self, slot: Slot, size: int) -> None:
        if self.full:
            raise SpoolFull("quota")

    def owe(self, custody: Custody) -> None:
        self.owed.append(custody)

    def done(self, slot: Slot, buffer: Buffer, void: str = "") -> None:
        self.lent -= 1
        self.buffers.give(buffer)
        if void:
            self.voids.append((slot.number, void))
        elif not slot.touched and slot.fd >= 0:
            self.back.append(slot.number)

    def fault(self, error: SpoolFault) -> None:
        self.faults.append(error)

    def syncing(self, slot: Slot, since: int) -> None:
        pass

    def writer(self, path: Path, number: int = 9) -> SlotWriter:
        self.lent += 1
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        return SlotWriter(self, Slot(number, fd), self.buffers.take())


@pytest.fixture
def yard() -> Yard:
    return Yard()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FaultyOs:
    faulty = FaultyOs(*WATCHED)
    monkeypatch.setattr(writer, "os", faulty)
    return faulty


def finish(slot: SlotWriter) -> Custody:
    return slot.finish(b"1.2.840.10008.5.1.4.1.1.2", b"1.2.3.4", "1.2.840.10008.1.2.1", SOURCE)


LENGTHS = (0, 1, 4095, 4096, 4097, DIRECT_FROM - HEAD - 1, DIRECT_FROM - HEAD, DIRECT_FROM, CAPACITY - 1, CAPACITY,
           CAPACITY + 1, 2 * CAPACITY, 3 * CAPACITY + 12345)


@pytest.mark.requirement("I1")
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("length", LENGTHS)
def test_what_is_on_disk_is_what_came_in(yard: Yard, tmp_path: Path, disk: FaultyOs, length: int, direct: bool) -> None:
    data = os.urandom(length)
    yard.direct = direct
    slot = yard.writer(tmp_path / "slot")
    slot.write(data)
    custody = finish(slot)
    written = (tmp_path / "slot").read_bytes()
    assert len(written) == HEAD + length
    assert written[HEAD:] == data
    assert parse_head(written[:HEAD]) == custody
    assert custody.digest == blake3(data).digest()
    assert (custody.number, custody.boot, custody.length, custody.since_boot) == (9, 3, length, yard.clock.boot_ns())
    assert yard.owed == [custody] and yard.lent == 0
    names = disk.names()
    assert names.count("fdatasync") == 1
    assert names.index("fdatasync") == len(names) - 2 and names[-1] == "close"
    assert set(names) <= {"pwrite", "ftruncate", "fdatasync", "close"}
    if length <= CAPACITY:
        assert names.count("pwrite") == 1


def test_room_is_never_empty_and_takes_any_split(yard: Yard, tmp_path: Path) -> None:
    data = memoryview(os.urandom(2 * CAPACITY + 77))
    slot = yard.writer(tmp_path / "slot")
    done = 0
    step = 1
    while done < len(data):
        room = slot.room()
        assert len(room) > 0
        count = min(step, len(room), len(data) - done)
        room[:count] = data[done:done + count]
        slot.advance(count)
        done += count
        step = step * 3 % 200_003 + 1
    assert finish(slot).digest == blake3(data).digest()
    assert (tmp_path / "slot").read_bytes()[HEAD:] == data


def test_nothing_of_the_instance_before_is_left_behind(yard: Yard, tmp_path: Path, disk: FaultyOs) -> None:
    """The page that is filled up before the cut holds zeros, not another patient's bytes, should the power fail in between."""
    first = yard.writer(tmp_path / "a", 1)
    first.write(b"\xee" * CAPACITY)
    finish(first)
    disk.stand_in("ftruncate", lambda fd, size: None)
    second = yard.writer(tmp_path / "b", 2)
    second.write(b"x" * (DIRECT_FROM + 5))
    finish(second)
    written = (tmp_path / "b").read_bytes()
    assert len(written) % 4096 == 0
    assert not any(written[HEAD + DIRECT_FROM + 5:])


def test_the_head_of_a_large_object_is_written_last(yard: Yard, tmp_path: Path, disk: FaultyOs) -> None:
    offsets: list[int] = []

    def pwrite(fd: int, view: memoryview, offset: int) -> int:
        offsets.append(offset)
        return os.pwrite(fd, view, offset)

    disk.stand_in("pwrite", pwrite)
    slot = yard.writer(tmp_path / "slot")
    slot.write(bytes(2 * CAPACITY + 5))
    wait_until(lambda: offsets == [HEAD, HEAD + CAPACITY], 10, "two buffers are written")
    assert not any((tmp_path / "slot").read_bytes()[:HEAD])
    finish(slot)
    assert offsets == [HEAD, HEAD + CAPACITY, HEAD + 2 * CAPACITY, 0]


def test_short_writes_go_on_where_they_stopped(yard: Yard, tmp_path: Path, disk: FaultyOs) -> None:
    disk.stand_in("pwrite", lambda fd, view, offset: os.pwrite(fd, view[:8192], offset))
    slot = yard.writer(tmp_path / "slot")
    data = os.urandom(CAPACITY + 30000)
    slot.write(data)
    assert finish(slot).digest == blake3((tmp_path / "slot").read_bytes()[HEAD:]).digest()


@pytest.mark.requirement("I6")
@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.EBADF, errno.EUCLEAN])
@pytest.mark.parametrize(("call", "length"), [
    *(("pwrite", length) for length in (0, 20_000, CAPACITY, 3 * CAPACITY)),
    *(("fdatasync", length) for length in (0, 20_000, CAPACITY, 3 * CAPACITY)),
    ("ftruncate", DIRECT_FROM + 1), ("ftruncate", CAPACITY - 1), ("ftruncate", 3 * CAPACITY + 1)])
def test_any_io_error_closes_intake_and_is_never_repeated(yard: Yard, tmp_path: Path, disk: FaultyOs, call: str, length: int,
                                                          code: int) -> None:
    disk.fail(call, code)
    slot = yard.writer(tmp_path / "slot")
    with pytest.raises(SpoolFault):
        slot.write(os.urandom(length))
        finish(slot)
    for _ in range(2):
        assert disk.names().count(call) == 1
        assert len(yard.faults) == 1 and not yard.owed and not yard.voids and not yard.back
        assert yard.lent == 0
        with pytest.raises(SpoolFault):
            finish(slot)


@pytest.mark.requirement("I1")
@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_a_full_disk_voids_the_slot_and_closes_nothing(yard: Yard, tmp_path: Path, disk: FaultyOs, call: str, code: int,
                                                       after: int) -> None:
    disk.fail(call, code, after=after if call == "pwrite" else 0)
    slot = yard.writer(tmp_path / "slot")
    with pytest.raises(SpoolFull):
        slot.write(os.urandom(2 * CAPACITY))
        finish(slot)
    assert not yard.faults and not yard.owed and yard.lent == 0
    assert [number for number, _ in yard.voids] == [9]
    assert (tmp_path / "slot").stat().st_size == 0
    with pytest.raises(SpoolError):
        finish(slot)
    slot.abandon("again")
    assert len(yard.voids) == 1


def test_a_cut_that_fails_after_a_full_disk_closes_intake(yard: Yard, tmp_path: Path, disk: FaultyOs) -> None:
    disk.fail("pwrite", errno.ENOSPC)
    disk.fail("ftruncate", errno.EIO)
    slot = yard.writer(tmp_path / "slot")
    slot.write(b"x")
    with pytest.raises(SpoolFull):
        finish(slot)
    assert len(yard.faults) == 1 and not yard.voids


def test_no_room_by_quota_leaves_the_slot_untouched(yard: Yard, tmp_path: Path) -> None:
    yard.full = True
    slot = yard.writer(tmp_path / "slot")
    slot.write(b"x")
    with pytest.raises(SpoolFull):
        finish(slot)
    assert yard.back == [9] and not yard.voids and yard.lent == 0


def test_a_failing_close_takes_nothing_back(yard: Yard, tmp_path: Path, disk: FaultyOs) -> None:
    disk.fail("close", errno.EIO)
    slot = yard.writer(tmp_path / "slot")
    slot.write(b"x")
    assert finish(slot).length == 1


def test_abandon_before_anything_was_written_gives_the_slot_back(yard: Yard, tmp_path: Path, disk: FaultyOs) -> None:
    slot = yard.writer(tmp_path / "slot")
    slot.write(bytes(CAPACITY))
    slot.abandon("peer went away")
    slot.abandon("twice")
    assert yard.back == [9] and not yard.voids and disk.names() == [] and yard.lent == 0


def test_abandon_of_a_large_object_cuts_and_voids(yard: Yard, tmp_path: Path) -> None:
    slot = yard.writer(tmp_path / "slot")
    slot.write(bytes(CAPACITY + 1))
    slot.abandon("peer went away")
    assert yard.voids == [(9, "peer went away")] and not yard.back
    assert (tmp_path / "slot").stat().st_size == 0


def test_abandon_after_finish_does_nothing(yard: Yard, tmp_path: Path) -> None:
    slot = yard.writer(tmp_path / "slot")
    slot.write(b"abc")
    finish(slot)
    slot.abandon("late")
    assert (tmp_path / "slot").stat().st_size == HEAD + 3 and not yard.voids
    with pytest.raises(ValueError, match="finished"):
        finish(slot)


def test_a_head_that_does_not_fit_is_refused(yard: Yard, tmp_path: Path) -> None:
    slot = yard.writer(tmp_path / "slot")
    slot.write(b"abc")
    with pytest.raises(HeadError):
        slot.finish(b"\xff" * 2000, b"\xff" * 2000, "1.2", SOURCE)
    assert yard.lent == 0 and yard.back == [9]


@pytest.mark.parametrize("where", ["fcntl", "pwrite"])
def test_a_file_system_without_direct_io_gets_the_page_cache(yard: Yard, tmp_path: Path, disk: FaultyOs, where: str,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    class Fcntl:
        F_SETFL = 4
        flags = -1

        def fcntl(self, fd: int, command: int, flags: int) -> int:
            if where == "fcntl":
                raise OSError(errno.EINVAL, "Invalid argument")
            self.flags = flags
            return 0

    fake = Fcntl()
    monkeypatch.setattr(writer, "fcntl", fake)

    def pwrite(fd: int, view: memoryview, offset: int) -> int:
        if fake.flags == os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return os.pwrite(fd, view, offset)

    disk.stand_in("pwrite", pwrite)
    for number in (1, 2):
        data = os.urandom(CAPACITY + 3)
        slot = yard.writer(tmp_path / f"slot{number}", number)
        slot.write(data)
        finish(slot)
        assert (tmp_path / f"slot{number}").read_bytes()[HEAD:] == data
    assert yard.direct is False and not yard.faults


@pytest.mark.parametrize("count", [-1, CAPACITY + 1])
def test_advance_beyond_the_room_is_a_bug_of_the_caller(yard: Yard, tmp_path: Path, count: int) -> None:
    slot = yard.writer(tmp_path / "slot")
    with pytest.raises(ValueError, match="room"):
        slot.advance(count)
