"""The keeper's round: alarms rise and end, configurations, witness, ballast, scrub; and its life as threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from appliance.clock import ManualClock, SystemClock
from appliance.config.settings import Config, Control, Destination, Peer
from appliance.config.settings import Spool as SpoolSettings
from appliance.dicom.part10 import HEAD
from appliance.errors import ConfigError, ControlError, LedgerFault
from appliance.forward import health as forwarding
from appliance.forward.work import Condition
from appliance.keeper import Keeper
from appliance.manage.control import Remote
from appliance.manage.generations import InForce
from appliance.model import Alarm, Fault, Severity, SpaceState
from appliance.net import kick
from appliance.receive import health as receiving
from appliance.spool import ballast, quarantine
from appliance.spool.rows import Parking, Routing
from tests.support.filled import Filled
from tests.support.waiting import wait_until

HOUR = 3600


class Kept:
    """A keeper on a filled spool; `configure` changes what is in force.

    `size`: its quota, so that the room on this disk is no matter.
    """

    def __init__(self, folder: Path, clock: ManualClock | SystemClock | None = None, size: int = 1 << 30) -> None:
        self.clock = clock or ManualClock()
        self.site = Filled(folder, self.clock, size)
        self.run = folder / "run"
        self.run.mkdir()
        self.state = folder / "state"
        self.config = Config(destinations=(Destination(id="pacs"),), control=Control(run=str(self.run)), generation=1,
                             spool=SpoolSettings(path=str(self.site.spool.path), state=str(self.state), size=size))
        self.raised: list[Alarm] = []
        self.ended: list[str] = []
        self.file: list[InForce | ConfigError] = []
        self.keeper = Keeper(lambda: self.config, self.site.spool, self.clock, reload=self.reload, told=self.told,
                             random=Random(1))

    def told(self, raised: Sequence[Alarm], ended: Sequence[Alarm]) -> None:
        self.raised += raised
        self.ended += [a.key for a in ended]

    def reload(self, by: str) -> InForce:
        result = self.file[-1] if self.file else InForce(self.config, False)
        if isinstance(result, ConfigError):
            raise result
        return result

    def round(self, seconds: float = 0.0) -> None:
        if seconds:
            assert isinstance(self.clock, ManualClock)
            self.clock.advance(seconds)
        self.keeper.round()

    @property
    def keys(self) -> set[str]:
        return {row.alarm.key for row in self.site.ledger.alarms()}

    def alarm(self, key: str) -> Alarm:
        return next(row.alarm for row in self.site.ledger.alarms() if row.alarm.key == key)

    def close(self) -> None:
        self.keeper.stop()
        self.site.close()


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    found = Kept(tmp_path)
    yield found
    found.close()


# --- alarms --------------------------------------------------------------------------------------------------------------

def test_nothing_to_say(kept: Kept) -> None:
    kept.round()
    kept.round(600)
    assert kept.keys == set() and kept.raised == []


def test_an_alarm_is_told_once_and_ends_after_a_pause(kept: Kept) -> None:
    [number] = kept.site.accept()
    kept.site.route()
    kept.site.ledger.claim("pacs", [number])
    kept.site.ledger.outcomes_of("pacs", [number], Parking("refused"))
    kept.round()
    kept.round(10)
    assert [(a.key, a.severity) for a in kept.raised] == [("parked:pacs", Severity.WARNING)]
    kept.site.ledger.requeue("pacs", "anna")
    kept.round(10)
    assert "parked:pacs" in kept.keys, "a flapping alarm is one alarm"
    kept.round(61)
    assert kept.keys == set() and kept.ended == ["parked:pacs"]


def test_a_restart_tells_nothing_anew(kept: Kept) -> None:
    kept.site.accept()
    kept.site.route(hold=True)
    kept.round()
    assert [a.key for a in kept.raised] == ["held:pacs"]
    again = Keeper(lambda: kept.config, kept.site.spool, kept.clock, told=kept.told, random=Random(1))
    again.round()
    assert len(kept.raised) == 1 and kept.ended == []
    again.ledger.close()


def test_backlog_by_its_age(kept: Kept) -> None:
    kept.site.accept(3)
    kept.site.route()
    kept.round(14 * 60)
    assert kept.keys == set()
    for minutes, severity in ((2, Severity.NOTICE), (4 * 60, Severity.WARNING), (24 * 60, Severity.CRITICAL)):
        kept.round(minutes * 60)
        assert kept.alarm("backlog:pacs").severity is severity
    assert [a.severity for a in kept.raised] == [Severity.NOTICE, Severity.WARNING, Severity.CRITICAL], "each step is told"
    assert "3 objects wait" in kept.alarm("backlog:pacs").text
    kept.site.send()
    kept.round(10)
    kept.round(61)
    assert "backlog:pacs" not in kept.keys


def test_what_is_not_routed_is_owed_too(kept: Kept) -> None:
    kept.site.accept()
    kept.round(16 * 60)
    assert "backlog:routing" in kept.keys


def test_a_removed_destination_keeps_its_queue_and_says_so(kept: Kept) -> None:
    kept.site.accept(2)
    kept.site.route("old")
    kept.round(25 * HOUR)
    assert kept.keys == {"removed-destination:old"}
    assert "2 objects wait for old" in kept.alarm("removed-destination:old").text


def test_a_scanner_that_is_silent_for_longer_than_its_habit(kept: Kept) -> None:
    for days in range(21):
        kept.site.complete()
        kept.clock.advance((14 if days % 2 else 10) * HOUR)  # type: ignore[union-attr]
    kept.round(30 * HOUR)
    assert kept.keys == set(), "nobody watches a scanner that no [[peer]] names"
    kept.config = replace(kept.config, peers=(Peer(id="ct1"),))
    kept.round()
    assert kept.keys == {"silent:ct1"}
    kept.config = replace(kept.config, peers=(Peer(id="ct1", silence_alarm=False),))
    kept.round()
    kept.round(61)
    assert kept.keys == set()


def test_damaged_and_unreadable_objects(kept: Kept) -> None:
    first, second = kept.site.accept(2)
    kept.site.ledger.route([Routing(second, 1, (), ("pacs",), flags=("unreadable",))])
    kept.site.ledger.quarantine(first, "digest")
    kept.round()
    assert kept.keys == {"quarantine", "unreadable"}
    assert kept.alarm("quarantine").severity is Severity.CRITICAL


def test_what_the_forwarder_says_of_destinations(kept: Kept) -> None:
    forwarding.write(kept.run, [Condition("pacs", "down", Fault.DESTINATION, "no route — see the line", 5)])
    kept.round()
    assert kept.keys == set(), "what a dead forwarder said is not news"
    mailbox = kick.Mailbox(kept.run / kick.FORWARDER)
    kept.round()
    assert kept.alarm("destination-down:pacs").mend == "see the line"
    forwarding.write(kept.run, [Condition("pacs", "retrying", Fault.CONFIGURATION, "title not recognised — add it", 5)])
    kept.round()
    assert kept.alarm("destination-refuses:pacs").severity is Severity.CRITICAL
    mailbox.close()


@pytest.mark.requirement("I6")
def test_a_disk_that_is_out_of_intake(kept: Kept) -> None:
    receiving.write(kept.run, "write error", ["[[listener]] main: cannot listen"])
    kept.round()
    assert kept.keys == {"out-of-intake", "ports"}
    assert "write error" in kept.alarm("out-of-intake").text


def test_room(tmp_path: Path) -> None:
    kept = Kept(tmp_path, size=1_000_000)
    kept.round()
    assert kept.keys == set()
    numbers = []
    for state, severity in ((SpaceState.AMBER, Severity.WARNING), (SpaceState.RED, Severity.CRITICAL)):
        while kept.keeper.room().state is not state:
            numbers += kept.site.accept(1, length=8000)
            assert len(numbers) < 90
        kept.round()
        assert kept.alarm("space").severity is severity
    assert all(kept.site.there(n) for n in numbers)
    kept.close()


def test_the_wall_clock(kept: Kept) -> None:
    kept.clock.is_trusted = False  # type: ignore[union-attr]
    kept.round()
    assert kept.keys == {"clock"}


def test_a_task_that_fails_is_an_alarm_and_stops_no_other(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.site.complete()
    with monkeypatch.context() as patch:
        def refuse() -> None:
            raise LedgerFault("disk I/O error")
        patch.setattr(kept.keeper.ledger, "tick", refuse)
        kept.round(31 * 24 * HOUR)
        assert kept.keys == {"keeper-time"}
        assert kept.site.ledger.counts().states["retired"] == 1
    kept.round()
    kept.round(61)
    assert kept.keys == set()


# --- configuration -------------------------------------------------------------------------------------------------------

def test_a_bad_file_is_an_alarm_until_it_is_mended(kept: Kept) -> None:
    kept.file.append(ConfigError("what is this", file="x.toml", line=3, mend="correct it"))
    kept.round()
    alarm = kept.alarm("configuration")
    assert "generation 1 stays in force" in alarm.text and "what is this" in alarm.text and alarm.mend == "correct it"
    kept.file.append(InForce(kept.config, False))
    kept.round(10)
    assert "configuration" in kept.keys, "the file is looked at once a minute"
    kept.round(61)
    kept.round(61)
    assert kept.keys == set()


def test_a_changed_file_wakes_the_forwarder(kept: Kept) -> None:
    mailbox = kick.Mailbox(kept.run / kick.FORWARDER)
    kept.round()
    assert not mailbox.wait(0)
    kept.file.append(InForce(replace(kept.config, generation=2), True))
    kept.round(61)
    assert mailbox.wait(0)
    mailbox.close()


# --- witness, ballast, scrub ----------------------------------------------------------------------------------------------

def test_a_ledger_that_was_rolled_back_is_noticed(kept: Kept) -> None:
    kept.site.complete()
    kept.round()
    witness = kept.state / "ledger-head"
    assert witness.exists()
    seen = witness.read_text()
    witness.write_text(seen.replace('"hash": "', '"hash": "00')[:-5] + '"}\n')
    kept.round(601)
    assert kept.alarm("ledger-rolled-back").severity is Severity.CRITICAL
    kept.round(601)
    kept.round(601)
    assert "ledger-rolled-back" in kept.keys, "what was seen is not overwritten"
    witness.unlink()
    kept.round(601)
    kept.round(61)
    assert kept.keys == set() and witness.exists()


def test_the_ballast_is_laid_down_again(kept: Kept) -> None:
    assert ballast.give_up(kept.site.spool.path)
    assert not ballast.is_there(kept.site.spool.path)
    kept.round()
    assert os.stat(kept.site.spool.path / ballast.NAME).st_blocks * 512 >= 8 << 20


@pytest.mark.requirement("I5")
def test_scrub_finds_a_damaged_object_and_its_twin_steps_in(kept: Kept) -> None:
    first = kept.site.accept(uid="1.2", content=b"same content")[0]
    second = kept.site.accept(uid="1.2", content=b"same content")[0]
    other = kept.site.accept()[0]
    kept.site.route()
    path = kept.site.spool.object_path(first)
    data = bytearray(path.read_bytes())
    data[HEAD + 3] ^= 1
    path.write_bytes(data)
    for _ in range(4):
        assert kept.keeper.scrubber.step() > 0
    assert kept.site.state(first) == "quarantined"
    assert quarantine.path(kept.site.spool, first).exists() and not path.exists()
    assert [q.number for q in kept.site.ledger.load("pacs")] == [other, second]
    assert kept.keeper.scrubber.damaged == 1


def test_scrub_leaves_an_object_alone_that_is_just_being_retired(kept: Kept) -> None:
    [number] = kept.site.complete()
    row = kept.site.ledger.object(number)
    assert row is not None
    kept.site.ledger.retiring([number])
    kept.site.spool.object_path(number).unlink()
    assert kept.keeper.scrubber.look(row)
    assert kept.keeper.scrubber.damaged == 0 and not quarantine.path(kept.site.spool, number).exists()


def test_scrub_of_an_empty_spool_rests(kept: Kept) -> None:
    assert kept.keeper.scrubber.step() >= 60


# --- threads -------------------------------------------------------------------------------------------------------------

def test_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(tmp_path, SystemClock())
    monkeypatch.setattr("appliance.keeper.keeper.LEAST_SECONDS", 0.01)
    kept.config = replace(kept.config, destinations=(Destination(id="pacs", status_days=0.0),),
                          spool=replace(kept.config.spool, keep_min_hours=0.0, keep_max_days=0.0))
    before = threading.active_count()
    kept.keeper.start()
    try:
        assert Remote(kept.run).call("ping")["pid"] == os.getpid()
        other = Keeper(lambda: kept.config, kept.site.spool, kept.clock)
        with pytest.raises(ControlError, match="another keeper"):
            other.start()
        [number] = kept.site.accept()
        kept.site.route()
        kept.site.send()
        kick.send(kept.run / kick.KEEPER)
        wait_until(lambda: kept.site.state(number) == "retired", 20, "confirmed and retired")
        assert not kept.site.there(number)
        assert kept.keeper.late() == []
    finally:
        assert kept.keeper.stop()
    assert threading.active_count() <= before
    kept.site.close()
