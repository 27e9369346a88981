"""The balance (I2): every number granted and every object accepted is somewhere, exactly once.

    granted  = free + in flight + void + accepted + derived
    accepted = waiting + sent + confirmed + retired + duplicate + quarantined + discarded

The left sides come from the events and from the files, the right sides from the
state tables, so that it can fail. What looks wrong is looked at once more, one
number at a time in a transaction of its own, before it counts: the spool is in
use meanwhile. Nothing is mended here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import apsw

from appliance.dicom.part10 import HEAD, is_blank
from appliance.model import ObjectState, number_text
from appliance.spool.derived import GONE, PRESENT, object_state
from appliance.spool.layout import SHARDS, Spool, file_number, spool_error
from appliance.spool.ledger import Ledger

NAMED = 1000
"""At most so many discrepancies are named; all are counted."""


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """One thing that does not add up. `number` is 0 where it concerns no single number."""

    number: int
    what: str

    def __str__(self) -> str:
        return f"{number_text(self.number)}: {self.what}" if self.number else self.what


@dataclass(slots=True)
class Balance:
    """All figures. `unaccounted` is 0 exactly where nothing is wrong."""

    granted: int = 0
    free: int = 0
    in_flight: int = 0
    void: int = 0
    accepted: int = 0
    derived: int = 0
    states: dict[ObjectState, int] = field(default_factory=dict)
    files: int = 0
    in_quarantine: int = 0
    held_bytes: int = 0
    unaccounted: int = 0
    discrepancies: list[Discrepancy] = field(default_factory=list)

    @property
    def balanced(self) -> bool:
        return self.unaccounted == 0

    def add(self, number: int, what: str, count: int = 1) -> None:
        self.unaccounted += count
        if len(self.discrepancies) < NAMED:
            self.discrepancies.append(Discrepancy(number, what))


def balance(spool: Spool, ledger: Ledger, *, deep: bool = False) -> Balance:
    """Count everything once. `deep` also makes every derived table again from the events and compares them row by row.

    SpoolFault where a folder cannot be read, LedgerError. The ledger may be open
    for reading only. It takes time in proportion to all that was ever accepted.
    """
    found = Balance()
    files, strays = _scan(spool)

    def first_sight(db: apsw.Connection) -> set[int]:
        _figures(db, found)
        return _suspects(db, spool, files, found)

    for number in sorted(ledger.ask(first_sight)):
        what = _examine(spool, ledger, number)
        if what:
            found.add(number, what)
    for name in strays:
        if os.path.lexists(name):
            found.add(0, f"a stray file: {os.path.relpath(name, spool.path)}")
    if deep:
        for line in ledger.differences():
            found.add(0, line)
    return found


def _scan(spool: Spool) -> tuple[dict[int, int], list[str]]:
    """Files of numbers with their sizes (bytes), and the paths of all others."""
    files: dict[int, int] = {}
    strays: list[str] = []
    try:
        for shard in range(SHARDS):
            folder = spool.objects / f"{shard:02x}"
            with os.scandir(folder) as entries:
                for entry in entries:
                    number = file_number(entry.name)
                    if number is None or spool.shard(number) != folder or not entry.is_file(follow_symlinks=False):
                        strays.append(entry.path)
                        continue
                    with suppress(FileNotFoundError):  # retired just now
                        files[number] = entry.stat(follow_symlinks=False).st_size
    except OSError as e:
        raise spool_error(e, "cannot read the spool") from e
    return files, strays


def _one(db: apsw.Connection, sql: str) -> int:
    return int(db.execute(sql).get or 0)


def _figures(db: apsw.Connection, found: Balance) -> None:
    """Sums of the events against sums of the tables, in one snapshot: no race to mend here."""
    found.granted = _one(db, "SELECT sum(body ->> 'count') FROM events WHERE kind = 'granted'")
    found.void = _one(db, "SELECT sum(r.value ->> 1) FROM events e, json_each(e.body, '$.numbers') r WHERE e.kind = 'void'")
    found.accepted = _one(db, "SELECT count(*) FROM events WHERE kind = 'accepted'")
    states = dict(db.execute("SELECT state, count(*) FROM objects GROUP BY state"))
    found.states = {state: states.pop(str(state), 0) for state in ObjectState}
    found.held_bytes = _one(db, f"SELECT sum(length) FROM objects WHERE file <> {GONE}")
    counters = dict(db.execute("SELECT name, value FROM counters"))
    open_numbers = _one(db, "SELECT count(*) FROM open_numbers")
    total = sum(found.states.values()) + sum(states.values())
    for what, left, right in (
            ("numbers granted, by event and in the table", found.granted, _one(db, "SELECT sum(count) FROM grants")),
            ("numbers granted, and free, in flight, void or accepted",
             found.granted, open_numbers + found.void + found.accepted + found.derived),
            ("objects accepted, by event and by state", found.accepted, total),
            ("objects in a known state, and all", total - sum(states.values()), total),
            *((f"objects {state}, counted and kept", found.states[state], counters.get(f"state:{state}", 0))
              for state in ObjectState),
            *((f"{what}, counted and kept", value, counters.get(name, 0)) for what, name, value in (
                ("numbers granted", "granted", found.granted), ("numbers void", "void", found.void),
                ("numbers open", "open", open_numbers), ("objects accepted", "accepted", found.accepted),
                ("objects not routed", "unrouted", _one(db, "SELECT count(*) FROM objects WHERE routed = 0")),
                ("bytes held", "held_bytes", found.held_bytes)))):
        if left != right:
            found.add(0, f"{what}: {left} and {right}", abs(left - right) if "bytes" not in what else 1)
    queues = {(row[0], row[1]): (row[2], row[3]) for row in db.execute("SELECT destination, state, count, bytes FROM queues")}
    counted = {(row[0], row[1]): (row[2], row[3]) for row in db.execute(
        "SELECT destination, state, count(*), sum(length) FROM deliveries GROUP BY destination, state")}
    for key in sorted(queues.keys() | counted.keys(), key=str):
        if queues.get(key, (0, 0)) != counted.get(key, (0, 0)):
            found.add(0, f"deliveries {key[1]} at {key[0]}, counted and kept: {counted.get(key, (0, 0))} and"
                         f" {queues.get(key, (0, 0))}")


_EVENTS_AND_STATE = (
    # What the events of a number say, and what its row says, in sets: (numbers on the left and not on the right)
    "SELECT number FROM events WHERE kind = 'accepted' EXCEPT SELECT number FROM objects",
    "SELECT number FROM objects EXCEPT SELECT number FROM events WHERE kind = 'accepted'",
    "SELECT number FROM events WHERE kind = 'retired' EXCEPT SELECT number FROM objects WHERE file = 2",
    "SELECT number FROM objects WHERE file = 2 EXCEPT SELECT number FROM events WHERE kind = 'retired'",
    "SELECT number FROM objects WHERE state = 'discarded' EXCEPT SELECT number FROM events WHERE kind = 'discarded'",
    "SELECT number FROM events WHERE kind = 'discarded' EXCEPT SELECT number FROM objects WHERE state = 'discarded'",
    "SELECT number FROM objects WHERE state = 'quarantined' EXCEPT SELECT number FROM events WHERE kind = 'quarantined'",
    "SELECT number FROM events WHERE kind = 'quarantined' EXCEPT SELECT number FROM objects WHERE state IN"
    " ('quarantined', 'discarded')",
    "SELECT number FROM deliveries WHERE state = 'confirmed' EXCEPT SELECT number FROM events WHERE kind = 'confirmed'",
    "SELECT number FROM deliveries WHERE state = 'sent' EXCEPT SELECT number FROM events WHERE kind = 'sent'",
)


def _suspects(db: apsw.Connection, spool: Spool, files: dict[int, int], found: Balance) -> set[int]:
    """Numbers that do not look right at first sight; also counts the files of open numbers."""
    suspects = {number for sql in _EVENTS_AND_STATE for (number,) in db.execute(sql)}
    left = dict(files)
    found.files = len(files)
    for number, file, state, length in db.execute(f"SELECT number, file, state, length FROM objects WHERE file <> {GONE}"):
        size = left.pop(number, None)
        if state in (ObjectState.QUARANTINED, ObjectState.DISCARDED) and os.path.lexists(quarantine_path(spool, number)):
            found.in_quarantine += 1
        elif file == PRESENT and size != HEAD + length:
            suspects.add(number)
    suspects.update(_wrong_states(db))
    for (number,) in db.execute("SELECT number FROM open_numbers"):
        if _blank(spool, number, left.pop(number, None)):
            found.free += 1
        else:
            found.in_flight += 1
    for (number,) in db.execute("SELECT number FROM voids"):
        left.pop(number, None)
    return suspects | left.keys()


def _wrong_states(db: apsw.Connection) -> Iterator[int]:
    """Objects whose state or time of completion is not what their deliveries make of them."""
    rows: list[tuple[Any, ...]] = []
    last: tuple[int, str, int | None] | None = None
    for number, state, complete, *delivery in db.execute(
            "SELECT o.number, o.state, o.complete_on, d.state, d.required, d.confirmed_on FROM objects o"
            " LEFT JOIN deliveries d ON d.number = o.number WHERE o.file = 0 AND o.state NOT IN ('quarantined', 'discarded')"
            " ORDER BY o.number"):
        if last is not None and last[0] != number:
            if object_state(rows) != last[1:]:
                yield last[0]
            rows = []
        last = (number, state, complete)
        if delivery[0] is not None:
            rows.append(tuple(delivery))
    if last is not None and object_state(rows) != last[1:]:
        yield last[0]


def quarantine_path(spool: Spool, number: int) -> str:
    return os.path.join(spool.quarantine, f"{number_text(number)}.dcm")


def _blank(spool: Spool, number: int, size: int | None) -> bool:
    """Whether nothing was written to that slot yet."""
    if not size:
        return True
    with suppress(OSError), open(spool.object_path(number), "rb") as file:
        head = file.read(HEAD)
        return size <= HEAD and is_blank(head.ljust(HEAD, b"\0"))
    return False


def _examine(spool: Spool, ledger: Ledger, number: int) -> str:
    """One number once more, by itself: what is wrong with it, or nothing."""
    return ledger.ask(lambda db: _judge(db, spool, number))


def _judge(db: apsw.Connection, spool: Spool, number: int) -> str:
    kinds = [row[0] for row in db.execute("SELECT kind FROM events WHERE number = ? ORDER BY seq", (number,))]
    row = db.execute("SELECT state, file, length, complete_on FROM objects WHERE number = ?", (number,)).fetchone()
    size = None
    with suppress(OSError):
        size = os.lstat(spool.object_path(number)).st_size
    if row is None:
        if "accepted" in kinds:
            return "accepted, but has no state"
        if size is None or db.execute("SELECT 1 FROM open_numbers WHERE number = ?1 UNION ALL SELECT 1 FROM voids"
                                      " WHERE number = ?1", (number,)).fetchone():
            return ""
        granted = db.execute("SELECT first + count FROM grants WHERE first <= ? ORDER BY first DESC LIMIT 1",
                             (number,)).fetchone()
        if granted is None or granted[0] <= number:
            return "a file without a granted number"
        return "a file of a void number that was swept"
    state, file, length, complete = row
    if "accepted" not in kinds:
        return "has a state, but no event of acceptance"
    if ("retired" in kinds) != (file == GONE):
        return f"{'retired' if 'retired' in kinds else 'not retired'} by its events, but its file is noted as " \
               f"{'gone' if file == GONE else 'kept'}"
    for final, allowed in (("discarded", ("discarded",)), ("quarantined", ("quarantined", "discarded"))):
        if (final in kinds and state not in allowed) or (state == final and final not in kinds):
            return f"its state is {state}, which is not what its events say of it being {final}"
    for (destination, delivery) in db.execute("SELECT destination, state FROM deliveries WHERE number = ?"
                                              " AND state IN ('sent', 'confirmed')", (number,)).fetchall():
        if not db.execute("SELECT 1 FROM events WHERE number = ? AND destination = ? AND kind = ?",
                          (number, destination, delivery)).fetchone():
            return f"{delivery} at {destination}, but no event says so"
    if file == GONE:
        return "retired, but its file is there" if size is not None else ""
    if file != PRESENT:
        return ""
    if state in ("quarantined", "discarded"):
        if size is None and not os.path.lexists(quarantine_path(spool, number)):
            return f"{state}, but its file is missing"
        return ""
    if size is None:
        return "its file is missing"
    if size != HEAD + length:
        return f"its file has {size} bytes, not {HEAD + length}"
    rows = db.execute("SELECT state, required, confirmed_on FROM deliveries WHERE number = ?", (number,)).fetchall()
    if object_state(rows) != (state, complete):
        return f"its state is {state}, its deliveries make it {object_state(rows)[0]}"
    return ""
