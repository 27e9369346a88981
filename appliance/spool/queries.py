"""Questions to the ledger. None changes anything; those that are asked often cost the same however full the spool is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import apsw
from blake3 import blake3

from appliance.errors import LedgerDamaged
from appliance.model import Custody, DeliveryState, ObjectState, Priority, escape
from appliance.policy.canary import FLAG
from appliance.spool import events, schema
from appliance.spool.core import LedgerCore, replay
from appliance.spool.events import source_of, unescape
from appliance.spool.rows import (
    Admitted,
    Arrival,
    Backlog,
    ChainReport,
    Counts,
    DeliveryRow,
    Event,
    Knock,
    ObjectRow,
    QueueCount,
    Queued,
    Sent,
    StudyRow,
)

T = TypeVar("T")

OBJECT_COLUMNS = ("number, boot, since_boot, wall, class, uid, syntax, length, digest, source, seq, state, file, complete_on,"
                  " routed, generation, rules, priority, study, flags")
_DELIVERY_COLUMNS = ("number, destination, state, required, seq, attempts, faults, crashes, boot, until, reason, status, text,"
                     " warning, reference, sent_on, confirmed_on, twin")


P = ParamSpec("P")


def readable(make: Callable[P, T]) -> Callable[P, T]:
    """What makes a value of a stored row says LedgerDamaged where that is not one that was stored."""
    @wraps(make)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return make(*args, **kwargs)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise LedgerDamaged(f"a row of the ledger cannot be read: {type(error).__name__} {error}"[:200],
                                mend="`dcmgate spool rebuild` makes the ledger from the objects.") from error
    return checked


@readable
def object_row(row: tuple[Any, ...]) -> ObjectRow:
    (number, boot, since_boot, wall, sop_class, uid, syntax, length, digest, source, seq, state, file, complete_on, routed,
     generation, rules, priority, study, flags) = row
    custody = Custody(number, boot, since_boot, wall, unescape(sop_class), unescape(uid), syntax, length, digest,
                      source_of(json.loads(source)))
    return ObjectRow(custody, seq, ObjectState(state), file, complete_on, bool(routed), generation, tuple(json.loads(rules)),
                     Priority(priority), study, tuple(json.loads(flags)))


@readable
def queued_row(row: tuple[Any, ...], boot: int) -> Queued:
    """`boot` is this boot's ordinal: a time of an earlier one is simply due (I7)."""
    (number, destination, seq, priority, study, length, sop_class, uid, syntax, digest, attempts, faults, crashes, then, until,
     source) = row
    return Queued(number, destination, seq, Priority(priority), study, length, unescape(sop_class), unescape(uid), syntax,
                  digest, attempts, faults, crashes, until if then == boot else 0, source_of(json.loads(source)))


@readable
def sent_row(row: tuple[Any, ...]) -> Sent:
    number, destination, sent_on, reference, status, sop_class, uid, syntax, length, digest, study, source = row
    return Sent(number, destination, sent_on, reference, status, unescape(sop_class), unescape(uid), syntax, length, digest,
                study, source_of(json.loads(source)))


class Questions(LedgerCore):
    def object(self, number: int) -> ObjectRow | None:
        rows = self._select(f"SELECT {OBJECT_COLUMNS} FROM objects WHERE number = ?", (number,))
        return object_row(rows[0]) if rows else None

    def objects(self, numbers: Sequence[int]) -> list[ObjectRow]:
        """Those of the numbers that were accepted."""
        return [found for n in numbers if (found := self.object(n)) is not None]

    def objects_of_uid(self, uid: bytes, limit: int = 100) -> list[ObjectRow]:
        """Objects with that SOP Instance UID, the latest first."""
        return [object_row(row) for row in self._select(
            f"SELECT {OBJECT_COLUMNS} FROM objects WHERE uid = ? ORDER BY seq DESC LIMIT ?", (escape(uid), limit))]

    def objects_of_study(self, study: str, limit: int = 10_000) -> list[ObjectRow]:
        """Objects of a study, in order of arrival."""
        return [object_row(row) for row in self._select(
            f"SELECT {OBJECT_COLUMNS} FROM objects WHERE study = ? AND study <> '' ORDER BY boot, since_boot LIMIT ?",
            (study, limit))]

    def acknowledged_after(self, uid_text: str, boot: int, since_boot: int) -> bool:
        """Whether an object of that UID (as `Custody.uid_text`) was acknowledged after that boot ordinal and time."""
        return bool(self._select("SELECT 1 FROM objects WHERE uid = ? AND (boot, since_boot) > (?, ?) LIMIT 1",
                                 (uid_text, boot, since_boot)))

    def rivalled(self, number: int, destination: str) -> bool:
        """Whether an object with the same UID and other content was tried at that destination too.

        The events say it: a delivery that was moved elsewhere (requeue, fail-over) has no row there any more.
        """
        return bool(self._select(
            "SELECT 1 FROM objects own CROSS JOIN objects o ON o.uid = own.uid AND o.digest <> own.digest"
            " CROSS JOIN events e ON e.number = o.number AND e.destination = ? AND e.kind = 'attempt'"
            " WHERE own.number = ? LIMIT 1", (destination, number)))

    def canaries(self, destination: str) -> list[ObjectRow]:
        """Test objects that this destination has not got; at once where no test object is held at all."""
        if not self._select("SELECT 1 FROM counters WHERE name = ? AND value > 0", (f"flag:{FLAG}",)):
            return []
        of = "SELECT number FROM deliveries WHERE destination = ? AND state"
        return [object_row(row) for row in self._select(
            f"SELECT {OBJECT_COLUMNS} FROM objects WHERE number IN ({of} IN ('waiting', 'deferred') UNION ALL {of} = 'sending'"
            f" UNION ALL {of} IN ('held', 'parked')) AND flags LIKE ? ORDER BY number",
            (destination, destination, destination, f'%"{FLAG}"%'))]

    def quarantined(self, limit: int = 1000) -> list[ObjectRow]:
        return [object_row(row) for row in self._select(
            f"SELECT {OBJECT_COLUMNS} FROM objects WHERE state = 'quarantined' ORDER BY number LIMIT ?", (limit,))]

    def present(self, after: int = 0, limit: int = 1000) -> list[ObjectRow]:
        """Objects whose file is kept, by number behind `after`: for scrub and for making the index again."""
        return [object_row(row) for row in self._select(
            f"SELECT {OBJECT_COLUMNS} FROM objects WHERE number > ? AND file = 0 ORDER BY number LIMIT ?", (after, limit))]

    def deliveries(self, number: int) -> list[DeliveryRow]:
        """One object towards each of its destinations."""
        return [self._delivery(row) for row in self._select(
            f"SELECT {_DELIVERY_COLUMNS} FROM deliveries WHERE number = ? ORDER BY destination", (number,))]

    def stuck(self, state: DeliveryState, destination: str | None = None, limit: int = 1000) -> list[DeliveryRow]:
        """Deliveries that are held or parked."""
        return [self._delivery(row) for row in self._select(
            f"SELECT {_DELIVERY_COLUMNS} FROM deliveries WHERE state = ? AND state IN ('held', 'parked')"
            " AND (? IS NULL OR destination = ?) ORDER BY destination, number LIMIT ?",
            (str(state), destination, destination, limit))]

    def _delivery(self, row: tuple[Any, ...]) -> DeliveryRow:
        (number, destination, state, required, seq, attempts, faults, crashes, boot, until, reason, status, text, warning,
         reference, sent_on, confirmed_on, twin) = row
        return DeliveryRow(number, destination, DeliveryState(state), bool(required), seq, attempts, faults, crashes,
                           until if boot == self.boot else 0, reason, status, text, bool(warning), reference, sent_on,
                           confirmed_on, twin)

    def history(self, number: int) -> list[Event]:
        """Every event of one object, in order."""
        return self._read(lambda db: events.of_number(db, number))

    def events(self, after: int = 0, limit: int = 1000) -> list[Event]:
        """Events behind `after`, in order."""
        return self._read(lambda db: [e for e, _ in zip(events.read(db, after), range(limit), strict=False)])

    # Figures

    @readable
    def counts(self) -> Counts:
        """Everything that is counted, from one snapshot. O(1): no object is looked at."""
        def work(db: apsw.Connection) -> Counts:
            c = dict(db.execute("SELECT name, value FROM counters"))
            queues = {(destination, DeliveryState(state)): QueueCount(count, length) for destination, state, count, length in
                      db.execute("SELECT destination, state, count, bytes FROM queues")}
            return Counts(c.get("granted", 0), c.get("open", 0), c.get("void", 0), c.get("accepted", 0), c.get("unrouted", 0),
                          {state: c.get(f"state:{state}", 0) for state in ObjectState}, c.get("held_objects", 0),
                          c.get("held_bytes", 0), c.get("largest", 0), queues,
                          {name[5:]: value for name, value in c.items() if name.startswith("flag:") and value})
        return self._read(work)

    @readable
    def backlog(self) -> list[Backlog]:
        """For each destination (and "" for routing) what it has not got, held and parked objects left out."""
        counts = self.counts()
        found = []
        if counts.unrouted:
            rows = self._select("SELECT boot, since_boot, wall FROM objects WHERE routed = 0"
                                " ORDER BY boot, since_boot, number LIMIT 1")
            found += [Backlog("", counts.unrouted, 0, self._powered(row[0], row[1]), row[2]) for row in rows]
        for destination in sorted({destination for destination, _ in counts.queues}):
            queue = counts.queue(destination, DeliveryState.WAITING, DeliveryState.DEFERRED, DeliveryState.SENDING)
            rows = self._select(
                "SELECT o.boot, o.since_boot, o.wall FROM (SELECT * FROM (SELECT number FROM deliveries WHERE destination = ?"
                " AND state IN ('waiting', 'deferred') ORDER BY seq LIMIT 1) UNION SELECT * FROM (SELECT number FROM"
                " deliveries WHERE destination = ? AND state = 'sending')) d CROSS JOIN objects o ON o.number = d.number"
                " ORDER BY o.boot, o.since_boot LIMIT 1", (destination, destination)) if queue.count else []
            found += [Backlog(destination, queue.count, queue.bytes, self._powered(row[0], row[1]), row[2]) for row in rows]
        return found

    def _powered(self, boot: int, at: int) -> int:
        rows = self._select("SELECT powered_before FROM boots WHERE ordinal = ?", (boot,))
        return (int(rows[0][0]) if rows else 0) + at

    def studies(self, limit: int = 100, study: str = "") -> list[StudyRow]:
        """The studies that got an object last, each for each destination; or one study."""
        rows = self._select(
            "SELECT s.study, d.destination, count(*), sum(d.state NOT IN ('sent', 'confirmed', 'dropped')"
            " AND d.confirmed_on IS NULL), sum(d.state = 'sent'), sum(d.confirmed_on IS NOT NULL), sum(o.length),"
            " s.first_wall, s.last_wall, min(CASE WHEN d.confirmed_on IS NULL AND d.state <> 'dropped' THEN o.wall END)"
            " FROM (SELECT * FROM studies WHERE ? = '' OR study = ? ORDER BY last_seq DESC LIMIT ?) s"
            " CROSS JOIN objects o ON o.study = s.study AND o.study <> '' CROSS JOIN deliveries d ON d.number = o.number"
            " GROUP BY s.last_seq, s.study, d.destination ORDER BY s.last_seq DESC, d.destination", (study, study, limit))
        return [StudyRow(*row) for row in rows]

    @readable
    def arrivals(self) -> list[Arrival]:
        """Every source that ever sent, and its habit."""
        return [Arrival(source, peer, count, last_on, last_wall, tuple(json.loads(habit)))
                for source, peer, count, last_on, last_wall, habit in self._select(
                    "SELECT source, peer, count, last_on, last_wall, habit FROM arrivals ORDER BY source")]

    def knocks(self, limit: int = 100, *, only: Sequence[str] = (), without: Sequence[str] = ()) -> list[Knock]:
        """Callers that were refused or held, the latest first; `only` with, or `without`, these verdicts."""
        return [Knock(*row) for row in self._select(
            "SELECT title, called, address, verdict, text, count, first_wall, last_wall FROM knocks"
            " WHERE (?1 = '[]' OR verdict IN (SELECT value FROM json_each(?1)))"
            " AND verdict NOT IN (SELECT value FROM json_each(?2)) ORDER BY last_wall DESC LIMIT ?3",
            (json.dumps(list(only)), json.dumps(list(without)), limit))]

    def admitted(self) -> list[Admitted]:
        """Callers that a person let in."""
        return [Admitted(*row) for row in self._select("SELECT title, address, by, wall FROM admitted ORDER BY title, address")]

    # Checks

    def head(self) -> tuple[int, bytes]:
        """(sequence number, hash) of the last event: kept elsewhere, it shows that a ledger was rolled back."""
        rows = self._select("SELECT seq, hash FROM chain")
        return (int(rows[0][0]), bytes(rows[0][1])) if rows else (0, b"")

    def witnessed(self, witness: tuple[int, bytes]) -> bool:
        """Whether the event of an earlier `head()` is still there, with the same hash. O(1)."""
        rows = self._select("SELECT hash FROM events WHERE seq = ?", (witness[0],))
        return witness[0] == 0 or (bool(rows) and bytes(rows[0][0]) == witness[1])

    def verify_chain(self, witness: tuple[int, bytes] | None = None) -> ChainReport:
        """Recompute the chain of hashes; `witness` is a `head()` that was kept elsewhere."""
        return self._read(lambda db: events.verify(db, witness))

    def quick_check(self, *, full: bool = False) -> list[str]:
        """SQLite's own check of the file (`full`: with the indexes); empty: sound."""
        pragma = "integrity_check" if full else "quick_check"
        found = [str(row[0]) for row in self._select(f"PRAGMA {pragma}")]
        return [] if found == ["ok"] else found

    def ask(self, work: Callable[[apsw.Connection], T]) -> T:
        """Run a question of the spool's own modules (balance) on one snapshot."""
        return self._read(work)

    def differences(self, limit: int = 100) -> list[str]:
        """Derived tables and texts of configurations against what the events alone make of them; empty: equal."""
        def work(db: apsw.Connection) -> list[str]:
            fresh = apsw.Connection("")
            try:
                fresh.execute("BEGIN")
                replay(db, fresh)
                return compare(db, fresh, limit) + _configurations(db)
            finally:
                fresh.close()
        return self._read(work)


def _configurations(db: apsw.Connection) -> list[str]:
    """Generations whose text is not the one that was put in force."""
    noted: dict[Any, Any] = {}
    for text, wall in db.execute("SELECT body, wall FROM events WHERE kind = 'configured'"):
        body = events.parse(text)
        noted[body.get("generation")] = body.get("hash"), body.get("by"), wall
    kept: dict[Any, Any] = {generation: (blake3(text.encode()).hexdigest(), by, wall) for generation, text, by, wall in
                            db.execute("SELECT generation, text, by, wall FROM configurations")}
    return [f"configurations: generation {number} is not the one that was put in force"
            for number in sorted(noted.keys() | kept.keys(), key=str) if noted.get(number) != kept.get(number)]


def compare(db: apsw.Connection, fresh: apsw.Connection, limit: int) -> list[str]:
    """Rows of the derived tables in which two ledgers differ."""
    found: list[str] = []
    for table in schema.DERIVED_TABLES:
        keys = [row[1] for row in db.execute(f"PRAGMA table_info({table})") if row[5]]
        order = f"SELECT * FROM {table} ORDER BY {', '.join(keys)}"
        kept, made = db.execute(order), fresh.execute(order)
        while len(found) < limit:
            a, b = kept.fetchone(), made.fetchone()
            if a is None and b is None:
                break
            if a != b:
                found.append(f"{table}: the table has {a!r}, the events make {b!r}")
                if a is None or b is None or a[:len(keys)] != b[:len(keys)]:
                    break
    return found
