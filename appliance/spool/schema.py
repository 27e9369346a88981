"""Shape of the ledger: tables, versions, and how a connection is set up.

`events` is the custody record; every other table of DERIVED is made from it by
`apply.apply` and can be made again. AUXILIARY tables are not custody: alarms,
knocks at the door, texts of configurations.

Versions. `user_version` is that of the schema, `meta.readable` the oldest
schema version whose release can work with this file: a step that only adds
leaves it alone, so that the previous release still runs after a rollback. A
release that finds that an older one has written since (`meta.writer`) makes
the derived tables again. No patient identifiers in here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import apsw

from appliance.errors import LedgerDamaged, LedgerError, LedgerTooNew

SCHEMA = 1
"""Version of the schema that this release writes."""

APPLICATION_ID = 0x44434D47
"""\"DCMG\" in the header of the file, for file(1)."""

SQLITE_OLDEST = 3_051_003
"""3.7.0 to 3.51.2 can corrupt a database in WAL mode (WAL-reset bug, needs two connections)."""

BUSY_MILLISECONDS = 10_000
"""How long a transaction waits for its turn; then it is a LedgerFault (I1 leaves 25 s for a status)."""

WAL_BOUND_PAGES = 16_384
"""64 MiB: beyond it any writer checkpoints, so that the WAL stays bounded when no keeper runs."""

WAL_SHORT_PAGES = 256
"""1 MiB: bound of the WAL for whoever has met a full disk; the ballast is 8 MiB."""

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})

DERIVED_TABLES = ("boots", "owners", "grants", "open_numbers", "voids", "objects", "deliveries", "counters", "queues",
                  "studies", "arrivals", "admitted")

_EVENTS = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE chain(id INTEGER PRIMARY KEY CHECK (id = 1), seq INTEGER NOT NULL, hash BLOB NOT NULL, boot INTEGER NOT NULL,
    at INTEGER NOT NULL) STRICT;
CREATE TABLE events(seq INTEGER PRIMARY KEY, boot INTEGER NOT NULL, at INTEGER NOT NULL, wall INTEGER NOT NULL,
    kind TEXT NOT NULL, number INTEGER, destination TEXT NOT NULL, body TEXT NOT NULL, hash BLOB NOT NULL) STRICT;
CREATE INDEX events_number ON events(number) WHERE number IS NOT NULL;
"""

DERIVED_DDL = """
CREATE TABLE boots(ordinal INTEGER PRIMARY KEY, boot_id TEXT NOT NULL, powered_before INTEGER NOT NULL,
    seen INTEGER NOT NULL) STRICT;
CREATE TABLE owners(owner INTEGER PRIMARY KEY, role TEXT NOT NULL, boot INTEGER NOT NULL) STRICT;
CREATE TABLE grants(first INTEGER PRIMARY KEY, count INTEGER NOT NULL, owner INTEGER NOT NULL) STRICT;
CREATE TABLE open_numbers(number INTEGER PRIMARY KEY, owner INTEGER NOT NULL) STRICT;
CREATE INDEX open_numbers_owner ON open_numbers(owner);
CREATE TABLE voids(number INTEGER PRIMARY KEY, reason TEXT NOT NULL) STRICT;
CREATE TABLE objects(number INTEGER PRIMARY KEY, seq INTEGER NOT NULL, boot INTEGER NOT NULL, since_boot INTEGER NOT NULL,
    wall INTEGER NOT NULL, class TEXT NOT NULL, uid TEXT NOT NULL, syntax TEXT NOT NULL, length INTEGER NOT NULL,
    digest BLOB NOT NULL, called TEXT NOT NULL, port INTEGER NOT NULL, source TEXT NOT NULL,
    state TEXT NOT NULL, file INTEGER NOT NULL, complete_on INTEGER,
    routed INTEGER NOT NULL, generation INTEGER NOT NULL, rules TEXT NOT NULL, priority INTEGER NOT NULL, study TEXT NOT NULL,
    flags TEXT NOT NULL) STRICT;
CREATE INDEX objects_uid ON objects(uid, seq);
CREATE INDEX objects_unrouted ON objects(boot, since_boot, number) WHERE routed = 0;
CREATE INDEX objects_study ON objects(study) WHERE study <> '';
CREATE INDEX objects_complete ON objects(complete_on, number) WHERE file = 0 AND complete_on IS NOT NULL;
CREATE INDEX objects_retiring ON objects(number) WHERE file = 1;
CREATE INDEX objects_discarded ON objects(number) WHERE file = 0 AND state = 'discarded';
CREATE INDEX objects_quarantined ON objects(number) WHERE state = 'quarantined';
CREATE TABLE deliveries(number INTEGER NOT NULL, destination TEXT NOT NULL, state TEXT NOT NULL, required INTEGER NOT NULL,
    seq INTEGER NOT NULL, length INTEGER NOT NULL, priority INTEGER NOT NULL, attempts INTEGER NOT NULL,
    faults INTEGER NOT NULL, crashes INTEGER NOT NULL, boot INTEGER NOT NULL, until INTEGER NOT NULL, reason TEXT NOT NULL,
    status INTEGER, text TEXT NOT NULL, warning INTEGER NOT NULL, reference TEXT NOT NULL, sent_on INTEGER,
    confirmed_on INTEGER, twin INTEGER, PRIMARY KEY (number, destination)) STRICT, WITHOUT ROWID;
CREATE INDEX deliveries_queue ON deliveries(destination, seq) WHERE state IN ('waiting', 'deferred');
CREATE INDEX deliveries_sending ON deliveries(destination, number) WHERE state = 'sending';
CREATE INDEX deliveries_stuck ON deliveries(state, destination, number) WHERE state IN ('held', 'parked');
CREATE INDEX deliveries_sent ON deliveries(destination, sent_on, number) WHERE state = 'sent';
CREATE INDEX deliveries_twin ON deliveries(twin, destination) WHERE twin IS NOT NULL;
CREATE TABLE counters(name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE queues(destination TEXT NOT NULL, state TEXT NOT NULL, count INTEGER NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (destination, state)) STRICT, WITHOUT ROWID;
CREATE TABLE studies(study TEXT PRIMARY KEY, objects INTEGER NOT NULL, bytes INTEGER NOT NULL, first_wall INTEGER NOT NULL,
    last_wall INTEGER NOT NULL, last_seq INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX studies_last ON studies(last_seq);
CREATE TABLE arrivals(source TEXT PRIMARY KEY, peer TEXT NOT NULL, count INTEGER NOT NULL, last_on INTEGER NOT NULL,
    last_wall INTEGER NOT NULL, habit TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE admitted(title TEXT NOT NULL, address TEXT NOT NULL, by TEXT NOT NULL, wall INTEGER NOT NULL,
    PRIMARY KEY (title, address)) STRICT, WITHOUT ROWID;
"""

_AUXILIARY_DDL = """
CREATE TABLE knocks(title TEXT NOT NULL, called TEXT NOT NULL, address TEXT NOT NULL, verdict TEXT NOT NULL, text TEXT NOT NULL,
    count INTEGER NOT NULL, first_wall INTEGER NOT NULL, last_wall INTEGER NOT NULL,
    PRIMARY KEY (title, called, address)) STRICT, WITHOUT ROWID;
CREATE INDEX knocks_last ON knocks(last_wall);
CREATE TABLE alarms(key TEXT PRIMARY KEY, severity TEXT NOT NULL, text TEXT NOT NULL, mend TEXT NOT NULL,
    wall INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE configurations(generation INTEGER PRIMARY KEY, text TEXT NOT NULL, by TEXT NOT NULL, wall INTEGER NOT NULL) STRICT;
"""

Migration = Callable[[apsw.Connection], int]
"""A step from version n to n + 1, run inside one transaction; returns the oldest version that can still use the file."""

MIGRATIONS: Mapping[int, Migration] = {}
"""Key n leads from schema n to n + 1."""


def check_sqlite(found: str | None = None) -> None:
    """LedgerError for a SQLite with the WAL-reset bug; `found` is its version, that of apsw unless given."""
    found = found or apsw.sqlite_lib_version()
    if version_number(found) < SQLITE_OLDEST:
        raise LedgerError(f"SQLite {found} can corrupt a database in WAL mode",
                          mend="Install apsw 3.51.3 or later, whose wheel carries its own SQLite.")


def version_number(text: str) -> int:
    """"3.51.3" as 3051003, the form of SQLITE_VERSION_NUMBER."""
    major, minor, patch = (int(part) for part in [*text.split("."), "0", "0"][:3])
    return major * 1_000_000 + minor * 1_000 + patch


def note(db: apsw.Connection, error: BaseException) -> bool:
    """Keep with SQLite's error what the system said: of all but a plain ENOSPC while writing SQLite makes an I/O error.

    Returns whether there is no room: the disk is full, or the quota.
    """
    if isinstance(error, apsw.IOError | apsw.CantOpenError):
        number = int(db.system_errno)
        setattr(error, "system_errno", number)  # noqa: B010  apsw's errors have no such attribute of their own
        return number in NO_ROOM
    return isinstance(error, apsw.FullError)


def connect(path: Path, *, create: bool = False, read_only: bool = False, checkpointer: bool = False) -> apsw.Connection:
    """A connection as every process uses it: WAL, synchronous=FULL, bounded waits.

    `checkpointer` is for the keeper: only it checkpoints below the WAL's bound.
    Raises apsw errors; the caller maps them.
    """
    if create:
        _make_file(path)
    flags = apsw.SQLITE_OPEN_READONLY if read_only else apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
    db = apsw.Connection(str(path), flags=flags, statementcachesize=256)
    try:
        _set_up(db, read_only=read_only, checkpointer=checkpointer)
    except apsw.Error as error:
        note(db, error)
        db.close()
        raise
    return db


def _make_file(path: Path) -> None:
    """Its group's too from the first moment, whatever the umask: SQLite gives the files beside a ledger the rights that it has
    when somebody opens it, and keeps them. One made by who only reads, too early, would keep every writer out.

    OSError is swallowed: SQLite meets the same, and names it.
    """
    with suppress(OSError):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.fchmod(fd, 0o660)
        finally:
            os.close(fd)


def _set_up(db: apsw.Connection, *, read_only: bool, checkpointer: bool) -> None:
    db.set_busy_timeout(BUSY_MILLISECONDS)
    with suppress(apsw.Error):
        db.setlk_timeout(BUSY_MILLISECONDS, 0)  # looks each millisecond, not each 100, whether it is its turn
    if not read_only:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA journal_size_limit = {WAL_BOUND_PAGES * 4096}")
        db.wal_autocheckpoint(0 if checkpointer else WAL_BOUND_PAGES)
    db.execute("PRAGMA foreign_keys = OFF")
    db.execute("PRAGMA temp_store = MEMORY")
    db.execute("PRAGMA cache_size = -8000")
    db.execute("PRAGMA trusted_schema = OFF")


def make(db: apsw.Connection) -> None:
    """All tables of a new ledger (of version 1; `migrate` does the rest), in the caller's transaction."""
    for ddl in (_EVENTS, DERIVED_DDL, _AUXILIARY_DDL):
        db.execute(ddl)
    db.execute("INSERT INTO chain VALUES (1, 0, ?, 0, 0)", (bytes(32),))
    db.execute("INSERT INTO meta VALUES ('readable', '1'), ('writer', '1')")
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute("PRAGMA user_version = 1")


def version(db: apsw.Connection) -> int:
    """Schema version of an open file; 0 for an empty one. LedgerDamaged where it is not a ledger of ours."""
    found = int(db.execute("PRAGMA user_version").get)
    if found and int(db.execute("PRAGMA application_id").get) != APPLICATION_ID:
        raise LedgerDamaged("the ledger is some other database", mend="Look at what lies in the spool's folder.")
    return found


def meta(db: apsw.Connection, key: str) -> str:
    """One entry of `meta`, empty if missing."""
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return str(row[0]) if row else ""


def meta_number(db: apsw.Connection, key: str) -> int:
    """The same as a number; 0 if missing, or damaged: what is made anew of it is right either way."""
    text = meta(db, key)
    return int(text) if text.isascii() and text.isdigit() else 0


def set_meta(db: apsw.Connection, key: str, value: str) -> None:
    db.execute("INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value))


def check_readable(db: apsw.Connection, own: int = SCHEMA) -> int:
    """The file's version if this release can work with it; LedgerTooNew if not."""
    found = version(db)
    oldest = meta_number(db, "readable") if found else 0
    if found > own and oldest > own:
        raise LedgerTooNew(f"the ledger has schema {found}, this release knows {own}",
                           mend="Start the release that wrote it, or a later one.")
    return found


def migrate(db: apsw.Connection, own: int = SCHEMA, steps: Mapping[int, Migration] = MIGRATIONS) -> None:
    """Bring the file up to `own`, each step and its version in one transaction. The caller holds the write lock."""
    for step in range(version(db), own):
        if step not in steps:
            raise LedgerDamaged(f"no way from ledger schema {step} to {step + 1}", mend="Go by way of an earlier release.")
        readable = steps[step](db)
        set_meta(db, "readable", str(readable))
        set_meta(db, "writer", str(step + 1))
        db.execute(f"PRAGMA user_version = {step + 1}")
