"""Ready slots: empty files whose names are already durable, so that accepting an instance creates nothing.

A range of numbers is granted in a synced ledger row before its files exist
(design, "Numbers are used once"). The maintenance thread makes the files, syncs
their folder and keeps the descriptors open; `take` only pops one. A study comes
in one burst, and making a file costs a third of an acceptance: so while nobody
sends, as many are made, and closed again, as most studies have images.

On failure: SpoolFull while the disk has no room for a file (it mends itself);
anything else is for the caller to close intake with. A file that exists already
means that the ledger is older than the objects: never overwritten, SpoolFault.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from appliance.errors import SpoolError, SpoolFault
from appliance.model import number_text
from appliance.spool.layout import Spool, spool_error

GRANT = 512
"""Most numbers granted at once: at 1,000 objects a second, two ledger rows a second. The first grant is as small as the
pool, each further one twice the one before: what a restart leaves unused has to be closed number by number."""

BATCH = 32
"""Files made for one sync of their folder."""

GROWTH = 8
"""A pool that ran empty doubles its target, up to this many times what was asked for, which is also what is made while
nobody sends."""

INODES = 64
"""Only where the file system has so many free inodes for each file that is made while nobody sends."""


@dataclass(slots=True)
class Slot:
    """One number with its open, empty file. `touched` once anything was written to it; `reserved` bytes of room are its own."""

    number: int
    fd: int
    touched: bool = False
    reserved: int = 0


class SlotPool:
    """Ready slots of one owner. Not locked: the intake calls `pop` and `put` under its lock, `make` on one thread only."""

    def __init__(self, spool: Spool, grant: Callable[[int], int], ready: int) -> None:
        self._spool = spool
        self._grant = grant
        self._ready: deque[Slot] = deque()
        self._ahead: deque[int] = deque()      # numbers whose files are there, empty and closed
        self._asked = ready
        self.target = ready
        self.full = ready * GROWTH
        self._next = 0
        self._end = 0
        self._grant_size = max(1, ready)
        self._folder = -1
        self._shard = ""
        self.failure: SpoolError | None = None
        self.attempts = 0

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def low(self) -> bool:
        """Whether more slots should be made."""
        return len(self._ready) * 2 < self.target

    @property
    def wanting(self) -> bool:
        """Whether more should be made once nobody sends."""
        return len(self._ahead) < self.full

    def pop(self) -> Slot | None:
        return self._ready.popleft() if self._ready else None

    def put(self, slots: list[Slot]) -> None:
        """Slots newly made, or one that was given back untouched."""
        self._ready.extend(slots)

    def starved(self) -> None:
        """Somebody had to wait: keep more ready from now on."""
        self.target = min(self.target * 2, self._asked * GROWTH)

    def make(self) -> list[Slot]:
        """Up to BATCH slots, their names durable: of the files made ahead, else new ones. Raises SpoolFull, SpoolFault,
        LedgerFault; then there are none."""
        if not self._ahead:
            return self._make(os.O_CREAT | os.O_EXCL, self._fresh())
        count = min(BATCH, len(self._ahead))
        made = self._make(0, [self._ahead[place] for place in range(count)])
        for _ in made:
            self._ahead.popleft()
        return made

    def make_ahead(self) -> None:
        """Up to BATCH files for later; raises as `make`. None where inodes are scarce."""
        try:
            disk = os.statvfs(self._spool.path)
        except OSError as e:
            raise spool_error(e, f"cannot ask for the room in {self._spool.path}") from e
        if disk.f_files and disk.f_favail < INODES * self.full:
            self.full = 0
            return
        for slot in self._make(os.O_CREAT | os.O_EXCL, self._fresh()):
            self._ahead.append(slot.number)
            with suppress(OSError):
                os.close(slot.fd)

    def _fresh(self) -> Sequence[int]:
        """The next numbers that were granted and have no file, at most BATCH."""
        if self._next == self._end:
            size = self._grant_size
            self._next = self._grant(size)
            self._end = self._next + size
            self._grant_size = min(GRANT, 2 * size)
        return range(self._next, min(self._next + BATCH, self._end))

    def _make(self, how: int, numbers: Sequence[int]) -> list[Slot]:
        """Open the files of those numbers, as many of them as lie in one folder; new ones (O_CREAT) are synced with it."""
        made: list[Slot] = []
        try:
            for number in numbers:
                if not self._enter(number, alone=not made):
                    break
                fd = os.open(f"{number_text(number)}.dcm", how | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640,
                             dir_fd=self._folder)
                made.append(Slot(number, fd))
                if how:
                    self._next = number + 1
            if how:
                os.fsync(self._folder)
        except OSError as e:
            for slot in made:
                with suppress(OSError):
                    os.close(slot.fd)
            if isinstance(e, FileExistsError):
                raise SpoolFault(f"object {number_text(self._next)} exists already: the ledger is older than the objects",
                                 mend="Run `dcmgate spool check`, then rebuild the ledger.") from e
            raise spool_error(e, "cannot make slots") from e
        return made

    def _enter(self, number: int, *, alone: bool) -> bool:
        """Have the descriptor of that number's folder open; False where it is another one than the batch's so far."""
        shard = str(self._spool.shard(number))
        if shard != self._shard:
            if not alone:
                return False
            self._leave()
            self._folder = os.open(shard, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._shard = shard
        return True

    def _leave(self) -> None:
        if self._folder >= 0:
            os.close(self._folder)
        self._folder, self._shard = -1, ""

    def close(self) -> list[int]:
        """Close every descriptor. Returns the numbers that were never used, granted ones without a file included."""
        unused = [slot.number for slot in self._ready] + [*self._ahead, *range(self._next, self._end)]
        for slot in self._ready:
            with suppress(OSError):
                os.close(slot.fd)
        self._ready.clear()
        self._ahead.clear()
        self._next = self._end
        self._leave()
        return unused
