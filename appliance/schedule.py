"""Scheduling: which object goes next, when a destination is tried again, and how fast (design, Delivery).

Values and small data structures only: `now` and randomness are passed in, all
times are nanoseconds, nothing here waits or knows a clock. Not thread-safe: a
destination guards what its associations share.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from appliance.model import Priority

SECOND = 1_000_000_000

LOWEST_SHARE = 10
"""At least one pick in so many goes to the lowest class that waits."""

MIDDLE_SHARE = 20
"""A class between the highest and the lowest waits for at most about so many picks, so no class starves."""


@dataclass(frozen=True, slots=True)
class Place:
    """One waiting object: its number, its place in the order of arrival, its class."""

    number: int
    seq: int
    priority: Priority


class _Class:
    """The waiting objects of one priority class: studies in rotation, each in order of arrival.

    A study is kept as the hash of its name and its objects as pairs (seq, number)
    in one array: 16 bytes an object, because weeks of images may wait. Two
    studies of one hash would merely take turns together.
    """

    __slots__ = ("rotation", "size", "studies")

    def __init__(self) -> None:
        self.studies: dict[int, array[int]] = {}
        self.rotation: deque[int] = deque()
        self.size = 0

    def add(self, seq: int, number: int, study: str) -> None:
        key = hash(study)
        pairs = self.studies.get(key)
        if pairs is None:
            self.studies[key] = array("q", (seq, number))
            self.rotation.append(key)
        elif seq > pairs[-2]:
            pairs.extend((seq, number))
        else:
            at = bisect_left(range(len(pairs) // 2), seq, key=lambda nth: pairs[2 * nth])
            pairs[2 * at:2 * at] = array("q", (seq, number))
        self.size += 1

    def pick(self) -> tuple[int, int]:
        key = self.rotation.popleft()
        pairs = self.studies[key]
        seq, number = pairs[0], pairs[1]
        if len(pairs) > 2:
            del pairs[:2]
            self.rotation.append(key)
        else:
            del self.studies[key]
        self.size -= 1
        return seq, number


class Queue:
    """Who is next, among what is waiting for one destination.

    trauma > stat > routine > backfill; within a class one object of each study in
    turn, within a study in order of arrival (`seq`). The lowest class that waits
    gets at least every tenth pick, so a long emergency does not stop the rest.
    """

    def __init__(self) -> None:
        self._classes = {priority: _Class() for priority in Priority}
        self._passed_over = dict.fromkeys(Priority, 0)

    def __len__(self) -> int:
        return sum(waiting.size for waiting in self._classes.values())

    def size(self, priority: Priority) -> int:
        """How many objects of a class wait."""
        return self._classes[priority].size

    def add(self, number: int, priority: Priority, study: str, seq: int) -> None:
        """Let an object wait. The caller adds it once."""
        self._classes[priority].add(seq, number, study)

    def highest(self, classes: Collection[Priority] = tuple(Priority)) -> Priority | None:
        """The most urgent of these classes that waits, or None."""
        return next((priority for priority in Priority if priority in classes and self._classes[priority].size), None)

    def pick(self, classes: Collection[Priority] = tuple(Priority)) -> Place | None:
        """Take the next object of these classes out of the queue; None where none waits."""
        waiting = [priority for priority in Priority if priority in classes and self._classes[priority].size]
        if not waiting:
            return None
        chosen = self._choose(waiting)
        for priority in Priority:
            idle = priority is chosen or not self._classes[priority].size
            self._passed_over[priority] = 0 if idle else self._passed_over[priority] + (priority > chosen)
        seq, number = self._classes[chosen].pick()
        return Place(number, seq, chosen)

    def _choose(self, waiting: Sequence[Priority]) -> Priority:
        if len(waiting) > 1 and self._passed_over[waiting[-1]] >= LOWEST_SHARE - 1:
            return waiting[-1]
        middle = max(waiting[1:-1], key=lambda priority: self._passed_over[priority], default=None)
        if middle is not None and self._passed_over[middle] >= MIDDLE_SHARE - 1:
            return middle
        return waiting[0]


@dataclass(frozen=True, slots=True)
class Backoff:
    """Times between tries: 1 s, doubled, capped, with full jitter. Nanoseconds."""

    base: int = SECOND
    cap: int = 300 * SECOND
    floor: int = SECOND // 10

    def ceiling(self, failures: int) -> int:
        """The longest delay after so many failures in a row (1 or more)."""
        # The exponent is bounded first: failures count for weeks.
        return min(self.cap, self.base << min(max(failures - 1, 0), 32))

    def delay(self, failures: int, random: float) -> int:
        """The delay for a random number from 0 to 1: never below `floor`, so bad luck is no busy loop."""
        return max(self.floor, min(int(self.ceiling(failures) * random), self.cap))


class Gate(StrEnum):
    """What may be sent to a destination now."""

    OPEN = "open"      # everything
    PROBE = "probe"    # one C-ECHO, then one object
    SHUT = "shut"      # nothing yet


BREAKER_FAULTS = 3


@dataclass(frozen=True, slots=True)
class Breaker:
    """How a destination fares: faults in a row, since when, and when it may be tried again. For ever: it never gives up.

    Every fault puts off the next try by the back-off. From the third fault in a
    row on, the next try is a probe: one association only, one C-ECHO, one
    object; its success opens the gate for all, its failure puts it off again.
    """

    faults: int = 0
    since: int | None = None
    until: int = 0
    probing: bool = False

    def gate(self, now: int) -> Gate:
        """What may be sent at `now`."""
        if self.probing or now < self.until:
            return Gate.SHUT
        return Gate.PROBE if self.tripped else Gate.OPEN

    @property
    def tripped(self) -> bool:
        """Whether it needs a probe to open again."""
        return self.faults >= BREAKER_FAULTS

    def probe(self) -> Breaker:
        """A probe has begun: nobody else begins one."""
        return replace(self, probing=True)

    def after_fault(self, now: int, random: float, backoff: Backoff) -> Breaker:
        """One more fault. A second association that fails while the gate is shut already says nothing new."""
        if not self.probing and self.faults and now < self.until:
            return self
        faults = self.faults + 1
        return Breaker(faults, now if self.since is None else self.since, now + backoff.delay(faults, random))

    def after_success(self) -> Breaker:
        """It works: everything is forgotten."""
        return self if self == _CLOSED else _CLOSED

    def after_nothing(self) -> Breaker:
        """A probe ended without a verdict (nothing to send, or told to stop)."""
        return replace(self, probing=False)

    def retry_now(self) -> Breaker:
        """A person or a new configuration asks to try at once; a probe if it was tripped."""
        return replace(self, until=0)

    def down_for(self, now: int) -> int:
        """Nanoseconds since the first fault in a row; 0 if it works."""
        return 0 if self.since is None else max(now - self.since, 0)


_CLOSED = Breaker()


def fail_over(breaker: Breaker, now: int, after: int, other: Breaker | None) -> bool:
    """Whether what waits here goes to the fail-over destination: down for `after` nanoseconds, and the other one is not."""
    return breaker.tripped and breaker.down_for(now) >= after and other is not None and not other.faults


class TokenBucket:
    """A rate limit in bytes a second. It lets one object run into debt, so that any size passes, and then makes all wait.

    `rate` 0 is no limit. At most `burst` seconds' worth is saved up. Trauma neither waits nor pays.
    """

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: int, now: int, burst: float = 1.0) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = rate * burst
        self._at = now

    def _fill(self, now: int) -> None:
        if now > self._at:
            self._tokens = min(self._tokens + self.rate * (now - self._at) / SECOND, self.rate * self.burst)
            self._at = now

    def wait(self, now: int, priority: Priority) -> int:
        """Nanoseconds until this class may send again; 0: now."""
        if not self.rate or priority is Priority.TRAUMA:
            return 0
        self._fill(now)
        return 0 if self._tokens >= 0 else int(-self._tokens / self.rate * SECOND) + 1

    def spend(self, now: int, length: int, priority: Priority) -> None:
        """Book `length` bytes that were sent."""
        if self.rate and priority is not Priority.TRAUMA:
            self._fill(now)
            self._tokens -= length

    def change(self, rate: int, now: int) -> None:
        """A new limit, from now on. What is owed under the old one is kept in time, not in bytes."""
        self._fill(now)
        self._tokens = self._tokens * rate / self.rate if self.rate else rate * self.burst
        self.rate = rate


_HOURS = re.compile(r"([01]?\d|2[0-4]):([0-5]\d)\s*(?:-|\.\.)\s*([01]?\d|2[0-4]):([0-5]\d)", re.ASCII)
DAY_MINUTES = 1440


def hours(text: str) -> tuple[int, int] | None:
    """A window of the day, "19:00-06:30", as (first minute, minute after the last); None where it is none."""
    match = _HOURS.fullmatch(text.strip())
    if match is None:
        return None
    first, last = int(match[1]) * 60 + int(match[2]), int(match[3]) * 60 + int(match[4])
    return None if first >= DAY_MINUTES or last > DAY_MINUTES else (first, last)


def within(windows: Sequence[tuple[int, int]], minute: int | None) -> bool | None:
    """Whether the minute of the day lies in a window; None (unknown) where the clock is not trusted (I7).

    A window runs over midnight where its end is before its start, and all day
    where they are equal. No window at all: always.
    """
    if not windows:
        return True
    if minute is None:
        return None
    return any(first <= minute < last if first < last else minute >= first or minute < last for first, last in windows)


def may_send(windows: Sequence[tuple[int, int]], minute: int | None, priority: Priority) -> bool:
    """Whether a class may be sent at that minute: trauma always, and everybody while the time is unknown."""
    return priority is Priority.TRAUMA or within(windows, minute) is not False
