"""How much room the spool has, from the file system, the quota and the ledger's counters (design, Space)."""

from __future__ import annotations

import os
import threading

from appliance.dicom.part10 import HEAD
from appliance.errors import SpoolFull
from appliance.policy import Space, space
from appliance.spool import ballast
from appliance.spool.layout import BALLAST, Spool, spool_error
from appliance.spool.ledger import Ledger
from appliance.spool.slots import Slot

LEAST_INODES = 64
"""With fewer inodes there is no room, however many bytes are free: what is left is for the ledger's files and quarantine."""


def held(ledger: Ledger) -> tuple[int, int]:
    """Bytes of the files of all objects that are held, and the largest data set ever seen. LedgerError."""
    counts = ledger.counts()
    return counts.held_bytes + HEAD * counts.held_objects, counts.largest


def measure(spool: Spool, held_bytes: int, largest: int) -> Space:
    """The room there is now. `held_bytes`: files of all objects held; `largest`: the largest object seen. SpoolFault.

    What the ballast was given up for is the ledger and deletions: its room is none for images, until it is there again.
    """
    try:
        disk = os.statvfs(spool.path)
    except OSError as e:
        raise spool_error(e, f"cannot ask for the room in {spool.path}") from e
    no_inodes = disk.f_files > 0 and disk.f_favail < LEAST_INODES     # 0 files: that file system does not count them
    free = 0 if no_inodes else disk.f_bavail * disk.f_frsize - (0 if ballast.is_there(spool.path) else BALLAST)
    return space(disk.f_blocks * disk.f_frsize, free, held_bytes, spool.size, largest)


class Gauge:
    """Room as the writers see it: asked of the file system now and then, counted down in between.

    `held_bytes` is what accepted objects take, `reserved` what instances under way
    do: the quota counts both, the file system knows by itself. `left` is what may be
    written before it has to be asked again.
    """

    def __init__(self, spool: Spool, held_bytes: int, largest: int) -> None:
        self._spool = spool
        self._lock = threading.Lock()
        self.held_bytes = held_bytes
        self.largest = largest
        self.reserved = 0
        self.left = 0
        self.refresh()

    def refresh(self) -> Space:
        """Ask the file system again. SpoolFault."""
        with self._lock:
            return self._refresh()

    def _refresh(self) -> Space:
        now = measure(self._spool, self.held_bytes + self.reserved, self.largest)
        self.left = now.free - now.black
        return now

    def reserve(self, slot: Slot, size: int) -> None:
        """`size` bytes are about to be written: SpoolFull where they would touch the black reserve."""
        with self._lock:
            if self.left < size:
                self._refresh()
                if self.left < size:
                    raise SpoolFull(f"no room for {size} bytes", mend="Free some space, or enlarge the spool.")
            self.left -= size
            self.reserved += size
            slot.reserved += size

    def release(self, slot: Slot) -> None:
        """The instance is over: what it took is counted by `accepted` from now on, or was given back."""
        with self._lock:
            self.reserved -= slot.reserved
            slot.reserved = 0

    def accepted(self, length: int) -> None:
        """An object with a data set of that length is held from now on."""
        with self._lock:
            self.held_bytes += HEAD + length
            self.largest = max(self.largest, length)

    def count(self, held_bytes: int, largest: int) -> Space:
        """Set what is held by what the ledger (and the debt) says, since others delete; then as `refresh`."""
        with self._lock:
            self.held_bytes, self.largest = held_bytes, max(self.largest, largest)
            return self._refresh()
