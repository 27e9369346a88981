"""How much room the spool has, from the file system, the quota and the ledger's counters (design, Space)."""

from __future__ import annotations

import os

from appliance.dicom.part10 import HEAD
from appliance.errors import SpoolFull
from appliance.policy import Space, space
from appliance.spool import ballast
from appliance.spool.layout import BALLAST, Spool, spool_error
from appliance.spool.ledger import Ledger


def held(ledger: Ledger) -> tuple[int, int]:
    """Bytes of the files of all objects that are held, and the largest data set ever seen. LedgerError."""
    counts = ledger.counts()
    return counts.held_bytes + HEAD * counts.held_objects, counts.largest


def measure(spool: Spool, held_bytes: int, largest: int) -> Space:
    """The room there is now. `held_bytes`: files of all objects held; `largest`: the largest object seen. SpoolFault."""
    try:
        disk = os.statvfs(spool.path)
    except OSError as e:
        raise spool_error(e, f"cannot ask for the room in {spool.path}") from e
    return space(disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize, held_bytes, spool.size, largest)


class Gauge:
    """Room as the writers see it: asked of the file system now and then, counted down in between.

    Not locked; a count that two threads took at once is mended by the next `refresh`.
    """

    def __init__(self, spool: Spool, held_bytes: int, largest: int) -> None:
        self._spool = spool
        self.held_bytes = held_bytes
        self.largest = largest
        self.now = measure(spool, held_bytes, largest)
        self._left = self.now.free - self.now.black

    def refresh(self) -> Space:
        """Ask the file system again; gives the ballast up when even the ledger would soon have no room."""
        self.now = measure(self._spool, self.held_bytes, self.largest)
        if self.now.free < BALLAST:
            ballast.give_up(self._spool.path)
        self._left = self.now.free - self.now.black
        return self.now

    def reserve(self, size: int) -> None:
        """`size` bytes are about to be written. SpoolFull where they would touch the black reserve."""
        if self._left < size:
            self.refresh()
            if self._left < size:
                raise SpoolFull(f"no room for {size} bytes", mend="Free some space, or enlarge the spool.")
        self._left -= size

    def accepted(self, length: int) -> None:
        """An object with a data set of that length is held from now on."""
        self.held_bytes += HEAD + length
        self.largest = max(self.largest, length)
