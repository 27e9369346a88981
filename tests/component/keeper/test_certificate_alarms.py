"""The keeper's alarms for certificates: 30, 14, 7 and 1 days before the end, and none for a clock that is wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from appliance.clock import ManualClock
from appliance.config.settings import Certificate, Config, Control, Destination, Listener
from appliance.config.settings import Spool as SpoolSettings
from appliance.keeper import Keeper
from appliance.keeper.alarmboard import QUIET_NS
from appliance.model import Alarm, Severity
from appliance.net.certstore import Writer
from tests.support.filled import Filled
from tests.support.pki import DAY, Authority, Pair, pem

DAY_SECONDS = 86400.0
QUIET_SECONDS = QUIET_NS / 1e9 + 1


class Box:
    """A keeper of a box with a TLS listener whose certificate is `box`."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock(wall_ns=time.time_ns())
        self.site = Filled(folder, self.clock, 0)
        self.state = folder / "state"
        self.state.mkdir(exist_ok=True)
        self.writer = Writer(self.state)
        run = folder / "run"
        run.mkdir()
        self.config = Config(
            listeners=(Listener(id="in", tls="bcp195", certificate="box"),), destinations=(Destination(id="pacs"),),
            certificates=(Certificate(id="box", names=("box.example.org",)),), control=Control(run=str(run)), generation=1,
            spool=SpoolSettings(path=str(self.site.spool.path), state=str(self.state)))
        self.raised: list[tuple[str, Severity]] = []
        self.keeper = Keeper(lambda: self.config, self.site.spool, self.clock, told=self.told)
        self.ca = Authority()
        self.writer.put("box", trust=pem(self.ca.certificate))

    def told(self, raised: Sequence[Alarm], ended: Sequence[Alarm]) -> None:
        self.raised += [(alarm.key, alarm.severity) for alarm in raised if alarm.key.startswith("certificate")]

    def leaf(self, end: timedelta) -> Pair:
        return self.ca.leaf("box", dns=["box.example.org"], start=-365 * DAY, end=end)

    def install(self, pair: Pair) -> None:
        self.writer.install("box", pair.key_pem(), pair.chain_pem())

    def round(self, seconds: float = 0.0) -> set[str]:
        """The alarms about certificates that are in force after it."""
        self.clock.advance(seconds)
        self.keeper.round()
        return {row.alarm.key for row in self.site.ledger.alarms() if row.alarm.key.startswith("certificate")}

    def close(self) -> None:
        self.keeper.stop()
        self.site.close()


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    found = Box(tmp_path)
    yield found
    found.close()


def test_people_hear_at_30_14_7_and_1_days_and_at_the_end_each_once(box: Box) -> None:
    box.install(box.leaf(40 * DAY))
    heard: list[int] = []
    for day in range(42):
        before = len(box.raised)
        box.round(DAY_SECONDS if day else 60.0)
        box.round(60.0)
        heard += [40 - day] * (len(box.raised) - before)
    assert [key for key, _ in box.raised] == ["certificate-expires:box"] * 3 + ["certificate-last-day:box",
                                                                                 "certificate-expired:box"]
    assert [severity for _, severity in box.raised] == [Severity.NOTICE, Severity.WARNING, *[Severity.CRITICAL] * 3]
    for days, expected in zip(heard, (30, 14, 7, 1, 0), strict=True):
        assert abs(days - expected) <= 1, heard


def test_a_new_certificate_ends_the_alarm_without_a_restart(box: Box) -> None:
    box.install(box.leaf(5 * DAY))
    assert box.round() == {"certificate-expires:box"}
    box.install(box.leaf(90 * DAY))
    box.round()
    assert box.round(QUIET_SECONDS) == set()


@pytest.mark.requirement("I7")
def test_a_clock_that_is_wrong_is_no_bad_certificate_and_it_heals_by_itself(box: Box) -> None:
    box.install(box.leaf(90 * DAY))
    right = box.clock.wall_ns()
    box.clock.step_wall(-right / 1e9)
    assert box.round() == set()
    assert "clock" in {row.alarm.key for row in box.site.ledger.alarms()}
    box.clock.step_wall(right / 1e9)
    assert box.round(QUIET_SECONDS) == set()
    box.round(QUIET_SECONDS)
    assert "clock" not in {row.alarm.key for row in box.site.ledger.alarms()}


def test_what_a_listener_needs_and_is_not_there_is_an_alarm(box: Box) -> None:
    assert box.round() == {"certificate-missing:box"}
    box.config = replace(box.config, listeners=())
    box.round(1.0)
    assert box.round(QUIET_SECONDS) == set(), "nothing needs it"


def test_a_revocation_list_that_is_out_of_date_is_an_alarm(box: Box) -> None:
    box.install(box.leaf(90 * DAY))
    box.writer.put("box", crl=box.ca.crl(end=4 * DAY))
    assert box.round() == set()
    assert box.round(3.5 * DAY_SECONDS) == {"certificate-crl-expires:box"}
    assert "certificate-crl-old:box" in box.round(DAY_SECONDS)


def test_a_damaged_file_is_an_alarm_and_no_end_of_the_round(box: Box) -> None:
    box.install(box.leaf(90 * DAY))
    box.writer.put("box", trust=b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    assert box.round() == {"certificate-unreadable:box"}


def test_a_key_of_another_certificate_is_an_alarm(box: Box) -> None:
    box.writer.install("box", box.leaf(90 * DAY).key_pem(), box.leaf(90 * DAY).chain_pem())
    assert box.round() == {"certificate-unreadable:box"}


def test_the_text_of_an_alarm_does_not_change_from_round_to_round(box: Box) -> None:
    """Each change would be a row of the ledger, every ten seconds."""
    box.install(box.leaf(13 * DAY))
    box.round()
    before = [row.alarm for row in box.site.ledger.alarms()]
    box.round(3600.0)
    assert [row.alarm for row in box.site.ledger.alarms()] == before
