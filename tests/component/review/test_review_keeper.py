"""The keeper's round: a destination that hangs, or a fault nobody foresaw, ends neither watchdog nor retention nor alarms."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.clock import ManualClock
from appliance.config.settings import Config, Control, Destination
from appliance.config.settings import Spool as SpoolSettings
from appliance.confirm import Confirmer
from appliance.confirm.proof import Evidence
from appliance.errors import LedgerBusy
from appliance.keeper import Keeper
from appliance.keeper import keeper as keepers
from appliance.model import Alarm
from appliance.spool.rows import Sent
from tests.support.ledgers import Bench
from tests.support.spools import fresh
from tests.support.waiting import wait_until


class Kept:
    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.spool = fresh(folder / "spool")
        self.run = folder / "run"
        self.run.mkdir()
        self.config = Config(destinations=(Destination(id="nas", type="folder", path="/nowhere", proof="readback"),),
                             control=Control(run=str(self.run)), generation=1,
                             spool=SpoolSettings(path=str(self.spool.path), state=str(folder / "state")))
        self.raised: list[str] = []
        self.keeper = Keeper(lambda: self.config, self.spool, self.clock, told=self.told)

    def told(self, raised: Sequence[Alarm], ended: Sequence[Alarm]) -> None:
        self.raised += [a.key for a in raised]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    found = Kept(tmp_path)
    yield found
    found.keeper.stop(1.0)


class Hangs:
    """A proof whose mount hangs."""

    def __init__(self) -> None:
        self.inside, self.over = threading.Event(), threading.Event()

    def look(self, sent: Sequence[Sent]) -> list[Evidence]:
        self.inside.set()
        self.over.wait(60)
        return []

    def close(self) -> None: ...


@pytest.mark.requirement("Watchdog chain: a destination never gates the ping")
def test_a_mount_that_hangs_is_an_alarm_and_not_the_end_of_the_process(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    proof = Hangs()
    monkeypatch.setattr(Confirmer, "_proof", lambda self, destination: proof)
    monkeypatch.setattr(keepers, "LEAST_SECONDS", 0.01)
    monkeypatch.setattr(keepers, "ROUND_SECONDS", 0.02)
    pings: list[Any] = []
    monkeypatch.setattr(keepers, "alive", pings.append)
    bench = Bench(kept.spool.path, kept.clock)
    bench.send(bench.take("", "", "nas"), "nas")
    kept.clock.advance(10)
    kept.keeper.start()
    try:
        assert proof.inside.wait(20)
        kept.clock.advance(keepers.STUCK_SECONDS + 1)
        wait_until(lambda: "confirm-stuck:nas" in kept.raised, 20, "a person is told")
        before = len(pings)
        wait_until(lambda: len(pings) > before + 2, 20, "the watchdog is fed")
    finally:
        proof.over.set()
        bench.ledger.close()


def test_a_fault_that_nobody_foresaw_keeps_no_other_task_from_its_turn(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(24, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(kept.keeper.retirer, "step", broken)
        kept.keeper.round()
        assert [key for key in kept.raised if key != "space"] == ["keeper-retire"]    # the test's own disk may be full
    kept.clock.advance(10)
    kept.keeper.round()
    kept.clock.advance(120)
    kept.keeper.round()
    assert [row.alarm.key for row in kept.keeper.ledger.alarms() if row.alarm.key != "space"] == []


@pytest.mark.requirement("I4")
def test_a_deletion_that_failed_half_way_is_finished_without_a_restart(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its row `retiring` is there, so it is not among what may be retired any more: nobody else would come back to it."""
    kept.config = replace(kept.config, spool=replace(kept.config.spool, keep_min_hours=0.0, keep_max_days=0.0))
    bench = Bench(kept.spool.path, kept.clock)
    number = bench.take("", "", "nas")
    bench.send(number, "nas")
    bench.confirm(number, "nas")
    kept.spool.object_path(number).write_bytes(b"x")

    def busy(numbers: Sequence[int]) -> None:
        raise LedgerBusy("the ledger cannot be written now")

    with monkeypatch.context() as patch:
        patch.setattr(kept.keeper.ledger, "retired", busy)
        kept.keeper.round()
        assert bench.ledger.unfinished() == [number]
    kept.clock.advance(10)
    kept.keeper.round()
    assert bench.ledger.unfinished() == [] and bench.state(number) == "retired"
    bench.ledger.close()
