"""The same weeks lived twice, once with a wall clock that is right and once with one that jumps about: a part of `clocks`.

The oracle needs no knowledge of the product: nothing but the label of the wall
clock may differ between the two ledgers, row by row (I7). So nothing is retired
early, nothing is stuck, and no back-off is longer or shorter. Real desks, lanes,
ledger and keeper on the clock of `appliance.clock.ManualClock`.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from appliance.clock import EARLIEST_PLAUSIBLE, SECOND, ManualClock
from appliance.config.settings import Config, Control, Destination
from appliance.config.settings import Spool as SpoolSettings
from appliance.forward.lane import Lane
from appliance.forward.router import minute_of_day
from appliance.keeper import Keeper
from appliance.model import DeliveryState, Priority
from appliance.schedule import hours, within
from appliance.spool.ledger import Ledger
from tests.proof.network_part import Part
from tests.support.filled import Filled
from tests.support.lanes import Yard

DAY = 86400
YEAR = 365 * DAY + DAY // 4
PRESENT = EARLIEST_PLAUSIBLE + 200 * DAY * SECOND

STEPS = (-1, 1, -60, 61, -3600, 3600, -DAY, DAY, -30 * DAY, 31 * DAY, -10 * YEAR, 10 * YEAR)
"""Seconds that the wall clock jumps by."""

MOMENTS = (0, 30 * SECOND, -DAY * SECOND, EARLIEST_PLAUSIBLE - 1, EARLIEST_PLAUSIBLE, 2**31 * SECOND - 1, 2**32 * SECOND,
           PRESENT - 10 * YEAR * SECOND, PRESENT + 10 * YEAR * SECOND, PRESENT)
"""Wall clocks, in nanoseconds, that a box really has: 1970, a dead battery, before 1970, the ends of 32 bits, the present."""

Row = tuple[int, int, str, int | None, str, str]
"""An event without its label: boot, time since boot, kind, number, destination, body."""


def jump(clock: ManualClock, chance: random.Random) -> None:
    """Set the wall clock, by a step or to a moment."""
    if chance.random() < 0.5:
        clock.step_wall(chance.choice(STEPS))
    else:
        clock.step_wall((chance.choice(MOMENTS) - clock.wall_ns()) / SECOND)


def history(ledger: Ledger) -> list[Row]:
    """What the ledger holds, without the wall clock's labels and without the alarm that the clock itself is wrong."""
    rows = []
    for event in ledger.events(0, 10_000_000):
        body = json.loads(event.body)
        if event.kind.startswith("alarm") and body.get("key") == "clock":
            continue
        body = {key: value for key, value in body.items() if "wall" not in key}
        rows.append((event.boot, event.at, event.kind, event.number, event.destination, json.dumps(body, sort_keys=True)))
    return rows


def compare(part: Part, what: str, seed: int, right: Sequence[Row], wrong: Sequence[Row]) -> None:
    part.count("events_compared", len(right))
    if right != wrong:
        at = next((n for n, (one, other) in enumerate(zip(right, wrong, strict=False)) if one != other),
                  min(len(right), len(wrong)))
        part.fail(f"{what}, seed {seed}: with a wall clock that jumps, event {at} of {len(right)} is "
                  f"{wrong[at:at + 1]}, not {right[at:at + 1]}")


class Sleeper:
    """A lane as its thread runs it: it looks when it is woken or its pause is over, never because time was told to pass."""

    def __init__(self, yard: Yard, lane: Lane) -> None:
        self._yard = yard
        self._lane = lane
        self._due = 0

    def live(self, seconds: float) -> None:
        clock = self._yard.manual
        end = clock.boot_ns() + int(seconds * SECOND)
        while True:
            if clock.boot_ns() >= self._due or self._lane.event.is_set():
                self._lane.event.clear()
                pause = self._yard.turn(self._lane)
                self._due = clock.boot_ns() + int(pause * SECOND)
                continue
            if clock.boot_ns() >= end:
                return
            clock.advance((min(self._due, end) - clock.boot_ns()) / SECOND + 1e-9)


# --- back-off and delivery --------------------------------------------------------------------------------------------


def delivery(folder: Path, seed: int, *, jumps: bool) -> tuple[list[Row], int]:
    """A destination that fails and works again, objects that come meanwhile: the history, with the times of all tries."""
    chance, wild = random.Random(seed), random.Random(~seed)
    clock = ManualClock(wall_ns=PRESENT)
    yard = Yard(folder, clock)
    sleeper = Sleeper(yard, yard.lane())
    site = yard.sites["pacs"]
    made = 0
    for _ in range(60):
        act = chance.randrange(5)
        if act == 0:
            yard.put(chance.randrange(1, 4), priority=chance.choice(tuple(Priority)), study=chance.choice("abc"))
        elif act == 1:
            site.break_down()
        elif act == 2:
            site.down = None
        yard.random = chance.random()
        # The step falls in the middle of whatever the lane waits for: it has just been told for how long.
        for _ in range(chance.randrange(1, 4)):
            if jumps:
                jump(clock, wild)
                made += 1
            sleeper.live(chance.choice((0.05, 0.7, 3.0, 40.0, 400.0)))
    site.down = None
    sleeper.live(700.0)      # longer than the longest back-off, and the longest place behind others
    with closing(yard.ledger):
        rows = history(yard.ledger)
        rows += [(0, at, "connect", None, "", "") for at in site.times]
        rows += [(0, 0, "stored", number, "", "") for number in site.stored]
        waits = yard.ledger.counts().queue("pacs", *_OPEN).count
    if waits:
        rows.append((0, 0, "STUCK", None, "pacs", str(waits)))
    return rows, made


_OPEN = (DeliveryState.WAITING, DeliveryState.DEFERRED, DeliveryState.SENDING)


# --- retention --------------------------------------------------------------------------------------------------------


def retention(folder: Path, seed: int, *, jumps: bool) -> tuple[list[Row], int]:
    """Sixty days of a clinic, with reboots: what is confirmed and retired when, and which files are there at each noon."""
    chance, wild = random.Random(seed), random.Random(~seed)
    clock = ManualClock(wall_ns=PRESENT)
    config = Config(destinations=(Destination(id="pacs", status_days=3.0),), control=Control(run=str(folder / "run")),
                    spool=SpoolSettings(path=str(folder / "spool"), state=str(folder / "state"), size=3_000_000,
                                        keep_min_hours=24.0, keep_max_days=7.0))
    site = Filled(folder, clock, 3_000_000)
    keeper = _keeper(config, site, clock)
    rows: list[Row] = []
    kept: dict[int, int] = {}       # number → powered-on time of its confirmation, as this test counts it
    powered, made = 0, 0
    for half in range(120):
        numbers = site.accept(chance.randrange(1, 4), length=8192)
        site.route()
        if chance.random() < 0.9:
            site.send()
        if jumps and wild.random() < 0.7:
            jump(clock, wild)
            made += 1
        clock.advance(DAY / 2)
        powered += DAY // 2
        watch = keeper.confirmer.watch(config.destinations[0])
        assert watch is not None
        while watch.step():
            pass
        if jumps and wild.random() < 0.5:
            jump(clock, wild)
            made += 1
        keeper.round()
        kept |= dict.fromkeys(numbers, powered)
        there = [number for number in kept if site.there(number)]
        gone = [number for number in kept if number not in there]
        # 3 days until a status counts as confirmed, and a day at least from then on.
        early = [number for number in gone if powered - kept[number] < 3.9 * DAY]
        rows.append((site.ledger.boot, clock.boot_ns(), "there", half, "EARLY" if early else "", str(there)))
        if half % 17 == 16:
            keeper.ledger.close()
            site.ledger.close()
            clock.reboot()
            if jumps:
                jump(clock, wild)
                made += 1
            site.ledger = Ledger.open(site.spool.ledger_path, clock)
            site.owner = site.ledger.register_owner("receiver")
            keeper = _keeper(config, site, clock)
    rows += history(site.ledger)
    if not any(row[2] == "retired" for row in rows):
        rows.append((0, 0, "NOTHING RETIRED", None, "", ""))
    keeper.ledger.close()
    site.close()
    return rows, made


def _keeper(config: Config, site: Filled, clock: ManualClock) -> Keeper:
    return Keeper(lambda: config, site.spool, clock, told=lambda raised, ended: None, random=random.Random(1))


# --- windows of the day -----------------------------------------------------------------------------------------------

SOON = 75
"""Seconds within which a window that a step has opened is noticed."""


def windows(folder: Path, seed: int, part: Part) -> None:
    """A destination with hours, and a wall clock that jumps: nothing leaves outside them, nothing is stuck within them.

    While the clock is not trusted, nobody knows the hour, and everything goes (design, I7).
    """
    chance = random.Random(seed)
    clock = ManualClock(wall_ns=PRESENT)
    yard = Yard(folder, clock)
    text = chance.choice(("19:00-06:30", "08:00-12:00", "00:00-00:30"))
    window = hours(text)
    assert window is not None
    yard.of_day = partial(minute_of_day, clock)
    sleeper = Sleeper(yard, yard.lane(Destination(id="pacs", hours=(text,))))
    site = yard.sites["pacs"]
    sent_when: list[tuple[int, int | None]] = []
    site.before = lambda row: sent_when.append((row.number, minute_of_day(clock)))
    trauma: set[int] = set()
    for _ in range(40):
        if chance.random() < 0.6:
            urgent = chance.random() < 0.2
            numbers = yard.put(1, priority=Priority.TRAUMA if urgent else Priority.ROUTINE)
            trauma |= set(numbers if urgent else ())
        sleeper.live(chance.choice((1.0, 20.0, 600.0)))
        jump(clock, chance)
        part.count("steps", 1)
        sleeper.live(SOON)
        minute = minute_of_day(clock)
        waits = len(set(range(1, 1 + yard.ledger.counts().accepted)) - set(site.stored))
        if waits and within([window], minute) is not False:
            part.fail(f"windows, seed {seed}: {waits} objects still wait {SOON} s after a step into {text} (minute {minute})")
            break
    for number, minute in sent_when:
        if number not in trauma and within([window], minute) is False:
            part.fail(f"windows, seed {seed}: object {number} left at minute {minute}, outside {text}")
    part.count("windows", 1)
    yard.ledger.close()


def run_twins(part: Part, seeds: Sequence[int]) -> None:
    """Each seed lives three lives: of a lane, of a keeper, of a window. In memory: no crash is tried here."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    for seed in seeds:
        for what, life in (("delivery", delivery), ("retention", retention)):
            with tempfile.TemporaryDirectory(dir=memory) as right, tempfile.TemporaryDirectory(dir=memory) as wrong:
                quiet, _ = life(Path(right), seed, jumps=False)
                wild, made = life(Path(wrong), seed, jumps=True)
            part.count("steps", made)
            part.count("lives", 1)
            compare(part, what, seed, quiet, wild)
            for row in quiet + wild:
                if "STUCK" in row[2] or "EARLY" in row[4] or "NOTHING" in row[2]:
                    part.fail(f"{what}, seed {seed}: {row}")
        with tempfile.TemporaryDirectory(dir=memory) as right:
            windows(Path(right), seed, part)
