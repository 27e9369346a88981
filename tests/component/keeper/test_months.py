"""Half a year of a small clinic on a compressed clock: a spool with a quota, a destination that proves nothing but a status."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from appliance.clock import ManualClock
from appliance.config.settings import Config, Control, Destination
from appliance.config.settings import Spool as SpoolSettings
from appliance.keeper import Keeper
from appliance.model import Alarm, SpaceState
from appliance.spool.balance import balance
from appliance.spool.ledger import Ledger
from tests.support.filled import Filled

DAY = 86400
QUOTA = 3_000_000
LENGTH = 8192
A_HALF_DAY = 6
"""Objects: 12 a day of 12 KiB with their heads, 14 days of them are 2 MB: more than a month would not fit."""


class Months:
    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self.site = Filled(folder, self.clock, QUOTA)
        self.config = Config(
            destinations=(Destination(id="pacs", status_days=7.0),), control=Control(run=str(folder / "run")),
            spool=SpoolSettings(path=str(self.site.spool.path), state=str(folder / "state"), size=QUOTA, keep_max_days=3650.0))
        self.raised: list[str] = []
        self.ended: list[str] = []
        self.keeper = self.new_keeper()

    def new_keeper(self) -> Keeper:
        def told(raised: Sequence[Alarm], ended: Sequence[Alarm]) -> None:
            self.raised += [a.key for a in raised]
            self.ended += [a.key for a in ended]
        return Keeper(lambda: self.config, self.site.spool, self.clock, told=told, random=random.Random(1))

    def reboot(self) -> None:
        self.keeper.ledger.close()
        self.site.ledger.close()
        self.clock.reboot()
        self.site.ledger = Ledger.open(self.site.spool.ledger_path, self.clock)
        self.site.owner = self.site.ledger.register_owner("receiver")
        self.keeper = self.new_keeper()

    def half_day(self, *, line: bool = True) -> None:
        """Images come in and are sent where the line is up; then the keeper goes its rounds."""
        self.site.accept(A_HALF_DAY, length=LENGTH)
        self.site.route()
        if line:
            self.site.send()
        self.clock.advance(DAY / 2)
        watch = self.keeper.confirmer.watch(self.config.destinations[0])
        assert watch is not None
        while watch.step():
            pass
        self.keeper.round()

    def unconfirmed_are_there(self) -> None:
        """I4: whatever is not confirmed has its file."""
        for row in self.site.ledger.ask(lambda db: db.execute(
                "SELECT number FROM objects WHERE state NOT IN ('confirmed', 'retired', 'duplicate')").fetchall()):
            assert self.site.there(row[0])


@pytest.fixture
def months() -> Iterator[Months]:
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        found = Months(Path(folder))
        yield found
        found.keeper.ledger.close()
        found.site.close()


@pytest.mark.slow
@pytest.mark.requirement("I4")
@pytest.mark.requirement("I7")
def test_half_a_year_with_a_small_disk_neither_fills_it_nor_loses_an_image(months: Months) -> None:
    worst = SpaceState.GREEN
    for half in range(2 * 183):
        months.half_day(line=not 60 <= half < 66)          # three days without a line
        if half % 14 == 13:
            months.reboot()
        if half % 20 == 0:
            months.unconfirmed_are_there()
        state = months.keeper.room().state
        assert state in (SpaceState.GREEN, SpaceState.AMBER), f"day {half / 2}: {state}"
        worst = state if state is SpaceState.AMBER else worst
    counts = months.site.ledger.counts()
    assert counts.accepted == 2 * 183 * A_HALF_DAY
    assert counts.states["retired"] > counts.accepted * 0.8, "room was short, and confirmed copies made it"
    assert counts.states["sent"] >= 6 * 2 * A_HALF_DAY, "the last week is not confirmed by a status yet"
    found = balance(months.site.spool, months.site.ledger, deep=True)
    assert found.balanced, [str(d) for d in found.discrepancies]
    assert "backlog:pacs" in months.raised and "backlog:pacs" in months.ended


@pytest.mark.requirement("I4")
def test_a_dead_line_fills_the_spool_but_deletes_nothing(months: Months) -> None:
    halves = 0
    while months.keeper.room().state in (SpaceState.GREEN, SpaceState.AMBER):
        months.half_day(line=False)
        halves += 1
        assert halves < 100
    counts = months.site.ledger.counts()
    assert counts.held_objects == counts.accepted == halves * A_HALF_DAY
    assert "space" in months.raised
    months.site.send()
    months.clock.advance(8 * DAY)
    for _ in range(4):
        months.half_day()
    assert months.keeper.room().state is SpaceState.GREEN, "it recovers by itself when the line is back"


@pytest.mark.requirement("I7")
def test_time_without_power_does_not_age_a_copy(months: Months) -> None:
    months.half_day()
    months.clock.step_wall(400 * DAY)
    months.reboot()
    months.half_day()
    assert months.site.ledger.counts().states["sent"] == 2 * A_HALF_DAY, "a week of power, not of calendar, is asked for"
