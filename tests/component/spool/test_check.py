"""`spool check` finds what is wrong and changes nothing; `spool rebuild` makes a lost ledger from the objects."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.errors import LedgerDamaged, SpoolRefused
from appliance.spool import quarantine
from appliance.spool.check import Report, check
from appliance.spool.layout import IDENTITY, Spool
from appliance.spool.ledger import Ledger
from appliance.spool.rebuild import rebuild
from tests.support.spools import accept, files, fresh, intake_of


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = fresh(tmp_path / "spool")
    with intake_of(spool, ready=4) as intake:
        for n in range(5):
            accept(intake, os.urandom(10_000 + n), b"1.%d" % n)
    return spool


def checked(spool: Spool, **how: bool) -> Report:
    return check(spool.path, SystemClock(), expected_uuid=spool.uuid, **how)


def test_a_sound_spool(spool: Spool) -> None:
    report = checked(spool, digests=True, deep=True)
    assert report.problems == [] and report.sound
    assert (report.digested, report.digested_bytes) == (5, 50_010)
    assert report.balance is not None and report.balance.accepted == 5 and report.events > 5
    assert report.uuid == spool.uuid


def found(report: Report, text: str) -> bool:
    assert not report.sound and report.found >= len(report.problems) > 0
    return any(text in str(problem) for problem in report.problems)


def test_a_missing_object(spool: Spool) -> None:
    spool.object_path(2).unlink()
    assert found(checked(spool), "file is missing")


@pytest.mark.requirement("I5")
def test_a_flipped_bit_is_found_by_reading(spool: Spool) -> None:
    with open(spool.object_path(3), "r+b") as stream:
        stream.seek(5000)
        byte = stream.read(1)
        stream.seek(5000)
        stream.write(bytes([byte[0] ^ 1]))
    assert checked(spool).sound
    assert found(checked(spool, digests=True), "digest is wrong")


def test_a_stray_file(spool: Spool) -> None:
    (spool.objects / "00" / "README").write_text("hello")
    assert found(checked(spool), "stray file")


def test_a_given_up_ballast(spool: Spool) -> None:
    os.truncate(spool.ballast_path, 0)
    assert found(checked(spool), "ballast")


def test_missing_folders(spool: Spool) -> None:
    (spool.objects / "fe").rmdir()
    assert found(checked(spool), "fe")
    spool.quarantine.rmdir()
    assert found(checked(spool), "lacks quarantine")


def test_what_cannot_be_opened(spool: Spool, tmp_path: Path) -> None:
    other = fresh(tmp_path / "other")
    assert found(check(other.path, SystemClock(), expected_uuid=spool.uuid), "another spool")
    assert found(check(tmp_path, SystemClock()), "holds no spool")
    (spool.path / IDENTITY).write_text("{")
    assert found(checked(spool), "cannot be read")


def test_a_damaged_ledger(spool: Spool) -> None:
    for kind in ("", "-wal", "-shm"):
        path = Path(f"{spool.ledger_path}{kind}")
        if path.exists():
            path.write_bytes(os.urandom(8192))
    assert found(checked(spool), "ledger")


def test_quarantine_is_counted(spool: Spool) -> None:
    with Ledger.open(spool.ledger_path, SystemClock()) as ledger:
        ledger.quarantine(1, "test")
    quarantine.put(spool, 1, "test")
    report = checked(spool, digests=True)
    assert report.sound and (report.in_quarantine, report.remnants, report.digested) == (1, 0, 4)


def test_stopped_by_a_person(spool: Spool) -> None:
    answers = iter([False, False, True])
    report = check(spool.path, SystemClock(), digests=True, stop=lambda: next(answers))
    assert report.digested == 2 and report.sound


@pytest.mark.requirement("a lost ledger costs re-sends, never an image")
def test_a_lost_ledger_is_made_from_the_objects(spool: Spool) -> None:
    before = files(spool)
    for kind in ("", "-wal", "-shm"):
        Path(f"{spool.ledger_path}{kind}").unlink(missing_ok=True)
    with pytest.raises(LedgerDamaged, match="missing"):
        Ledger.open(spool.ledger_path, SystemClock())
    os.truncate(spool.object_path(4), 6000)
    report = rebuild(spool, SystemClock())
    assert report.accepted == 4 and report.moved is None and 4 in report.open
    with intake_of(spool, ready=4) as intake:
        assert intake.recovery.remnants == 1
        assert accept(intake).number > max(before)
    with Ledger.open(spool.ledger_path, SystemClock(), read_only=True) as ledger:
        assert ledger.counts().accepted == 5
    assert checked(spool, digests=True, deep=True).problems == []


def test_the_old_ledger_is_kept(spool: Spool) -> None:
    assert rebuild(spool, SystemClock()).moved == spool.path / "ledger.sqlite.old1"
    assert rebuild(spool, SystemClock()).moved == spool.path / "ledger.sqlite.old2"
    with Ledger.open(spool.path / "ledger.sqlite.old1", SystemClock(), read_only=True) as old:
        assert old.counts().accepted == 5


def test_no_rebuild_under_a_live_receiver(spool: Spool) -> None:
    with intake_of(spool, ready=4), pytest.raises(SpoolRefused, match="in use"):
        rebuild(spool, SystemClock())
