"""Ledger rows that are owed for durable objects: committed in groups, and never too many of them (design, "Bounded debt").

`owe` is called by the threads that accept; `due`, `collect` and `settled` by the
one maintenance thread. All of them under the intake's lock. Times are
nanoseconds since boot.
"""

from __future__ import annotations

from appliance.clock import SECOND
from appliance.dicom.part10 import HEAD
from appliance.model import Custody

COMMIT_ROWS = 128
COMMIT_AFTER = SECOND // 5
"""A group is committed when it has so many rows, or when its first row is so old."""


class Debt:
    """Custodies and voids whose rows are not in the ledger yet."""

    def __init__(self, max_rows: int, max_seconds: float) -> None:
        self._max_rows = max_rows
        self._max_age = int(max_seconds * SECOND)
        self._rows: list[Custody] = []
        self._voids: list[tuple[int, str]] = []
        self._since = 0
        self._committing_since = 0
        self.owed = 0
        self.settled_count = 0
        self.bytes = 0                 # of the outstanding objects' files

    @property
    def outstanding(self) -> int:
        """Objects without a ledger row, those being committed just now included."""
        return self.owed - self.settled_count

    def owe(self, custody: Custody, now: int) -> int:
        """One more object; returns its ticket for `must_wait`."""
        if not self._rows and not self._voids:
            self._since = now
        self._rows.append(custody)
        self.owed += 1
        self.bytes += HEAD + custody.length
        return self.owed

    def void(self, number: int, reason: str, now: int) -> None:
        """One more number to close; voids are never waited for."""
        if not self._rows and not self._voids:
            self._since = now
        self._voids.append((number, reason))

    def must_wait(self, ticket: int, now: int) -> bool:
        """Whether the status of that object waits: its own row is owed, and the debt is over its bound."""
        if ticket <= self.settled_count:
            return False
        oldest = self._committing_since or (self._since if self._rows else 0)
        return self.outstanding > self._max_rows or (oldest != 0 and now - oldest > self._max_age)

    @property
    def size(self) -> int:
        """Rows that wait for the next group."""
        return len(self._rows) + len(self._voids)

    def due(self, now: int) -> int:
        """Nanoseconds until the next group should be committed: 0 or less is now, -1 where there is nothing to commit."""
        if not self.size:
            return -1
        if self.size >= COMMIT_ROWS:
            return 0
        return max(0, self._since + COMMIT_AFTER - now)

    def collect(self) -> tuple[list[Custody], list[tuple[int, str]]]:
        """Take the next group out, in the order of arrival; they stay owed until `settled`."""
        rows, voids = sorted(self._rows, key=lambda c: (c.since_boot, c.number)), self._voids
        self._rows, self._voids = [], []
        self._committing_since = self._since
        return rows, voids

    def still_owed(self, rows: list[Custody], voids: list[tuple[int, str]]) -> None:
        """The ledger did not take the collected group: it comes first in the next one, as old as it is."""
        self._rows[:0] = rows
        self._voids[:0] = voids
        self._since, self._committing_since = self._committing_since, 0

    def forgive(self) -> None:
        """Nothing is owed any more: others have written the rows, or closed the numbers."""
        self._rows, self._voids = [], []
        self.settled_count, self.bytes = self.owed, 0
        self._since = self._committing_since = 0

    def settled(self, rows: list[Custody]) -> None:
        """The collected rows are in the ledger."""
        self.settled_count += len(rows)
        self.bytes -= sum(HEAD + custody.length for custody in rows)
        self._committing_since = 0
