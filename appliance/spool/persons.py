"""Verbs of persons. `by` is the person's name, as the keeper took it from the socket's peer credentials."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from functools import partial

from appliance.errors import UsageError
from appliance.policy import canary
from appliance.spool.core import LedgerCore, Transaction, checked_ids
from appliance.spool.delivering import overtaken
from appliance.spool.derived import UNSENT

MOVED_AT_ONCE = 1024
"""Deliveries requeued in one transaction: it holds up the receivers, whose rows have to be written meanwhile."""


class PersonVerbs(LedgerCore):
    def hold(self, numbers: Sequence[int], by: str, reason: str, destination: str | None = None) -> int:
        """Let these objects wait for `release`, at one destination or all. Returns the number of deliveries held."""
        def work(t: Transaction) -> int:
            done = 0
            for number in numbers:
                for where, state in _deliveries(t, number, destination):
                    if state in UNSENT and state != "held":
                        t.append("held", number, where, reason=reason[:1024], by=by)
                        done += 1
            return done
        return self._write(work) if numbers else 0

    def release(self, numbers: Sequence[int], by: str, destination: str | None = None) -> int:
        """End `held`, at one destination or all. Returns the number of deliveries released."""
        def work(t: Transaction) -> int:
            done = 0
            for number in numbers:
                for where, state in _deliveries(t, number, destination):
                    if state == "held":
                        t.append("released", number, where, by=by)
                        done += 1
            return done
        return self._write(work) if numbers else 0

    def requeue(self, what: Sequence[int] | str, by: str, to: str | None = None, source: str | None = None, *,
                states: Collection[str] | None = None) -> int:
        """Send again, or send elsewhere. Returns the number of deliveries that changed.

        `what` is a destination's id: everything not sent there goes to `to` (or, without
        `to`, what is parked or held there is tried again); or numbers: their deliveries
        (at destination `source`, or all) wait again whatever became of them, or go to `to`.
        Of a whole queue, what the destination was given later content of is left alone: it must be asked for by number.
        A canary never goes elsewhere. `states` leaves out deliveries in any other. A queue is moved in several transactions,
        so that nobody waits for his turn until he gives up.
        """
        checked_ids([id for id in (to, source, what if isinstance(what, str) else None) if id is not None])

        def work(t: Transaction, numbers: Sequence[int], where: str | None) -> int:
            done = 0
            pairs = [(number, *found) for number in numbers for found in _deliveries(t, number, where)]
            for number, destination, state in pairs:
                if to is not None and to != destination and _is_canary(t, number):
                    continue
                if isinstance(what, str) and overtaken(t, number, to or destination):
                    continue
                if (states is None or state in states) and _may_be_sent(t, number) and _deliveries(t, number, destination):
                    t.append("requeued", number, destination, to=to or destination, by=by)
                    done += 1
            return done

        if not isinstance(what, str):
            return self._write(partial(work, numbers=what, where=source)) if what else 0
        if to == what:
            raise UsageError("a queue cannot be moved to itself",
                             mend="Leave out the target: then what is parked or held is tried again.")
        states = ("waiting", "deferred", "sending", "held", "parked") if to else ("held", "parked")
        queue = [row[0] for row in self._select(
            f"SELECT number FROM deliveries WHERE destination = ? AND state IN ({', '.join('?' * len(states))}) ORDER BY seq",
            (what, *states))]
        return sum(self._write(partial(work, numbers=queue[at:at + MOVED_AT_ONCE], where=what))
                   for at in range(0, len(queue), MOVED_AT_ONCE))

    def discard(self, numbers: Sequence[int], by: str, reason: str) -> list[int]:
        """A named person gives these objects up, with a reason; `retire` deletes the files. Returns those discarded."""
        if not by or not reason:
            raise UsageError("a discard needs a person and a reason")

        def work(t: Transaction) -> list[int]:
            done = []
            for number in numbers:
                row = t.row("SELECT state, file FROM objects WHERE number = ?", (number,))
                if row is not None and row[1] == 0 and row[0] not in ("retired", "discarded"):
                    t.append("discarded", number, by=by, reason=reason[:1024])
                    done.append(number)
            return done
        return self._write(work) if numbers else []

    def seen(self, by: str, what: str) -> None:
        """A person read patient data (`list`, `show`, `export`)."""
        self._write(lambda t: t.append("seen", by=by, what=what[:1024]))

    def admit(self, title: str, address: str, by: str) -> None:
        """Let a caller in that no `[[peer]]` names, by its title and address."""
        def work(t: Transaction) -> None:
            t.append("admitted", title=title, address=address, by=by)
            t.run("DELETE FROM knocks WHERE title = ? AND address = ?", (title, address))
        self._write(work)


def _deliveries(t: Transaction, number: int, destination: str | None) -> list[tuple[str, str]]:
    found = t.rows("SELECT destination, state FROM deliveries WHERE number = ? AND (? IS NULL OR destination = ?)"
                   " ORDER BY destination", (number, destination, destination))
    return [(row[0], row[1]) for row in found]


def _is_canary(t: Transaction, number: int) -> bool:
    row = t.row("SELECT flags FROM objects WHERE number = ?", (number,))
    return row is not None and canary.FLAG in json.loads(row[0])


def _may_be_sent(t: Transaction, number: int) -> bool:
    row = t.row("SELECT state, file FROM objects WHERE number = ?", (number,))
    return row is not None and row[1] == 0 and row[0] not in ("retired", "quarantined", "discarded")
