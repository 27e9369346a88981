"""The one place where an event changes the derived tables: live, and when they are made again from the events.

`apply(derived, event, body)` depends on the event and on the derived tables
only: never on a clock, a file or a configuration. Whatever had to be decided
(which twin covers a duplicate, whose turn it is) is in the event's body.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from appliance.policy import canary
from appliance.spool.derived import (
    CONFIRMED,
    COVERED,
    DEFERRED,
    HELD,
    O_DISCARDED,
    O_QUARANTINED,
    O_RETIRED,
    ORDER,
    PARKED,
    SENDING,
    SENT,
    WAITING,
    Derived,
)
from appliance.spool.events import compact
from appliance.spool.rows import Body, Event

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
    if source.get("listener") == canary.LISTENER:      # not a scanner
        return
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
    for flag in body["flags"]:
        d.count(f"flag:{flag}", 1)
    for destination, state, required, twin, reason in body["destinations"]:
        confirmed = None
        if state == COVERED:
            by = d.row("SELECT confirmed_on FROM deliveries WHERE number = ? AND destination = ?", (twin, destination))
            confirmed = by[0] if by else None
        d.run("INSERT INTO deliveries VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0, 0, ?, 0, ?, NULL, '', 0, '', NULL, ?, ?)",
              (e.number, destination, state, required, e.seq, length, body["priority"], e.boot, reason, confirmed, twin))
        d.queue(destination, state, 1, length)
    if body["study"] and canary.FLAG not in body["flags"]:
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
    d.moved(e.destination, found[0], SENDING, found[1])


def _failed(d: Derived, e: Event, body: Body) -> None:
    d.run("UPDATE deliveries SET faults = faults + ?, status = ?, text = ? WHERE number = ? AND destination = ?",
          (1 if body["fault"] == "object" else 0, body.get("status"), body["text"], e.number, e.destination))


def _deferred(d: Derived, e: Event, body: Body) -> None:
    if (found := _found(d, e)) is None:
        return
    state = DEFERRED if body["until"] else WAITING
    d.run("UPDATE deliveries SET state = ?, until = ?, boot = ?, reason = ?, crashes = crashes + ?"
          " WHERE number = ? AND destination = ?",
          (state, body["until"], e.boot, body["reason"], body.get("crash", 0), e.number, e.destination))
    d.moved(e.destination, found[0], state, found[1])


def _sent(d: Derived, e: Event, body: Body) -> None:
    if (found := _found(d, e)) is None or e.number is None:
        return
    d.patch(e.number, e.destination, state=SENT, sent_on=d.powered(e.boot, e.at), status=body.get("status"), text=body["text"],
            warning=int(body["warning"]), reference=body["reference"], reason="", twin=None)
    d.moved(e.destination, found[0], SENT, found[1])
    d.unblock(e.number, e.destination, e)
    d.settle(e.number)


def _parked(d: Derived, e: Event, body: Body) -> None:
    if (found := _found(d, e)) is None or e.number is None:
        return
    d.run("UPDATE deliveries SET state = 'parked', reason = ?, crashes = crashes + ? WHERE number = ? AND destination = ?",
          (body["reason"], body.get("crash", 0), e.number, e.destination))
    d.moved(e.destination, found[0], PARKED, found[1])
    d.unblock(e.number, e.destination, e)


def _held(d: Derived, e: Event, body: Body) -> None:
    if (found := _found(d, e)) is None or e.number is None:
        return
    d.patch(e.number, e.destination, state=HELD, reason=body["reason"], twin=None)
    d.moved(e.destination, found[0], HELD, found[1])
    d.unblock(e.number, e.destination, e, found[3] if found[0] == HELD and found[2] == ORDER else None)


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
        d.unblock(e.number, e.destination, e, found[3] if found[0] == HELD and found[2] == ORDER else None)
        for number in [e.number, *(row[0] for row in covered)]:
            _redirect(d, e, number, to)
    d.settle(e.number)


def _redirect(d: Derived, e: Event, number: int, to: str) -> None:
    """Turn a delivery to one destination into one to another. What was proved there stays, and so does one already at `to`."""
    found = d.row("SELECT state, required, length, priority, twin, confirmed_on FROM deliveries"
                  " WHERE number = ? AND destination = ?", (number, e.destination))
    if found is None:
        return
    state, required, length, priority, twin, confirmed = found
    if confirmed is None:
        d.run("DELETE FROM deliveries WHERE number = ? AND destination = ?", (number, e.destination))
        d.queue(e.destination, state, -1, length)
    there = d.row("SELECT required FROM deliveries WHERE number = ? AND destination = ?", (number, to))
    if there is not None:
        d.patch(number, to, required=max(required, there[0]))
    else:
        cover = None
        if number != e.number:
            # Covered by whatever covers its twin there, if that is a duplicate itself.
            cover = d.row("SELECT CASE state WHEN 'covered' THEN twin ELSE number END, confirmed_on FROM deliveries"
                          " WHERE number = ? AND destination = ?", (twin, to))
        new = WAITING if cover is None else COVERED
        d.run("INSERT INTO deliveries VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0, 0, ?, 0, '', NULL, '', 0, '', NULL, ?, ?)",
              (number, to, new, required, e.seq, length, priority, e.boot, cover and cover[1], cover and cover[0]))
        d.queue(to, new, 1, length)
    d.settle(number)


def _confirmed(d: Derived, e: Event, body: Body) -> None:
    if (found := _found(d, e)) is None or e.number is None:
        return
    on = d.powered(e.boot, e.at)
    d.patch(e.number, e.destination, state=CONFIRMED, confirmed_on=on, twin=None)
    d.moved(e.destination, found[0], CONFIRMED, found[1])
    if found[0] != SENT:
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
    found = d.row("SELECT state, length, flags FROM objects WHERE number = ?", (e.number,))
    if found is None:
        return
    for flag in json.loads(found[2]):
        d.count(f"flag:{flag}", -1)
    state = O_DISCARDED if found[0] == O_DISCARDED else O_RETIRED
    d.run("UPDATE objects SET state = ?, file = 2 WHERE number = ?", (state, e.number))
    d.restate(found[0], state)
    d.count("held_objects", -1)
    d.count("held_bytes", -found[1])


def _quarantined(d: Derived, e: Event, body: Body) -> None:
    if e.number is not None:
        d.finish(e.number, O_QUARANTINED)
        d.drop(e.number, e, "quarantined")


def _discarded(d: Derived, e: Event, body: Body) -> None:
    if e.number is not None:
        d.finish(e.number, O_DISCARDED)
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
