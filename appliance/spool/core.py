"""A connection to the ledger: opening, one transaction at a time, and what a failure of the disk becomes.

Promises: a verb is one transaction (BEGIN IMMEDIATE, synchronous=FULL) in which
the head of the chain is read, events are appended and applied, and the new head
is written; either all of it is durable or nothing happened. On a full disk the
ballast is given up once and the verb is tried again.

On failure: LedgerFault for whatever the disk refuses, LedgerBusy (one of them)
where it was not our turn or the disk is full, LedgerDamaged for a file that is
no ledger, LedgerTooNew for one of a later release.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import apsw

from appliance.clock import Clock
from appliance.errors import DcmgateError, LedgerBusy, LedgerDamaged, LedgerError, LedgerFault
from appliance.spool import ballast, events, schema
from appliance.spool.apply import apply
from appliance.spool.derived import Derived
from appliance.spool.latch import DISK, Latch
from appliance.spool.rows import Body, Event

T = TypeVar("T")

NEXT_TO_NOTHING = 1 << 20
"""Bytes: with less than this a ledger that cannot be opened is given the ballast's room."""

_DAMAGED = (apsw.CorruptError, apsw.NotADBError, UnicodeDecodeError)
_ERRORS = (apsw.Error, UnicodeDecodeError)
_PASSING = (apsw.BusyError, apsw.LockedError, apsw.FullError)
_FAULTS = (apsw.IOError, apsw.ReadOnlyError, apsw.CantOpenError, apsw.PermissionsError, apsw.NoMemError, apsw.ProtocolError)



def fault_of(error: apsw.Error | UnicodeDecodeError) -> LedgerError:
    """Our error for one of apsw, or for a text that is none any more.

    `schema.note` has to have seen it before, lest a quota is taken for an I/O error.
    """
    text = str(error)
    number: int = getattr(error, "system_errno", 0)
    if number:
        text = f"{text}: {os.strerror(number)}"
    if isinstance(error, _DAMAGED):
        # SQLite says so of a disk that cannot be read, too.
        return LedgerDamaged(f"the ledger is damaged: {text}", mend="Check the disk (dmesg), then run `dcmgate spool check`; "
                                                                    "`dcmgate spool rebuild` makes it from the objects.")
    if isinstance(error, _PASSING) or number in schema.NO_ROOM:
        return LedgerBusy(f"the ledger cannot be written now: {text}", mend="Check the disk (free space, and how fast it is).")
    if isinstance(error, _FAULTS):
        fault = LedgerFault(f"the ledger cannot be used: {text}", mend="Check the disk (free space, dmesg, smartctl).")
        fault.io = isinstance(error, apsw.IOError) or (isinstance(error, apsw.CantOpenError) and number in DISK)
        return fault
    return LedgerError(f"the ledger refused: {text}", mend="This is a fault of the program: report it with the log.")


class Transaction:
    """What a verb works with: `append` adds an event to the chain and applies it at once."""

    def __init__(self, db: apsw.Connection, boot: int, at: int, wall: int) -> None:
        self.derived = Derived(db)
        self.row = self.derived.row
        self.rows = self.derived.rows
        self.run = self.derived.run
        self.boot = boot
        self.at = at
        self.wall = wall
        head = self.row("SELECT seq, hash FROM chain")
        if head is None:
            raise LedgerDamaged("the head of the chain is missing", mend="Run `dcmgate spool rebuild`.")
        self.seq, self.hash = int(head[0]), bytes(head[1])
        self._rows: list[Event] = []

    @property
    def powered_on(self) -> int:
        """Powered-on time (ns) of this transaction."""
        return self.derived.powered(self.boot, self.at)

    def append(self, kind: str, number: int | None = None, destination: str = "", **body: Any) -> None:
        self.event(kind, number, destination, body)

    def event(self, kind: str, number: int | None, destination: str, body: Body) -> None:
        text = events.compact(body)
        seq = self.seq + 1
        digest = events.next_hash(self.hash, seq, self.boot, self.at, self.wall, kind, number, destination, text)
        row = Event(seq, self.boot, self.at, self.wall, kind, number, destination, text, digest)
        self._rows.append(row)
        apply(self.derived, row, body)
        self.seq, self.hash = seq, digest

    def finish(self) -> None:
        """Write the events, the counters and the new head."""
        if self._rows:
            events.insert(self.derived.cursor, self._rows)
            self.derived.flush()
            self.run("UPDATE chain SET seq = ?, hash = ?, boot = ?, at = ?", (self.seq, self.hash, self.boot, self.at))


class LedgerCore:
    """One connection, guarded by its own lock: threads may share it, processes open their own."""

    def __init__(self, path: Path, clock: Clock, db: apsw.Connection, *, read_only: bool) -> None:
        self.path = path
        self.clock = clock
        self.read_only = read_only
        self.boot = 0
        self.latch: Latch | None = None
        """Is told of I/O errors while writing; None: nobody is."""
        self._db = db
        self._lock = threading.RLock()

    @classmethod
    def open(cls, path: Path, clock: Clock, *, read_only: bool = False, checkpointer: bool = False, latch: Latch | None = None,
             schema_version: int = schema.SCHEMA, migrations: Mapping[int, schema.Migration] = schema.MIGRATIONS) -> Self:
        """Open the ledger at `path`; `checkpointer` is for the keeper alone.

        A missing one is made only where no object lies beside it: a lost ledger is
        LedgerDamaged, and rebuilt on purpose. `schema_version` and `migrations` are
        those of this release (tests give others). `latch` hears of I/O errors.
        """
        path = Path(path)
        schema.check_sqlite()
        missing = not path.exists() or path.stat().st_size == 0
        if missing and (read_only or has_objects(path.parent)):
            raise LedgerDamaged(f"{path} is missing", mend="Run `dcmgate spool rebuild`: it makes the ledger from the objects.")
        try:
            ledger = cls._open(path, clock, create=missing, read_only=read_only, checkpointer=checkpointer,
                               schema_version=schema_version, migrations=migrations)
        except LedgerFault as fault:
            if latch is not None and not read_only:
                latch.report(fault, path.name)
            raise
        ledger.latch = latch
        return ledger

    @classmethod
    def _open(cls, path: Path, clock: Clock, *, create: bool, read_only: bool, checkpointer: bool,
              schema_version: int = schema.SCHEMA, migrations: Mapping[int, schema.Migration] = schema.MIGRATIONS) -> Self:
        try:
            try:
                return cls._connect(path, clock, create, read_only, checkpointer, schema_version, migrations)
            except (apsw.FullError, apsw.IOError, apsw.CantOpenError) as error:
                # On a full disk not even the files beside the ledger can be made, which shows as an I/O error.
                no_room = getattr(error, "system_errno", 0) in schema.NO_ROOM or _is_full(path.parent)
                if read_only or not no_room or not ballast.give_up(path.parent):
                    raise
                return cls._connect(path, clock, create, read_only, checkpointer, schema_version, migrations)
        except _ERRORS as error:
            raise fault_of(error) from error

    @classmethod
    def _connect(cls, path: Path, clock: Clock, create: bool, read_only: bool, checkpointer: bool, schema_version: int,
                 migrations: Mapping[int, schema.Migration]) -> Self:
        db = schema.connect(path, create=create, read_only=read_only, checkpointer=checkpointer)
        try:
            ledger = cls(path, clock, db, read_only=read_only)
            ledger._prepare(schema_version, migrations)
        except BaseException as error:
            schema.note(db, error)
            db.close()
            raise
        return ledger

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self, own: int, migrations: Mapping[int, schema.Migration]) -> None:
        """Make, check or migrate the file, and note the boot."""
        if self.read_only:
            if schema.check_readable(self._db, own) == 0:
                raise LedgerDamaged(f"{self.path} is empty", mend="Run `dcmgate spool rebuild`.")
            found = self._db.execute("SELECT ordinal FROM boots WHERE boot_id = ? ORDER BY ordinal DESC",
                                     (self.clock.boot_id(),)).fetchone()
            self.boot = int(found[0]) if found else 0
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            if schema.version(self._db) == 0:
                schema.make(self._db)
            if schema.check_readable(self._db, own) < own:
                schema.migrate(self._db, own, migrations)
            writer = schema.meta_number(self._db, "writer")
            if writer < own:
                replay(self._db, self._db)
            if writer != own:
                schema.set_meta(self._db, "writer", str(own))
            self._note_boot()
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def _note_boot(self) -> None:
        boot_id = self.clock.boot_id()
        last = self._db.execute("SELECT ordinal, boot_id, powered_before, seen FROM boots"
                                " ORDER BY ordinal DESC LIMIT 1").fetchone()
        if last is not None and last[1] == boot_id:
            self.boot = int(last[0])
            return
        before, self.boot = 0, 1
        if last is not None:
            chain = self._db.execute("SELECT boot, at FROM chain").fetchone()
            lasted = max(last[3], chain[1] if chain is not None and chain[0] == last[0] else 0)
            before, self.boot = last[2] + lasted, last[0] + 1
        work = self._begin()
        work.append("boot", boot_id=boot_id, before=before)
        work.finish()

    def _begin(self) -> Transaction:
        return Transaction(self._db, self.boot, self.clock.boot_ns(), self.clock.wall_ns())

    def _write(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in one transaction; on a full disk once more after each means of making room."""
        with self._lock:
            try:
                for make_room in (self._reuse_wal, self._use_ballast):
                    try:
                        return self._attempt(work)
                    except (apsw.FullError, apsw.IOError, apsw.CantOpenError) as error:
                        if not schema.note(self._db, error):
                            raise
                        make_room()
                return self._attempt(work)
            except _ERRORS as error:
                schema.note(self._db, error)
                raise self._failed(error) from error

    def _failed(self, error: apsw.Error | UnicodeDecodeError) -> LedgerError:
        """As `fault_of`, while writing: an I/O error is one of the disk, and nobody takes images in on it any more (I6)."""
        fault = fault_of(error)
        if isinstance(fault, LedgerFault) and self.latch is not None:
            self.latch.report(fault, self.path.name)
        return fault

    def _use_ballast(self) -> None:
        """Give the ballast up, and let the database have of its room what it needs before the WAL takes all."""
        if ballast.give_up(self.path.parent):
            self._reuse_wal()

    def _reuse_wal(self) -> None:
        """Let the WAL begin anew: most of its pages have their place in the database already. From now on it stays short."""
        try:
            self._db.wal_autocheckpoint(schema.WAL_SHORT_PAGES)
            self._db.wal_checkpoint(None, apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.Error as error:
            schema.note(self._db, error)
            self._failed(error)

    def _attempt(self, work: Callable[[Transaction], T]) -> T:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            transaction = self._begin()
            result = work(transaction)
            transaction.finish()
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        return result

    def _read(self, work: Callable[[apsw.Connection], T]) -> T:
        """Run `work` on one snapshot of the ledger."""
        with self._lock:
            try:
                if self._db.in_transaction:
                    return work(self._db)
                with self._db:  # a savepoint: one snapshot for all that is read
                    found = work(self._db)
            except _ERRORS as error:
                raise fault_of(error) from error
            return found

    def _select(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of one statement, which is a snapshot by itself."""
        with self._lock:
            try:
                return self._db.execute(sql, values).fetchall()
            except _ERRORS as error:
                raise fault_of(error) from error


def _is_full(folder: Path) -> bool:
    """Whether the file system has next to no room left."""
    with suppress(OSError):
        disk = os.statvfs(folder)
        return disk.f_bavail * disk.f_frsize < NEXT_TO_NOTHING
    return False


def has_objects(folder: Path) -> bool:
    """Whether any object lies in the spool at `folder`."""
    return next((folder / "objects").glob("*/*.dcm"), None) is not None


def replay(source: apsw.Connection, target: apsw.Connection) -> None:
    """Make the derived tables of `target` anew from the events of `source` (they may be the same), in one transaction.

    LedgerDamaged where an event is not one that any release wrote.
    """
    for table in reversed(schema.DERIVED_TABLES):
        target.execute(f"DROP TABLE IF EXISTS {table}")
    target.execute(schema.DERIVED_DDL)
    derived = Derived(target)
    for event in events.read(source):
        try:
            apply(derived, event, events.parse(event.body))
        except (KeyError, ValueError, TypeError, IndexError, OverflowError) as error:
            raise LedgerDamaged(f"event {event.seq} cannot be applied: {type(error).__name__} {error}"[:200],
                                mend="`dcmgate spool rebuild` makes the ledger from the objects.") from error
        if event.seq % 4096 == 0:
            derived.flush()
    derived.flush()


def checked_ids(ids: Iterable[str]) -> None:
    """Destination ids come from a checked configuration; control characters would blur the chain's canonical rows."""
    for id in ids:
        if not id or not id.isprintable():
            raise DcmgateError(f"not a destination: {id!r}")
