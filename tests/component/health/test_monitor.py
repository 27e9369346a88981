"""Health by traffic: when a destination is looked at, when a delivery does instead, what becomes an alarm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from appliance.clock import SECOND, ManualClock
from appliance.config.settings import Config, Destination
from appliance.health import published
from appliance.health.monitor import Monitor
from appliance.model import Alarm, Severity
from appliance.probe.report import Hop, Report, State
from tests.support.waiting import wait_until

MINUTE = 60.0
GOOD = (Hop("tcp", State.OK), Hop("association", State.OK), Hop("service", State.OK))
NO_ECHO = (*GOOD[:2], Hop("service", State.WARNING, "no Verification", "no_verification"))
REFUSED = (Hop("tcp", State.FAILED, "10.0.0.7 refuses the connection", "refused", "Check it."),)
TITLE = (GOOD[0], Hop("association", State.FAILED, "it does not know us", "calling_title", "Have us entered."))


@dataclass
class Ground:
    """A monitor whose looks are given, on a clock that is moved by hand."""

    run: Path
    clock: ManualClock = field(default_factory=lambda: ManualClock(boot_ns=1000 * SECOND))
    config: Config = field(default_factory=lambda: Config(destinations=(Destination(id="pacs", address="10.0.0.7"),)))
    hops: tuple[Hop, ...] = GOOD
    looks: int = 0
    traffic: dict[str, int] = field(default_factory=dict)
    troubled: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.monitor = Monitor(lambda: self.config, self.clock, self.run, lambda: self.traffic, lambda: self.troubled,
                               walker=self.walk, random=lambda: 0.5)

    def walk(self, destination: Destination, state: str) -> Report:
        self.looks += 1
        return Report(destination.id, "10.0.0.7:104", self.hops, 12.0)

    def after(self, minutes: float) -> int:
        """Let time pass in rounds of seconds; how many looks there were in it."""
        before, end = self.looks, self.clock.boot_ns() + int(minutes * MINUTE * SECOND)
        while self.clock.boot_ns() < end:
            self.round()
            self.clock.advance(10)
        return self.looks - before

    def round(self) -> None:
        self.monitor.round()
        wait_until(lambda: not self.monitor._looking, 10)
        self.monitor.round()

    def alarms(self, *said: Alarm) -> dict[str, Severity]:
        return {alarm.key: alarm.severity for alarm in published.alarms(self.run, said)}


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    yield Ground(tmp_path)


@pytest.mark.requirement("health: echo on schedule")
def test_an_idle_destination_is_asked_on_schedule(ground: Ground) -> None:
    assert ground.after(1) == 1
    assert ground.after(60) == 4
    reach = published.read(ground.run)[0]["pacs"]
    assert reach.by == "C-ECHO" and reach.milliseconds == 12.0 and not ground.alarms()


@pytest.mark.requirement("health: traffic counts")
def test_what_is_delivered_does_instead_of_an_echo(ground: Ground) -> None:
    ground.after(1)
    for _ in range(12):
        ground.traffic["pacs"] = ground.clock.boot_ns()
        assert ground.after(5) == 0
    assert published.read(ground.run)[0]["pacs"].by == "delivery"
    assert ground.after(20) == 1


@pytest.mark.requirement("health: alarm with nothing to send")
def test_three_failures_are_the_alarm_that_the_forwarder_raises_too(ground: Ground) -> None:
    ground.hops = REFUSED
    ground.after(0.7)
    assert ground.looks == 1 and not ground.alarms()
    ground.after(2.2)
    assert ground.looks == 3 and ground.alarms() == {"destination-down:pacs": Severity.WARNING}
    alarm, = published.alarms(ground.run)
    assert "tcp: 10.0.0.7 refuses the connection" in alarm.text and alarm.mend == "Check it."
    assert ground.alarms(alarm) == {}          # the forwarder says it already
    ground.hops = GOOD
    ground.after(1.5)
    assert not ground.alarms() and published.read(ground.run)[0]["pacs"].failures == 0


def test_a_title_is_said_at_the_first_failure(ground: Ground) -> None:
    ground.hops = TITLE
    ground.after(0.7)
    assert ground.alarms() == {"destination-refuses:pacs": Severity.CRITICAL}


@pytest.mark.requirement("health: Verification is not needed")
def test_a_destination_without_verification_is_there(ground: Ground) -> None:
    ground.hops = NO_ECHO
    ground.after(1)
    assert published.read(ground.run)[0]["pacs"].by == "association" and not ground.alarms()


def test_while_the_forwarder_fails_the_hop_is_named_but_not_all_the_time(ground: Ground) -> None:
    ground.after(1)
    ground.troubled, ground.hops = {"pacs"}, REFUSED
    assert ground.after(0.5) == 1
    assert ground.after(10) <= 3
    assert published.read(ground.run)[0]["pacs"].hop == "tcp"


def test_one_delivery_ends_a_row_of_failures(ground: Ground) -> None:
    ground.hops = REFUSED
    ground.after(3)
    assert ground.alarms()
    ground.traffic["pacs"] = ground.clock.boot_ns()
    ground.round()
    assert not ground.alarms()


def test_echo_minutes_0_and_folders_are_left_alone(ground: Ground) -> None:
    pacs = ground.config.destinations[0]
    ground.config = Config(destinations=(replace(pacs, echo_minutes=0.0), Destination(id="kept", type="folder", path="/kept")))
    assert ground.after(60) == 0
    ground.config = Config(destinations=(replace(pacs, echo_minutes=5.0),))
    assert ground.after(60) == 12


def test_a_look_that_hangs_keeps_no_other_destination(tmp_path: Path) -> None:
    import threading
    hang, seen = threading.Event(), []

    def walk(destination: Destination, state: str) -> Report:
        seen.append(destination.id)
        if destination.id == "slow":
            hang.wait(20)
        return Report(destination.id, "", GOOD)

    config = Config(destinations=(Destination(id="slow", address="a"), Destination(id="pacs", address="b", echo_minutes=1.0)))
    clock = ManualClock(boot_ns=1000 * SECOND)
    monitor = Monitor(lambda: config, clock, tmp_path, dict, set, walker=walk, random=lambda: 0.5)
    try:
        for _ in range(30):
            monitor.round()
            wait_until(lambda: monitor._looking <= {"slow"}, 10)
            clock.advance(10)
        assert seen.count("slow") == 1 and seen.count("pacs") >= 4
    finally:
        hang.set()
        wait_until(lambda: not monitor._looking, 10)


def test_what_cannot_be_read_is_nothing_known(tmp_path: Path) -> None:
    assert published.read(tmp_path) == ({}, {})
    (tmp_path / published.NAME).write_text('{"reaches": [{"destination": "pacs", "nonsense": 1}], "canaries": []}')
    assert published.read(tmp_path) == ({}, {})
