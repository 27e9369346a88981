"""A disk that is full at the start: intake opens all the same, and what could not be judged is judged when there is room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.clock import ManualClock
from appliance.errors import SpoolFull
from appliance.model import SpaceState
from appliance.spool import intake as intakes
from appliance.spool import quarantine
from appliance.spool.ledger import Ledger
from tests.support.spools import accept, fresh, intake_of
from tests.support.waiting import wait_until


@pytest.mark.requirement("design: Space")
@pytest.mark.parametrize("fails", [1, 2])
def test_no_room_for_a_note_in_quarantine_keeps_no_receiver_from_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                          fails: int) -> None:
    """Found by tests.proof.io_errors: ENOSPC at the rename of a remnant ended the receiver, and no echo was answered."""
    spool = fresh(tmp_path / "spool")
    clock = ManualClock()
    with Ledger.open(spool.ledger_path, clock) as ledger:
        number = ledger.grant(ledger.register_owner("receiver"), 1)
    spool.object_path(number).write_bytes(b"a remnant" * 1000)
    put, calls = quarantine.put, []

    def full(*arguments: Any, **how: Any) -> quarantine.Entry:
        calls.append(arguments)
        if len(calls) <= fails:
            raise SpoolFull("no room")
        return put(*arguments, **how)

    monkeypatch.setattr(quarantine, "put", full)
    with intake_of(spool, clock) as intake:
        assert intake.space() is not SpaceState.BLACK
        assert accept(intake).length
        assert spool.ballast_path.stat().st_size == 0
        assert spool.object_path(number).exists() == (fails == 2)
        if fails == 2:
            clock.advance(intakes.RECOVER_AGAIN / 1e9 + 1)
            with intake._lock:
                intake._work.notify_all()
        wait_until(lambda: [entry.number for entry in quarantine.entries(spool)] == [number], 10, "it is put aside")
        assert intake.out_of_intake == ""
