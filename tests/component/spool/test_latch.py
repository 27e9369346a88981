"""The latch: an I/O error that anybody met closes intake everywhere, and what is owed then gets its rows all the same."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance import retire
from appliance.clock import SystemClock
from appliance.errors import LedgerFault, SpoolFault
from appliance.retire import Retirer
from appliance.spool import intake as intake_module
from appliance.spool import latch as latches
from appliance.spool import writer
from appliance.spool.intake import Intake
from appliance.spool.latch import Latch
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from tests.support.disk import FaultyOs
from tests.support.spools import CT_CLASS, EXPLICIT, SOURCE, accept, fresh, intake_of
from tests.support.waiting import wait_until


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    found = fresh(tmp_path / "spool")
    (tmp_path / "run").mkdir()
    found.latch.attach(tmp_path / "run", "receiver")
    return found


def other(spool: Spool, who: str = "keeper") -> Spool:
    """The same spool as another process has it."""
    found = Spool.open(spool.path, spool.uuid)
    found.latch.attach(spool.path.parent / "run", who)
    return found


def fault(text: str = "disk I/O error") -> SpoolFault:
    found = SpoolFault(text)
    found.io = True
    return found


@pytest.mark.requirement("I6")
def test_an_io_error_of_another_process_closes_intake(spool: Spool) -> None:
    with intake_of(spool) as intake:
        begun = intake.take()
        begun.write(bytes(100))
        accept(intake, b"before")
        code = ("import sys, errno; from pathlib import Path; from appliance.spool.layout import Spool;"
                "s = Spool.open(Path(sys.argv[1])); s.latch.attach(Path(sys.argv[2]), 'keeper');"
                "s.failed(OSError(errno.EIO, 'Input/output error', '/x/0001.dcm'), 'cannot delete a retired object')")
        subprocess.run([sys.executable, "-c", code, spool.path, spool.path.parent / "run"], check=True, timeout=60)
        with pytest.raises(SpoolFault, match="keeper"):
            begun.finish(CT_CLASS, b"1.2", EXPLICIT, SOURCE)
        with pytest.raises(SpoolFault, match="keeper"):
            intake.take()
        assert "keeper (process " in intake.out_of_intake
        assert "cannot delete a retired object: Input/output error (/x/0001.dcm)" in intake.out_of_intake
    with intake_of(spool) as intake:
        assert accept(intake, b"after").number, "a restart, whose recovery looks at the disk, opens intake again"


@pytest.mark.requirement("I6")
def test_an_io_error_between_sync_and_status_is_no_success(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = other(spool)
    with intake_of(spool) as intake:
        real = os.fdatasync

        def synced(fd: int) -> None:
            real(fd)
            keeper.latch.report(fault())

        faulty = FaultyOs()
        faulty.stand_in("fdatasync", synced)
        monkeypatch.setattr(writer, "os", faulty)
        with pytest.raises(SpoolFault, match="keeper"):
            accept(intake)


@pytest.mark.requirement("I6")
def test_the_ledger_of_any_stage_tells_the_latch(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    import apsw
    keeper = other(spool)
    before = spool.latch.mark()
    with Ledger.open(spool.ledger_path, SystemClock(), latch=keeper.latch) as ledger:
        def failing(work: object) -> None:
            raise apsw.IOError("IOError: disk I/O error")
        monkeypatch.setattr(ledger, "_attempt", failing)
        with pytest.raises(LedgerFault):
            ledger.register_owner("x")
    assert "disk I/O error (ledger.sqlite)" in spool.latch.since(before)


@pytest.mark.requirement("I6")
def test_retire_tells_the_latch(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = other(spool)
    before = spool.latch.mark()
    faulty = FaultyOs("unlink")
    monkeypatch.setattr(retire, "os", faulty)
    with Ledger.open(spool.ledger_path, SystemClock()) as ledger:
        for code, told in ((errno.EACCES, False), (errno.ENOSPC, False), (errno.EIO, True)):
            faulty.fail("unlink", code)
            with pytest.raises(Exception, match="cannot delete"):
                Retirer(keeper, ledger)._unlink([1])
            assert bool(spool.latch.since(before)) is told, "neither a full disk nor a mistake of ours is an I/O error"


@pytest.mark.requirement("I6")
def test_two_receivers_close_together(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = other(spool, "receiver")
    with intake_of(spool) as one, intake_of(beside) as two:
        accept(two)
        faulty = FaultyOs("fdatasync")
        faulty.fail("fdatasync", errno.EIO)
        with monkeypatch.context() as patch:
            patch.setattr(writer, "os", faulty)
            with pytest.raises(SpoolFault):
                accept(one)
        with pytest.raises(SpoolFault, match="Input/output error"):
            accept(two)


@pytest.mark.requirement("I6")
@pytest.mark.parametrize("what", ["ftruncate", "fsync"])
def test_an_io_error_of_the_second_recovery_closes_intake(spool: Spool, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """The error met while another process's object was adopted was swallowed, and intake stayed open (seed 500923)."""
    from appliance.spool import recover
    before = spool.latch.mark()
    with intake_of(other(spool, "receiver")) as dead, intake_of(spool) as intake:
        number = accept(dead, b"acknowledged").number
        wait_until(lambda: dead.outstanding == 0)
        monkeypatch.setattr(intake._ledger, "dead_owners", lambda is_alive: [dead.owner])
        monkeypatch.setattr(intake._ledger, "open_numbers", lambda owner: [number])
        path = spool.object_path(number)
        path.write_bytes(path.read_bytes() + bytes(512))     # over-long, as a crash leaves it
        dead._disown()
        faulty = FaultyOs(what)
        faulty.fail(what, errno.EIO)
        monkeypatch.setattr(recover, "os", faulty)
        intake._recover_again()
        assert "cannot adopt" in intake.out_of_intake and "Input/output error" in spool.latch.since(before)


@pytest.mark.requirement("I6")
def test_an_io_error_of_a_start_closes_intake_elsewhere(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that does not open for an I/O error tells the others on that disk."""
    def failing(spool: Spool, ledger: Ledger) -> None:
        raise fault("cannot adopt object 01: Input/output error")
    with intake_of(spool) as open_before, Ledger.open(spool.ledger_path, SystemClock()) as ledger:
        accept(open_before)
        with monkeypatch.context() as patch:
            patch.setattr(intake_module, "recover", failing)
            with pytest.raises(SpoolFault):
                Intake(other(spool, "receiver"), ledger, SystemClock()).start()
        with pytest.raises(SpoolFault, match="Input/output error"):
            accept(open_before)


def test_a_run_folder_that_somebody_emptied(spool: Spool) -> None:
    keeper = other(spool)
    before = spool.latch.mark()
    (spool.path.parent / "run" / latches.NAME).unlink()
    keeper.latch.report(fault())
    assert not spool.latch.since(before), "it looks at the old page until it is told to look for the name"
    spool.latch.renew()
    assert "disk I/O error" in spool.latch.since(before)


def test_without_a_run_folder_it_holds_in_this_process(tmp_path: Path) -> None:
    latch = Latch()
    latch.attach(tmp_path / "missing", "keeper")
    before = latch.mark()
    latch.report(SpoolFault("the ledger does not keep up"))
    assert not latch.since(before)
    latch.report(fault())
    assert "disk I/O error" in latch.since(before) and not latch.since(latch.mark())


# What is owed when intake closes

def owing(spool: Spool, monkeypatch: pytest.MonkeyPatch, intake: Intake) -> int:
    """Let the ledger fail for one group: the object in it is durable and was acknowledged, and has no row."""
    def broken(rows: object) -> None:
        raise LedgerFault("disk I/O error")
    with monkeypatch.context() as patch:
        patch.setattr(intake._ledger, "accepted", broken)
        number = accept(intake, b"acknowledged").number
        wait_until(lambda: bool(intake.out_of_intake))
    return number


@pytest.mark.requirement("I2")
def test_what_is_owed_gets_its_row_without_a_restart(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "SETTLE_SECONDS", (0.05, 0.1))
    told: list[int] = []
    with Ledger.open(spool.ledger_path, SystemClock()) as ledger:
        intake = Intake(spool, ledger, SystemClock(), on_accepted=lambda: told.append(1))
        intake.start()
        number = owing(spool, monkeypatch, intake)
        wait_until(lambda: ledger.counts().accepted == 1)
        wait_until(lambda: ledger.open_numbers(intake.owner) == [] and intake.outstanding == 0)
        assert [row.number for row in ledger.unrouted()] == [number]
        assert intake.out_of_intake, "the disk stays out of intake until the restart"
        with pytest.raises(SpoolFault):
            intake.take()
        wait_until(lambda: bool(told))
        assert intake.stop(), "nothing is left for the next start"


@pytest.mark.requirement("I6")
def test_it_waits_until_the_disk_is_healthy(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    from appliance.spool import recover
    monkeypatch.setattr(intake_module, "SETTLE_SECONDS", (0.05, 0.05))
    with intake_of(spool) as intake:
        faulty = FaultyOs("pwrite", "preadv", "fdatasync")
        monkeypatch.setattr(recover, "os", faulty)
        faulty.fail("pwrite", errno.EIO)
        owing(spool, monkeypatch, intake)
        ledger = intake._ledger
        wait_until(lambda: faulty.names().count("pwrite") > 3)
        faulty.heal()
        faulty.fail("preadv", errno.EIO)
        wait_until(lambda: faulty.names().count("preadv") > 3)
        assert ledger.counts().accepted == 0
        faulty.heal()
        wait_until(lambda: ledger.counts().accepted == 1)
        assert not any(spool.quarantine.iterdir()), "what could not be read was not put aside: it is whole"


@pytest.mark.requirement("I2")
def test_a_writer_under_way_is_waited_for(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "SETTLE_SECONDS", (0.05, 0.05))
    with intake_of(spool) as intake:
        begun = intake.take()
        begun.write(bytes(5000))
        owing(spool, monkeypatch, intake)
        ledger = intake._ledger
        with pytest.raises(AssertionError):
            wait_until(lambda: ledger.counts().accepted == 1, 0.5)
        begun.abandon("gone")
        wait_until(lambda: ledger.counts().accepted == 1)
        assert begun.number not in [row.number for row in ledger.unrouted()]


@pytest.mark.requirement("I6")
def test_a_slot_that_cannot_be_cut_tells_the_latch(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the simulation (seed 20262003): a peer goes away, and what it began cannot be cut: others must hear of it."""
    before = other(spool).latch.mark()
    with intake_of(spool) as intake:
        begun = intake.take()
        begun.write(bytes(2 << 20))
        faulty = FaultyOs("ftruncate")
        faulty.fail("ftruncate", errno.EIO)
        monkeypatch.setattr(writer, "os", faulty)
        begun.abandon("peer went away")
        assert "Input/output" in intake.out_of_intake
    assert "cannot cut object" in other(spool).latch.since(before)
