"""The forwarder with its threads: isolation, configuration without restart, the end, and idleness."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.clock import SECOND, Clock, SystemClock
from appliance.config.settings import Config, Control, Destination, Limits
from appliance.errors import DeliveryError, UsageError
from appliance.forward import engine, health
from appliance.forward.desk import Desk
from appliance.forward.engine import Forwarder
from appliance.forward.transport import Emit
from appliance.forward.work import Condition
from appliance.model import Fault, Priority
from appliance.net import kick
from appliance.spool.layout import Spool
from appliance.spool.rows import Queued, Routing
from tests.support.lanes import FakeTransport, Site
from tests.support.ledgers import Bench, custody
from tests.support.waiting import wait_until


class Works:
    """A forwarder on a real spool and ledger, with sites for destinations."""

    def __init__(self, folder: Path, run: Path) -> None:
        self.run = run
        self.spool = Spool.init(folder / "spool", clock=SystemClock())
        self.bench = Bench(self.spool.path, SystemClock())
        self.sites: dict[str, Site] = {}
        self.config = Config(control=Control(run=str(run)))
        self.made: list[tuple[Destination, Limits]] = []
        self.forwarder: Forwarder | None = None
        self.clock: Clock = SystemClock()

    def destinations(self, *entries: Destination, limits: Limits | None = None) -> None:
        """Put these in force."""
        for entry in entries:
            self.sites.setdefault(entry.id, Site())
        self.config = replace(self.config, destinations=entries, limits=limits or Limits(),
                              generation=self.config.generation + 1)
        if self.forwarder is not None:
            self.forwarder.reload()

    def transport(self, destination: Destination, spool: Spool, limits: Limits) -> FakeTransport:
        self.made.append((destination, limits))
        return FakeTransport(self.sites[destination.id])

    def start(self) -> Forwarder:
        self.forwarder = Forwarder(lambda: self.config, self.spool, self.clock, self.run, transports=self.transport,
                                   random=lambda: 0.0)
        self.forwarder.start()
        return self.forwarder

    def put(self, count: int, *to: str, kicked: bool = True, study: str = "s") -> list[int]:
        first = self.bench.ledger.grant(self.bench.owner, count)
        numbers = list(range(first, first + count))
        self.bench.ledger.accepted([custody(self.bench.ledger, number) for number in numbers])
        self.bench.ledger.route([Routing(number, 1, (), to, Priority.ROUTINE, False, study) for number in numbers])
        if kicked:
            kick.send(self.run / kick.FORWARDER)
        return numbers

    def states(self, numbers: list[int], destination: str) -> set[str]:
        return {self.bench.delivery(n, destination) for n in numbers}


class NoRouting:
    """Objects of these tests are routed when they are put in; the thread would race with that."""

    def __init__(self, *_: Any) -> None:
        self.moved = 1 << 62

    def start(self) -> None: ...

    def stop(self, seconds: float) -> None: ...

    def kick(self) -> None: ...


@pytest.fixture
def works(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Works]:
    if not hasattr(request, "param"):
        monkeypatch.setattr(engine, "RoutingThread", NoRouting)
    run = Path(tempfile.mkdtemp(prefix="dg-"))
    made = Works(tmp_path, run)
    yield made
    for site in made.sites.values():
        if site.blocked is not None:
            site.blocked.set()
    if made.forwarder is not None:
        made.forwarder.stop(1.0)
    made.bench.ledger.close()
    shutil.rmtree(run)


@pytest.mark.requirement("Goal 3: one dead destination costs the others nothing")
def test_a_destination_that_hangs_and_one_that_is_down_cost_the_third_nothing(works: Works) -> None:
    works.destinations(Destination(id="good"), Destination(id="hangs"), Destination(id="down"))
    works.sites["hangs"].blocked = threading.Event()
    works.sites["down"].break_down()
    works.start()
    numbers = works.put(40, "good", "hangs", "down")
    wait_until(lambda: works.states(numbers, "good") == {"sent"}, what="the good destination has everything")
    assert works.sites["hangs"].stored == [] and works.sites["down"].stored == []
    more = works.put(40, "good", "hangs", "down")
    wait_until(lambda: works.states(more, "good") == {"sent"}, what="and what came later")
    works.sites["down"].down = None
    wait_until(lambda: works.states(numbers + more, "down") == {"sent"}, what="it is tried again by itself")


@pytest.mark.parametrize("works", ["with routing"], indirect=True)
def test_an_object_that_was_just_accepted_is_routed_and_sent(works: Works) -> None:
    works.destinations(Destination(id="pacs", default=True), Destination(id="other"))
    works.start()
    number = works.bench.accept()
    kick.send(works.run / kick.FORWARDER)
    wait_until(lambda: works.sites["pacs"].stored == [number])
    assert works.sites["other"].stored == []


def test_a_lost_kick_costs_a_second(works: Works) -> None:
    works.destinations(Destination(id="pacs"))
    works.start()
    wait_until(lambda: works.made)
    numbers = works.put(3, "pacs", kicked=False)
    wait_until(lambda: works.states(numbers, "pacs") == {"sent"}, 5)


@pytest.mark.requirement("Configuration: a new generation is taken up without a restart")
def test_new_changed_and_removed_destinations(works: Works) -> None:
    works.destinations(Destination(id="a", associations=1), Destination(id="b", associations=1))
    works.start()
    waiting = works.put(3, "c")
    works.destinations(Destination(id="a", associations=1), Destination(id="b", port=2104, associations=1), Destination(id="c"))
    wait_until(lambda: works.states(waiting, "c") == {"sent"}, what="a new destination gets what waits for it")
    assert [destination.port for destination, _ in works.made if destination.id == "b"] == [104, 2104]
    assert len([d for d, _ in works.made if d.id == "a"]) == 1
    works.destinations(Destination(id="a", associations=1), Destination(id="c"))
    wait_until(lambda: works.forwarder and len(works.forwarder.conditions()) == 2)
    held = works.put(3, "b")
    also = works.put(1, "a")
    wait_until(lambda: works.states(also, "a") == {"sent"})
    assert works.states(held, "b") == {"waiting"} and works.sites["b"].stored == []
    works.bench.ledger.requeue("b", "anna", to="a")
    kick.send(works.run / kick.FORWARDER)
    wait_until(lambda: works.states(held, "a") == {"sent"}, what="requeue --to empties the queue of a removed destination")


def test_a_destination_that_changes_in_mid_window_gets_the_rest_by_its_new_settings(works: Works) -> None:
    works.destinations(Destination(id="pacs", associations=2))
    site = works.sites["pacs"]
    site.blocked = threading.Event()
    works.start()
    numbers = works.put(20, "pacs")
    assert site.inside.wait(10)
    works.destinations(Destination(id="pacs", port=2104, associations=2))
    wait_until(lambda: len(works.made) == 4)                       # two lanes, and two in their place
    site.blocked.set()
    wait_until(lambda: works.states(numbers, "pacs") == {"sent"})
    assert sorted(site.stored) == numbers


def test_changed_limits_of_the_child_make_new_transports(works: Works) -> None:
    works.destinations(Destination(id="pacs", associations=1))
    works.start()
    works.destinations(Destination(id="pacs", associations=1), limits=Limits(rate_bytes=10**9))
    numbers = works.put(1, "pacs")
    wait_until(lambda: works.states(numbers, "pacs") == {"sent"})
    assert len(works.made) == 1 and works.forwarder is not None and works.forwarder._total.rate == 10**9
    works.destinations(Destination(id="pacs", associations=1), limits=Limits(child_seconds=9.0))
    wait_until(lambda: len(works.made) == 2)


def test_the_end_gives_back_what_was_not_sent_and_cuts_off_what_hangs(works: Works) -> None:
    works.destinations(Destination(id="pacs", window=8))
    site = works.sites["pacs"]
    site.blocked = threading.Event()
    forwarder = works.start()
    numbers = works.put(20, "pacs")
    assert site.inside.wait(10)
    assert forwarder.stop(0.2) is False
    works.forwarder = None
    assert works.states(numbers, "pacs") == {"waiting"}
    assert all(row.crashes == 0 for n in numbers for row in works.bench.ledger.deliveries(n))
    site.blocked = None
    works.start()
    wait_until(lambda: works.states(numbers, "pacs") == {"sent"})


def test_an_orderly_end_is_clean(works: Works) -> None:
    works.destinations(Destination(id="pacs", associations=3))
    forwarder = works.start()
    numbers = works.put(5, "pacs")
    wait_until(lambda: works.states(numbers, "pacs") == {"sent"})
    before = threading.active_count()
    assert forwarder.stop() is True
    works.forwarder = None
    assert threading.active_count() <= before - 4
    assert works.sites["pacs"].closes == 3


def test_one_forwarder_for_a_spool(works: Works) -> None:
    works.start()
    second = Forwarder(lambda: works.config, works.spool, SystemClock(), works.run, transports=works.transport)
    with pytest.raises(UsageError, match="another forwarder"):
        second.start()
    assert works.forwarder is not None
    works.forwarder.stop()
    second.start()
    second.stop()
    works.forwarder = None


@pytest.mark.requirement("Delivery: two crashes park")
def test_claims_of_a_dead_forwarder_are_found_at_the_start(works: Works) -> None:
    works.destinations(Destination(id="pacs"))
    numbers = works.put(2, "pacs")
    works.bench.ledger.claim("pacs", numbers)
    works.bench.ledger.unclaim_after_crash()
    works.bench.ledger.claim("pacs", numbers[:1])
    works.start()
    wait_until(lambda: works.states(numbers[1:], "pacs") == {"sent"})
    assert works.states(numbers[:1], "pacs") == {"parked"}


@pytest.mark.requirement("Delivery: fail-over")
def test_fail_over_in_the_running_forwarder(works: Works) -> None:
    works.destinations(Destination(id="pacs", failover="spare", failover_seconds=0.0), Destination(id="spare"))
    works.sites["pacs"].break_down()
    works.start()
    numbers = works.put(10, "pacs")
    wait_until(lambda: sorted(works.sites["spare"].stored) == numbers, what="the spare has all")
    assert {d.destination for n in numbers for d in works.bench.ledger.deliveries(n)} == {"spare"}


@pytest.mark.requirement("idle: no busy loops")
def test_an_idle_forwarder_looks_once_a_second_and_no_lane_moves(works: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    works.destinations(Destination(id="pacs", linger_seconds=0.0), Destination(id="down"))
    numbers = works.put(3, "pacs")
    works.start()
    wait_until(lambda: works.states(numbers, "pacs") == {"sent"})
    wait_until(lambda: works.sites["pacs"].closes)
    looks: list[str] = []
    rounds: list[int] = []
    step, look = Desk.next, Forwarder.look

    def counted(desk: Desk, **options: Any) -> Any:
        looks.append(desk.id)
        return step(desk, **options)

    def counted_look(forwarder: Forwarder) -> None:
        rounds.append(1)
        look(forwarder)
    monkeypatch.setattr(Desk, "next", counted)
    monkeypatch.setattr(Forwarder, "look", counted_look)
    wait_until(lambda: len(rounds) >= 3)
    assert len(looks) <= 6, "a busy loop looks hundreds of times"


def test_how_destinations_fare_is_told_to_the_keeper(works: Works) -> None:
    works.destinations(Destination(id="pacs"), Destination(id="fine"))
    works.sites["pacs"].break_down(Fault.CONFIGURATION, "pacs does not recognise our calling title — add it")
    works.start()
    numbers = works.put(2, "pacs", "fine")
    wait_until(lambda: works.states(numbers, "fine") == {"sent"})
    conditions = wait_until(lambda: [c for c in health.read(works.run) if c.state == "down"])
    alarm, = health.alarms(conditions)
    assert (alarm.key, alarm.mend) == ("destination-refuses:pacs", "add it")
    works.sites["pacs"].down = None
    wait_until(lambda: {c.state for c in health.read(works.run)} == {"up"})
    assert health.alarms(health.read(works.run)) == []


def test_a_health_file_that_makes_no_sense_is_nothing_known(tmp_path: Path) -> None:
    assert health.read(tmp_path) == []
    for text in ("", "{}", "[1]", '[{"destination": "x", "state": "up", "fault": "odd", "text": "", "since": 0}]'):
        (tmp_path / health.NAME).write_text(text)
        assert health.read(tmp_path) == []
    health.write(tmp_path, [Condition("x", "down", Fault.DESTINATION, "gone", 5)])
    assert health.read(tmp_path) == [Condition("x", "down", Fault.DESTINATION, "gone", 5)]
    assert health.alarms(health.read(tmp_path))[0].key == "destination-down:x"


def test_a_thread_that_does_not_move_is_named_for_the_watchdog(works: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    works.destinations(Destination(id="stuck"), Destination(id="slow"))
    works.sites["slow"].blocked = threading.Event()
    free, inside = threading.Event(), threading.Event()
    settle = Desk.settle

    def stick(desk: Desk, *arguments: Any) -> None:
        if desk.id == "stuck":
            inside.set()
            assert free.wait(30)
        settle(desk, *arguments)
    monkeypatch.setattr(Desk, "settle", lambda desk, results, rest, reason="": stick(desk, results, rest, reason))
    forwarder = works.start()
    works.put(2, "stuck", "slow")
    assert inside.wait(10) and works.sites["slow"].inside.wait(10)
    assert forwarder.late(3600) == []
    wait_until(lambda: any("stuck" in name for name in forwarder.late(0.05)))
    assert not any("slow" in name for name in forwarder.late(0.0)), "a transport bounds its own time without progress"
    free.set()


class Hurried(SystemClock):
    """Five minutes pass in each second."""

    def __init__(self) -> None:
        self._began = super().boot_ns()

    def boot_ns(self) -> int:
        return self._began + 300 * (super().boot_ns() - self._began)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        return event.wait(seconds / 300)


class Hole(FakeTransport):
    """Takes a connection's time and gives it up, as the real one does where nobody answers."""

    def send(self, batch: Sequence[Queued], emit: Emit) -> None:
        self.site.tried.append(batch[0].number)
        self.aborted.wait(0.2)
        assert self.moves is not None
        self.moves += 1
        raise DeliveryError("no answer", fault="destination")


@pytest.mark.requirement("Watchdog chain: a destination never gates the ping")
def test_an_hour_without_the_uplink_feeds_the_watchdog_all_the_time(works: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    works.clock = Hurried()
    works.destinations(Destination(id="hole"), Destination(id="down"))
    works.sites["down"].break_down()
    monkeypatch.setattr(works, "transport", lambda destination, spool, limits: (
        Hole if destination.id == "hole" else FakeTransport)(works.sites[destination.id]))
    pings: list[str] = []
    monkeypatch.setattr(engine, "alive", pings.append)
    forwarder = works.start()
    began = works.clock.boot_ns()
    numbers = works.put(3, "hole", "down")
    while works.clock.boot_ns() - began < 3600 * SECOND:
        before = len(pings)
        wait_until(lambda before=before: len(pings) > before, 10, "a ping")     # type: ignore[misc]
        assert forwarder.hung() == []
    assert len(works.sites["hole"].tried) > 3
    assert works.states(numbers, "hole") | works.states(numbers, "down") <= {"deferred", "waiting", "sending"}


@pytest.mark.requirement("Watchdog chain: a stuck lane gates the ping, a slow line does not")
def test_a_lane_towards_which_nothing_moves_is_hung_and_one_on_a_slow_line_is_not(
        works: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "LATE_SECONDS", 0.5)
    ids = ("stuck", "slow", "disk")
    works.destinations(*(Destination(id=id, connect_seconds=0.1, progress_seconds=0.1) for id in ids))
    for id in ids:
        works.sites[id].blocked = threading.Event()
    pings: list[str] = []
    monkeypatch.setattr(engine, "alive", pings.append)
    forwarder = works.start()
    works.put(1, *ids)
    for id in ids:
        assert works.sites[id].inside.wait(10)
    moved: dict[str, Any] = {lane.desk.id: lane._transport for place in forwarder._places.values() for lane in place.lanes}
    moved["disk"].moves = None          # the disk is waited for: no restart of ours mends it

    def hung() -> bool:
        moved["slow"].moves += 1
        return bool(forwarder.hung())

    wait_until(hung, 20)
    assert [name.split()[1] for name in forwarder.hung()] == ["stuck"]
    wait_until(lambda: not pings.clear() and not threading.Event().wait(2.5) and not pings, 20, "silence")
    works.sites["stuck"].blocked.set()

    def goes_on() -> bool:
        moved["slow"].moves += 1
        return bool(pings)

    wait_until(goes_on, 20, "a ping again")


@pytest.mark.requirement("Delivery: two crashes park")
@pytest.mark.parametrize("associations", [1, 2])
def test_two_deaths_park_the_object_that_was_under_way_and_no_other(works: Works, associations: int) -> None:
    """On the second association another object is under way at each death: nobody knows which of the two it was, so that
    one has a crash to its account, too, and is sent."""
    numbers = works.put(20, "pacs")
    poison = numbers[5]
    beside: list[int] = []
    for _ in range(2):
        command = [sys.executable, "-m", "tests.support.dying_forwarder", str(works.spool.path), str(works.run), str(poison),
                   "10", str(associations), *map(str, beside)]
        done = subprocess.run(command, timeout=60, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True)
        assert done.returncode == 9
        beside += map(int, done.stdout.split())
    assert len(set(beside)) == 2 * (associations - 1) and poison not in beside
    works.destinations(Destination(id="pacs"))
    works.start()
    good = [number for number in numbers if number != poison]
    wait_until(lambda: works.states(good, "pacs") == {"sent"}, what="all others are delivered")
    assert works.bench.delivery(poison, "pacs") == "parked"
    assert {n for n in good for row in works.bench.ledger.deliveries(n) if row.crashes} == set(beside)
    works.bench.check()


def test_the_watching_thread_survives_what_it_meets(works: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    works.destinations(Destination(id="pacs"))
    works.start()
    real = engine.health.write
    met = threading.Event()

    def broken(run: Path, conditions: Any) -> None:
        met.set()
        raise ZeroDivisionError
    monkeypatch.setattr(engine.health, "write", broken)
    works.destinations(Destination(id="pacs"), Destination(id="new"))
    assert met.wait(10)
    monkeypatch.setattr(engine.health, "write", real)
    numbers = works.put(2, "new")
    wait_until(lambda: works.states(numbers, "new") == {"sent"})
