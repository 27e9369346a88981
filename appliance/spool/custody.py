"""Verbs of the receivers: numbers are granted before their files exist, and each is closed by `accepted` or `void`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from appliance.errors import LedgerError
from appliance.model import Custody, number_text
from appliance.spool import events
from appliance.spool.core import LedgerCore, Transaction
from appliance.spool.rows import Knock

KNOCKS_KEPT = 1000
"""Callers at the door that are remembered; the oldest go first, so that a scan cannot fill the disk."""

_MAX_NUMBER = (1 << 63) - 1


def ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Numbers as ranges (first, count), in order."""
    found: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if found and number == found[-1][0] + found[-1][1]:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((number, 1))
    return found


class CustodyVerbs(LedgerCore):
    def register_owner(self, role: str) -> int:
        """A new owner of numbers (one for each receiver process and start)."""
        def work(t: Transaction) -> int:
            last = t.row("SELECT max(owner) FROM owners")
            owner = int((last[0] if last else 0) or 0) + 1
            t.append("owner", owner=owner, role=role)
            return owner
        return self._write(work)

    def grant(self, owner: int, count: int) -> int:
        """`count` numbers never used before, for that owner; returns the first. Durable when it returns."""
        if count < 1:
            raise LedgerError(f"cannot grant {count} numbers")

        def work(t: Transaction) -> int:
            if t.row("SELECT 1 FROM owners WHERE owner = ?", (owner,)) is None:
                raise LedgerError(f"no such owner: {owner}")
            return grant_from(t, next_number(t), count, owner)
        return self._write(work)

    def accepted(self, custodies: Sequence[Custody]) -> None:
        """Group commit: these objects are durable. One that was accepted before with the same digest is passed over.

        LedgerError where a number was not granted or is void, or is another object: then none is accepted.
        """
        bodies = [(c, events.custody_body(c)) for c in custodies]

        def work(t: Transaction) -> None:
            for custody, body in bodies:
                number = custody.number
                if t.row("SELECT 1 FROM open_numbers WHERE number = ?", (number,)) is None:
                    twin = t.row("SELECT digest FROM objects WHERE number = ?", (number,))
                    if twin is None or twin[0] != custody.digest:
                        raise LedgerError(f"object {number_text(number)} is not open: it cannot be accepted")
                    continue
                t.event("accepted", number, "", body)
        if bodies:
            self._write(work)

    def void(self, numbers: Sequence[tuple[int, str]]) -> None:
        """These numbers will never be an object; each with its reason. Closed ones are passed over."""
        def work(t: Transaction) -> None:
            reasons: dict[str, list[int]] = {}
            for number, reason in numbers:
                if t.row("SELECT 1 FROM open_numbers WHERE number = ?", (number,)) is not None:
                    reasons.setdefault(reason, []).append(number)
            for reason, group in reasons.items():
                t.append("void", reason=reason, numbers=[list(r) for r in ranges(group)])
        if numbers:
            self._write(work)

    def open_numbers(self, owner: int) -> list[int]:
        """Numbers granted to that owner without a closing row, in order."""
        return [row[0] for row in self._select("SELECT number FROM open_numbers WHERE owner = ? ORDER BY number", (owner,))]

    def dead_owners(self, is_alive: Callable[[int], bool]) -> list[int]:
        """Owners that have open numbers and are not alive: a receiver recovers these before it takes anything in."""
        owners = [row[0] for row in self._select("SELECT DISTINCT owner FROM open_numbers ORDER BY owner")]
        return [owner for owner in owners if not is_alive(owner)]

    def knocked(self, knocks: Sequence[Knock]) -> None:
        """Note callers that were refused or held, for `dcmgate peers`. Not custody: no event."""
        def work(t: Transaction) -> None:
            for k in knocks:
                t.run("INSERT INTO knocks VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (title, called, address) DO UPDATE SET"
                      " verdict = excluded.verdict, text = excluded.text, count = count + excluded.count,"
                      " last_wall = excluded.last_wall",
                      (k.title, k.called, k.address, k.verdict, k.text, k.count, k.first_wall or t.wall, k.last_wall or t.wall))
            t.run("DELETE FROM knocks WHERE (title, called, address) IN (SELECT title, called, address FROM knocks"
                  " ORDER BY last_wall DESC LIMIT -1 OFFSET ?)", (KNOCKS_KEPT,))
        if knocks:
            self._write(work)


def next_number(t: Transaction) -> int:
    """The smallest number above all that were ever granted."""
    last = t.row("SELECT first + count FROM grants ORDER BY first DESC LIMIT 1")
    return int(last[0]) if last else 1


def grant_from(t: Transaction, first: int, count: int, owner: int) -> int:
    """Grant a range; returns its first number."""
    if first < 1 or first + count - 1 > _MAX_NUMBER:
        raise LedgerError("numbers are used up")
    t.event("granted", first, "", {"count": count, "owner": owner})
    return first
