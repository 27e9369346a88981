"""Power cuts, made: what a file system was told to write, put back together as a disk may hold it after the power failed.

A disk owes what was written before its last completed flush, and nothing of what
came later: any of those writes may be there, missing, or torn between sectors
of 512 bytes, in any order.
"""

from __future__ import annotations

import mmap
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.recorder import FLUSH, RECORD, WRITE, load
from tests.support.waiting import Late, wait_until

SECTOR = 512
MIB = 1 << 20
MAKE = {"ext4": (64, ["mkfs.ext4", "-q", "-b", "4096", "-N", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"]),
        "xfs": (320, ["mkfs.xfs", "-q"])}
OPTIONS = {"ext4": "noatime", "xfs": "noatime,nouuid"}
"""Without `nouuid` XFS refuses a second disk of the same identifier, and the first may still be mounted in a mount namespace
that somebody made meanwhile."""


@dataclass(frozen=True, slots=True)
class Record:
    """One write (bytes at an offset) or, with no data, one flush. `at`: wall time (ns) at which the disk was given it."""

    kind: int
    offset: int
    data: bytes
    at: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """One disk after a power cut: every record up to `flush` in full, of those between it and `crash` what `kept` says.

    `crash` records had reached the disk's cache when the power failed.
    """

    flush: int
    crash: int
    kept: tuple[tuple[int, tuple[bool, ...]], ...]


def run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except subprocess.CalledProcessError as e:
        e.add_note(e.stderr.decode(errors="replace"))
        raise


def unmount(path: Path) -> None:
    """Unmount; where somebody still has a file open there after 10 s, at least hide it, and say so.

    A process that was begun elsewhere meanwhile has everything open from its fork to its exec.
    """
    def gone() -> bool:
        return subprocess.run(["umount", str(path)], capture_output=True, timeout=60, check=False).returncode == 0

    try:
        wait_until(gone, 10, "unmounted", every=0.1)
    except Late:
        run("umount", "-l", str(path))
        raise AssertionError(f"somebody still uses {path}") from None


def why_not(folder: Path) -> str:
    """Why nothing can be recorded and mounted on this machine; "" where it can."""
    for device in ("/dev/fuse", "/dev/loop-control"):
        if not os.access(device, os.R_OK | os.W_OK):
            return f"{device} cannot be used here"
    for _, command in MAKE.values():
        if shutil.which(command[0]) is None:
            return f"{command[0]} is missing"
    probe = folder / "probe"
    probe.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", str(probe)], capture_output=True, timeout=60, check=False).returncode:
        return "nothing can be mounted here"
    run("umount", str(probe))
    probe.rmdir()
    return ""


def need_root_and_loops(tmp_path: Path) -> None:
    """Skip, with the reason, where this machine lets us mount nothing."""
    if reason := why_not(tmp_path):
        pytest.skip(reason)


def end(server: subprocess.Popen[bytes]) -> None:
    """Unmounted, it writes its log out and ends by itself; it is told to where a mount namespace of others keeps the mount."""
    try:
        server.wait(3)
    except subprocess.TimeoutExpired:
        server.terminate()
        server.wait(120)


class RecordedDisk:
    """A mounted file system whose every write and flush is recorded. `position` counts the records so far.

    It is a new one of that kind, or goes on from the image `base`.
    """

    def __init__(self, work: Path, kind: str, base: Path | None = None) -> None:
        self.kind = kind
        self._given = base
        self.mount = work / "mounted"
        self.mount.mkdir(exist_ok=True)
        self._file, self._image, self._log = work / "disk", work / "base", work / "log"
        self._stack = ExitStack()

    @property
    def position(self) -> int:
        return int.from_bytes(self._counter[:8], "little")

    def __enter__(self) -> RecordedDisk:
        if self._given is not None:
            self._given.rename(self._image)
        else:
            size, make = MAKE[self.kind]
            with open(self._image, "wb") as stream:
                stream.truncate(size * MIB)
            run(*make, str(self._image))
        self._file.touch()
        stack = self._stack
        try:
            server = stack.enter_context(subprocess.Popen([sys.executable, "-m", "tests.support.recorder", str(self._file),
                                                           str(self._image), str(self._log)], stdout=subprocess.PIPE))
            stack.callback(end, server)
            assert server.stdout is not None
            assert server.stdout.readline() == b"mounted\n"
            stack.callback(run, "umount", "-l", str(self._file))
            with open(f"{self._log}.count", "rb") as counter:
                self._counter = mmap.mmap(counter.fileno(), 4096, prot=mmap.PROT_READ)
            loop = subprocess.run(["losetup", "-f", "--show", str(self._file)], check=True, capture_output=True, text=True,
                                  timeout=60).stdout.strip()
            stack.callback(run, "losetup", "-d", loop)
            run("mount", "-o", OPTIONS[self.kind], loop, str(self.mount))
            stack.callback(unmount, self.mount)
            stack.callback(run, "sync", "-f", str(self.mount))
        except BaseException:
            stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def records(self, end: int) -> list[Record]:
        """The first `end` records; after the disk was closed."""
        found: list[Record] = []
        with open(self._log, "rb") as log:
            while len(found) < end:
                kind, offset, length, at = RECORD.unpack(log.read(RECORD.size))
                found.append(Record(kind, offset, log.read(length), at))
        return found

    def keep(self, folder: Path) -> None:
        """Copy the record, to be looked at later; after the disk was closed."""
        for path in (self._image, self._log):
            run("cp", "--sparse=always", str(path), str(folder / path.name))

    @classmethod
    def kept(cls, folder: Path, kind: str) -> RecordedDisk:
        """A record that `keep` left: for `records` and `base` only."""
        return cls(folder, kind)

    def base(self) -> mmap.mmap:
        """A private copy of the disk before the first record."""
        data = mmap.mmap(-1, os.stat(self._image).st_size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        load(str(self._image), data)
        return data


def flushes(records: Sequence[Record], start: int) -> list[int]:
    """Positions of the flushes from `start` on; the first is the last one before it."""
    all_of_them = [i for i, record in enumerate(records) if record.kind == FLUSH]
    before = [i for i in all_of_them if i < start]
    return before[-1:] + [i for i in all_of_them if i >= start]


def states(records: Sequence[Record], start: int, count: int, dice: random.Random) -> list[State]:
    """`count` crash states from record `start` on, in order of time, spread over all flush points.

    Of each flush point first the plain one (nothing later reached the disk),
    then random ones: every later write kept, lost or torn, with odds that differ
    from state to state.
    """
    points = flushes(records, start)
    found: list[State] = []
    for n in range(count):
        index = n * len(points) // count if count < len(points) else n % len(points)
        flush = points[index]
        crash = points[index + 1] if index + 1 < len(points) else len(records)
        later = [i for i in range(flush + 1, crash) if records[i].kind == WRITE]
        plain = n % 3 == 0 if count < len(points) else n < len(points)
        kept: list[tuple[int, tuple[bool, ...]]] = []
        if not plain:
            whole, torn = dice.random(), dice.random() * 0.5
            for i in later:
                sectors = max(1, len(records[i].data) // SECTOR)
                throw = dice.random()
                if throw < torn:
                    kept.append((i, tuple(dice.random() < 0.5 for _ in range(sectors))))
                elif throw < torn + whole * (1 - torn):
                    kept.append((i, (True,) * sectors))
        found.append(State(flush, crash, tuple(kept)))
    return sorted(found, key=lambda state: state.flush)


@contextmanager
def mounted(image: Path, mount: Path, kind: str) -> Iterator[Path]:
    """A crashed image, mounted as a start-up would: the file system replays its journal."""
    run("mount", "-t", kind, "-o", f"loop,{OPTIONS[kind]}", str(image), str(mount))
    try:
        yield mount
    finally:
        unmount(mount)


class Images:
    """Builds the image of one state after another; the states must come in order of time."""

    def __init__(self, disk: RecordedDisk, records: Sequence[Record], target: Path) -> None:
        self._records = records
        self._durable = disk.base()
        self._done = 0
        self._target = target
        self._touched: set[int] = set()
        self._used: set[int] = set(_blocks_in_use(self._durable))

    def build(self, state: State) -> Path:
        """The image as a file of its own."""
        for record in self._records[self._done:state.flush + 1]:
            self._durable[record.offset:record.offset + len(record.data)] = record.data
            self._used.update(range(record.offset // 4096, (record.offset + len(record.data) + 4095) // 4096))
        self._done = state.flush + 1
        self._target.unlink(missing_ok=True)
        fd = os.open(self._target, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            os.ftruncate(fd, len(self._durable))
            with memoryview(self._durable) as durable:
                for first, last in _runs(self._used):
                    os.pwrite(fd, durable[first * 4096:last * 4096], first * 4096)
            for index, sectors in state.kept:
                record = self._records[index]
                for n, there in enumerate(sectors):
                    if there:
                        piece = record.data[n * SECTOR:(n + 1) * SECTOR]
                        os.pwrite(fd, piece, record.offset + n * SECTOR)
        finally:
            os.close(fd)
        return self._target


def _blocks_in_use(data: mmap.mmap) -> Iterator[int]:
    zero = bytes(4096)
    for block in range(len(data) // 4096):
        if data[block * 4096:(block + 1) * 4096] != zero:
            yield block


def _runs(blocks: set[int]) -> Iterator[tuple[int, int]]:
    """Blocks as ranges [first, last), at most 1 MiB each."""
    first = last = -1
    for block in sorted(blocks):
        if block == last and last - first < 256:
            last += 1
            continue
        if first >= 0:
            yield first, last
        first, last = block, block + 1
    if first >= 0:
        yield first, last
