"""The checks on devices in lanes: short ones share their boots, long ones are shared out, and all results come together."""

from __future__ import annotations

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SPEC = spec_from_file_location("lanes", ROOT / "hw-test" / "lanes.py")
lanes = module_from_spec(SPEC)
SPEC.loader.exec_module(lanes)


def test_short_checks_stay_together_and_long_ones_go_where_there_is_time() -> None:
    minutes = [0.6] * 40 + [62, 40, 0.6, 35, 9]
    lane_of = lanes.shared_out(minutes, 2)
    assert {lane for lane, each in zip(lane_of, minutes, strict=True) if each == 0.6} == {0}
    assert lane_of[40:42] == [1, 0]
    totals = [sum(each for lane, each in zip(lane_of, minutes, strict=True) if lane == one) for one in (0, 1)]
    assert max(totals) < 0.65 * sum(minutes)


def test_one_lane_has_everything() -> None:
    assert lanes.shared_out([0.6, 62, 0.6], 1) == [0, 0, 0]


def result(name: str, outcome: str, **figures: float) -> dict[str, Any]:
    counts = {kind: int(kind == outcome) for kind in ("passed", "failed", "skipped")}
    return {"checks": {name: {"outcome": outcome, "seconds": 1}}, "figures": figures,
            "totals": {**counts, "reasons": {} if outcome == "passed" else {name: "why"}}}


def test_results_come_together() -> None:
    whole = lanes.together([result("boots", "passed", boot=70.0), result("hangs", "failed", boot=90.0, hang=3.0)])
    assert whole["totals"] == {"passed": 1, "failed": 1, "skipped": 0, "reasons": {"hangs": "why"}}
    assert whole["figures"] == {"boot": 70.0, "hang": 3.0}
    assert set(whole["checks"]) == {"boots", "hangs"}


def test_a_lane_without_a_result_fails_the_whole(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """Its checks are not known to have passed."""
    (tmp_path / "hw-test").mkdir()
    (tmp_path / "build").mkdir()
    (tmp_path / "result.json").write_text(json.dumps(result("boots", "passed")))
    run = tmp_path / "hw-test" / "run"
    run.write_text("#!/bin/sh\n[ $DCMGATE_LANE = 2/2 ] || cp result.json build/vm-1.json\n")
    run.chmod(0o755)
    monkeypatch.setattr(lanes, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANES", "2")
    assert lanes.main("vm") == 1
    assert "no result of vm-2.json" in capsys.readouterr().err
    run.write_text("#!/bin/sh\n[ $DCMGATE_LANE = 2/2 ]; cp result.json build/vm-$?.json; cp result.json build/vm-2.json\n")
    assert lanes.main("vm") == 0
