"""The board of alarms: told once, ended after a pause, and told all the same where the ledger takes no rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from appliance.clock import ManualClock
from appliance.errors import LedgerFault
from appliance.keeper.alarmboard import QUIET_NS, SECOND, Board
from appliance.model import Alarm, Severity
from appliance.spool.ledger import Ledger

DISK = Alarm("out-of-intake", Severity.CRITICAL, "the disk is out of intake")
SPACE = Alarm("space", Severity.WARNING, "the spool is getting full")
FULL = Alarm("space", Severity.CRITICAL, "the spool is full")


class Told:
    """A board on a ledger that fails while `broken`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = ManualClock()
        self.ledger = Ledger.open(folder / "ledger.sqlite", self.clock)
        self.broken = False
        self.raised: list[Alarm] = []
        self.ended: list[Alarm] = []
        write = self.ledger.set_alarms

        def set_alarms(alarms: Sequence[Alarm]) -> tuple[list[Alarm], list[Alarm]]:
            if self.broken and {a.key: a for a in alarms} != {row.alarm.key: row.alarm for row in self.ledger.alarms()}:
                raise LedgerFault("disk I/O error")
            return write(alarms)

        monkeypatch.setattr(self.ledger, "set_alarms", set_alarms)
        self.board = Board(self.ledger, self.clock, self.hear)

    def hear(self, raised: Sequence[Alarm], ended: Sequence[Alarm]) -> None:
        self.raised += raised
        self.ended += ended

    def show(self, *alarms: Alarm, fails: bool = False) -> None:
        if fails:
            with pytest.raises(LedgerFault):
                self.board.show(alarms)
        else:
            self.board.show(alarms)

    def in_force(self) -> list[str]:
        return [row.alarm.key for row in self.ledger.alarms()]


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    return Told(tmp_path, monkeypatch)


def test_an_alarm_is_told_once_and_ends_after_a_pause(told: Told) -> None:
    told.show(SPACE)
    told.show(SPACE)
    assert told.raised == [SPACE] and told.in_force() == ["space"]
    told.show()
    assert told.ended == []
    told.clock.advance(QUIET_NS / SECOND + 1)
    told.show()
    assert told.ended == [SPACE] and told.in_force() == []


def test_a_ledger_that_cannot_be_written_keeps_no_alarm_back(told: Told) -> None:
    """Of all things a dead disk must be heard of: once, worse again, and not once more when the ledger works."""
    told.show(SPACE)
    told.broken = True
    told.show(SPACE, DISK, fails=True)
    told.show(SPACE, DISK, fails=True)
    assert told.raised == [SPACE, DISK]
    told.show(FULL, DISK, fails=True)
    assert told.raised == [SPACE, DISK, FULL]
    told.broken = False
    told.show(FULL, DISK)
    assert told.raised == [SPACE, DISK, FULL] and told.ended == []
    assert told.in_force() == ["out-of-intake", "space"]


def test_what_was_told_without_the_ledger_and_is_over_is_told_too(told: Told) -> None:
    told.broken = True
    told.show(DISK, fails=True)
    told.broken = False
    told.show()
    assert told.raised == [DISK] and told.ended == [DISK]
    told.show(DISK)
    assert told.raised == [DISK, DISK]
