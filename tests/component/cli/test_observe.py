"""`dcmgate observe` on a spool: verdict, console and figures say what is so, and never a word of a patient."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from appliance.cli import observe_command
from appliance.model import Alarm, Severity, SpaceState
from tests.support.sites import CliSite


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, int]]:
    found = {f"dcmgate-{unit}.service": ("active", 2) for unit in observe_command.UNITS}
    monkeypatch.setattr(observe_command, "_units", lambda: found)
    return found


class Seen:
    """One look, and what it wrote."""

    def __init__(self, site: CliSite) -> None:
        self.told: dict[str, Any] = site.json("observe", "--once", "--public", str(site.folder), "--figures", str(site.folder))
        self.console = (site.folder / "console.txt").read_text()
        self.verdict = json.loads((site.folder / "verdict.json").read_text())
        self.text = (site.folder / "metrics.prom").read_text()
        self.figures = {(sample.name, *sorted(sample.labels.values())): sample.value
                        for family in text_string_to_metric_families(self.text) for sample in family.samples}


def test_what_waits_is_told_and_whose_it_is_is_not(site: CliSite, units: object) -> None:
    custodies = site.fill([b"one", b"two"], name="DOE^JANE", patient="4711")
    site.sent("pacs", custodies[0].number)
    seen = Seen(site)
    room = next(state for state in SpaceState if seen.figures["dcmgate_spool_state", str(state)])
    expected = {SpaceState.GREEN: "green", SpaceState.AMBER: "yellow"}.get(room, "red")
    assert (seen.told["colour"], seen.verdict["colour"]) == (expected, expected)
    assert seen.figures["dcmgate_queue_owed_objects", "pacs"] == 1
    assert seen.figures["dcmgate_queue_owed_objects", "second"] == 2
    assert seen.figures["dcmgate_queue_objects", "pacs", "sent"] == 1
    assert seen.figures["dcmgate_accepted_objects_total",] == 2
    assert seen.figures["dcmgate_unit_restarts_total", "dcmgate-keeper.service"] == 2
    assert "second: unknown, 2 objects owed" in seen.console and "port 11112" in seen.console
    for text in (seen.console, seen.text, json.dumps(seen.verdict)):
        assert "DOE" not in text and "4711" not in text


def test_an_alarm_is_yellow_and_on_the_console(site: CliSite, units: object) -> None:
    with site.ledger() as ledger:
        ledger.set_alarms([Alarm("parked:pacs", Severity.WARNING, "1 object is parked for pacs: refused")])
    seen = Seen(site)
    assert seen.verdict["colour"] == "yellow" and "parked for pacs" in seen.console and "parked" not in seen.verdict["sentence"]
    assert seen.figures["dcmgate_alarm_active", "parked:pacs", "warning"] == 1
    assert seen.figures["dcmgate_alarms", "warning"] == 1


def test_without_a_receiver_nothing_is_taken_in(site: CliSite, units: dict[str, tuple[str, int]]) -> None:
    units["dcmgate-receiver.service"] = ("failed", 5)
    seen = Seen(site)
    assert seen.verdict["colour"] == "red" and seen.figures["dcmgate_unit_active", "dcmgate-receiver.service"] == 0


def test_a_spool_that_cannot_be_read_is_red_and_told(bare: CliSite, units: object) -> None:
    seen = Seen(bare)
    assert seen.verdict["colour"] == "red" and seen.figures["dcmgate_spool_readable",] == 0


def test_a_box_that_nobody_has_set_up_says_so(bare: CliSite, units: object, monkeypatch: pytest.MonkeyPatch,
                                              tmp_path: Path) -> None:
    notice = tmp_path / "test-keys"
    notice.write_text("This image is signed with a test key that everybody may have.\n")
    monkeypatch.setattr(observe_command, "TEST_KEYS", notice)
    bare.config.rename(bare.folder / "away")
    seen = Seen(bare)
    assert seen.verdict["colour"] == "red" and "set up" in seen.verdict["sentence"]
    assert "test key" in seen.console


def test_the_firewall_s_counters_are_figures(site: CliSite, units: object, monkeypatch: pytest.MonkeyPatch,
                                             tmp_path: Path) -> None:
    (tmp_path / "refused.json").write_text(json.dumps({"nftables": [
        {"metainfo": {}}, {"counter": {"family": "inet", "name": "refused_scanners", "packets": 17, "bytes": 900}}]}))
    monkeypatch.setattr(observe_command, "SYSTEM", tmp_path)
    assert Seen(site).figures["dcmgate_firewall_refused_packets_total", "scanners"] == 17


def test_the_screen_is_left_to_who_writes_the_recovery_key_down(site: CliSite, units: object) -> None:
    observer = observe_command.Observer(str(site.config), site.folder, site.folder)
    assert not observer.leaves_screen()
    key = next(site.folder.rglob("spool-uuid")).with_name(observe_command.RECOVERY_KEY)
    key.write_text("secret")
    assert observer.leaves_screen()
    os.utime(site.config, (0, 0))
    assert not observer.leaves_screen()
