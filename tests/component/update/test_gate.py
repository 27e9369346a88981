"""The gate of a version on trial, against the real product: open where it works, closed by each thing that does not."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.config import load
from appliance.config.settings import Config
from appliance.model import ObjectState
from appliance.policy.update import complaints
from appliance.update import gate
from tests.support.gateway import Gateway, to_folder
from tests.support.waiting import wait_until

UP = dict.fromkeys(gate.UNITS, "active")


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """As the service manager runs it: with a watchdog, for which the receiver calls itself."""
    folder = tmp_path_factory.mktemp("gate")
    with pytest.MonkeyPatch.context() as patch, Gateway(folder, [to_folder(folder / "archive")]) as one:
        patch.setenv("WATCHDOG_USEC", "30000000")
        one.start()
        yield one


@pytest.fixture(autouse=True)
def units(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no service manager here that knows ours."""
    monkeypatch.setattr(gate, "_services", lambda: UP)
    monkeypatch.setattr(gate, "failed_units", lambda: ())
    monkeypatch.setattr(gate, "ANSWER_SECONDS", 3.0)
    monkeypatch.setattr(gate, "DOOR_SECONDS", 15.0)


def config(box: Gateway) -> Config:
    return load.load(str(box.config))


def test_a_version_that_works_opens_it_and_its_test_object_goes_nowhere(box: Gateway) -> None:
    before = box.balance()["accepted"]
    assert complaints(gate.look(config(box), ())) == []
    wait_until(lambda: box.balance()["accepted"] == before + 1, 20)          # its row is written a moment later
    assert box.balance()["unaccounted"] == 0
    assert not list((box.folder / "archive").rglob("*.dcm")), "no rule routes it"
    assert not (Path(box.run) / "canary.wanted").exists()
    wait_until(lambda: not (Path(box.run) / "canary.wanted").exists(), 10)
    assert box.balance()[str(ObjectState.QUARANTINED)] == 0


def test_a_receiver_that_hangs_closes_it(box: Gateway) -> None:
    os.kill(box.pid(), signal.SIGSTOP)
    try:
        said = complaints(gate.look(config(box), ()))
    finally:
        os.kill(box.pid(), signal.SIGCONT)
    assert any("the port for scanners" in text for text in said), said
    assert any("a test object was not stored" in text for text in said), said


def test_what_is_missing_in_the_spool_closes_it(box: Gateway) -> None:
    assert complaints(gate.look(config(box), ())) == []
    objects = sorted((box.spool / "objects").rglob("*.dcm"), key=lambda path: path.stat().st_size)
    away = objects[-1].with_suffix(".away")
    number = objects[-1]
    number.rename(away)
    try:
        said = complaints(gate.look(config(box), ()))
    finally:
        away.rename(number)
    assert any("does not balance" in text for text in said), said


def test_an_uplink_that_was_there_before_has_to_be_there(box: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "UPLINK_SECONDS", 0.0)
    assert complaints(gate.look(config(box), ("pacs",))) == ["pacs could be reached before the update, and cannot now"]
