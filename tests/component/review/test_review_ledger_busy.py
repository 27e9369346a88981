"""A ledger that is not to be had for a while: somebody else writes, or the disk is full. Nothing of that closes intake."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import apsw
import pytest

from appliance.clock import ManualClock
from appliance.errors import LedgerBusy, SpoolFault
from appliance.spool import intake as intake_module
from appliance.spool import schema
from appliance.spool.intake import Intake
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from tests.support.spools import accept, fresh, intake_of
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.requirement("I6"), pytest.mark.requirement("bounded debt")]


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return fresh(tmp_path / "spool")


def be_impatient(intake: Intake) -> None:
    db = intake._ledger._db
    with suppress(apsw.Error):
        db.setlk_timeout(20, 0)
    db.set_busy_timeout(20)


@contextmanager
def writing(spool: Spool) -> Iterator[None]:
    """Somebody else's long transaction: a queue of 100,000 objects that is moved, a disk that hangs under its commit."""
    db = schema.connect(spool.ledger_path)
    try:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("ROLLBACK")
    finally:
        db.close()


def test_a_ledger_that_others_write_for_long_does_not_close_intake(spool: Spool) -> None:
    with intake_of(spool) as intake:
        be_impatient(intake)
        with writing(spool):
            made = [accept(intake, b"x", b"1.%d" % n) for n in range(3)]
            wait_until(lambda: intake._not_before, 10, "the ledger was found busy")
            assert not intake.out_of_intake and intake.outstanding == 3
        wait_until(lambda: intake.outstanding == 0, 10, "the rows are committed by and by")
        made.append(accept(intake, b"x", b"1.9"))
        assert not intake.out_of_intake
    with intake_of(spool) as intake:
        assert intake.recovery.adopted == 0, "everything has its row"
        assert intake._ledger.counts().accepted == len(made) == 4


def test_statuses_wait_for_a_busy_ledger_and_then_fail(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound on the debt holds meanwhile: no success beyond it, and no silence either (I1)."""
    monkeypatch.setattr(intake_module, "DEBT_SECONDS", 0.2)
    with intake_of(spool, max_debt=2, max_debt_seconds=1000) as intake:
        be_impatient(intake)
        with writing(spool):
            for n in range(2):
                accept(intake, b"x", b"1.%d" % n)
            wait_until(lambda: intake._not_before, 10, "the ledger was found busy")
            with pytest.raises(SpoolFault, match="does not keep up"):
                accept(intake, b"x", b"1.3")
        wait_until(lambda: intake.outstanding == 0, 10, "the rows are committed by and by")
        accept(intake, b"x", b"1.4")
    with Ledger.open(spool.ledger_path, ManualClock(), read_only=True) as ledger:
        assert ledger.counts().accepted == 4


def test_numbers_that_cannot_be_granted_for_a_while_do_not_close_intake(spool: Spool) -> None:
    with intake_of(spool, ready=4) as intake:
        be_impatient(intake)
        with writing(spool), pytest.raises(SpoolFault, match="cannot be written now"):
            for n in range(200):
                accept(intake, b"x", b"1.%d" % n)
        assert not intake.out_of_intake
        accept(intake, b"x", b"1.999")


def test_a_ledger_without_room_does_not_close_intake(spool: Spool) -> None:
    """The ballast is given up first; when that is used up too, rows stay owed until there is room."""
    with intake_of(spool) as intake:
        db = intake._ledger._db
        accept(intake)
        wait_until(lambda: intake.outstanding == 0)
        pages = db.execute("PRAGMA page_count").get
        db.execute(f"PRAGMA max_page_count = {pages}")
        made = 1
        while not intake._not_before:
            accept(intake, b"x", b"1.2.%d" % made)
            made += 1
            wait_until(lambda: intake.outstanding == 0 or intake._not_before)
        assert not intake.out_of_intake and intake.outstanding
        assert os.stat(spool.ballast_path).st_size == 0
        db.execute("PRAGMA max_page_count = 1000000")
        wait_until(lambda: intake.outstanding == 0, 10, "there is room again")
        assert intake._ledger.counts().accepted == made


def test_it_has_an_error_of_its_own(spool: Spool) -> None:
    with Ledger.open(spool.ledger_path, ManualClock()) as ledger, writing(spool):
        ledger._db.set_busy_timeout(0)
        with suppress(apsw.Error):
            ledger._db.setlk_timeout(0, 0)
        with pytest.raises(LedgerBusy):
            ledger.register_owner("receiver")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(mount)]
    if subprocess.run(command, capture_output=True, timeout=60, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True, timeout=60)


@pytest.mark.requirement("Space: the ballast is given up so that the ledger works on a full disk")
def test_a_box_that_starts_with_a_full_disk_can_still_deliver_and_delete(small: Path) -> None:
    """Not even the files beside the ledger can be made then; without them no process of ours would start, ever again."""
    clock = ManualClock()
    spool = Spool.init(small / "spool", clock=clock)
    with open(small / "filler", "wb", buffering=0) as filler:
        for size in (65536, 512):
            with suppress(OSError):
                while True:
                    filler.write(bytes(size))
    clock.reboot()
    with Ledger.open(spool.ledger_path, clock) as ledger:
        assert ledger.boot == 2
        ledger.register_owner("receiver")
    assert os.stat(spool.ballast_path).st_size == 0
