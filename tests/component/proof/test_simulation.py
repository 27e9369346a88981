"""The simulation in small: nothing is lost in some dozen walks and examples, and a broken core does not get through."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from appliance.spool.debt import Debt
from tests.proof.simulation import _child, broken_copy
from tests.proof.simulation_breaks import BREAKS, by_name
from tests.proof.simulation_machine import explore
from tests.proof.simulation_oracle import CHECKS
from tests.proof.simulation_steps import Script
from tests.proof.simulation_walk import Case, case_of, play, scratch, shrink

pytestmark = [pytest.mark.slow, pytest.mark.requirement("I1"), pytest.mark.requirement("I2"), pytest.mark.requirement("I3"),
              pytest.mark.requirement("I4"), pytest.mark.requirement("I5"), pytest.mark.requirement("I6"),
              pytest.mark.requirement("I7"), pytest.mark.requirement("I8"), pytest.mark.requirement("I9")]

WALKS = 24
EXAMPLES = 12


def test_walks() -> None:
    done: Counter[str] = Counter()
    acknowledged = 0
    with scratch() as folder:
        for seed in range(WALKS):
            case = play(case_of(seed), folder)
            assert not case.found, f"python -m tests.proof.simulation --seed {seed} --show: {case.found}"
            done += case.done
            acknowledged += case.acknowledged
    assert acknowledged > 5 * WALKS
    assert [name for name in CHECKS if not done[name]] == [], "a check that is never asked proves nothing"


def test_examples_of_hypothesis() -> None:
    found = explore(1, EXAMPLES)
    assert found is None, f"{found.found}: {found.as_json()}"


def test_the_same_seed_is_the_same_walk() -> None:
    with scratch() as folder:
        one, other = (play(case_of(5), folder) for _ in range(2))
    assert (one.steps, one.acknowledged, one.done) == (other.steps, other.acknowledged, other.done)


def test_a_failure_is_shortened_and_plays_again_from_its_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Debt, "must_wait", lambda *_: False)
    with scratch() as folder:
        case = next(case for case in (play(case_of(seed), folder) for seed in range(40)) if case.found)
        assert case.found[0][0] == "I2 bounded debt"
        short = shrink(case, folder)
        assert len(short.script) < 20 < len(case_of(0).script)
        again = play(Case.from_json(short.as_json()), folder)
    assert again.found[0][0] == "I2 bounded debt"
    with scratch() as folder:
        monkeypatch.undo()
        assert not play(Case.from_json(short.as_json()), folder).found


@pytest.mark.parametrize("script", [
    [("fail_disk", {"failure": 0, "count": 1}), ("arrive", {"receiver": 1, "scanner": 4, "what": 0}), ("lose_ledger", {})],
    [("doom", {"role": 1, "after": 8, "power": 0}), ("arrive", {"receiver": 1, "scanner": 3, "what": 19}),
     ("fail_disk", {"failure": 4, "count": 1}), ("arrive", {"receiver": 1, "scanner": 3, "what": 14}), ("live", {"stretch": 3}),
     ("arrive", {"receiver": 0, "scanner": 7, "what": 0})],
    [("arrive", {"receiver": 0, "scanner": 7, "what": 0}), ("arrive", {"receiver": 1, "scanner": 5, "what": 0}),
     ("doom", {"role": 2, "after": 10, "power": 0}), ("live", {"stretch": 5})],
    [("fail_disk", {"failure": 0, "count": 1}), ("arrive", {"receiver": 1, "scanner": 1, "what": 1}), ("live", {"stretch": 4})],
], ids=["a ledger that is made again believes no page cache", "an error of the second recovery closes intake",
        "two alike that were under way are sent once more each", "what a closed intake settles is read from the disk"])
def test_what_was_found_once_stays_mended(script: Script) -> None:
    with scratch() as folder:
        assert not play(Case(case_of(0).setting, script), folder).found


@pytest.mark.parametrize(("name", "walks", "check"), [
    ("the names of slots are not synced", 2, "I1 durable before success"),
    ("retire before confirmed", 6, "I4 deletes only what is proved"),
    ("a claim is lost after a crash", 8, "I9 at least once"),
])
def test_a_broken_core_is_found(tmp_path: Path, name: str, walks: int, check: str) -> None:
    code = broken_copy(by_name(name), tmp_path / "code")
    result = _child(code, "--seed", "0", "--walks", str(walks), "--stop")
    assert result["caught"] == check, result


@pytest.mark.parametrize("name", [each.name for each in BREAKS])
def test_every_breakage_still_applies(name: str) -> None:
    root = Path(__file__).resolve().parents[3]
    for file, old, _ in by_name(name).edits:
        assert (root / file).read_text().count(old) == 1, f"{file}: let the breakage follow the code"
