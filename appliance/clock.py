"""Time, injectable (I7).

Intervals, back-off and retention use `CLOCK_BOOTTIME`: it counts suspended time
and never steps. The wall clock is a label. A reboot starts `boot_ns` anew, so
whatever outlives a reboot is counted in powered-on time (`spool.ledger`).
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Protocol

SECOND = 1_000_000_000
"""Nanoseconds in a second: every time in Dcmgate is an integer of nanoseconds unless its name says otherwise."""

SWITCH_SECONDS = 0.0002
"""After which a thread that computes lets another go on (`sys.setswitchinterval`). Python's 5 ms are longer than a whole
image takes: the thread that keeps the ledger made each image wait (measured: 680 ms against 470 ms for 300 of 0.5 MB)."""


class Clock(Protocol):
    """What the stages know of time."""

    def boot_ns(self) -> int:
        """Nanoseconds since boot, suspended time included; never goes back within a boot."""

    def wall_ns(self) -> int:
        """Nanoseconds since 1970-01-01 UTC as the box believes; may step, may be wrong."""

    def trusted(self) -> bool:
        """Whether the wall clock may decide anything (time-of-day rules, certificates)."""

    def boot_id(self) -> str:
        """An identifier that changes with every boot."""

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait for the event at most that long; True if it was set."""


EARLIEST_PLAUSIBLE = 1_767_225_600 * SECOND
"""2026-01-01 UTC, before this release was made: an earlier wall clock is certainly wrong."""


class SystemClock:
    """The machine's clocks."""

    def boot_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def wall_ns(self) -> int:
        return time.time_ns()

    def trusted(self) -> bool:
        return time.time_ns() >= EARLIEST_PLAUSIBLE

    def boot_id(self) -> str:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        return event.wait(seconds)


class ManualClock:
    """A clock that moves only when told to: for tests that live through months or reboots in a second."""

    def __init__(self, boot_ns: int = SECOND, wall_ns: int = EARLIEST_PLAUSIBLE + SECOND, boot_id: str = "boot-1") -> None:
        self._boot_ns = boot_ns
        self._wall_ns = wall_ns
        self._boot_id = boot_id
        self.is_trusted = True

    def boot_ns(self) -> int:
        return self._boot_ns

    def wall_ns(self) -> int:
        return self._wall_ns

    def trusted(self) -> bool:
        return self.is_trusted and self._wall_ns >= EARLIEST_PLAUSIBLE

    def boot_id(self) -> str:
        return self._boot_id

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Lets the time pass at once unless the event is already set."""
        if event.is_set():
            return True
        self.advance(seconds)
        return event.is_set()

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass on both clocks."""
        self._boot_ns += int(seconds * SECOND)
        self._wall_ns += int(seconds * SECOND)

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock forward or back; the boot clock does not notice."""
        self._wall_ns += int(seconds * SECOND)

    def reboot(self) -> None:
        """A new boot: the boot clock starts anew, the boot identifier changes."""
        self._boot_ns = SECOND
        self._boot_id = f"boot-{int(self._boot_id.rsplit('-', 1)[1]) + 1}"
