"""The file of the ledger: made, refused, migrated, rolled back, full, damaged, tampered with."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest

from appliance.clock import ManualClock
from appliance.errors import LedgerDamaged, LedgerError, LedgerFault, LedgerTooNew
from appliance.model import Alarm, Severity
from appliance.spool import ballast, schema
from appliance.spool.ledger import Ledger, rebuild
from tests.support.filled import Filled
from tests.support.ledgers import Bench, custody


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    found = Bench(tmp_path)
    yield found
    found.ledger.close()


def edit(path: Path, sql: str, *values: object) -> None:
    db = apsw.Connection(str(path))
    db.execute(sql, values)
    db.close()


# --- opening -------------------------------------------------------------------------------------------------------------

@pytest.mark.requirement("hazard: SQLite with the WAL-reset bug")
@pytest.mark.parametrize(("found", "good"), [("3.51.2", False), ("3.40.1", False), ("3.51.3", True), ("4.0", True)])
def test_an_sqlite_with_the_wal_reset_bug_is_refused(found: str, good: bool) -> None:
    if good:
        schema.check_sqlite(found)
    else:
        with pytest.raises(LedgerError, match=r"apsw 3\.51\.3"):
            schema.check_sqlite(found)


def test_ours_is_good() -> None:
    schema.check_sqlite()


@pytest.mark.requirement("hazard: who only looks keeps writers out")
@pytest.mark.parametrize("how", ["made", "rebuilt", "found empty"])
def test_a_ledger_is_its_group_s_from_the_first_moment(tmp_path: Path, how: str) -> None:
    """Receiver, forwarder and keeper are users of one group. SQLite gives `-shm` the rights that the ledger has just then."""
    path, clock = tmp_path / "ledger.sqlite", ManualClock()
    before = os.umask(0o077)
    try:
        if how == "found empty":
            path.touch()
        ledger = rebuild(path, clock, []) if how == "rebuilt" else Ledger.open(path, clock)
        with ledger, Ledger.open(path, clock, read_only=True):
            rights = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.glob("ledger.sqlite*")}
    finally:
        os.umask(before)
    assert rights == dict.fromkeys(("ledger.sqlite", "ledger.sqlite-shm", "ledger.sqlite-wal"), 0o660)


@pytest.mark.requirement("hazard: ledger is FULL")
def test_durable_settings(bench: Bench) -> None:
    def pragmas(ledger: Ledger) -> list[object]:
        return [ledger._db.execute(f"PRAGMA {name}").get for name in ("journal_mode", "synchronous", "wal_autocheckpoint")]
    assert pragmas(bench.ledger) == ["wal", 2, schema.WAL_BOUND_PAGES]
    with Ledger.open(bench.path, bench.clock, checkpointer=True) as keeper:
        assert pragmas(keeper) == ["wal", 2, 0]


@pytest.mark.requirement("I1")
def test_a_missing_ledger_beside_objects_is_not_started_fresh(tmp_path: Path) -> None:
    site = Filled(tmp_path)
    site.accept()
    site.close()
    site.spool.ledger_path.unlink()
    with pytest.raises(LedgerDamaged, match="rebuild"):
        Ledger.open(site.spool.ledger_path, site.clock)
    assert not site.spool.ledger_path.exists()


def test_a_missing_ledger_is_not_made_for_reading(tmp_path: Path) -> None:
    with pytest.raises(LedgerDamaged):
        Ledger.open(tmp_path / "ledger.sqlite", ManualClock(), read_only=True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"something else" * 1000)
    with pytest.raises(LedgerDamaged):
        Ledger.open(path, ManualClock())
    assert path.read_bytes() == b"something else" * 1000


def test_somebody_elses_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    edit(path, "CREATE TABLE t(a); PRAGMA user_version = 3")
    with pytest.raises(LedgerDamaged, match="some other database"):
        Ledger.open(path, ManualClock())


def test_quick_check_finds_a_damaged_page(bench: Bench) -> None:
    for _ in range(50):
        bench.take()
    assert bench.ledger.quick_check() == bench.ledger.quick_check(full=True) == []
    bench.ledger.checkpoint()
    page = bench.ledger._db.execute("SELECT max(pageno) FROM dbstat WHERE name = 'objects_uid'").get
    bench.ledger.close()
    data = bytearray(bench.path.read_bytes())
    data[(page - 1) * 4096:page * 4096] = bytes(4096)
    bench.path.write_bytes(data)
    bench.ledger = Ledger.open(bench.path, bench.clock)
    assert bench.ledger.quick_check()


# --- versions ------------------------------------------------------------------------------------------------------------

def next_release(db: apsw.Connection) -> int:
    """A made-up step: a column and a table more, which the release before need not know."""
    db.execute("ALTER TABLE objects ADD COLUMN colour TEXT NOT NULL DEFAULT ''")
    db.execute("CREATE TABLE colours(name TEXT PRIMARY KEY) STRICT")
    return 1


def test_the_next_version_migrates_and_the_previous_release_can_go_back(bench: Bench) -> None:
    number = bench.take()
    bench.ledger.close()
    with Ledger.open(bench.path, bench.clock, schema_version=2, migrations={1: next_release}) as newer:
        assert newer.object(number) is not None
        assert newer._db.execute("PRAGMA user_version").get == 2
        assert newer._db.execute("SELECT colour FROM objects").get == ""
    bench.ledger = Ledger.open(bench.path, bench.clock, read_only=True)
    assert bench.queue() == [number]
    bench.ledger.close()


def test_a_step_that_fails_leaves_the_old_version_whole(bench: Bench) -> None:
    number = bench.take()
    bench.ledger.close()

    def failing(db: apsw.Connection) -> int:
        next_release(db)
        db.execute("ALTER TABLE nothing ADD COLUMN colour")
        return 1

    with pytest.raises(LedgerError):
        Ledger.open(bench.path, bench.clock, schema_version=2, migrations={1: failing})
    bench.ledger = Ledger.open(bench.path, bench.clock)
    assert bench.queue() == [number]
    assert bench.ledger._db.execute("SELECT count(*) FROM pragma_table_info('objects') WHERE name = 'colour'").get == 0


def test_a_later_ledger_that_needs_a_later_release_is_refused(bench: Bench) -> None:
    bench.ledger.close()
    Ledger.open(bench.path, bench.clock, schema_version=2, migrations={1: lambda db: 2}).close()
    for read_only in (False, True):
        with pytest.raises(LedgerTooNew):
            Ledger.open(bench.path, bench.clock, read_only=read_only)


def test_a_version_without_a_way_is_refused(bench: Bench) -> None:
    bench.ledger.close()
    with pytest.raises(LedgerDamaged, match="no way from ledger schema 1 to 2"):
        Ledger.open(bench.path, bench.clock, schema_version=2, migrations={})


def test_what_an_older_release_wrote_is_derived_again(bench: Bench) -> None:
    """After a rollback and a second update the newer release trusts the events, not the tables."""
    number = bench.take()
    bench.ledger.close()
    steps = {1: lambda db: 1}
    Ledger.open(bench.path, bench.clock, schema_version=2, migrations=steps).close()
    Ledger.open(bench.path, bench.clock).close()
    edit(bench.path, "UPDATE deliveries SET attempts = 9")
    bench.ledger = Ledger.open(bench.path, bench.clock, schema_version=2, migrations=steps)
    assert bench.ledger.deliveries(number)[0].attempts == 0
    bench.check()


# --- chain ---------------------------------------------------------------------------------------------------------------

TAMPERED = {
    "an edited body": ("UPDATE events SET body = replace(body, 'length\":1000', 'length\":1001') WHERE kind = 'accepted'",
                       "is not the one that was written"),
    "an edited destination": ("UPDATE events SET destination = 'x' WHERE kind = 'attempt'", "is not the one that was written"),
    "an edited time": ("UPDATE events SET wall = wall + 1 WHERE seq = 4", "is not the one that was written"),
    "an edited number": ("UPDATE events SET number = 77 WHERE kind = 'sent'", "is not the one that was written"),
    "a removed row": ("DELETE FROM events WHERE seq = 5", "rows 5 to 5 are missing"),
    "the first rows removed": ("DELETE FROM events WHERE seq < 3", "rows 1 to 2 are missing"),
    "the last row removed": ("DELETE FROM events WHERE seq = (SELECT max(seq) FROM events)", "the last rows are missing"),
    "all rows removed": ("DELETE FROM events", "the last rows are missing"),
    "a row added": ("INSERT INTO events SELECT seq + 1, boot, at, wall, kind, number, destination, body, hash FROM events"
                    " ORDER BY seq DESC LIMIT 1", "is not the one that was written"),
    "two rows swapped": ("UPDATE events SET seq = -seq WHERE seq IN (4, 5); UPDATE events SET seq = 9 + seq WHERE seq < 0",
                         "is not the one that was written"),
}


@pytest.mark.requirement("chain of events")
@pytest.mark.parametrize("how", TAMPERED)
def test_a_tampered_chain_shows(bench: Bench, how: str) -> None:
    bench.send(bench.take())
    bench.take()
    assert bench.ledger.verify_chain().whole
    sql, text = TAMPERED[how]
    edit(bench.path, sql)
    report = bench.ledger.verify_chain()
    assert not report.whole
    assert text in str(report.breaks)


@pytest.mark.requirement("chain of events")
def test_a_ledger_rolled_back_as_a_whole_shows_against_a_witness(bench: Bench) -> None:
    bench.take()
    bench.ledger.checkpoint()
    bench.ledger.close()
    old = bench.path.read_bytes()
    bench.reopen_closed()
    bench.take()
    witness = bench.ledger.head()
    assert bench.ledger.witnessed(witness) and bench.ledger.verify_chain(witness).whole
    bench.ledger.close()
    bench.path.write_bytes(old)
    bench.reopen_closed()
    assert bench.ledger.verify_chain().whole, "by itself it looks whole"
    assert not bench.ledger.witnessed(witness)
    assert "rolled back" in str(bench.ledger.verify_chain(witness).breaks)
    bench.take(uid="1.2.77")
    bench.take(uid="1.2.78")
    assert not bench.ledger.witnessed(witness), "also when it has grown beyond again"
    assert "not the one that was seen" in str(bench.ledger.verify_chain(witness).breaks)


# --- a disk that refuses -------------------------------------------------------------------------------------------------

@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A tmpfs of that many bytes; skipped where we may not mount."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.requirement("hazard: full disk")
def test_on_a_full_disk_the_ballast_is_given_up_and_the_ledger_goes_on(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 8 << 20) as disk:
        (disk / ballast.NAME).write_bytes(bytes(2 << 20))
        bench = Bench(disk)
        number = bench.take()
        with open(disk / "rest", "wb", buffering=0) as rest, pytest.raises(OSError, match="No space"):
            while True:
                rest.write(bytes(4096))
        assert ballast.is_there(disk)
        for _ in range(60):
            bench.take()
        assert not ballast.is_there(disk)
        bench.send(number)
        assert bench.delivery(number) == "sent"
        with pytest.raises(LedgerFault):
            for _ in range(100_000):
                bench.take()
        before = bench.ledger.counts()
        bench.check()
        (disk / "rest").unlink()
        bench.take()
        assert bench.ledger.counts().accepted == before.accepted + 1
        bench.check()
        bench.ledger.close()


def test_a_ledger_that_is_locked_for_too_long_is_a_fault(bench: Bench) -> None:
    bench.ledger._db.set_busy_timeout(50)
    bench.ledger._db.setlk_timeout(50, 0)
    other = apsw.Connection(str(bench.path))
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerFault):
        bench.take()
    other.execute("ROLLBACK")
    other.close()
    bench.take()
    bench.check()


def test_a_verb_that_fails_half_way_leaves_nothing(bench: Bench) -> None:
    first = bench.ledger.grant(bench.owner, 2)
    good, bad = custody(bench.ledger, first), custody(bench.ledger, first + 7)
    with pytest.raises(LedgerError, match="not open"):
        bench.ledger.accepted([good, bad])
    assert bench.ledger.object(first) is None
    assert bench.ledger.open_numbers(bench.owner) == [first, first + 1]
    bench.check()
    bench.ledger.accepted([good])
    bench.ledger.accepted([good])
    assert bench.ledger.counts().accepted == 1, "the same row twice is one"
    with pytest.raises(LedgerError, match="not open"):
        bench.ledger.accepted([custody(bench.ledger, first, content="other")])


# --- the WAL -------------------------------------------------------------------------------------------------------------

def test_the_wal_stays_bounded_without_a_keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "WAL_BOUND_PAGES", 64)
    bench = Bench(tmp_path)
    for _ in range(60):
        bench.take()
    assert Path(f"{bench.path}-wal").stat().st_size < 3 * 64 * 4096
    bench.ledger.close()


def test_the_keeper_checkpoints(bench: Bench) -> None:
    bench.take()
    with Ledger.open(bench.path, bench.clock, checkpointer=True) as keeper:
        pages, copied = keeper.checkpoint()
        assert pages == copied > 0


# --- rebuilt from the objects --------------------------------------------------------------------------------------------

@pytest.mark.requirement("lost ledger")
def test_a_lost_ledger_is_made_again_from_the_objects(tmp_path: Path) -> None:
    old = Bench(tmp_path)
    assert isinstance(old.clock, ManualClock)
    old.ledger.close()
    old.clock.reboot()
    old.reopen_closed()
    records = []
    for n in (3, 1, 2):
        old.clock.advance(1.0)
        number = old.take(uid=f"1.2.{n}")
        row = old.ledger.object(number)
        assert row is not None
        records.append(row.custody)
    boot = old.ledger.boot
    highest = max(c.number for c in records)
    old.ledger.close()
    with pytest.raises(LedgerError, match="still there"):
        rebuild(old.path, old.clock, records)
    old.path.unlink()
    ledger = rebuild(old.path, old.clock, reversed(records), others=[highest + 5, 2])
    assert ledger.boot > boot, "what comes in from now on is later than all that is there"
    assert [row.custody for row in ledger.unrouted()] == records, "in order of arrival"
    assert ledger.open_numbers(ledger.dead_owners(lambda owner: False)[0]) == [highest + 5], "start-up looks at these"
    ledger.close()
    again = Ledger.open(old.path, old.clock)
    assert again.boot == ledger.boot
    assert again.grant(again.register_owner("receiver"), 1) > highest + 5
    assert again.differences() == [] and again.verify_chain().whole
    counts = again.counts()
    assert counts.granted == counts.open + counts.void + counts.accepted
    again.close()


# --- alarms, which are not custody ----------------------------------------------------------------------------------------

def test_alarms_rise_and_end_once(bench: Bench) -> None:
    down = Alarm("destination-down:pacs", Severity.WARNING, "pacs is down", "wait")
    full = Alarm("space", Severity.CRITICAL, "full")
    assert bench.ledger.set_alarms([down]) == ([down], [])
    head = bench.ledger.head()
    assert bench.ledger.set_alarms([down]) == ([], [])
    assert bench.ledger.set_alarms([down, full]) == ([full], [])
    worse = Alarm(down.key, Severity.CRITICAL, "pacs is down for a day", "call")
    assert bench.ledger.set_alarms([worse, full]) == ([worse], [])
    assert [row.alarm for row in bench.ledger.alarms()] == [worse, full]
    assert bench.ledger.set_alarms([]) == ([], [worse, full])
    assert bench.ledger.head() == head, "no events: alarms are not custody"


def test_generations_are_numbered_and_the_same_text_is_the_same(bench: Bench) -> None:
    assert bench.ledger.latest() is None and bench.ledger.generation() == 0
    assert [bench.ledger.publish(text, "anna") for text in ("a", "a", "b", "a")] == [1, 1, 2, 3]
    assert bench.ledger.latest() == (3, "a") and bench.ledger.generation() == 3
