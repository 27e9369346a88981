"""Pace: a rate limit that several threads share; Allowance: what may go to one destination now."""

from __future__ import annotations

import threading
from collections.abc import Callable

from appliance.clock import SECOND
from appliance.config.settings import Destination
from appliance.model import Priority
from appliance.schedule import TokenBucket, hours, may_send


class Pace:
    """A `TokenBucket` behind a lock. Times are boot nanoseconds; rate 0 is no limit."""

    def __init__(self, rate: int, now: int) -> None:
        self._lock = threading.Lock()
        self._bucket = TokenBucket(rate, now)

    @property
    def rate(self) -> int:
        return self._bucket.rate

    def wait(self, now: int, priority: Priority) -> int:
        """Nanoseconds until this class may send; 0: now."""
        with self._lock:
            return self._bucket.wait(now, priority)

    def spend(self, now: int, length: int, priority: Priority) -> None:
        """Book bytes that were sent."""
        with self._lock:
            self._bucket.spend(now, length, priority)

    def change(self, rate: int, now: int) -> None:
        """A new limit, from now on."""
        with self._lock:
            if rate != self._bucket.rate:
                self._bucket.change(rate, now)


class Allowance:
    """What one destination may get, by hours of the day, by its own rate and by that of all together. Times as above.

    `minute` is that of the day, None where the clock is not trusted; `longest` seconds are said where nothing is waited for.
    """

    def __init__(self, destination: Destination, total: Pace, minute: Callable[[], int | None], now: int, longest: float
                 ) -> None:
        self._total = total
        self._own = Pace(destination.rate_bytes, now)
        self._minute = minute
        self._longest = longest
        self.change(destination, now)

    def change(self, destination: Destination, now: int) -> None:
        """New settings, from now on."""
        self._own.change(destination.rate_bytes, now)
        self._windows = [window for text in destination.hours if (window := hours(text)) is not None]

    def classes(self, now: int) -> tuple[list[Priority], float]:
        """The classes that may be sent now, and the seconds until that may change."""
        minute = self._minute() if self._windows else None
        if not may_send(self._windows, minute, Priority.ROUTINE):
            return [Priority.TRAUMA], 60.0      # s; nobody tells us when the wall clock is set
        wait = max(self._own.wait(now, Priority.ROUTINE), self._total.wait(now, Priority.ROUTINE))
        return ([Priority.TRAUMA], wait / SECOND) if wait else (list(Priority), self._longest)

    def spend(self, now: int, length: int, priority: Priority) -> None:
        """Book bytes that were sent."""
        self._own.spend(now, length, priority)
        self._total.spend(now, length, priority)

    @property
    def rate(self) -> int | None:
        """The smaller of the two rates that are set, in bytes a second."""
        return min((rate for rate in (self._own.rate, self._total.rate) if rate), default=None)
