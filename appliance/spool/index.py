"""What people search by: patients, studies, series of the objects that are kept. The only file with patient data beside them.

Disposable: made again from the objects (`complete` is False until that is
done), pruned as objects are retired, never asked about custody. It is not
synced for each change; what a power cut takes, the router's audit at its next
start puts back.

    studies     one row for each study that has an object here, by the ledger's study key
    series      one row for each series, with modality and station
    objects     number → series; unreadable objects have none

On failure: SpoolError. A file that is damaged or of another version is made
anew when opened for writing.
"""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import apsw
from blake3 import blake3

from appliance.errors import SpoolError, SpoolFault
from appliance.model import Attributes
from appliance.spool.latch import DISK
from appliance.spool.schema import note

T = TypeVar("T")

VERSION = 1
APPLICATION_ID = 0x44434958
"""\"DCIX\" in the header of the file."""

STUDY_DATE, STUDY_TIME, ACCESSION, MODALITY, STATION = 0x00080020, 0x00080030, 0x00080050, 0x00080060, 0x00081010
STUDY_DESCRIPTION, SERIES_DESCRIPTION, SERIES_DATE = 0x00081030, 0x0008103E, 0x00080021
PATIENT_NAME, PATIENT_ID, BIRTH_DATE, SEX = 0x00100010, 0x00100020, 0x00100030, 0x00100040
STUDY_UID, SERIES_UID = 0x0020000D, 0x0020000E

_DDL = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE studies(study TEXT PRIMARY KEY, uid TEXT NOT NULL, patient_id TEXT NOT NULL, patient_name TEXT NOT NULL,
    birth_date TEXT NOT NULL, sex TEXT NOT NULL, accession TEXT NOT NULL, date TEXT NOT NULL, time TEXT NOT NULL,
    description TEXT NOT NULL, name_key TEXT NOT NULL, id_key TEXT NOT NULL, accession_key TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX studies_date ON studies(date);
CREATE TABLE series(id INTEGER PRIMARY KEY, study TEXT NOT NULL, uid TEXT NOT NULL, modality TEXT NOT NULL,
    station TEXT NOT NULL, description TEXT NOT NULL, date TEXT NOT NULL, UNIQUE (study, uid)) STRICT;
CREATE TABLE objects(number INTEGER PRIMARY KEY, series INTEGER) STRICT;
CREATE INDEX objects_series ON objects(series) WHERE series IS NOT NULL;
"""


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for; empty fields are not looked at, all others must fit.

    `*` and `?` are wildcards everywhere but in dates. Case and accents do not
    count. A name or description without wildcard fits anywhere in it; an id or
    number has to be the whole one. `date` is a study date YYYYMMDD, or a range
    `from-to`, `from-`, `-to` (PS3.4 C.2.2.2.5).
    """

    patient_id: str = ""
    patient_name: str = ""
    accession: str = ""
    study_uid: str = ""
    date: str = ""
    modality: str = ""
    station: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True)
class StudyInfo:
    """One study as its objects describe it; where they differ, the first that came. `study` is the ledger's key."""

    study: str
    uid: str
    patient_id: str
    patient_name: str
    birth_date: str
    sex: str
    accession: str
    date: str
    time: str
    description: str
    modalities: tuple[str, ...]
    stations: tuple[str, ...]
    objects: int


@dataclass(frozen=True, slots=True)
class Located:
    """The study and series that an object belongs to, as UIDs."""

    number: int
    study: str
    study_uid: str
    series_uid: str


def study_key(uid: str) -> str:
    """The ledger's name of a study: first 16 hex digits of BLAKE3 of its UID, no patient identifier; empty if unknown."""
    return blake3(uid.encode("utf-8", "surrogatepass")).hexdigest()[:16] if uid else ""


def folded(text: str) -> str:
    """Text as it is compared: without case, accents, or the carets between the parts of a name."""
    plain = unicodedata.normalize("NFKD", text.casefold().replace("^", " "))
    return " ".join("".join(c for c in plain if not unicodedata.combining(c)).split())


def pattern(text: str, *, within: bool = False) -> str:
    """A GLOB of SQLite for a query's text; `within`: text without wildcard fits anywhere."""
    glob = folded(text).replace("[", "[[]")
    return f"*{glob}*" if within and "*" not in glob and "?" not in glob else glob


class Index:
    """One connection, guarded by its own lock."""

    def __init__(self, path: Path, db: apsw.Connection) -> None:
        self.path = path
        self._db = db
        self._lock = threading.RLock()

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False) -> Index:
        """The index at `path`; made, or made anew, where it is missing or cannot be used. SpoolError if that is impossible."""
        path = Path(path)
        try:
            try:
                return cls(path, _connect(path, read_only))
            except (apsw.CorruptError, apsw.NotADBError, _Foreign):
                if read_only:
                    raise
                remove(path)
                return cls(path, _connect(path, read_only))
        except (apsw.Error, _Foreign, OSError) as error:
            raise _fault(error) from error

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def complete(self) -> bool:
        """Whether every object was seen since this file was made; until then a search may miss some."""
        return bool(self._work(lambda db: db.execute("SELECT 1 FROM meta WHERE key = 'complete' AND value = '1'").fetchone()))

    def set_complete(self, complete: bool) -> None:
        self._write(lambda db: db.execute("INSERT OR REPLACE INTO meta VALUES ('complete', ?)", (str(int(complete)),)))

    def add(self, objects: Sequence[tuple[int, Attributes]]) -> None:
        """Take these objects in; ones that are there already are taken in anew."""
        def work(db: apsw.Connection) -> None:
            for number, attributes in objects:
                series = _series(db, attributes.values) if attributes.readable else None
                db.execute("INSERT OR REPLACE INTO objects VALUES (?, ?)", (number, series))
        if objects:
            self._write(work)

    def drop(self, numbers: Iterable[int]) -> None:
        """Forget these objects, and the series and studies that have none left."""
        def work(db: apsw.Connection) -> None:
            touched = set()
            for number in numbers:
                row = db.execute("DELETE FROM objects WHERE number = ? RETURNING series", (number,)).fetchone()
                if row is not None and row[0] is not None:
                    touched.add(row[0])
            studies = set()
            for series in touched:
                row = db.execute("DELETE FROM series WHERE id = ? AND NOT EXISTS (SELECT 1 FROM objects WHERE series = ?)"
                                 " RETURNING study", (series, series)).fetchone()
                if row is not None:
                    studies.add(row[0])
            for study in studies:
                db.execute("DELETE FROM studies WHERE study = ? AND NOT EXISTS (SELECT 1 FROM series WHERE study = ?)",
                           (study, study))
        self._write(work)

    def numbers(self, after: int, upto: int) -> set[int]:
        """Numbers that are known, behind `after` up to `upto`."""
        return {row[0] for row in self._select("SELECT number FROM objects WHERE number > ? AND number <= ?", (after, upto))}

    def search(self, query: Query, limit: int = 100) -> list[StudyInfo]:
        """Studies that fit, the latest study date first."""
        conditions: list[str] = []
        values: list[str] = []

        def want(sql: str, *texts: str) -> None:
            conditions.append(sql)
            values.extend(texts)

        for column, text, within in (("id_key", query.patient_id, False), ("name_key", query.patient_name, True),
                                     ("accession_key", query.accession, False)):
            if text:
                want(f"{column} GLOB ?", pattern(text, within=within))
        if query.study_uid:
            want("uid GLOB ?", query.study_uid.strip().replace("[", "[[]"))
        if query.date:
            first, _, last = query.date.partition("-") if "-" in query.date else (query.date, "-", query.date)
            want("date >= ? AND date <= ? AND date <> ''", first.strip(), last.strip() or "99999999")
        if query.description:
            want("(fold(s.description) GLOB ? OR EXISTS (SELECT 1 FROM series WHERE series.study = s.study AND"
                 " fold(series.description) GLOB ?))", *[pattern(query.description, within=True)] * 2)
        for column, text in (("modality", query.modality), ("station", query.station)):
            if text:
                want(f"EXISTS (SELECT 1 FROM series WHERE series.study = s.study AND fold(series.{column}) GLOB ?)",
                     pattern(text))
        rows = self._select(f"SELECT study FROM studies s WHERE {' AND '.join(conditions) or '1'}"
                            f" ORDER BY date DESC, time DESC, study LIMIT {int(limit)}", tuple(values))
        return [info for (study,) in rows if (info := self.study(study)) is not None]

    def study(self, study: str) -> StudyInfo | None:
        """What is known of the study with that key of the ledger."""
        rows = self._select("SELECT study, uid, patient_id, patient_name, birth_date, sex, accession, date, time, description"
                            " FROM studies WHERE study = ?", (study,))
        if not rows:
            return None
        series = self._select("SELECT modality, station, (SELECT count(*) FROM objects WHERE series = series.id)"
                              " FROM series WHERE study = ?", (study,))
        modalities, stations = {m for m, _, _ in series if m}, {s for _, s, _ in series if s}
        return StudyInfo(*(*rows[0], tuple(sorted(modalities)), tuple(sorted(stations)), sum(n for _, _, n in series)))

    def objects_of(self, study: str, limit: int = 10_000) -> list[int]:
        """Numbers of a study's objects, in order."""
        return [row[0] for row in self._select("SELECT o.number FROM series s JOIN objects o ON o.series = s.id"
                                               " WHERE s.study = ? ORDER BY o.number LIMIT ?", (study, limit))]

    def locate(self, numbers: Iterable[int]) -> dict[int, Located]:
        """Study and series of those objects for which both are known."""
        found = {}
        for number in numbers:
            for study, study_uid, series_uid in self._select(
                    "SELECT t.study, t.uid, s.uid FROM objects o JOIN series s ON s.id = o.series"
                    " JOIN studies t ON t.study = s.study WHERE o.number = ? AND s.uid <> ''", (number,)):
                found[number] = Located(number, study, study_uid, series_uid)
        return found

    def _select(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        return self._work(lambda db: db.execute(sql, values).fetchall())

    def _work(self, work: Callable[[apsw.Connection], T]) -> T:
        with self._lock:
            try:
                return work(self._db)
            except apsw.Error as error:
                raise _fault(error) from error

    def _write(self, work: Callable[[apsw.Connection], object]) -> None:
        def transaction(db: apsw.Connection) -> None:
            db.execute("BEGIN IMMEDIATE")
            try:
                work(db)
                db.execute("COMMIT")
            except apsw.Error as error:
                note(db, error)
                raise
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
        self._work(transaction)


def remove(path: Path) -> None:
    """Delete an index: nothing is lost but the time to make it again."""
    for name in (path.name, path.name + "-wal", path.name + "-shm", path.name + "-journal"):
        with suppress(FileNotFoundError):
            path.with_name(name).unlink()


class _Foreign(Exception):
    """A database that is not an index of this version."""


def _sql_folded(*values: Any) -> str:
    return folded(str(values[0]))


def _connect(path: Path, read_only: bool) -> apsw.Connection:
    flags = apsw.SQLITE_OPEN_READONLY if read_only else apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    db = apsw.Connection(str(path), flags=flags)
    with ExitStack() as failed:
        failed.callback(db.close)
        db.set_busy_timeout(5000)
        db.create_scalar_function("fold", _sql_folded, 1, deterministic=True)
        version = int(db.execute("PRAGMA user_version").get)
        ours = int(db.execute("PRAGMA application_id").get) == APPLICATION_ID
        if version != VERSION or not ours:
            if read_only or version or ours or db.execute("SELECT 1 FROM sqlite_master").fetchone():
                raise _Foreign(f"{path.name} is no index of version {VERSION}")
            _make(db)
        if not read_only:
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA secure_delete = FAST")
            db.execute("PRAGMA journal_size_limit = 16777216")
        db.execute("PRAGMA cache_size = -4000")
        failed.pop_all()
    return db


def _make(db: apsw.Connection) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("BEGIN IMMEDIATE")
    if int(db.execute("PRAGMA user_version").get) == 0:       # another process may have been faster
        db.execute(_DDL)
        db.execute("INSERT INTO meta VALUES ('complete', '0')")
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {VERSION}")
    db.execute("COMMIT")


def _series(db: apsw.Connection, values: dict[int, str]) -> int | None:
    """The row of the series that these values describe, made where missing; empty fields are filled by later objects."""
    def value(tag: int) -> str:
        return values.get(tag, "").encode("utf-8", "replace").decode()

    uid = value(STUDY_UID)
    study = study_key(uid)
    if not study:
        return None
    name, id, accession = value(PATIENT_NAME), value(PATIENT_ID), value(ACCESSION)
    row = (study, uid, id, name, value(BIRTH_DATE), value(SEX), accession, value(STUDY_DATE), value(STUDY_TIME),
           value(STUDY_DESCRIPTION), folded(name), folded(id), folded(accession))
    db.execute(f"INSERT INTO studies VALUES ({', '.join('?' * len(row))}) ON CONFLICT (study) DO UPDATE SET {_FILL_STUDY}", row)
    series = (study, value(SERIES_UID), value(MODALITY), value(STATION), value(SERIES_DESCRIPTION), value(SERIES_DATE))
    found = db.execute("INSERT INTO series(study, uid, modality, station, description, date) VALUES (?, ?, ?, ?, ?, ?)"
                       f" ON CONFLICT (study, uid) DO UPDATE SET {_FILL_SERIES} RETURNING id", series).fetchone()
    return int(found[0]) if found else None


def _fill(*columns: str) -> str:
    return ", ".join(f"{c} = CASE {c} WHEN '' THEN excluded.{c} ELSE {c} END" for c in columns)


_FILL_STUDY = _fill("patient_id", "patient_name", "birth_date", "sex", "accession", "date", "time", "description", "name_key",
                    "id_key", "accession_key")
_FILL_SERIES = _fill("modality", "station", "description", "date")


def _fault(error: Exception) -> SpoolError:
    """SpoolFault where the disk failed while it was written: the index can be made again, but it lies where the objects do."""
    number: int = getattr(error, "system_errno", 0)
    kind = SpoolFault if number in DISK else SpoolError
    fault = kind(f"the index cannot be used: {error}", mend="Delete index.sqlite; it is made again from the objects.")
    if isinstance(fault, SpoolFault):
        fault.io = True
    return fault
