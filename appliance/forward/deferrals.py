"""Deferrals: what a desk puts off, until when (boot ns), and in which order it comes back.

Two kinds. *Hard* ones wait for their time: the fault was theirs, or concerned
them alone. *Soft* ones were under way when the destination failed: others go
first, but where there are none, they need not wait.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from appliance.model import Priority
from appliance.spool.rows import Queued


@dataclass(frozen=True, slots=True, order=True)
class Deferred:
    """One delivery that waits; what its place in the queue needs, and no more."""

    until: int
    seq: int
    number: int
    priority: Priority
    study: str


class Deferrals:
    """Not locked: the desk calls under its lock."""

    def __init__(self) -> None:
        self._hard: list[Deferred] = []
        self._soft: list[Deferred] = []

    def __len__(self) -> int:
        return len(self._hard) + len(self._soft)

    def put(self, row: Queued, until: int, *, hard: bool) -> None:
        heapq.heappush(self._hard if hard else self._soft, Deferred(until, row.seq, row.number, row.priority, row.study))

    def due(self, now: int) -> Iterator[Deferred]:
        """Take out what has waited long enough."""
        for heap in (self._hard, self._soft):
            while heap and heap[0].until <= now:
                yield heapq.heappop(heap)

    def early(self, classes: Collection[Priority]) -> Iterator[Deferred]:
        """Take out the first soft one, if it is of one of these classes: nobody else is there to go first."""
        if self._soft and self._soft[0].priority in classes:
            yield heapq.heappop(self._soft)

    def soft(self) -> Iterator[Deferred]:
        """Take out every soft one."""
        while self._soft:
            yield heapq.heappop(self._soft)

    def next_due(self) -> int | None:
        """When the first one has waited long enough, boot ns; None where none waits."""
        return min((heap[0].until for heap in (self._hard, self._soft) if heap), default=None)

    def clear(self) -> None:
        self._hard.clear()
        self._soft.clear()
