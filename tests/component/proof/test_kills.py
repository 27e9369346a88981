"""A sample of the enumerated kills, and three breakages of the product that they find. All of them: `python -m tests.proof`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.proof import kills
from tests.proof.figures import Budget, Figures
from tests.proof.kills_cases import Kill, Measured, cases, parse
from tests.support import syscalls

SEED = 20260103
PATHS = ("accept", "deliver", "retire", "run")
ENOUGH = 40
"""Kills on a path until a breakage must have been found."""


@pytest.fixture(autouse=True)
def traceable() -> None:
    if why := syscalls.available():
        pytest.skip(why)


def entry(case: str, **values: Any) -> dict[str, Any]:
    return {"case": case, "kills": 1, "at": ["fdatasync"], "acknowledged": 6, "lost": 0, "altered": 0, "unaccounted": 0,
            "failures": [], "seconds": 0.1, **values}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.requirement("I1")
@pytest.mark.requirement("I2")
@pytest.mark.requirement("I4")
@pytest.mark.requirement("I9")
def test_a_sample_of_all_kills_loses_nothing(tmp_path: Path) -> None:
    with kills.worker(tmp_path) as worker:
        every = cases(worker.measured, SEED)
        some = [case for path in PATHS for case in [each for each in every if each.split()[0] == path][:12]]
        done = [worker.ask(case) for case in some]
    assert [each for each in done if each["failures"] or each["lost"] or each["altered"] or each["unaccounted"]] == []
    assert sum(each["kills"] for each in done) >= 45


@pytest.mark.slow
@pytest.mark.parametrize(("breakage", "path"), [
    ("success_before_custody", "accept"), ("recovery_trusts_the_ledger", "accept"), ("row_before_the_deletion", "retire")])
def test_a_broken_product_is_found(tmp_path: Path, breakage: str, path: str) -> None:
    dice = random.Random(SEED)
    with kills.worker(tmp_path, f"tests.component.proof.kill_breakages:{breakage}") as worker:
        places = list(range(worker.measured[path].calls // 4, worker.measured[path].calls))
        dice.shuffle(places)
        for at in places[:ENOUGH]:
            found = worker.ask(f"{path} {at}a")
            if found["lost"] or found["unaccounted"]:
                return
    raise AssertionError(f"{breakage} was not found by {ENOUGH} kills")


def test_the_cases_are_every_call_before_and_after_and_each_is_its_own_name() -> None:
    measured = {"accept": Measured(30, 90, 0.05), "run": Measured(70, 200, 0.3)}
    found = cases(measured, 1)
    assert found == cases(measured, 1) and found != cases(measured, 2) and len(found) == len(set(found))
    for path, size in measured.items():
        singles = {case for case in found if case.startswith(path) and len(case.split()) == 2}
        assert {f"{path} {at}{where}" for at in range(1, size.calls + 1) for where in "ba"} <= singles
        seconds = {parse(case)[1][1].at for case in found if case.startswith(path) and len(case.split()) == 3}
        assert set(range(1, size.calls + 1)) <= seconds
    assert sum(len(case.split()) > 3 for case in found) >= 300


@pytest.mark.parametrize("kill", [Kill(17), Kill(3, "after"), Kill(99, "before", True), Kill(seconds=0.0415)])
def test_a_kill_is_read_from_its_name(kill: Kill) -> None:
    assert parse(f"run {kill}") == ("run", [kill])


def test_the_book_adds_up_what_was_done_on_the_same_code(tmp_path: Path) -> None:
    path = tmp_path / "kills.jsonl"
    book = kills.Book(path, "one")
    book.add(entry("run 3b"))
    book.add(entry("run 3b 4a", kills=2, at=["write", "close"], lost=1, failures=["after the kill 4a: lost: it"]))
    kills.Book(path, "two").add(entry("run 3b"))
    with path.open("a") as file:
        file.write('{"version": "one", "ca')
    again = kills.Book(path, "one")
    figures = Figures("kills")
    again.sum_up(figures)
    assert (figures.counts["kills"], figures.counts["cases"], figures.acknowledged, figures.lost) == (3, 2, 12, 1)
    assert len(figures.failures) == 1 and "'run 3b 4a'" in figures.failures[0] and not figures.holds
    assert figures.notes == ["run: killed at 1 fdatasync, 1 write, 1 close"]


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kills, "QUICK_CASES", 6)
    asked: list[str] = []
    monkeypatch.setattr(kills, "rounds_entry", lambda folder, seed, size: entry(f"rounds {seed} {size}", at=[""]))
    ask = kills.Worker.ask
    monkeypatch.setattr(kills.Worker, "ask", lambda self, case: asked.append(case) or ask(self, case))  # type: ignore[func-returns-value]
    (tmp_path / "work").mkdir()
    budget = Budget(tmp_path / "work", tmp_path / "state", SEED, True, 0.0, 1, "v", lambda line: None)
    first = kills.run(budget)
    assert first.holds and first.counts["cases"] == 7 and len(asked) == 6
    assert kills.run(budget).counts == first.counts and len(asked) == 6
