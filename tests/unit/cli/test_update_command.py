"""`dcmgate update`: what is asked is what was typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.cli import exits, update_command
from appliance.cli.main import main
from appliance.update import places, service
from appliance.update.places import Places


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    (tmp_path / "requests").mkdir()
    found = Places(state=tmp_path, run=tmp_path, requests=tmp_path / "requests")
    monkeypatch.setattr(places, "Places", lambda: found)
    return found


@pytest.mark.parametrize(("words", "asked"), [
    (["install", "--no-wait"], {"action": "install", "source": "site", "version": "", "again": False}),
    (["install", "--no-wait", "--from", "stick", "--again"],
     {"action": "install", "source": "stick", "version": "", "again": True}),
])
def test_a_request_says_what_was_typed(box: Places, words: list[str], asked: dict[str, object]) -> None:
    assert main(["update", *words]) == exits.OK
    (path,) = box.requests.glob("*.json")
    assert json.loads(path.read_text()) == asked


@pytest.mark.parametrize(("stage", "status"), [("done", exits.OK), ("refused", exits.REFUSED), ("failed", exits.UNREACHABLE)])
def test_what_came_of_it_is_the_exit_status(box: Places, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                                            stage: str, status: int) -> None:
    def answered(where: Places, **what: object) -> str:
        assert what["version"] == "0.2.0"
        (where.run / "progress.json").write_text(json.dumps({"request": "t", "stage": stage, "text": "a sentence"}))
        return "t"
    monkeypatch.setattr(service, "leave_request", answered)
    monkeypatch.setattr(update_command, "LOOK_SECONDS", 0.0)
    assert main(["update", "approve", "0.2.0"]) == status
    assert "a sentence" in capsys.readouterr().out


def test_a_source_is_a_url_or_the_stick(box: Places, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["update", "install", "--from", "/etc"]) == exits.USAGE
    assert 'neither a URL nor "stick"' in capsys.readouterr().err
