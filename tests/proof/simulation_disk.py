"""A disk that forgets: the spool's system calls on files in memory, of which only what was synced outlives a power cut.

`SimOs` and `SimFcntl` stand in for `os` and `fcntl` in the modules that touch
objects. The files themselves lie on a tmpfs, and are what the page cache shows;
beside each the disk keeps what the platter has (`Inode.disk`, `Disk.kept`) and
what is on its way there. A sync brings the one to the other. After a failed sync
what was on its way is gone, though the cache still shows it (hazards, Disks).

    power cut     names: a prefix of what was not synced, as a journal has it; data: any writes, whole, torn, or not at all
    clean reboot  everything that was not lost is on the platter; the cache shows the platter again
    crash         of one process: nothing is lost but its descriptors

Every call that changes something is a step at which the process may die
(`Hooks.effect`), or at which the disk fails (`fail`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

SECTOR = 512
PAGE = 4096
ENDLESS = 1 << 40


class Hooks(Protocol):
    """What the disk tells the world that it is part of."""

    def effect(self, what: str) -> None:
        """Something is about to change: the running process may die here."""

    def process(self) -> object:
        """The process that is running."""

    def made(self, path: str) -> None:
        """A file was made."""

    def wrote(self, path: str) -> None:
        """The data of a file is about to be changed."""

    def aside(self, source: str, target: str) -> None:
        """A file is about to get another name."""

    def read(self, path: str, offset: int) -> None:
        """The data of a file is read."""

    def gone(self, path: str) -> None:
        """A name is about to be deleted."""

    def synced(self, path: str, again: bool) -> None:
        """A process syncs a file; `again`: one whose sync failed under its hands, and it did not look at the disk after it."""

    def failed(self, what: str, path: str, number: int) -> None:
        """The disk is about to answer with that errno."""

    def slow(self, seconds: float) -> None:
        """The disk takes its time."""


@dataclass(slots=True)
class Inode:
    """One file: what the platter has of it, and what is not there yet: writes (offset, data) and cuts (length, None)."""

    disk: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    failed_for: object = None

    def arrive(self) -> None:
        """Everything pending reaches the platter."""
        for at, data in self.pending:
            _apply(self.disk, at, data)
        self.pending.clear()


def _apply(content: bytearray, at: int, data: bytes | None) -> None:
    if data is None:
        del content[at:]
        content.extend(bytes(at - len(content)))
        return
    content.extend(bytes(max(0, at - len(content))))
    content[at:at + len(data)] = data


@dataclass(slots=True)
class _Open:
    """A descriptor: of a file, or of a folder. `direct`: around the page cache."""

    process: object
    path: str
    inode: Inode | None = None
    folder: bool = False
    direct: bool = False
    position: int = 0
    dropped: bool = False            # the cache, so that reads come from the disk
    again: bool = False              # synced by a process under whose hands its sync had failed
    looked: bool = False             # read from the disk after that


@dataclass(slots=True)
class Failure:
    """How the disk answers the next calls of one kind: an errno, or a delay in seconds where `number` is 0."""

    kind: str
    number: int
    count: int = 1
    seconds: float = 0.0


class Disk:
    """The files below `roots`. `total` bytes of room; `foreign` of them belong to somebody else."""

    def __init__(self, roots: Iterable[Path], hooks: Hooks, *, total: int = ENDLESS, takes_direct: bool = True) -> None:
        self.roots = tuple(str(root) + "/" for root in roots)
        self.hooks = hooks
        self.total = total
        self.takes_direct = takes_direct
        self.foreign = 0
        self.failures: list[Failure] = []
        self.names: dict[str, Inode] = {}            # as the running system sees them
        self.kept: dict[str, Inode] = {}             # as the platter has them
        self._moves: list[tuple[str, str, Inode]] = []  # names not there yet: (from, to, file); "" is nowhere
        self._open: dict[int, _Open] = {}

    # What the platter has, for the judge

    def durable(self, path: str) -> bytes | None:
        """The content that would be found under that name if the power failed now; None for no such name."""
        inode = self.kept.get(path)
        return None if inode is None else bytes(inode.disk)

    def used(self) -> int:
        """Bytes; not counted where there is room without end."""
        if self.total >= ENDLESS:
            return 0
        return sum(os.stat(path).st_size for path in self.names) + self.foreign

    def tracked(self, path: str) -> bool:
        return path.startswith(self.roots)

    # Faults

    def fail(self, kind: str, number: int, count: int = 1, seconds: float = 0.0) -> None:
        self.failures.append(Failure(kind, number, count, seconds))

    def heal(self) -> None:
        self.failures.clear()

    def flip(self, path: str, bit: int) -> None:
        """One bit of a file turns, on the platter and so for everybody."""
        inode = self.names[path]
        inode.arrive()
        bit %= max(1, 8 * len(inode.disk))
        inode.disk[bit // 8] ^= 1 << bit % 8
        Path(path).write_bytes(inode.disk)

    def _meet(self, kind: str, path: str) -> int:
        """The errno for this call, 0 for none."""
        for failure in self.failures:
            if failure.kind == kind:
                failure.count -= 1
                if failure.count <= 0:
                    self.failures.remove(failure)
                if not failure.number:
                    self.hooks.slow(failure.seconds)
                    return 0
                if failure.number != errno.EINTR:    # a short write is no failure
                    self.hooks.failed(kind, path, failure.number)
                return failure.number
        return 0

    def step(self, kind: str, path: str) -> None:
        """A call that changes something: the process may die before it, or the disk refuse it."""
        self.hooks.effect(f"{kind} {os.path.basename(path)}")
        if number := self._meet(kind, path):
            raise OSError(number, os.strerror(number), path)

    # Ends of the world

    def close_all(self, process: object) -> None:
        """A process is gone."""
        for fd in [fd for fd, entry in self._open.items() if entry.process is process]:
            os.close(fd)
            del self._open[fd]

    def cut(self, dice: random.Random) -> None:
        """The power fails. Every process must be gone already."""
        count = len(self._moves)
        for move in self._moves[:dice.choice((0, count, dice.randint(0, count)))]:
            _move(self.kept, *move)
        for inode in {id(inode): inode for inode in self.kept.values()}.values():
            whole, torn = dice.random(), dice.random() * 0.5
            for at, data in inode.pending:
                throw = dice.random()
                if throw < torn and data is not None:
                    for start in range(0, len(data), SECTOR):
                        if dice.random() < 0.5:
                            _apply(inode.disk, at + start, data[start:start + SECTOR])
                elif throw < torn + whole * (1 - torn):
                    _apply(inode.disk, at, data)
        self._show_platter()

    def settle(self) -> None:
        """An orderly shutdown: what is pending arrives, what was lost stays lost, and the cache shows the platter."""
        for move in self._moves:
            _move(self.kept, *move)
        for inode in self.names.values():
            inode.arrive()
        self._show_platter()

    def _show_platter(self) -> None:
        self._moves.clear()
        for path in self.names.keys() - self.kept.keys():
            os.unlink(path)
        for path, inode in self.kept.items():
            inode.pending.clear()
            inode.failed_for = None
            Path(path).write_bytes(inode.disk)
        self.names = dict(self.kept)

    # Names and data, for SimOs

    def move(self, source: str, target: str) -> None:
        inode = self.names[source] if source else Inode()
        _move(self.names, source, target, inode)
        self._moves.append((source, target, inode))

    def sync_folder(self, path: str) -> None:
        """A journal's order: what was done before the last change of this folder is durable with it."""
        last = max((n for n, (source, target, _) in enumerate(self._moves)
                    if path in (os.path.dirname(source), os.path.dirname(target))), default=-1)
        for move in self._moves[:last + 1]:
            _move(self.kept, *move)
        del self._moves[:last + 1]

    def opened(self, fd: int, entry: _Open) -> None:
        self._open[fd] = entry

    def entry(self, fd: int) -> _Open | None:
        return self._open.get(fd)

    def closed(self, fd: int) -> None:
        entry = self._open.pop(fd, None)
        if entry is not None and entry.again and not entry.looked:
            self.hooks.synced(entry.path, True)

    def write(self, fd: int, entry: _Open, data: bytes, offset: int) -> int:
        """All of it, or half where the disk makes a short write of it."""
        assert entry.inode is not None
        self.hooks.wrote(entry.path)
        self.hooks.effect(f"write {os.path.basename(entry.path)}")
        number = self._meet("write", entry.path)
        if number == errno.EINTR:
            data, number = data[:max(1, len(data) // 2)], 0
        if number:
            raise OSError(number, os.strerror(number), entry.path)
        if entry.direct and (offset % PAGE or len(data) % SECTOR):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), entry.path)
        grows = offset + len(data) - os.fstat(fd).st_size
        if grows > 0 and self.used() + grows > self.total:
            self.hooks.failed("write", entry.path, errno.ENOSPC)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), entry.path)
        entry.inode.pending.append((offset, data))
        return os.pwrite(fd, data, offset)

    def cut_to(self, fd: int, entry: _Open, length: int) -> None:
        assert entry.inode is not None
        if length != os.fstat(fd).st_size:
            self.hooks.wrote(entry.path)
        self.step("truncate", entry.path)
        entry.inode.pending.append((length, None))
        os.ftruncate(fd, length)

    def sync(self, entry: _Open) -> None:
        inode = entry.inode
        self.hooks.effect(f"sync {os.path.basename(entry.path)}")
        if inode is not None:
            self.hooks.synced(entry.path, False)
        number = self._meet("sync folder" if entry.folder else "sync", entry.path)
        if number:
            if inode is not None:                    # the data is lost; a length is metadata, and stays in the journal
                inode.pending = [(at, data) for at, data in inode.pending if data is None]
                inode.failed_for = entry.process
            raise OSError(number, os.strerror(number), entry.path)
        if inode is not None:
            if inode.failed_for is not None and inode.failed_for is entry.process:
                entry.again = True
            inode.arrive()
        elif entry.folder:
            self.sync_folder(entry.path)

    def read(self, fd: int, entry: _Open, buffers: list[Any], offset: int) -> int:
        """As `preadv`."""
        assert entry.inode is not None
        self.hooks.read(entry.path, offset)
        entry.looked = entry.looked or (entry.again and (entry.direct or entry.dropped))
        if number := self._meet("read", entry.path):
            raise OSError(number, os.strerror(number), entry.path)
        if not entry.direct:
            return os.preadv(fd, buffers, offset)
        content = bytes(entry.inode.disk).ljust(os.fstat(fd).st_size, b"\0")[offset:]
        done = 0
        for buffer in buffers:
            view = memoryview(buffer)
            piece = content[done:done + len(view)]
            view[:len(piece)] = piece
            done += len(piece)
        return done


def _move(names: dict[str, Inode], source: str, target: str, inode: Inode) -> None:
    if source:
        names.pop(source, None)
    if target:
        names[target] = inode


class SimOs:
    """`os` for the spool's modules. What it does not know is the real one's."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        disk = self._disk
        full = os.fspath(path)
        if dir_fd is not None and (folder := disk.entry(dir_fd)) is not None:
            full = os.path.join(folder.path, full)
        entry = _Open(disk.hooks.process(), full, folder=bool(flags & os.O_DIRECTORY))
        if not disk.tracked(full):
            fd = os.open(path, flags, mode, dir_fd=dir_fd)
        else:
            makes = flags & os.O_CREAT and full not in disk.names
            if makes:
                disk.step("create", full)
            fd = os.open(full, flags & ~os.O_DIRECT, mode)
            if makes:
                disk.hooks.made(full)
                disk.move("", full)
            entry.inode = disk.names.get(full)
            if flags & os.O_TRUNC and entry.inode is not None and not makes:
                entry.inode.pending.append((0, None))
                entry.inode.failed_for = None        # what is written from here on is other data
        disk.opened(fd, entry)
        return fd

    def close(self, fd: int) -> None:
        self._disk.closed(fd)
        os.close(fd)

    def write(self, fd: int, data: Any) -> int:
        entry = self._disk.entry(fd)
        if entry is None or entry.inode is None:
            return os.write(fd, data)
        count = self._disk.write(fd, entry, bytes(data), entry.position)
        entry.position += count
        return count

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        entry = self._disk.entry(fd)
        if entry is None or entry.inode is None:
            return os.pwrite(fd, data, offset)
        return self._disk.write(fd, entry, bytes(data), offset)

    def ftruncate(self, fd: int, length: int) -> None:
        entry = self._disk.entry(fd)
        if entry is None or entry.inode is None:
            os.ftruncate(fd, length)
        else:
            self._disk.cut_to(fd, entry, length)

    def fsync(self, fd: int) -> None:
        if (entry := self._disk.entry(fd)) is not None:
            self._disk.sync(entry)

    fdatasync = fsync

    def preadv(self, fd: int, buffers: list[Any], offset: int) -> int:
        entry = self._disk.entry(fd)
        if entry is None or entry.inode is None:
            return os.preadv(fd, buffers, offset)
        return self._disk.read(fd, entry, buffers, offset)

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        buffer = bytearray(count)
        return bytes(buffer[:self.preadv(fd, [buffer], offset)])

    def posix_fadvise(self, fd: int, offset: int, length: int, advice: int) -> None:
        """Clean pages are dropped: from now on the cache shows what the platter has."""
        entry = self._disk.entry(fd)
        if entry is not None and entry.inode is not None and advice == os.POSIX_FADV_DONTNEED and not entry.inode.pending:
            entry.dropped = True
            os.pwrite(fd, bytes(entry.inode.disk).ljust(os.fstat(fd).st_size, b"\0"), 0)

    def unlink(self, path: Any) -> None:
        full = os.fspath(path)
        if self._disk.tracked(full) and full in self._disk.names:
            self._disk.hooks.gone(full)
            self._disk.step("unlink", full)
            self._disk.move(full, "")
        os.unlink(full)

    def rename(self, source: Any, target: Any) -> None:
        one, other = os.fspath(source), os.fspath(target)
        if self._disk.tracked(one) and one in self._disk.names:
            self._disk.hooks.aside(one, other)
            self._disk.step("rename", one)
            self._disk.move(one, other)
        os.rename(one, other)

    def statvfs(self, path: Any) -> os.statvfs_result:
        total, free = self._disk.total, max(0, self._disk.total - self._disk.used())
        return os.statvfs_result((1, 1, total, free, free, 1 << 20, 1 << 20, 1 << 20, 0, 255))


class SimFcntl:
    """`fcntl` for the spool's modules: descriptors that go around the page cache."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(fcntl, name)

    def fcntl(self, fd: int, command: int, value: Any = 0) -> Any:
        entry = self._disk.entry(fd)
        if command != fcntl.F_SETFL or entry is None or entry.inode is None:
            return fcntl.fcntl(fd, command, value)
        if value & os.O_DIRECT and not self._disk.takes_direct:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), entry.path)
        entry.direct = bool(value & os.O_DIRECT)
        return 0


class SimPath(type(Path())):  # type: ignore[misc]
    """A path whose file is deleted through the simulated disk."""

    os: SimOs | None = None

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            (SimPath.os or os).unlink(str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise
