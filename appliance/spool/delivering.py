"""Verbs of the router and of the forwarder: where an object goes, and what became of each attempt.

Duplicates are decided here, in the transaction of the routing, for each
destination, among objects with the same UID, transfer syntax and digest that
came in by the same called title and port. The event holds what was decided.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from appliance.config.settings import Destination
from appliance.model import DeliveryState, Outcome
from appliance.spool.core import LedgerCore, Transaction, checked_ids
from appliance.spool.derived import ORDER, UNSENT
from appliance.spool.queries import OBJECT_COLUMNS, object_row, queued_row
from appliance.spool.rows import Decision, Deferral, ObjectRow, Parking, Queued, Routing

SAME_UID_LOOKED_AT = 64
"""Of objects with the same UID only the latest are compared: a sender that uses one UID for everything costs little."""

LATE = "late"
"""Reason of a delivery that a person has to decide on: the destination was given what arrived later under the same UID. It
happens where the ledger heard of an object late: after a crash of its receiver, or from two receivers within a second."""

_QUEUED = ("d.number, d.destination, d.seq, d.priority, o.study, d.length, o.class, o.uid, o.syntax, o.digest, d.attempts,"
           " d.faults, d.crashes, d.boot, d.until, o.source")
_PENDING = frozenset({"waiting", "sending", "deferred"})


class DeliveringVerbs(LedgerCore):
    def unrouted(self, limit: int = 256, *, of: str = "", but: Collection[str] = ()) -> list[ObjectRow]:
        """Objects that were not routed yet, in order of arrival (boot ordinal, time since boot).

        `of`: only those that came from that address; `but`: none that came from one of these.
        """
        where = ""
        values: tuple[str, ...] = ()
        if of or but:
            where = f" AND json_extract(source, '$.address') {'IN' if of else 'NOT IN'} (SELECT value FROM json_each(?))"
            values = (json.dumps([of] if of else sorted(but)),)
        return [object_row(row) for row in self._select(
            f"SELECT {OBJECT_COLUMNS} FROM objects WHERE routed = 0{where} ORDER BY boot, since_boot, number LIMIT ?",
            (*values, limit))]

    def route(self, routings: Sequence[Routing], destinations: Iterable[Destination] = ()) -> None:
        """Let these objects be delivered. `destinations` (of the configuration) say `required`, `resend` and `conflict`.

        An object that is routed already, or gone, is passed over. Ids without an entry get the defaults.
        """
        entries = {d.id: d for d in destinations}
        for routing in routings:
            checked_ids(routing.destinations)

        def work(t: Transaction) -> None:
            for routing in routings:
                _route(t, routing, entries)
        if routings:
            self._write(work)

    def load(self, destination: str, after_seq: int = 0, limit: int = 1024) -> list[Queued]:
        """Deliveries that wait or are deferred, with a place in the queue behind `after_seq`, in order.

        A lane keeps the last `seq` it saw and asks for what came since. A delivery
        that it defers keeps its place, and is not told again; one that a person
        releases or requeues gets a new place, and is.
        """
        # CROSS JOIN fixes the order of the loops: the queue's index first.
        rows = self._select(
            f"SELECT {_QUEUED} FROM deliveries d CROSS JOIN objects o ON o.number = d.number WHERE d.destination = ?"
            " AND d.state IN ('waiting', 'deferred') AND d.seq > ? ORDER BY d.seq LIMIT ?", (destination, after_seq, limit))
        return [queued_row(row, self.boot) for row in rows]

    def claim(self, destination: str, numbers: Sequence[int]) -> list[int]:
        """Write an attempt row for each before it is touched. Returns those that still wait: only these may be sent."""
        def work(t: Transaction) -> list[int]:
            claimed = []
            for number in numbers:
                if t.row("SELECT 1 FROM deliveries d CROSS JOIN objects o ON o.number = d.number WHERE d.number = ? AND"
                         " d.destination = ? AND d.state IN ('waiting', 'deferred') AND o.file = 0"
                         " AND o.state NOT IN ('quarantined', 'discarded')", (number, destination)) is not None:
                    t.append("attempt", number, destination)
                    claimed.append(number)
            return claimed
        return self._write(work) if numbers else []

    def unclaim(self, destination: str, numbers: Sequence[int], reason: str = "") -> None:
        """Give back claims that were not touched (end of a lane, association lost before their turn). They keep their place."""
        self.outcomes_of(destination, numbers, Deferral(0, reason))

    def outcomes_of(self, destination: str, numbers: Sequence[int], decision: Decision) -> None:
        """Put claimed deliveries back, or park them, without an outcome of their own."""
        def work(t: Transaction) -> None:
            for number in numbers:
                if _state(t, number, destination) == "sending":
                    _decide(t, number, destination, decision)
        if numbers:
            self._write(work)

    def outcomes(self, destination: str, outcomes: Sequence[Outcome], decisions: Mapping[int, Decision] | None = None) -> None:
        """What the attempts came to. A failed one is deferred or parked as `decisions` say, else it waits again at once.

        A success counts in whatever state the delivery is by now (held or discarded
        meanwhile); a failure only where it is still being sent.
        """
        decided = decisions or {}

        def work(t: Transaction) -> None:
            for outcome in outcomes:
                state = _state(t, outcome.number, destination)
                if outcome.fault is None:
                    if state not in (None, "confirmed", "sent", "covered"):
                        t.append("sent", outcome.number, destination, status=outcome.status, text=outcome.text[:1024],
                                 warning=outcome.warning, reference=outcome.reference, powered_on=t.powered_on)
                elif state == "sending":
                    t.append("failed", outcome.number, destination, fault=str(outcome.fault), status=outcome.status,
                             text=outcome.text[:1024])
                    _decide(t, outcome.number, destination, decided.get(outcome.number, Deferral(0)))
        if outcomes:
            self._write(work)

    def unclaim_after_crash(self, destination: str | None = None) -> list[tuple[int, str, bool]]:
        """Deliveries that a dead forwarder had claimed wait again; the second crash on one parks it.

        A loss of power is no crash on an object: only attempts of this boot count.
        `None`: of all destinations. Returns (number, destination, whether it was parked).
        """
        def work(t: Transaction) -> list[tuple[int, str, bool]]:
            found = t.rows("SELECT number, destination, crashes, boot FROM deliveries WHERE state = 'sending'"
                           " AND (? IS NULL OR destination = ?) ORDER BY seq", (destination, destination))
            done = []
            for number, where, crashes, boot in found:
                crash = 1 if boot == t.boot else 0
                park = bool(crash) and crashes + crash >= 2
                if park:
                    t.append("parked", number, where, reason="the forwarder died twice while sending it", crash=crash)
                else:
                    t.append("deferred", number, where, until=0, reason="the forwarder stopped while sending it", crash=crash)
                done.append((number, where, park))
            return done
        return self._write(work)


def _state(t: Transaction, number: int, destination: str) -> str | None:
    row = t.row("SELECT state FROM deliveries WHERE number = ? AND destination = ?", (number, destination))
    return None if row is None else str(row[0])


def _decide(t: Transaction, number: int, destination: str, decision: Decision) -> None:
    if isinstance(decision, Parking):
        t.append("parked", number, destination, reason=decision.reason)
    else:
        t.append("deferred", number, destination, until=max(0, decision.until), reason=decision.reason)


def _route(t: Transaction, routing: Routing, entries: Mapping[str, Destination]) -> None:
    own = t.row("SELECT uid, syntax, digest, called, port, boot, since_boot FROM objects WHERE number = ? AND routed = 0",
                (routing.number,))
    if own is None:
        return
    others = t.rows("SELECT number, syntax, digest, called, port, state, file, (boot, since_boot) > (?, ?) FROM objects"
                    " WHERE uid = ? AND number <> ? ORDER BY seq DESC LIMIT ?",
                    (own[5], own[6], own[0], routing.number, SAME_UID_LOOKED_AT))
    flags = set(routing.flags)
    if any(other[2] != own[2] and other[5] != "discarded" for other in others):
        flags.add("conflict")
    decided = []
    for id in dict.fromkeys(routing.destinations):
        entry = entries.get(id, Destination(id=id))
        state, twin, reason = _delivery(t, own, others, routing.hold, entry)
        decided.append([id, str(state), int(entry.required), twin, reason])
    t.append("routed", routing.number, "", generation=routing.generation, rules=list(routing.rules), destinations=decided,
             priority=int(routing.priority), hold=routing.hold, study=routing.study, flags=sorted(flags))


def _delivery(t: Transaction, own: tuple[Any, ...], others: list[tuple[Any, ...]], hold: bool,
              entry: Destination) -> tuple[DeliveryState, int | None, str]:
    """How the delivery of a new object to one destination begins: (state, twin, reason)."""
    already: int | None = None
    rival: int | None = None
    ahead: int | None = None
    late = False
    for number, syntax, digest, called, port, state, file, after in others:  # the latest first
        delivery = _row(t, number, entry.id)
        if delivery is None:
            continue
        there, reason, twin = delivery
        kept = file == 0 and state not in ("quarantined", "discarded")
        if digest != own[2]:
            if there != "dropped":
                rival = number if rival is None else rival
            pending = _pending(there, reason)
            given_up = there == "covered" and state == "discarded"
            late = late or (bool(after) and not given_up and _goes_there(t, there, reason, twin, entry.id))
            if ahead is None and pending:
                ahead = number
        elif (syntax, called, port) == (own[1], own[3], own[4]):
            # Not by a twin that goes before other content: what came last must be what the destination gets last.
            if there in UNSENT and kept and ahead is None:
                return DeliveryState.COVERED, number, ""
            if there == "confirmed" or (there == "sent" and kept):
                already = number
    if already is not None and entry.resend == "never":
        return DeliveryState.COVERED, already, ""
    if hold:
        return DeliveryState.HELD, None, "rule"
    if rival is not None and entry.conflict == "hold":
        return DeliveryState.HELD, None, "conflict"
    if late:
        return DeliveryState.HELD, None, LATE
    if ahead is not None:
        return DeliveryState.HELD, ahead, ORDER
    return DeliveryState.WAITING, None, ""


def overtaken(t: Transaction, number: int, destination: str) -> bool:
    """Whether that destination was given other content of the same UID that arrived later, or will be without a person."""
    own = t.row("SELECT uid, digest, boot, since_boot FROM objects WHERE number = ?", (number,))
    if own is None:
        return False
    later = t.rows("SELECT number, state FROM objects WHERE uid = ? AND digest <> ? AND (boot, since_boot) > (?, ?)"
                   " ORDER BY seq DESC LIMIT ?", (*own, SAME_UID_LOOKED_AT))
    for other, state in later:
        delivery = _row(t, other, destination)
        if delivery is not None and not (delivery[0] == "covered" and state == "discarded") \
                and _goes_there(t, delivery[0], delivery[1], delivery[2], destination):
            return True
    return False


def _row(t: Transaction, number: int, destination: str) -> tuple[Any, ...] | None:
    return t.row("SELECT state, reason, twin FROM deliveries WHERE number = ? AND destination = ?", (number, destination))


def _pending(state: str, reason: str) -> bool:
    return state in _PENDING or (state == "held" and reason == ORDER)


def _goes_there(t: Transaction, state: str, reason: str, twin: int | None, destination: str) -> bool:
    """Whether that content was sent, or will be without a person; by its twin, where it is covered."""
    while state == "covered":
        delivery = None if twin is None else _row(t, twin, destination)
        if delivery is None:
            return False
        state, reason, twin = delivery
    return _pending(state, reason) or state in ("sent", "confirmed")
