"""The checks on devices in lanes: pieces are shared out by their minutes, and all results come together."""

from __future__ import annotations

import json
import os
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SPEC = spec_from_file_location("lanes", ROOT / "hw-test" / "lanes.py")
lanes = module_from_spec(SPEC)
SPEC.loader.exec_module(lanes)


def test_each_piece_goes_where_there_is_least_to_do() -> None:
    pieces = {lanes.THE_REST: 22.0, "updates": 28.0, "hour": 62.0, "cuts": 40.0, "tries": 9.0}
    lane_of = lanes.shared_out(pieces, 2)
    totals = [sum(pieces[piece] for piece, lane in lane_of.items() if lane == one) for one in (0, 1)]
    assert sum(totals) == 161
    assert max(totals) < 100
    assert lane_of["hour"] != lane_of["cuts"]


def test_one_lane_has_everything() -> None:
    assert set(lanes.shared_out({"hour": 62.0, lanes.THE_REST: 22.0}, 1).values()) == {0}


def test_lanes_fit_the_processors_and_the_memory(monkeypatch: Any) -> None:
    def machine(processors: int, gigabytes: int) -> int:
        monkeypatch.setattr(lanes.os, "sched_getaffinity", lambda _: set(range(processors)))
        monkeypatch.setattr(lanes.os, "sysconf", {"SC_PHYS_PAGES": gigabytes << 18, "SC_PAGE_SIZE": 4096}.__getitem__)
        return lanes.fitting()

    assert [machine(*each) for each in ((2, 8), (4, 16), (4, 7), (2, 4), (1, 1))] == [2, 3, 2, 1, 1]


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
    run.write_text("#!/bin/sh\ncp result.json build/vm-${DCMGATE_LANE%/2}.json\n")
    assert lanes.main("vm") == 0
    run.write_text('#!/bin/sh\nlane=${DCMGATE_LANE%/2}\n[ $lane = 1 ] || { echo "$NONE" >build/vm-2.json; exit 5; }\n'
                   'cp result.json build/vm-1.json\n')
    monkeypatch.setenv("NONE", json.dumps({"checks": {}, "figures": {}, "totals": {"passed": 0, "failed": 0, "skipped": 0,
                                                                                 "reasons": {}}}))
    assert lanes.main("vm") == 0, "a lane may be empty"
    (tmp_path / "result.json").write_text(os.environ["NONE"])
    assert lanes.main("vm") == 5, "all of them may not"
