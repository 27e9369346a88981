"""Under way: which object each lane has in its hands, noted so that it survives the death of the process.

A window is claimed in the ledger as a whole, but a crash is the doing of one
object at most. So each lane keeps a note in memory that belongs to a file
(`[control] run`, a tmpfs): the numbers of its window, and the one that is under
way. Writing it is no system call. The next start gives the others back without
a crash to their account; what was under way is left to `unclaim_after_crash`.

A missing or damaged file says nothing: then every claim counts as a crash, as
it does after a loss of notes. After a reboot nothing counts.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

NAME = "forwarder.claims"

SLOTS = 256
"""Lanes with a note; more have none, which only makes their windows count as a whole."""

SLOT = 32768
"""Bytes of a note; only those of lanes that there are exist."""

_HEAD = struct.Struct("<64sQQ")
"""Destination, object under way (0: none), count of numbers that follow."""

MOST = (SLOT - _HEAD.size) // 8


@dataclass(frozen=True, slots=True)
class Claims:
    """What a lane that died had claimed; `under_way` is 0 where it was between objects."""

    destination: str
    under_way: int
    numbers: tuple[int, ...]

    @property
    def innocent(self) -> list[int]:
        """Those that were not under way."""
        return [number for number in self.numbers if number != self.under_way]


class Note:
    """The note of one lane."""

    def __init__(self, memory: mmap.mmap | None, at: int, destination: str) -> None:
        self._memory = memory
        self._at = at
        self._id = destination.encode("utf-8", "surrogatepass")[:64]

    def window(self, numbers: Sequence[int]) -> None:
        """These are in hand, or about to be claimed. Call it before they are."""
        if self._memory is not None:
            kept = numbers[:MOST]
            struct.pack_into(f"<{len(kept)}Q", self._memory, self._at + _HEAD.size, *kept)
            _HEAD.pack_into(self._memory, self._at, self._id, 0, len(kept))

    def under_way(self, number: int) -> None:
        """This one is being sent now; 0: none is."""
        if self._memory is not None:
            struct.pack_into("<Q", self._memory, self._at + 64, number)


class UnderWay:
    """The file, and which of its slots are taken. Any thread may call."""

    def __init__(self, run: Path) -> None:
        self._path = run / NAME
        self._lock = threading.Lock()
        self._free = list(range(SLOTS - 1, -1, -1))
        self._fd = -1
        self._memory: mmap.mmap | None = None

    def left(self) -> list[Claims]:
        """The notes of the process before this one. Call it before `open`."""
        try:
            raw = self._path.read_bytes()
        except OSError:
            return []
        return list(_claims(raw)) if len(raw) == SLOTS * SLOT else []

    def open(self) -> None:
        """Begin anew. Where there is no room, lanes go without notes."""
        with suppress(OSError):
            beside = self._path.with_name(f".{NAME}.{os.getpid()}")
            self._fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            weakref.finalize(self, os.close, self._fd)
            os.ftruncate(self._fd, SLOTS * SLOT)
            self._memory = mmap.mmap(self._fd, SLOTS * SLOT)
            beside.rename(self._path)

    def take(self, destination: str) -> tuple[int, Note]:
        """A slot for a lane, and its note."""
        with self._lock:
            slot = self._free.pop() if self._free and self._memory is not None else -1
        try:
            if slot >= 0:  # to write to memory that the file system has no room for is the end of the process (SIGBUS)
                os.posix_fallocate(self._fd, slot * SLOT, SLOT)
        except OSError:
            with self._lock:
                self._free.append(slot)
            slot = -1
        return slot, Note(self._memory if slot >= 0 else None, slot * SLOT, destination)

    def give_back(self, slot: int) -> None:
        """The lane has ended, and everything it had claimed is settled."""
        if slot >= 0:
            if self._memory is not None:
                _HEAD.pack_into(self._memory, slot * SLOT, b"", 0, 0)
            with self._lock:
                self._free.append(slot)


def _claims(raw: bytes) -> Iterator[Claims]:
    for at in range(0, len(raw), SLOT):
        name, under_way, count = _HEAD.unpack_from(raw, at)
        if count and count <= MOST:
            yield Claims(name.rstrip(b"\0").decode("utf-8", "replace"), under_way,
                         struct.unpack_from(f"<{count}Q", raw, at + _HEAD.size))
