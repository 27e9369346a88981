"""The one place where an event changes the derived tables: live, and when they are made again from the events.

`apply(derived, event, body)` depends on the event and on the derived tables
only: never on a clock, a file or a configuration. Whatever had to be decided
(which twin covers a duplicate, whose turn it is) is in the event's body.
Counters are collected and written by `flush`; writing them more or less often
gives the same tables.

At most one delivery of a destination begins to wait by one event, so that its
`seq` is a place in the queue of its own and a lane that loads by `seq` misses
nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import apsw

from appliance.model import DeliveryState, ObjectState
from appliance.spool.events import compact
from appliance.spool.rows import Body, Event

HABIT_GAP = 600 * 1_000_000_000
"""Shorter gaps between two images of a source say nothing of its habit."""

HABIT_GAPS = 64
"""So many of the latest gaps are kept: some weeks of nights and weekends."""

PRESENT, RETIRING, GONE = 0, 1, 2
"""Values of `objects.file`."""

ORDER = "order"
"""Reason of a delivery that waits behind an earlier object with the same UID and other content."""

_WAITING, _SENDING, _DEFERRED = str(DeliveryState.WAITING), str(DeliveryState.SENDING), str(DeliveryState.DEFERRED)
_HELD, _PARKED, _SENT = str(DeliveryState.HELD), str(DeliveryState.PARKED), str(DeliveryState.SENT)
_CONFIRMED, _COVERED, _DROPPED = str(DeliveryState.CONFIRMED), str(DeliveryState.COVERED), str(DeliveryState.DROPPED)
UNSENT = frozenset({_WAITING, _SENDING, _DEFERRED, _HELD, _PARKED})
"""Delivery states in which the destination cannot have the object by our own doing yet."""

_O_WAITING, _O_SENT, _O_CONFIRMED = str(ObjectState.WAITING), str(ObjectState.SENT), str(ObjectState.CONFIRMED)
_O_RETIRED, _O_DUPLICATE = str(ObjectState.RETIRED), str(ObjectState.DUPLICATE)
_O_QUARANTINED, _O_DISCARDED = str(ObjectState.QUARANTINED), str(ObjectState.DISCARDED)
_FINAL = frozenset({_O_RETIRED, _O_QUARANTINED, _O_DISCARDED})


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
            found = self.row("SELECT peer, count, last_on, last_wall, gaps FROM arrivals WHERE source = ?", (source,))
            entry = [found[0], found[1], found[2], found[3], json.loads(found[4])] if found else [peer, 0, on, wall, []]
            self._arrivals[source] = entry
        entry[0] = peer
        entry[1] += 1
        gap = on - entry[2]
        if gap >= 0:
            if gap >= HABIT_GAP:
                entry[4] = [*entry[4], gap][-HABIT_GAPS:]
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
            " count = excluded.count, last_on = excluded.last_on, last_wall = excluded.last_wall, gaps = excluded.gaps",
            [(source, e[0], e[1], e[2], e[3], compact(e[4])) for source, e in self._arrivals.items()])
        self._counters.clear()
        self._queues.clear()
        self._arrivals.clear()
        self._largest = 0

    # Objects

    def settle(self, number: int) -> None:
        """State of an object from its deliveries: that of its least advanced required one (I2)."""
        found = self.row("SELECT state, complete_on FROM objects WHERE number = ?", (number,))
        if found is None or found[0] in _FINAL:
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
                self.patch(number, destination, state=_DROPPED, reason=reason, twin=None)
                self.moved(destination, state, _DROPPED, length)
            if state != _CONFIRMED:
                self.step_in(number, destination, event, state, was, twin)

    def step_in(self, number: int, destination: str, event: Event, state: str, reason: str, twin: int | None) -> None:
        """The oldest duplicate that `number` covered takes its place in the queue; the others are covered by that one."""
        covered = self.rows(
            "SELECT d.number, d.length FROM deliveries d JOIN objects o ON o.number = d.number WHERE d.twin = ?"
            " AND d.destination = ? AND d.state = 'covered' AND d.confirmed_on IS NULL AND o.file = 0"
            " AND o.state NOT IN ('quarantined', 'discarded') ORDER BY o.seq", (number, destination))
        if not covered:
            self.unblock(number, destination, event, twin if state == _HELD and reason == ORDER else None)
            return
        heir, length = covered[0]
        new = _HELD if state == _HELD else _WAITING
        behind = twin if new == _HELD and reason == ORDER else None
        self.patch(heir, destination, state=new, seq=event.seq, reason=reason if new == _HELD else "", twin=behind)
        self.moved(destination, _COVERED, new, length)
        for other, _ in covered[1:]:
            self.patch(other, destination, twin=heir)
        self.settle(heir)
        if new == _WAITING:
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
            self.patch(blocked, destination, state=_WAITING, seq=event.seq, reason="", twin=None)
            self.moved(destination, _HELD, _WAITING, length)
            behind = blocked

    def enqueue(self, number: int, destination: str, event: Event, old: str, length: int) -> None:
        """Let a delivery wait anew at the end of the queue, with its faults forgiven."""
        self.patch(number, destination, state=_WAITING, seq=event.seq, until=0, reason="", faults=0, crashes=0, twin=None,
                   sent_on=None, confirmed_on=None)
        self.moved(destination, old, _WAITING, length)


def object_state(rows: list[tuple[Any, ...]]) -> tuple[str, int | None]:
    """(state, powered-on ns since when it is complete or None) from rows of (state, required, confirmed_on).

    Where no destination is required, all are: nothing is ever complete by having nowhere to go.
    """
    rows = [r for r in rows if r[1]] or rows
    if not rows:
        return _O_WAITING, None
    complete: int | None = 0
    covered, state = True, _O_CONFIRMED
    for delivery, _, confirmed in rows:
        if confirmed is None:
            complete = None
        elif complete is not None:
            complete = max(complete, confirmed)
        if delivery == _COVERED:
            if confirmed is None:
                state = _O_WAITING
            continue
        covered = False
        if delivery == _SENT:
            state = _O_SENT if state == _O_CONFIRMED else state
        elif delivery != _CONFIRMED:
            state = _O_WAITING
    return (_O_DUPLICATE if covered else state), complete


# One function for each kind of event

def _boot(d: Derived, e: Event, body: Body) -> None:
    d.run("INSERT INTO boots VALUES (?, ?, ?, ?)", (e.boot, body["boot_id"], body["before"], e.at))


def _tick(d: Derived, e: Event, body: Body) -> None:
    d.run("UPDATE boots SET seen = max(seen, ?) WHERE ordinal = ?", (e.at, e.boot))


def _owner(d: Derived, e: Event, body: Body) -> None:
    d.run("INSERT INTO owners VALUES (?, ?, ?)", (body["owner"], body["role"], e.boot))


def _granted(d: Derived, e: Event, body: Body) -> None:
    first, count, owner = e.number or 0, body["count"], body["owner"]
    d.run("INSERT INTO grants VALUES (?, ?, ?)", (first, count, owner))
    d.cursor.executemany("INSERT INTO open_numbers VALUES (?, ?)", ((n, owner) for n in range(first, first + count)))
    d.count("granted", count)
    d.count("open", count)


def _accepted(d: Derived, e: Event, body: Body) -> None:
    source, length = body["source"], body["length"]
    d.run("DELETE FROM open_numbers WHERE number = ?", (e.number,))
    d.run("INSERT INTO objects VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'waiting', 0, NULL, 0, 0, '[]', 2, '', '[]')",
          (e.number, e.seq, body["boot"], body["at"], body["wall"], body["class"], body["uid"], body["syntax"], length,
           bytes.fromhex(body["digest"]), source.get("called", ""), source.get("port", 0), compact(source)))
    for name, delta in (("open", -1), ("accepted", 1), ("state:waiting", 1), ("unrouted", 1), ("held_objects", 1),
                        ("held_bytes", length)):
        d.count(name, delta)
    d.size(length)
    peer = source.get("peer", "")
    d.arrived(peer or f"{source.get('calling', '')}@{source.get('address', '')}", peer, d.powered(body["boot"], body["at"]),
              body["wall"])


def _void(d: Derived, e: Event, body: Body) -> None:
    for first, count in body["numbers"]:
        for number in range(first, first + count):
            d.run("DELETE FROM open_numbers WHERE number = ?", (number,))
            d.run("INSERT INTO voids VALUES (?, ?)", (number, body["reason"]))
        d.count("open", -count)
        d.count("void", count)


def _swept(d: Derived, e: Event, body: Body) -> None:
    for first, count in body["numbers"]:
        d.run("DELETE FROM voids WHERE number BETWEEN ? AND ?", (first, first + count - 1))


def _routed(d: Derived, e: Event, body: Body) -> None:
    found = d.row("SELECT length, wall FROM objects WHERE number = ?", (e.number,))
    if found is None or e.number is None:
        return
    length, wall = found
    d.run("UPDATE objects SET routed = 1, generation = ?, rules = ?, priority = ?, study = ?, flags = ? WHERE number = ?",
          (body["generation"], compact(body["rules"]), body["priority"], body["study"], compact(body["flags"]), e.number))
    d.count("unrouted", -1)
    for destination, state, required, twin, reason in body["destinations"]:
        confirmed = None
        if state == _COVERED:
            by = d.row("SELECT confirmed_on FROM deliveries WHERE number = ? AND destination = ?", (twin, destination))
            confirmed = by[0] if by else None
        d.run("INSERT INTO deliveries VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0, 0, ?, 0, ?, NULL, '', 0, '', NULL, ?, ?)",
              (e.number, destination, state, required, e.seq, length, body["priority"], e.boot, reason, confirmed, twin))
        d.queue(destination, state, 1, length)
    if body["study"]:
        d.run("INSERT INTO studies VALUES (?, 1, ?, ?, ?, ?) ON CONFLICT (study) DO UPDATE SET objects = objects + 1,"
              " bytes = bytes + excluded.bytes, first_wall = min(first_wall, excluded.first_wall),"
              " last_wall = max(last_wall, excluded.last_wall), last_seq = excluded.last_seq",
              (body["study"], length, wall, wall, e.seq))
    d.settle(e.number)


def _attempt(d: Derived, e: Event, body: Body) -> None:
    if (found := _found(d, e)) is None:
        return
    d.run("UPDATE deliveries SET state = 'sending', attempts = attempts + 1, boot = ?, until = 0"
          " WHERE number = ? AND destination = ?", (e.boot, e.number, e.destination))
    d.moved(e.destination, found[0], _SENDING, found[1])


def _failed(d: Derived, e: Event, body: Body) -> None:
    d.run("UPDATE deliveries SET faults = faults + ?, status = ?, text = ? WHERE number = ? AND destination = ?",
          (1 if body["fault"] == "object" else 0, body.get("status"), body["text"], e.number, e.destination))


def _deferred(d: Derived, e: Event, body: Body) -> None:
    if (found := _found(d, e)) is None:
        return
    state = _DEFERRED if body["until"] else _WAITING
    d.run("UPDATE deliveries SET state = ?, until = ?, boot = ?, reason = ?, crashes = crashes + ?"
          " WHERE number = ? AND destination = ?",
          (state, body["until"], e.boot, body["reason"], body.get("crash", 0), e.number, e.destination))
    d.moved(e.destination, found[0], state, found[1])


def _sent(d: Derived, e: Event, body: Body) -> None:
    if (found := _found(d, e)) is None or e.number is None:
        return
    d.patch(e.number, e.destination, state=_SENT, sent_on=d.powered(e.boot, e.at), status=body.get("status"), text=body["text"],
            warning=int(body["warning"]), reference=body["reference"], reason="", twin=None)
    d.moved(e.destination, found[0], _SENT, found[1])
    d.unblock(e.number, e.destination, e)
    d.settle(e.number)


def _parked(d: Derived, e: Event, body: Body) -> None:
    if (found := _found(d, e)) is None or e.number is None:
        return
    d.run("UPDATE deliveries SET state = 'parked', reason = ?, crashes = crashes + ? WHERE number = ? AND destination = ?",
          (body["reason"], body.get("crash", 0), e.number, e.destination))
    d.moved(e.destination, found[0], _PARKED, found[1])
    d.unblock(e.number, e.destination, e)


def _held(d: Derived, e: Event, body: Body) -> None:
    if (found := _found(d, e)) is None or e.number is None:
        return
    d.patch(e.number, e.destination, state=_HELD, reason=body["reason"], twin=None)
    d.moved(e.destination, found[0], _HELD, found[1])
    d.unblock(e.number, e.destination, e, found[3] if found[0] == _HELD and found[2] == ORDER else None)


def _released(d: Derived, e: Event, body: Body) -> None:
    if (found := _found(d, e)) is not None and e.number is not None:
        d.enqueue(e.number, e.destination, e, found[0], found[1])


def _requeued(d: Derived, e: Event, body: Body) -> None:
    found, to = _found(d, e), body["to"]
    if found is None or e.number is None:
        return
    if to == e.destination:
        d.enqueue(e.number, to, e, found[0], found[1])
        _complete_covered(d, e, None)
    else:
        covered = d.rows("SELECT number FROM deliveries WHERE twin = ? AND destination = ? AND state = 'covered'"
                         " AND confirmed_on IS NULL ORDER BY number", (e.number, e.destination))
        d.unblock(e.number, e.destination, e, found[3] if found[0] == _HELD and found[2] == ORDER else None)
        for number in [e.number, *(row[0] for row in covered)]:
            _redirect(d, e, number, to)
    d.settle(e.number)


def _redirect(d: Derived, e: Event, number: int, to: str) -> None:
    """Turn a delivery to one destination into one to another; the one already there stays as it is."""
    found = d.row("SELECT state, required, length, priority, twin FROM deliveries WHERE number = ? AND destination = ?",
                  (number, e.destination))
    if found is None:
        return
    state, required, length, priority, twin = found
    d.run("DELETE FROM deliveries WHERE number = ? AND destination = ?", (number, e.destination))
    d.queue(e.destination, state, -1, length)
    there = d.row("SELECT required FROM deliveries WHERE number = ? AND destination = ?", (number, to))
    if there is not None:
        d.patch(number, to, required=max(required, there[0]))
    else:
        cover = None if number == e.number else d.row("SELECT confirmed_on FROM deliveries WHERE number = ? AND destination = ?",
                                                      (twin, to))
        new = _WAITING if cover is None else _COVERED
        d.run("INSERT INTO deliveries VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0, 0, ?, 0, '', NULL, '', 0, '', NULL, ?, ?)",
              (number, to, new, required, e.seq, length, priority, e.boot, cover and cover[0], cover and twin))
        d.queue(to, new, 1, length)
    d.settle(number)


def _confirmed(d: Derived, e: Event, body: Body) -> None:
    if (found := _found(d, e)) is None or e.number is None:
        return
    on = d.powered(e.boot, e.at)
    d.patch(e.number, e.destination, state=_CONFIRMED, confirmed_on=on, twin=None)
    d.moved(e.destination, found[0], _CONFIRMED, found[1])
    if found[0] != _SENT:
        d.unblock(e.number, e.destination, e)
    _complete_covered(d, e, on)
    d.settle(e.number)


def _unconfirmed(d: Derived, e: Event, body: Body) -> None:
    if (found := _found(d, e)) is None or e.number is None:
        return
    d.enqueue(e.number, e.destination, e, found[0], found[1])
    d.patch(e.number, e.destination, reason=body["reason"])
    _complete_covered(d, e, None)
    d.settle(e.number)


def _complete_covered(d: Derived, e: Event, on: int | None) -> None:
    """What the twin's destination has, or has not after all, is true of the duplicates that it covers there."""
    for (number,) in d.rows("SELECT number FROM deliveries WHERE twin = ? AND destination = ? AND state = 'covered'",
                            (e.number, e.destination)):
        d.patch(number, e.destination, confirmed_on=on)
        d.settle(number)


def _retiring(d: Derived, e: Event, body: Body) -> None:
    if e.number is None:
        return
    d.drop(e.number, e, "retired")
    d.run("UPDATE objects SET file = 1 WHERE number = ?", (e.number,))


def _retired(d: Derived, e: Event, body: Body) -> None:
    found = d.row("SELECT state, length FROM objects WHERE number = ?", (e.number,))
    if found is None:
        return
    state = _O_DISCARDED if found[0] == _O_DISCARDED else _O_RETIRED
    d.run("UPDATE objects SET state = ?, file = 2 WHERE number = ?", (state, e.number))
    d.restate(found[0], state)
    d.count("held_objects", -1)
    d.count("held_bytes", -found[1])


def _quarantined(d: Derived, e: Event, body: Body) -> None:
    if e.number is not None:
        d.finish(e.number, _O_QUARANTINED)
        d.drop(e.number, e, "quarantined")


def _discarded(d: Derived, e: Event, body: Body) -> None:
    if e.number is not None:
        d.finish(e.number, _O_DISCARDED)
        d.drop(e.number, e, "discarded")


def _admitted(d: Derived, e: Event, body: Body) -> None:
    d.run("INSERT INTO admitted VALUES (?, ?, ?, ?) ON CONFLICT (title, address) DO UPDATE SET by = excluded.by,"
          " wall = excluded.wall", (body["title"], body["address"], body["by"], e.wall))


def _nothing(d: Derived, e: Event, body: Body) -> None:
    """The event itself is the record."""


def _found(d: Derived, e: Event) -> tuple[str, int, str, int | None] | None:
    return None if e.number is None else d.delivery(e.number, e.destination)


Apply = Callable[[Derived, Event, Body], None]

KINDS: dict[str, Apply] = {
    "boot": _boot, "tick": _tick, "owner": _owner, "granted": _granted, "void": _void, "swept": _swept, "accepted": _accepted,
    "routed": _routed, "attempt": _attempt, "deferred": _deferred, "sent": _sent, "failed": _failed, "parked": _parked,
    "held": _held, "released": _released, "requeued": _requeued, "confirmed": _confirmed, "unconfirmed": _unconfirmed,
    "retiring": _retiring, "retired": _retired, "quarantined": _quarantined, "discarded": _discarded, "seen": _nothing,
    "configured": _nothing, "admitted": _admitted,
}


def apply(derived: Derived, event: Event, body: Body) -> None:
    """Let one event change the derived tables. Kinds of later releases are passed over (rollback)."""
    handler = KINDS.get(event.kind)
    if handler is not None:
        handler(derived, event, body)
