"""Verbs of the keeper: confirm, retire, quarantine, powered-on time, alarms, configurations, the WAL.

Only `retire` may call `retiring`; the row is durable before a file is unlinked,
and in its transaction it is looked at once more whether the object may go (I4).
"""

from __future__ import annotations

from collections.abc import Sequence

import apsw
from blake3 import blake3

from appliance.clock import SECOND
from appliance.model import Alarm, Severity
from appliance.policy import canary
from appliance.spool import schema
from appliance.spool.core import LedgerCore, Transaction
from appliance.spool.custody import ranges
from appliance.spool.queries import sent_row
from appliance.spool.rows import AlarmRow, Confirmation, Retirable, Sent
from appliance.spool.schema import BUSY_MILLISECONDS

TICK_NS = 600 * SECOND
"""A power cut may cost retention at most this much powered-on time: files are kept longer, never shorter."""

CANARY_NS = 86_400 * SECOND
"""Canaries are looked for among what was completed within this; older ones go with everything else of their age."""

CHECKPOINT_TRUNCATE_PAGES = 4096
"""16 MiB of WAL: then the keeper also makes the file short again."""


class KeepingVerbs(LedgerCore):
    def to_confirm(self, destination: str, limit: int = 256, *, after: tuple[int, int] = (-1, 0),
                   until: int | None = None) -> list[Sent]:
        """Deliveries that were sent and are not confirmed, the oldest first.

        `after` is (sent_on, number) of the last one seen, to page on; `until` the
        latest powered-on time (ns) of sending that is asked for.
        """
        rows = self._select(
            "SELECT d.number, d.destination, d.sent_on, d.reference, d.status, o.class, o.uid, o.syntax, o.length, o.digest,"
            " o.study, o.source FROM deliveries d CROSS JOIN objects o ON o.number = d.number WHERE d.destination = ?"
            " AND d.state = 'sent' AND (d.sent_on, d.number) > (?, ?) AND d.sent_on <= ? ORDER BY d.sent_on, d.number LIMIT ?",
            (destination, *after, (1 << 62) if until is None else until, limit))
        return [sent_row(row) for row in rows]

    def confirm(self, confirmations: Sequence[Confirmation]) -> int:
        """These destinations have these objects. Only what is `sent` is confirmed; returns how many were."""
        def work(t: Transaction) -> int:
            done = 0
            for c in confirmations:
                if _delivery_state(t, c.number, c.destination) == "sent":
                    t.append("confirmed", c.number, c.destination, proof=c.proof[:1024])
                    done += 1
            return done
        return self._write(work) if confirmations else 0

    def unconfirm(self, deliveries: Sequence[tuple[int, str]], reason: str) -> int:
        """The destination does not have these (number, destination) after all: they wait again. Returns how many do.

        One whose file is gone, or is about to go, stays as it is.
        """
        def work(t: Transaction) -> int:
            done = 0
            for number, destination in deliveries:
                row = t.row("SELECT state, file FROM objects WHERE number = ?", (number,))
                if row is not None and row[1] == 0 and row[0] not in ("quarantined", "discarded") \
                        and _delivery_state(t, number, destination) in ("sent", "confirmed"):
                    t.append("unconfirmed", number, destination, reason=reason[:1024])
                    done += 1
            return done
        return self._write(work) if deliveries else 0

    def retirable(self, now_powered_on: int, age: int, limit: int = 256) -> list[Retirable]:
        """Files that may be deleted: discarded ones, then those complete for `age` ns or longer, the oldest first; and
        canaries as soon as they are complete."""
        rows = self._select("SELECT number, length, NULL FROM objects WHERE file = 0 AND state = 'discarded'"
                            " ORDER BY number LIMIT ?", (limit,))
        rows += self._select("SELECT number, length, complete_on FROM objects WHERE file = 0 AND complete_on IS NOT NULL"
                             " AND complete_on <= ? ORDER BY complete_on, number LIMIT ?",
                             (now_powered_on - age, limit - len(rows)))
        if self._select("SELECT 1 FROM counters WHERE name = ? AND value > 0", (f"flag:{canary.FLAG}",)):
            rows += self._select("SELECT number, length, complete_on FROM objects WHERE file = 0 AND complete_on IS NOT NULL"
                                 " AND complete_on > ? AND flags LIKE ? ORDER BY complete_on, number LIMIT ?",
                                 (now_powered_on - min(age, CANARY_NS), f'%"{canary.FLAG}"%', limit))
        return [Retirable(number, length, complete_on) for number, length, complete_on in rows]

    def retiring(self, numbers: Sequence[int]) -> list[int]:
        """The durable row before a file is deleted. Returns those that may still go: only these may be unlinked."""
        def work(t: Transaction) -> list[int]:
            allowed = []
            for number in numbers:
                row = t.row("SELECT state, file, complete_on FROM objects WHERE number = ?", (number,))
                if row is not None and row[1] == 0 and (row[0] == "discarded" or
                                                        (row[2] is not None and row[0] in ("confirmed", "duplicate"))):
                    t.append("retiring", number)
                    allowed.append(number)
            return allowed
        return self._write(work) if numbers else []

    def unfinished(self, limit: int = 1024) -> list[int]:
        """Objects whose `retiring` row is there, and whose `retired` row is not: a crash came between."""
        return [row[0] for row in self._select("SELECT number FROM objects WHERE file = 1 ORDER BY number LIMIT ?", (limit,))]

    def retired(self, numbers: Sequence[int]) -> None:
        """The files are gone."""
        def work(t: Transaction) -> None:
            for number in numbers:
                row = t.row("SELECT file FROM objects WHERE number = ?", (number,))
                if row is not None and row[0] == 1:
                    t.append("retired", number)
        if numbers:
            self._write(work)

    def unswept(self, limit: int = 1024) -> list[int]:
        """Void numbers whose slot file may still be there."""
        return [row[0] for row in self._select("SELECT number FROM voids ORDER BY number LIMIT ?", (limit,))]

    def swept(self, numbers: Sequence[int]) -> None:
        """The slot files of these void numbers are gone."""
        def work(t: Transaction) -> None:
            known = [n for n in numbers if t.row("SELECT 1 FROM voids WHERE number = ?", (n,)) is not None]
            if known:
                t.append("swept", numbers=[list(r) for r in ranges(known)])
        if numbers:
            self._write(work)

    def quarantine(self, number: int, reason: str) -> bool:
        """The object is damaged: it is not sent any more, and a duplicate that it covered takes its place.

        False where it is retired, discarded or in quarantine already.
        """
        def work(t: Transaction) -> bool:
            row = t.row("SELECT state, file FROM objects WHERE number = ?", (number,))
            if row is None or row[1] != 0 or row[0] in ("retired", "quarantined", "discarded"):
                return False
            t.append("quarantined", number, reason=reason[:1024])
            return True
        return self._write(work)

    # Time

    def powered_on(self, boot: int | None = None, at: int | None = None) -> int:
        """Powered-on time (ns) of a boot time; of now unless given. It outlives reboots (I7)."""
        rows = self._select("SELECT powered_before FROM boots WHERE ordinal = ?", (self.boot if boot is None else boot,))
        return (int(rows[0][0]) if rows else 0) + (self.clock.boot_ns() if at is None else at)

    def tick(self) -> None:
        """Persist powered-on time, where no event of the last ten minutes has done so."""
        rows = self._select("SELECT boot, at FROM chain")
        if rows and (rows[0][0] != self.boot or self.clock.boot_ns() - rows[0][1] >= TICK_NS):
            self._write(lambda t: t.append("tick"))

    def checkpoint(self) -> tuple[int, int]:
        """Copy the WAL into the database, without waiting for readers; returns (pages in the WAL, pages copied)."""
        with self._lock:
            try:
                pages, copied = self._db.wal_checkpoint(None, apsw.SQLITE_CHECKPOINT_PASSIVE)
                if pages == copied and pages >= CHECKPOINT_TRUNCATE_PAGES:
                    self._truncate()
            except apsw.BusyError:
                return 0, 0
            except apsw.Error as error:
                schema.note(self._db, error)
                raise self._failed(error) from error
            return pages, copied

    def _truncate(self) -> None:
        """Make the WAL short, unless somebody reads just now."""
        self._db.set_busy_timeout(0)
        try:
            self._db.wal_checkpoint(None, apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.BusyError:
            return
        finally:
            self._db.set_busy_timeout(BUSY_MILLISECONDS)

    # Alarms

    def set_alarms(self, alarms: Sequence[Alarm]) -> tuple[list[Alarm], list[Alarm]]:
        """These alarms, and no others, are in force. Returns (raised, ended); one whose severity changed is raised anew."""
        wanted = {alarm.key: alarm for alarm in alarms}
        if wanted == {row.alarm.key: row.alarm for row in self.alarms()}:
            return [], []

        def work(t: Transaction) -> tuple[list[Alarm], list[Alarm]]:
            before = {row[0]: Alarm(row[0], Severity(row[1]), row[2], row[3])
                      for row in t.rows("SELECT key, severity, text, mend FROM alarms ORDER BY key")}
            for key, alarm in wanted.items():
                t.run("INSERT INTO alarms VALUES (?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET severity = excluded.severity,"
                      " text = excluded.text, mend = excluded.mend", (key, str(alarm.severity), alarm.text, alarm.mend, t.wall))
            for key in before.keys() - wanted.keys():
                t.run("DELETE FROM alarms WHERE key = ?", (key,))
            raised = [a for key, a in wanted.items() if key not in before or before[key].severity is not a.severity]
            return raised, [a for key, a in before.items() if key not in wanted]
        return self._write(work)

    def alarms(self) -> list[AlarmRow]:
        """Alarms in force, by key."""
        return [AlarmRow(Alarm(key, Severity(severity), text, mend), wall) for key, severity, text, mend, wall in
                self._select("SELECT key, severity, text, mend, wall FROM alarms ORDER BY key")]

    # Configuration

    def publish(self, text: str, by: str) -> int:
        """A checked configuration as the next generation; the same text as the latest is the latest. Returns its number."""
        def work(t: Transaction) -> int:
            last = t.row("SELECT generation, text FROM configurations ORDER BY generation DESC LIMIT 1")
            if last is not None and last[1] == text:
                return int(last[0])
            generation = int(last[0]) + 1 if last is not None else 1
            t.run("INSERT INTO configurations VALUES (?, ?, ?, ?)", (generation, text, by, t.wall))
            t.append("configured", generation=generation, hash=blake3(text.encode()).hexdigest(), by=by)
            return generation
        return self._write(work)

    def latest(self) -> tuple[int, str] | None:
        """(generation, text) of the configuration in force, or None."""
        rows = self._select("SELECT generation, text FROM configurations ORDER BY generation DESC LIMIT 1")
        return (int(rows[0][0]), str(rows[0][1])) if rows else None

    def generation(self) -> int:
        """The configuration's generation in force, 0 before the first."""
        rows = self._select("SELECT max(generation) FROM configurations")
        return int(rows[0][0] or 0)


def _delivery_state(t: Transaction, number: int, destination: str) -> str | None:
    row = t.row("SELECT state FROM deliveries WHERE number = ? AND destination = ?", (number, destination))
    return None if row is None else str(row[0])
