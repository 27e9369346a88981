"""Slots made while nobody sends: a study's burst finds its files, and makes none."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from appliance.clock import SECOND
from appliance.spool import intake as intake_module
from appliance.spool import slots
from appliance.spool.layout import Spool
from tests.support.disk import FaultyOs
from tests.support.spools import accept, files, fresh, intake_of
from tests.support.waiting import wait_until

DEADLINE = 20.0
READY = 8
FULL = READY * slots.GROWTH


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spool:
    monkeypatch.setattr(intake_module, "QUIET_PAUSE", 0)
    return fresh(tmp_path / "spool")


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> FaultyOs:
    watched = FaultyOs("open", "statvfs")
    monkeypatch.setattr(slots, "os", watched)
    return watched


def test_a_burst_after_a_quiet_time_makes_no_files(spool: Spool, watched: FaultyOs, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def opened(name: str, flags: int, *rest: int, **where: int) -> int:
        if flags & os.O_CREAT:
            made.append(name)
        return os.open(name, flags, *rest, **where)

    watched.stand_in("open", opened)
    monkeypatch.setattr(intake_module, "QUIET", 0)
    with intake_of(spool, ready=READY) as intake:
        wait_until(lambda: not intake._slots.wanting, DEADLINE, "slots for a study")
        assert len(files(spool)) >= FULL
        monkeypatch.setattr(intake_module, "QUIET", 3600 * SECOND)
        made.clear()
        for number in range(FULL // 2):
            accept(intake, uid=b"1.2.%d" % number)
        assert not made
        for number in range(2 * FULL):                 # a study that is longer than that has files made beside it
            accept(intake, uid=b"1.3.%d" % number)
        assert made


def test_nothing_is_made_ahead_while_somebody_sends(spool: Spool, watched: FaultyOs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "QUIET", 3600 * SECOND)
    with intake_of(spool, ready=READY) as intake:
        for number in range(3 * FULL):
            accept(intake, uid=b"1.2.%d" % number)
        wait_until(lambda: intake.outstanding == 0, DEADLINE, "their rows")
        assert "statvfs" not in watched.names()


def test_where_inodes_are_scarce_no_more_are_made_than_are_needed(spool: Spool, watched: FaultyOs,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    scarce = slots.INODES * FULL
    watched.stand_in("statvfs", lambda path: SimpleNamespace(f_files=scarce, f_favail=scarce - 1))
    monkeypatch.setattr(intake_module, "QUIET", 0)
    with intake_of(spool, ready=READY) as intake:
        wait_until(lambda: "statvfs" in watched.names(), DEADLINE, "a look at the inodes")
        accept(intake)
        assert intake.ready <= READY
