"""The watch looks in turn, tells what it finds, asks for escalation once, and pings whatever its probe is kept by."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from appliance.clock import ManualClock, SystemClock
from appliance.health.checks import State, Verdict, clock, memory, temperature, verdict, wear
from appliance.watchdog import watch as module
from appliance.watchdog.led import Light, pattern
from appliance.watchdog.watch import AGAIN_SECONDS, REQUEST, Watch
from tests.support.waiting import wait_until

BAD = Verdict("spool", State.BAD, "it fails", "look at it")
GOOD = Verdict("spool", State.GOOD)


def rounds(watch: Watch, system: ManualClock, count: int, seconds: float = AGAIN_SECONDS + 1) -> None:
    for _ in range(count):
        watch.round()
        if watch._probing is not None:
            watch._probing.join(10)
        system.advance(seconds)


def test_three_failures_in_a_row_ask_for_escalation_once_and_a_good_one_in_between_does_not(tmp_path: Path) -> None:
    system, found = ManualClock(), [BAD, BAD, GOOD, BAD, BAD]
    watch = Watch(tmp_path, system, lambda: found.pop(0) if found else BAD)
    rounds(watch, system, 2)
    system.advance(60)
    rounds(watch, system, 1, 60)
    rounds(watch, system, 2)
    assert not (tmp_path / REQUEST).exists()
    rounds(watch, system, 1)
    assert (tmp_path / REQUEST).read_text() == "it fails\n"
    (tmp_path / REQUEST).write_text("")
    rounds(watch, system, 5)
    assert (tmp_path / REQUEST).read_text() == "", "it is asked for once"
    assert BAD in verdict.read(tmp_path)


def test_degraded_mode_is_told_when_it_begins_and_when_it_ends(tmp_path: Path) -> None:
    system, why, said = ManualClock(), ["", "a disk", "a disk", "", ""], []
    watch = Watch(tmp_path, system, lambda: None, degraded=lambda: why.pop(0), tell=lambda text, on: said.append((text, on)))
    rounds(watch, system, 5)
    assert said == [("a disk", True), ("a disk", False)]


def test_a_box_that_nobody_has_set_up_has_nothing_to_probe(tmp_path: Path) -> None:
    system = ManualClock()
    watch = Watch(tmp_path, system, lambda: None)
    rounds(watch, system, 5, 40)
    assert {each.check for each in watch.verdicts} == {"temperature", "wear", "memory", "clock"}


@pytest.mark.requirement("Watchdog chain: the disk does not gate the ping")
def test_a_probe_that_hangs_keeps_no_ping_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over, pings = threading.Event(), []
    monkeypatch.setattr(module, "alive", pings.append)
    monkeypatch.setattr(module, "ROUND_SECONDS", 0.02)

    def hang() -> Verdict:
        over.wait(30)
        return GOOD

    watch = Watch(tmp_path, SystemClock(), hang)
    watch.start()
    try:
        wait_until(lambda: len(pings) > 10, 20)
        assert "spool" not in {each.check for each in watch.verdicts}
    finally:
        over.set()
        watch.stop()


def test_verdicts_that_make_no_sense_are_none(tmp_path: Path) -> None:
    assert verdict.read(tmp_path) == []
    for text in ("", "{}", "[1]", '[{"check": "spool", "state": "odd"}]'):
        (tmp_path / verdict.NAME).write_text(text)
        assert verdict.read(tmp_path) == []


def sensor(current: float, high: float | None = None, critical: float | None = None) -> SimpleNamespace:
    return SimpleNamespace(label="", current=current, high=high, critical=critical)


@pytest.mark.parametrize(("sensors", "expected"), [
    ({}, State.UNKNOWN),
    ({"cpu": [sensor(50)]}, State.GOOD),
    ({"cpu": [sensor(50), sensor(88)]}, State.POOR),
    ({"nvme": [sensor(80, 70, 84)]}, State.POOR),
    ({"nvme": [sensor(84, 70, 84)], "cpu": [sensor(30)]}, State.BAD),
    ({"odd": [sensor(60, 0, 65261)]}, State.GOOD),
])
def test_temperature(sensors: dict[str, list[SimpleNamespace]], expected: State) -> None:
    assert temperature.look(sensors).state is expected


@pytest.mark.parametrize(("name", "text", "expected"), [
    ("life_time", "0x02 0x03", State.GOOD), ("life_time", "0x02 0x09", State.POOR), ("life_time", "0x0b 0x01", State.BAD),
    ("pre_eol_info", "0x03", State.BAD), ("ioerr_cnt", "0x2", State.GOOD), ("ioerr_cnt", "0xff", State.POOR),
    ("life_time", "0x00 0x00", State.UNKNOWN)])
def test_wear(tmp_path: Path, name: str, text: str, expected: State) -> None:
    device = tmp_path / "mmcblk0" / "device"
    device.mkdir(parents=True)
    (device / name).write_text(text + "\n")
    assert wear.look(tmp_path).state is expected
    assert wear.look(tmp_path / "none").state is State.UNKNOWN


def test_memory_and_clock() -> None:
    assert [memory.look(share).state for share in (0.5, 0.05, 0.01)] == [State.GOOD, State.POOR, State.BAD]
    system = ManualClock()
    assert clock.look(system).state is State.GOOD
    system.is_trusted = False
    assert clock.look(system).state is State.POOR


def test_the_light(tmp_path: Path) -> None:
    assert [pattern(State.GOOD, second) for second in range(5)] == [True] * 5
    assert [pattern(State.POOR, second) for second in range(5)] == [False, True, True, True, True]
    assert [pattern(State.BAD, second) for second in range(4)] == [True, False, True, False]
    (tmp_path / "status").mkdir()
    light = Light("status", tmp_path)
    light.show(State.BAD, 1)
    assert (tmp_path / "status" / "brightness").read_text() == "0"
    light.show(State.BAD, 2)
    assert (tmp_path / "status" / "brightness").read_text() == "255"
    for name in ("", "none", "../status"):
        Light(name, tmp_path).show(State.GOOD, 1)
