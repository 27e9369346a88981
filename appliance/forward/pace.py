"""Pace: a rate limit that several threads share."""

from __future__ import annotations

import threading

from appliance.model import Priority
from appliance.schedule import TokenBucket


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
