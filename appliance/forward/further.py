"""Further: how many associations a destination takes, found out by trying, and never to the cost of what works.

The first lane goes ahead alone until its association has taken an object. A
further one is opened only while those that work have their hands full and more
waits, and tries its luck with a single object. A destination that refuses it,
leaves it without an answer, or breaks it off before it took anything, takes no
more than it has: that is no fault of its, nobody is told, the object goes on the
association that works, and the next try is later and later.
"""

from __future__ import annotations

import math

from appliance.clock import SECOND
from appliance.schedule import Backoff

SOME = 8
"""So many objects have to wait before a further association is opened for them."""

AGAIN = Backoff(base=600 * SECOND, cap=4 * 3600 * SECOND)
"""After so long a further association is tried again: a try may keep one object waiting for the time to connect."""


class Further:
    """Of one destination. Not locked: the desk calls it under its lock. Lanes are known by name; times are boot ns."""

    def __init__(self) -> None:
        self._works: dict[str, bool] = {}     # lanes whose association has taken something: whether they are at it now
        self._ahead = ""                      # who goes ahead while none works
        self._refusals = 0
        self._until = 0

    def share(self, lane: str, now: int, waiting: int) -> int:
        """Most objects of those that wait for that lane to take now; 0: the others see to them."""
        if lane in self._works:
            together = len(self._works)
            return waiting if together == 1 else max(SOME, math.ceil(waiting / together))
        if not self._works:
            return waiting if self._ahead in ("", lane) else 0
        return 1 if self.wanted(now, waiting) else 0

    def wanted(self, now: int, waiting: int) -> bool:
        """Whether so many waiting objects are worth a further association."""
        return waiting >= SOME and now >= self._until and all(self._works.values())

    def asks(self, lane: str) -> None:
        """It has nothing in hand."""
        if lane in self._works:
            self._works[lane] = False

    def took(self, lane: str) -> None:
        """It has objects in hand."""
        if lane in self._works:
            self._works[lane] = True
        elif not self._works:
            self._ahead = lane

    def works(self, lane: str) -> bool:
        """Its association has taken an object. True where that is news."""
        if lane in self._works:
            return False
        self._works[lane], self._ahead = True, ""
        if len(self._works) > 1:
            self._refusals = 0
        return True

    def ended(self, lane: str) -> None:
        """It has no association, or none that works."""
        self._works.pop(lane, None)
        if self._ahead == lane:
            self._ahead = ""

    def refused(self, lane: str, now: int) -> bool:
        """Its association could not be had, or took nothing. True where others work, so that it is just one too many."""
        if lane in self._works or not self._works:
            return False
        self._refusals += 1
        self._until = now + AGAIN.ceiling(self._refusals)
        return True
