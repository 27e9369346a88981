"""What the keeper does for the box: the recovery key, and the factory reset, in the name of whoever asked."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from appliance.disks import found
from appliance.errors import ControlError
from appliance.manage import box
from tests.component.manage.test_verbs import Office


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Office:
    monkeypatch.setattr(found, "RECOVERY_KEY", tmp_path / "recovery-key")
    monkeypatch.setattr(box, "RESET", tmp_path / "factory-reset.json")
    return Office(tmp_path)


def recorded(office: Office) -> list[str]:
    """Who did what, as the ledger has it for good."""
    said = [json.loads(event.body) for event in office.ledger.events(0, 1000) if event.kind == "seen"]
    return [f"{one['by']}: {one['what']}" for one in said]


def test_who_sees_the_recovery_key_is_recorded_before_it_is_seen(office: Office) -> None:
    found.RECOVERY_KEY.write_text("cbdefghi-jklnrtuv")
    assert office.ask.call("recovery_key") == {"key": "cbdefghi-jklnrtuv"}
    assert recorded(office) == ["ada: the recovery key of the disk"]
    with pytest.raises(ControlError):
        office.ask.call("recovery_key", written_down="cbdefghi")
    assert found.RECOVERY_KEY.exists()
    office.ask.call("recovery_key", written_down="jklnrtuv")
    assert not found.RECOVERY_KEY.exists()
    with pytest.raises(ControlError):
        office.ask.call("recovery_key")
    assert len(recorded(office)) == 2


@pytest.mark.requirement("I4")
def test_a_reset_with_something_undelivered_needs_an_override_with_a_reason(office: Office) -> None:
    for args in ({}, {"reason": "sold"}, {"override": True}, {"override": True, "reason": " "},
                 {"override": "yes", "reason": "sold"}):
        with pytest.raises(ControlError, match=r"2 not delivered|needs a reason"):
            office.ask.call("factory_reset", **args)
        assert not box.RESET.exists()
    office.ask.call("factory_reset", override=True, reason="sold")
    assert recorded(office)[-1].startswith("ada: factory reset asked for (2 not delivered")
    assert recorded(office)[-1].endswith("sold")
    assert box.take_request(os.getuid()) == {"by": "ada", "reason": "sold", "override": True}
    with pytest.raises(ControlError):      # once
        box.take_request(os.getuid())


@pytest.mark.requirement("I4")
def test_a_box_that_holds_nothing_is_reset_without_a_word_more(office: Office) -> None:
    office.ask.call("discard", numbers=[f"{one.number:x}" for one in office.objects], reason="a test")
    assert box.in_words(box.held_now(office.ledger)) == "0 not delivered, 0 not confirmed, 0 in quarantine"
    assert office.ask.call("factory_reset")["asked"]


def test_a_request_of_anybody_but_the_keeper_is_thrown_away(office: Office) -> None:
    box.RESET.write_text(json.dumps({"by": "mallory", "reason": "", "override": True}))
    with pytest.raises(ControlError, match="not the keeper's"):
        box.take_request(os.getuid() + 1)
    assert not box.RESET.exists()
    box.RESET.symlink_to("/etc/passwd")
    with pytest.raises(ControlError, match="nobody has asked"):
        box.take_request(os.getuid())
