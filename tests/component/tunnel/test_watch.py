"""Watch: when a tunnel is called up, retrying or down, what is published, and which alarms follow; nothing is connected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from appliance.clock import ManualClock
from appliance.config.settings import Config, Control, Spool, Tunnel
from appliance.errors import TunnelError
from appliance.tunnel import health, program
from appliance.tunnel.health import State
from appliance.tunnel.place import Place
from appliance.tunnel.setup import Maker, Setup
from appliance.tunnel.through import Found
from appliance.tunnel.watch import AGAIN_SECONDS, DOWN_SECONDS, EVERY_SECONDS, SETTLE_SECONDS, Watch
from tests.support import pki

UP = Found(True, "answered", milliseconds=12.3)
REFUSED = Found(False, "192.0.2.1 refuses the connection", "tcp", "refused", "Check the port.")


class Bench:
    """A watch whose looks say what the test wants; a claim of this very process stands for a running stunnel."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state, self.run = folder / "state", folder / "run"
        self.run.mkdir()
        self.ca = pki.Authority()
        self.renew()
        self.entry = Tunnel(id="ris", listen="127.0.0.1:2000", connect="ris.example.org:2762", certificate="box")
        self.clock = ManualClock()
        self.says = UP
        self.looks: list[str] = []
        self.taken: list[Setup] = []
        self.checked: list[str] = []
        self.place = Place(self.run, "ris")
        monkeypatch.setattr(program, "check", lambda setup: self.checked.append(setup.text))
        monkeypatch.setattr(Place, "take_up", lambda place, running, setup: self._take_up(place, setup))
        self.watch = Watch(self.config, self.clock, self.run, look=self.look)
        self.claimed = -1

    def config(self) -> Config:
        return Config(tunnels=(self.entry,), spool=Spool(state=str(self.state)), control=Control(run=str(self.run)))

    def renew(self) -> None:
        pki.place(self.state, "box", self.ca.leaf("box"), trust=[self.ca])

    def look(self, tunnel: Tunnel, state: str) -> Found:
        self.looks.append(tunnel.id)
        return self.says

    def runs(self) -> None:
        self.claimed = self.place.claim()
        setup = Maker(self.state, self.run).setup(self.entry)
        self.place.write(setup)
        self.place.sign(self.claimed, 4711, setup)

    def _take_up(self, place: Place, setup: Setup) -> None:
        self.taken.append(setup)
        place.sign(self.claimed, 4711, setup)

    def step(self, seconds: float = 0.0) -> health.Condition:
        self.clock.advance(seconds)
        self.watch.step()
        self.watch.join(10)
        return health.read(self.run)[0]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_up_at_once_and_looked_at_every_five_minutes(bench: Bench) -> None:
    bench.runs()
    found = bench.step()
    assert (found.state, found.text, found.pid, found.milliseconds) == (State.UP, "answered", 4711, 12.3)
    bench.step(EVERY_SECONDS - 1)
    assert len(bench.looks) == 1
    bench.step(1)
    assert len(bench.looks) == 2 and bench.watch.alarms() == []


def test_the_second_failure_in_a_row_makes_it_down_and_one_success_up(bench: Bench) -> None:
    bench.runs()
    bench.step()
    bench.says = REFUSED
    found = bench.step(EVERY_SECONDS)
    assert (found.state, found.hop, found.cause) == (State.RETRYING, "tcp", "refused") and bench.watch.alarms() == []
    found = bench.step(AGAIN_SECONDS)
    assert found.state is State.DOWN
    alarm = bench.watch.alarms()[0]
    assert (alarm.key, alarm.mend) == ("tunnel-down:ris", "Check the port.")
    assert alarm.text == "tunnel ris is down at tcp: 192.0.2.1 refuses the connection"
    since = found.since
    assert bench.step(DOWN_SECONDS).since == since and len(bench.looks) == 4
    bench.says = UP
    assert bench.step(DOWN_SECONDS).state is State.UP and bench.watch.alarms() == []


def test_one_that_does_not_run_is_given_a_moment_and_is_down_then(bench: Bench) -> None:
    assert bench.step().state is State.UNKNOWN
    found = bench.step(SETTLE_SECONDS)
    assert (found.state, found.hop, found.cause) == (State.RETRYING, "tunnel", "not_running")
    assert bench.step(AGAIN_SECONDS).state is State.DOWN and bench.looks == []
    bench.runs()
    bench.step()
    assert bench.step(SETTLE_SECONDS).state is State.UP


def test_what_keeps_it_from_running_is_said(bench: Bench) -> None:
    bench.entry = replace(bench.entry, certificate="other", trust="box")
    bench.step()
    found = bench.step(SETTLE_SECONDS)
    assert found.cause == "setup" and "[[certificate]] other" in found.text and "dcmgate cert request other" in found.mend


def test_what_stunnel_does_not_take_is_said_of_one_that_does_not_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(setup: Setup) -> None:
        raise TunnelError("stunnel is not installed", mend="apt-get install stunnel4")

    monkeypatch.setattr(program, "check", refuses)
    bench.step()
    found = bench.step(SETTLE_SECONDS)
    assert (found.hop, found.cause, found.text) == ("tunnel", "setup", "stunnel is not installed")


def test_a_renewed_certificate_is_checked_and_handed_over_once(bench: Bench) -> None:
    bench.runs()
    bench.step()
    bench.renew()
    bench.step()
    bench.step()
    assert len(bench.taken) == 1 and bench.checked == [bench.taken[0].text]
    bench.entry = replace(bench.entry, connect="other.example.org:2762")
    bench.step()
    assert "other.example.org" in bench.taken[1].text


def test_what_cannot_be_set_up_leaves_it_running_and_is_an_alarm(bench: Bench) -> None:
    bench.runs()
    bench.step()
    (bench.state / "certificates" / "box" / "trust.pem").unlink()
    found = bench.step(EVERY_SECONDS)
    assert found.state is State.UP and "no trust anchors" in found.stale and bench.taken == []
    assert [alarm.key for alarm in bench.watch.alarms()] == ["tunnel-stale:ris"]


def test_another_users_tunnel_is_asked_and_not_more_than_once_a_minute(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.runs()
    monkeypatch.setattr("os.geteuid", lambda: 65534)
    bench.step()
    bench.renew()
    asked = bench.run / "tunnels" / "ris.reload"
    bench.step()
    first = asked.stat().st_mtime_ns
    bench.step(DOWN_SECONDS - 1)
    assert asked.stat().st_mtime_ns == first and bench.taken == []
    bench.step(1)
    assert asked.stat().st_mtime_ns > first


def test_a_look_that_breaks_is_the_tunnels_trouble(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.runs()

    def broken(tunnel: Tunnel, state: str) -> Found:
        raise KeyError("unforeseen")

    monkeypatch.setattr(bench.watch, "_look", broken)
    assert bench.step().cause == "fault"


def test_a_tunnel_that_was_taken_away_is_forgotten(bench: Bench) -> None:
    bench.step()
    bench.watch._config = lambda: Config(spool=Spool(state=str(bench.state)))
    bench.watch.step()
    assert health.read(bench.run) == [] and bench.watch.alarms() == []
