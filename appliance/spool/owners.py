"""Owners: which process a range of numbers belongs to, and whether it is still alive.

One file, one byte of it for each owner, locked for as long as the process holds
its descriptor open. The kernel drops the lock with the process, however it
dies, so there is nothing to time out and no process number to be reused. They
are open-file-description locks: they also hold between two intakes of one
process, which POSIX record locks do not.

Whoever recovers a dead owner holds that owner's byte meanwhile: two receivers
that start at once never recover the same numbers.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from appliance.errors import SpoolFault

_FLOCK = struct.Struct("hhqqi4x")
"""struct flock of 64-bit Linux: type, whence, start, length, pid."""


def _lock(fd: int, kind: int, owner: int, count: int = 1) -> bool:
    """Set (F_WRLCK) or drop (F_UNLCK) a lock, without waiting. False if somebody else holds it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, owner, count, 0))
    except OSError as e:
        if e.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise SpoolFault(f"cannot lock the owners file: {e.strerror}", mend="The spool must be on a local file system.") from e
    return True


class OwnerLock:
    """One owner's byte, held until `release` or the death of the process. Children get it only by fork without exec."""

    def __init__(self, path: Path, owner: int) -> None:
        self.owner = owner
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self.held = _lock(self._fd, fcntl.F_WRLCK, owner)
        except SpoolFault:
            os.close(self._fd)
            raise

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self.held = False

    def __enter__(self) -> OwnerLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def is_alive(path: Path, owner: int) -> bool:
    """Whether some process (or another intake of this one) holds that owner's byte."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, owner, 1, 0))
    finally:
        os.close(fd)
    return int(_FLOCK.unpack(answer)[0]) != fcntl.F_UNLCK


@contextmanager
def nobody(path: Path) -> Iterator[bool]:
    """Holds every byte at once: True while there is no live owner, and none can come up meanwhile (for migrations)."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield _lock(fd, fcntl.F_WRLCK, 0, 0)
    finally:
        os.close(fd)
