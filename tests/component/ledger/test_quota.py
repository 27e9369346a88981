"""A quota, or a disk that is full at the sync: SQLite calls both an I/O error, and they are none."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from appliance.clock import SystemClock
from appliance.errors import LedgerBusy, LedgerFault
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from tests.support.faultfs import ALWAYS, FaultFolder, Rule, fault_folder

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK),
                                reason="root and /dev/fuse are needed")

FULL = (errno.EDQUOT, errno.ENOSPC)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultFolder]:
    folder = tmp_path_factory.mktemp("quota")
    with fault_folder(folder / "disk", folder / "backing") as made:
        yield made


def spool_on(disk: FaultFolder, name: str) -> Spool:
    disk.plan([])
    return Spool.init(disk.mount / name, clock=SystemClock())


@pytest.mark.requirement("I6")
@pytest.mark.parametrize("code", [*FULL, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize(("where", "op"), [("wal", "write"), ("wal", "sync")])
def test_a_commit_without_room_is_no_io_error(disk: FaultFolder, where: str, op: str, code: int) -> None:
    spool = spool_on(disk, f"{where}-{op}-{code}")
    before = spool.latch.mark()
    with Ledger.open(spool.ledger_path, SystemClock(), latch=spool.latch) as ledger:
        disk.plan([Rule(where, op, error=code, times=ALWAYS)])
        with pytest.raises(LedgerFault) as caught:
            ledger.register_owner("x")
        assert disk.hits()
        assert isinstance(caught.value, LedgerBusy) is (code in FULL), "tried again later: what is owed stays owed"
        assert bool(spool.latch.since(before)) is (code not in FULL)
        disk.plan([])
        assert ledger.register_owner("x") == 1, "room is there again: nobody had to restart anything"


@pytest.mark.requirement("I6")
@pytest.mark.parametrize("code", [*FULL, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("op", ["write", "sync"])
def test_a_checkpoint_without_room_is_no_io_error(disk: FaultFolder, op: str, code: int) -> None:
    spool = spool_on(disk, f"checkpoint-{op}-{code}")
    before = spool.latch.mark()
    with Ledger.open(spool.ledger_path, SystemClock(), checkpointer=True, latch=spool.latch) as ledger:
        ledger.register_owner("x")
        disk.plan([Rule("ledger", op, error=code, times=ALWAYS)])
        with pytest.raises(LedgerFault) as caught:
            ledger.checkpoint()
        assert isinstance(caught.value, LedgerBusy) is (code in FULL)
        assert bool(spool.latch.since(before)) is (code not in FULL)
        disk.plan([])


@pytest.mark.requirement("I6")
@pytest.mark.parametrize("code", [*FULL, errno.EIO], ids=errno.errorcode.get)
def test_a_ledger_that_cannot_be_opened_for_want_of_room(disk: FaultFolder, code: int) -> None:
    spool = spool_on(disk, f"open-{code}")
    before = spool.latch.mark()
    disk.plan([Rule("shm", "truncate", error=code, times=ALWAYS)])
    with pytest.raises(LedgerFault) as caught:
        Ledger.open(spool.ledger_path, SystemClock(), latch=spool.latch)
    assert disk.hits()
    assert isinstance(caught.value, LedgerBusy) is (code in FULL)
    assert bool(spool.latch.since(before)) is (code not in FULL)
    disk.plan([])
    Ledger.open(spool.ledger_path, SystemClock()).close()
