"""One instance on its way into its slot (design, "Accepting one instance").

The data set is collected behind the space for its head. What fits in the buffer
is digested and written in one call with its head. More than that goes out a
buffer at a time, by a second thread (`behind`) while the next one is filled
and digested, and the head last. Then the file is cut to length and synced, once.
Nothing here makes a file or touches a folder.

On failure: SpoolFull for ENOSPC and EDQUOT (the slot is cut to nothing and
void), SpoolFault for everything else: then the whole spool is out of intake
(I6), the file is left as it is for the next start-up to judge, and nothing is
ever tried again: after a failed sync the kernel has already dropped the data.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

from blake3 import blake3

from appliance.clock import Clock
from appliance.dicom.part10 import HEAD, build_head
from appliance.errors import HeadError, SpoolError, SpoolFault
from appliance.model import Custody, Source, number_text
from appliance.spool import behind
from appliance.spool.buffers import CAPACITY, PAGE, Buffer
from appliance.spool.layout import spool_error
from appliance.spool.slots import Slot

DIRECT_FROM = 128 << 10
"""Bytes from which a write goes around the page cache. On a quiet ext4, write and sync of 20 kB took two thirds of the time
through the cache; at 530 kB both took as long, but around the cache with a third less CPU. Between them it is level."""

DIGEST_PIECE = 128 << 10
"""The digest follows the data in pieces of this size, while the peer is still sending: little is left for the end."""

_ZEROS = bytes(PAGE)


class Host(Protocol):
    """What a writer needs of the intake that lent it a slot."""

    clock: Clock
    boot: int
    direct: bool

    def reserve(self, slot: Slot, size: int) -> None:
        """That many bytes more are about to be written to it. SpoolFull where the quota or the black reserve forbids it."""

    def owe(self, custody: Custody) -> None:
        """The object is durable; its ledger row is owed. Waits while too many are."""

    def done(self, slot: Slot, buffer: Buffer, void: str = "") -> None:
        """Take the buffer back, and the slot where it is untouched; `void` closes the number with that reason."""

    def fault(self, error: SpoolFault) -> None:
        """Close intake for good."""

    def syncing(self, slot: Slot, since: int) -> None:
        """Since when (boot ns) this slot has been at its sync; 0 when that is over."""


class SlotWriter:
    """Takes one data set. Use `room` and `advance` (or `write`), then exactly one of `finish` and `abandon`."""

    __slots__ = ("_behind", "_buffer", "_digest", "_digested", "_error", "_fill", "_host", "_open", "_slot", "_written",
                 "length", "number")

    def __init__(self, host: Host, slot: Slot, buffer: Buffer) -> None:
        self.number = slot.number
        self.length = 0
        self._host = host
        self._slot = slot
        self._buffer = buffer
        self._behind: behind.Behind | None = None
        self._fill = 0
        self._written = 0
        self._digest = blake3()
        self._digested = 0
        self._open = True
        self._error: SpoolError | None = None

    def room(self) -> memoryview:
        """Free space in the buffer for the next bytes of the data set, never empty. May write a full buffer out first."""
        if self._fill == CAPACITY:
            self._spill()
        return self._buffer.data[self._fill:]

    def advance(self, count: int) -> None:
        """`count` bytes were put at the start of `room()`."""
        if not self._open or count < 0 or count > CAPACITY - self._fill:
            raise ValueError(f"advance by {count} with {CAPACITY - self._fill} bytes of room")
        self._fill += count
        self.length += count
        if self._fill - self._digested >= DIGEST_PIECE:
            self._digest_on()

    def write(self, data: memoryview | bytes) -> None:
        """Copy data in, however long it is."""
        view = memoryview(data)
        while len(view):
            room = self.room()
            count = min(len(view), len(room))
            room[:count] = view[:count]
            self.advance(count)
            view = view[count:]

    def finish(self, sop_class: bytes, sop_instance: bytes, transfer_syntax: str, source: Source) -> Custody:
        """Make the object durable and owe its ledger row: only after this returned may the peer be told success (I1).

        SpoolFull or SpoolFault where the disk or the ledger failed, HeadError where
        the association's own words do not fit in a head; the slot is given up in each case.
        """
        self._check()
        host = self._host
        now = host.clock.boot_ns()
        self._digest_on()
        custody = Custody(self.number, host.boot, now, host.clock.wall_ns(), sop_class, sop_instance, transfer_syntax,
                          self.length, self._digest.digest(), source)
        try:
            head = build_head(custody)
        except HeadError as e:
            self.abandon(f"head: {e.message}"[:200])
            raise
        self._buffer.whole[:HEAD] = head
        host.syncing(self._slot, now)
        try:
            self._wait()
            self._write_rest()
            os.fdatasync(self._slot.fd)
        except OSError as e:
            raise self._failed(spool_error(e, f"object {number_text(self.number)}")) from e
        except SpoolError as e:
            raise self._failed(e) from None
        finally:
            host.syncing(self._slot, 0)
        self._close()
        host.owe(custody)
        return custody

    def abandon(self, reason: str) -> None:
        """Give the instance up: the peer went away, or broke the rules. Harmless after `finish` or a failure."""
        if not self._open:
            return
        slot = self._slot
        try:
            self._wait()
        except OSError as e:
            self._failed(spool_error(e, f"object {number_text(self.number)}"))
            return
        if not slot.touched:
            self._open = False
            self._alone()
            self._host.done(slot, self._buffer)
            return
        self._void(reason)

    # Inside

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if not self._open:
            raise ValueError("this instance was finished or abandoned")

    def _digest_on(self) -> None:
        """Bring the digest up to the data that is in the buffer."""
        if self._fill > self._digested:
            self._digest.update(self._buffer.data[self._digested:self._fill])
            self._digested = self._fill

    def _write_rest(self) -> None:
        """Head and what is in the buffer. Around the page cache only whole pages can be written: zeros fill the last one,
        and the file is cut to length after it."""
        whole, end = self._buffer.whole, HEAD + self._fill
        padded = -(-end // PAGE) * PAGE
        self._host.reserve(self._slot, padded)
        if self._written == 0 and not (self._host.direct and padded >= DIRECT_FROM):
            self._put(whole[:end], 0)
            return
        whole[end:padded] = _ZEROS[:padded - end]
        if self._written == 0:
            self._put(whole[:padded], 0)
        else:
            if self._fill:
                self._put(whole[HEAD:padded], HEAD + self._written)
            self._put(whole[:HEAD], 0)
        if padded != end:
            os.ftruncate(self._slot.fd, HEAD + self.length)

    def _spill(self) -> None:
        """Have a full buffer of data set written, and go on in another one; the head's place stays blank until the end."""
        self._check()
        self._digest_on()
        try:
            self._host.reserve(self._slot, CAPACITY)
            self._hand_over(partial(self._put, self._buffer.data, HEAD + self._written))
        except OSError as e:
            raise self._failed(spool_error(e, f"object {number_text(self.number)}")) from e
        except SpoolError as e:
            raise self._failed(e) from None
        self._written += CAPACITY
        self._fill = self._digested = 0

    def _hand_over(self, work: Callable[[], None]) -> None:
        """To the thread behind us, where there is one."""
        self._behind = self._behind or behind.take()
        if self._behind is None:
            work()
        else:
            self._buffer = self._behind.begin(self._buffer, work)

    def _wait(self) -> None:
        """For what is written behind us, if anything is. Raises what became of it."""
        if self._behind is not None:
            self._behind.wait()

    def _alone(self) -> None:
        """Nothing is under way any more: give the thread back."""
        second, self._behind = self._behind, None
        if second is not None:
            behind.give(second)

    def _put(self, view: memoryview, offset: int) -> None:
        """Write all of it. A short write goes on where it stopped, which is no repetition; its error shows on the next call."""
        fd, slot = self._slot.fd, self._slot
        direct = self._host.direct and (len(view) >= DIRECT_FROM or slot.touched)
        if direct and not slot.touched:
            direct = self._go_direct()
        slot.touched = True
        while view:
            try:
                count = os.pwrite(fd, view, offset)
            except OSError as e:
                if not direct or e.errno != errno.EINVAL:
                    raise
                # Refused before anything was written: this file system takes no such write, so use its cache.
                self._host.direct = direct = False
                fcntl.fcntl(fd, fcntl.F_SETFL, 0)
                continue
            if count <= 0:
                raise OSError(errno.EIO, "nothing was written")
            view = view[count:]
            offset += count

    def _go_direct(self) -> bool:
        """Let this descriptor's writes go around the page cache; False where the file system refuses."""
        try:
            fcntl.fcntl(self._slot.fd, fcntl.F_SETFL, os.O_DIRECT)
        except OSError as e:
            if e.errno != errno.EINVAL:
                raise
            self._host.direct = False
            return False
        return True

    def _failed(self, error: SpoolError) -> SpoolError:
        """Give the slot up after an error; returns the error to raise. What is still being written may fail worse."""
        try:
            self._wait()
        except OSError as e:
            also = spool_error(e, f"object {number_text(self.number)}")
            error = also if isinstance(also, SpoolFault) else error
        self._error = error
        if isinstance(error, SpoolFault):
            self._host.fault(error)
            self._close()
        elif not self._slot.touched:
            self.abandon("no room")
        else:
            self._void(f"no room: {error.message}"[:200])
        return error

    def _void(self, reason: str) -> None:
        """Cut a slot to nothing and close its number."""
        try:
            os.ftruncate(self._slot.fd, 0)
        except OSError as e:
            error = spool_error(e, f"cannot cut object {number_text(self.number)}")
            self._host.fault(error if isinstance(error, SpoolFault) else SpoolFault(error.message))
            self._close()
            return
        self._close(reason)

    def _close(self, void: str = "") -> None:
        """Give buffer and descriptor back. A close that fails after the sync takes nothing back that the sync promised."""
        self._open = False
        self._alone()
        with suppress(OSError):
            os.close(self._slot.fd)
        self._slot.fd = -1
        self._host.done(self._slot, self._buffer, void)
