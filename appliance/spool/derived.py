"""The derived tables during one transaction: counters, the state of an object, a place in a queue.

Nothing here knows a kind of event (apply.py does); everything depends on the
tables and on the arguments only, so that a replay comes to the same rows.
Counters are collected and written by `flush`; writing them more or less often
gives the same tables.

At most one delivery of a destination begins to wait by one event, so that its
`seq` is a place in the queue of its own and a lane that loads by `seq` misses
nothing.
"""

from __future__ import annotations

import json
from typing import Any

import apsw

from appliance.model import DeliveryState, ObjectState
from appliance.policy.alarms import learn
from appliance.spool.events import compact
from appliance.spool.rows import Event

HABIT_GAP = 600 * 1_000_000_000
"""Shorter gaps between two images (ns) say nothing of a source's habit, and would drown its nights and weekends."""

PRESENT, RETIRING, GONE = 0, 1, 2
"""Values of `objects.file`."""

ORDER = "order"
"""Reason of a delivery that waits behind an earlier object with the same UID and other content."""

WAITING, SENDING, DEFERRED = str(DeliveryState.WAITING), str(DeliveryState.SENDING), str(DeliveryState.DEFERRED)
HELD, PARKED, SENT = str(DeliveryState.HELD), str(DeliveryState.PARKED), str(DeliveryState.SENT)
CONFIRMED, COVERED, DROPPED = str(DeliveryState.CONFIRMED), str(DeliveryState.COVERED), str(DeliveryState.DROPPED)
UNSENT = frozenset({WAITING, SENDING, DEFERRED, HELD, PARKED})
"""Delivery states in which the destination cannot have the object by our own doing yet."""

O_WAITING, O_SENT, O_CONFIRMED = str(ObjectState.WAITING), str(ObjectState.SENT), str(ObjectState.CONFIRMED)
O_RETIRED, O_DUPLICATE = str(ObjectState.RETIRED), str(ObjectState.DUPLICATE)
O_QUARANTINED, O_DISCARDED = str(ObjectState.QUARANTINED), str(ObjectState.DISCARDED)
FINAL = frozenset({O_RETIRED, O_QUARANTINED, O_DISCARDED})


class Derived:
    """The derived tables of one connection during one transaction."""

    def __init__(self, db: apsw.Connection) -> None:
        self.db = db
        self.cursor = db.cursor()
        self._counters: dict[str, int] = {}
        self._queues: dict[tuple[str, str], list[int]] = {}
        self._arrivals: dict[str, list[Any]] = {}
        self._before: dict[int, int] = {}
        self._largest = 0

    def run(self, sql: str, values: tuple[Any, ...] = ()) -> None:
        self.cursor.execute(sql, values)

    def rows(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        return self.cursor.execute(sql, values).fetchall()

    def row(self, sql: str, values: tuple[Any, ...] = ()) -> tuple[Any, ...] | None:
        found = self.cursor.execute(sql, values).fetchall()
        return found[0] if found else None

    def count(self, name: str, delta: int) -> None:
        self._counters[name] = self._counters.get(name, 0) + delta

    def queue(self, destination: str, state: str, count: int, length: int) -> None:
        entry = self._queues.setdefault((destination, state), [0, 0])
        entry[0] += count
        entry[1] += count * length

    def size(self, length: int) -> None:
        self._largest = max(self._largest, length)

    def powered(self, boot: int, at: int) -> int:
        """Powered-on time (ns) of a boot time: what all earlier boots lasted, and `at`."""
        before = self._before.get(boot)
        if before is None:
            found = self.row("SELECT powered_before FROM boots WHERE ordinal = ?", (boot,))
            before = self._before[boot] = int(found[0]) if found else 0
        return before + at

    def arrived(self, source: str, peer: str, on: int, wall: int) -> None:
        """Note one image of a source; images that come in late (recovery) do not change the habit."""
        entry = self._arrivals.get(source)
        if entry is None:
            found = self.row("SELECT peer, count, last_on, last_wall, habit FROM arrivals WHERE source = ?", (source,))
            entry = [found[0], found[1], found[2], found[3], json.loads(found[4])] if found else [peer, 0, on, wall, []]
            self._arrivals[source] = entry
        entry[0] = peer
        entry[1] += 1
        gap = on - entry[2]
        if gap >= 0:
            if gap >= HABIT_GAP:
                entry[4] = learn(entry[4], gap)
            entry[2], entry[3] = on, wall

    def flush(self) -> None:
        """Write what was counted. Zero sums are written too: a counter exists once it was touched."""
        self.cursor.executemany(
            "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            self._counters.items())
        if self._largest:
            self.run("INSERT INTO counters VALUES ('largest', ?) ON CONFLICT (name) DO UPDATE SET"
                     " value = max(value, excluded.value)", (self._largest,))
        self.cursor.executemany(
            "INSERT INTO queues VALUES (?, ?, ?, ?) ON CONFLICT (destination, state) DO UPDATE SET"
            " count = count + excluded.count, bytes = bytes + excluded.bytes",
            [(destination, state, entry[0], entry[1]) for (destination, state), entry in self._queues.items()])
        self.cursor.executemany(
            "INSERT INTO arrivals VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (source) DO UPDATE SET peer = excluded.peer,"
            " count = excluded.count, last_on = excluded.last_on, last_wall = excluded.last_wall, habit = excluded.habit",
            [(source, e[0], e[1], e[2], e[3], compact(e[4])) for source, e in self._arrivals.items()])
        self._counters.clear()
        self._queues.clear()
        self._arrivals.clear()
        self._largest = 0

    # Objects

    def settle(self, number: int) -> None:
        """State of an object from its deliveries: that of its least advanced required one (I2)."""
        found = self.row("SELECT state, complete_on FROM objects WHERE number = ?", (number,))
        if found is None or found[0] in FINAL:
            return
        rows = self.rows("SELECT state, required, confirmed_on FROM deliveries WHERE number = ?", (number,))
        state, complete = object_state(rows)
        if (state, complete) != found:
            self.run("UPDATE objects SET state = ?, complete_on = ? WHERE number = ?", (state, complete, number))
            self.restate(found[0], state)

    def restate(self, old: str, new: str) -> None:
        if old != new:
            self.count(f"state:{old}", -1)
            self.count(f"state:{new}", 1)

    def finish(self, number: int, state: str) -> None:
        """Give an object a final state; whatever was not sent yet will not be sent."""
        found = self.row("SELECT state, routed FROM objects WHERE number = ?", (number,))
        if found is None:
            return
        self.run("UPDATE objects SET state = ?, complete_on = NULL, routed = CASE routed WHEN 0 THEN 2 ELSE routed END"
                 " WHERE number = ?", (state, number))
        self.restate(found[0], state)
        if found[1] == 0:
            self.count("unrouted", -1)

    # Deliveries

    def delivery(self, number: int, destination: str) -> tuple[str, int, str, int | None] | None:
        """(state, length, reason, twin), or None."""
        found = self.row("SELECT state, length, reason, twin FROM deliveries WHERE number = ? AND destination = ?",
                         (number, destination))
        return None if found is None else (found[0], found[1], found[2], found[3])

    def patch(self, number: int, destination: str, **columns: Any) -> None:
        """Set columns of one delivery."""
        names = " = ?, ".join(columns)
        self.cursor.execute(f"UPDATE deliveries SET {names} = ? WHERE number = ? AND destination = ?",
                            (*columns.values(), number, destination))

    def moved(self, destination: str, old: str, new: str, length: int) -> None:
        if old != new:
            self.queue(destination, old, -1, length)
            self.queue(destination, new, 1, length)

    def drop(self, number: int, event: Event, reason: str) -> None:
        """End all deliveries of an object that were not sent; what it covered or held back goes on without it."""
        for destination, state, length, was, twin in self.rows(
                "SELECT destination, state, length, reason, twin FROM deliveries WHERE number = ?", (number,)):
            if state in UNSENT:
                self.patch(number, destination, state=DROPPED, reason=reason, twin=None)
                self.moved(destination, state, DROPPED, length)
            if state != CONFIRMED:
                self.step_in(number, destination, event, state, was, twin)

    def step_in(self, number: int, destination: str, event: Event, state: str, reason: str, twin: int | None) -> None:
        """The oldest duplicate that `number` covered takes its place in the queue; the others are covered by that one."""
        covered = self.rows(
            "SELECT d.number, d.length FROM deliveries d JOIN objects o ON o.number = d.number WHERE d.twin = ?"
            " AND d.destination = ? AND d.state = 'covered' AND d.confirmed_on IS NULL AND o.file = 0"
            " AND o.state NOT IN ('quarantined', 'discarded') ORDER BY o.seq", (number, destination))
        if not covered:
            self.unblock(number, destination, event, twin if state == HELD and reason == ORDER else None)
            return
        heir, length = covered[0]
        new = HELD if state == HELD else WAITING
        behind = twin if new == HELD and reason == ORDER else None
        self.patch(heir, destination, state=new, seq=event.seq, reason=reason if new == HELD else "", twin=behind)
        self.moved(destination, COVERED, new, length)
        for other, _ in covered[1:]:
            self.patch(other, destination, twin=heir)
        self.settle(heir)
        if new == WAITING:
            self.run("UPDATE deliveries SET twin = ? WHERE twin = ? AND destination = ? AND state = 'held'",
                     (heir, number, destination))
        else:
            self.unblock(number, destination, event, behind)

    def unblock(self, number: int, destination: str, event: Event, behind: int | None = None) -> None:
        """Let go what waited behind `number` at that destination, or let it wait behind `behind`."""
        for blocked, length in self.rows("SELECT number, length FROM deliveries WHERE twin = ? AND destination = ?"
                                         " AND state = 'held' ORDER BY seq", (number, destination)):
            if behind is not None:
                self.patch(blocked, destination, twin=behind)
                continue
            self.patch(blocked, destination, state=WAITING, seq=event.seq, reason="", twin=None)
            self.moved(destination, HELD, WAITING, length)
            behind = blocked

    def enqueue(self, number: int, destination: str, event: Event, old: str, length: int) -> None:
        """Let a delivery wait anew at the end of the queue, with its faults forgiven."""
        self.patch(number, destination, state=WAITING, seq=event.seq, until=0, reason="", faults=0, crashes=0, twin=None,
                   sent_on=None, confirmed_on=None)
        self.moved(destination, old, WAITING, length)


def object_state(rows: list[tuple[Any, ...]]) -> tuple[str, int | None]:
    """(state, powered-on ns since when it is complete or None) from rows of (state, required, confirmed_on).

    Where no destination is required, all are: nothing is ever complete by having nowhere to go.
    """
    rows = [r for r in rows if r[1]] or rows
    if not rows:
        return O_WAITING, None
    complete: int | None = 0
    covered, state = True, O_CONFIRMED
    for delivery, _, confirmed in rows:
        if confirmed is None:
            complete = None
        elif complete is not None:
            complete = max(complete, confirmed)
        if delivery == COVERED:
            if confirmed is None:
                state = O_WAITING
            continue
        covered = False
        if delivery == SENT:
            state = O_SENT if state == O_CONFIRMED else state
        elif delivery != CONFIRMED:
            state = O_WAITING
    return (O_DUPLICATE if covered else state), complete
