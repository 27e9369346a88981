"""The mutation check of the checks: every entry fits the code as it is, a sample is caught, and the instrument can fail."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.proof import mutants
from tests.proof.figures import Budget, Figures
from tests.proof.mutants import Edit, Mutant

MUTANTS = mutants.load()


def budget_of(folder: Path, version: str = "one", *, seconds: float = 0.0, said: list[str] | None = None) -> Budget:
    return Budget(folder / "work", folder / "state", 1, True, seconds, 2, version, (said if said is not None else []).append)


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """A product of one line, and its tests."""
    root = tmp_path / "root"
    (root / "appliance").mkdir(parents=True)
    (root / "tests" / "proof").mkdir(parents=True)
    (root / "appliance" / "__init__.py").write_text(
        "def add(one, other):\n    return one + other\n\n\ndef unused():\n    return 1\n")
    (root / "tests" / "test_sum.py").write_text(
        "from appliance import add\n\n\ndef test_nothing():\n    assert add(0, 0) == 0\n\n\n"
        "def test_something():\n    assert add(2, 3) == 5\n")
    (root / "pyproject.toml").write_text("[tool.pytest.ini_options]\naddopts = '--import-mode=importlib'\n")
    shutil.copy2(mutants.ROOT / "tests" / "proof" / "mutants_watch.py", root / "tests" / "proof")
    return root


def mutant(old: str, new: str, *, name: str = "m", within: int = 2) -> Mutant:
    return Mutant(name, "about", "I1", (Edit("appliance/__init__.py", old, new),), ("tests/test_sum.py",), within)


def run(product: Path, *tried: Mutant, version: str = "one") -> Figures:
    return mutants.run_mutants(budget_of(product.parent, version), tried, product)


def test_there_are_enough_of_them_and_a_quick_sample() -> None:
    assert len(MUTANTS) >= 24
    assert len([m for m in MUTANTS if m.quick]) == 4
    assert {r for m in MUTANTS for r in (m.requirement,) if r[:1] == "I"} == set(mutants.REQUIREMENTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name.replace(" ", "-"))
def test_it_still_fits_the_code_and_names_tests_that_exist(mutant: Mutant) -> None:
    texts: dict[str, str] = {}
    for edit in mutant.edits:
        text = texts.setdefault(edit.file, (mutants.ROOT / edit.file).read_text())
        assert text.count(edit.old) == 1, f"{edit.file}: not there exactly once, follow the code: {edit.old}"
        texts[edit.file] = text.replace(edit.old, edit.new)
    for file, text in texts.items():
        compile(text, file, "exec")
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert (mutants.ROOT / file).is_file() and f"def {name.partition('[')[0]}" in (mutants.ROOT / file).read_text()


@pytest.mark.slow
@pytest.mark.requirement("I1")
def test_a_sample_is_caught(tmp_path: Path) -> None:
    figures = mutants.run(budget_of(tmp_path))
    assert figures.holds, figures.failures
    assert figures.counts["mutants"] == figures.counts["mutants_caught"] == 4
    assert not list((tmp_path / "work").iterdir()), "the copies are put away"


def test_the_instrument_names_who_caught_it_and_after_how_many(product: Path) -> None:
    figures = run(product, mutant("one + other", "one - other"))
    assert figures.holds, figures.failures
    assert figures.mutants == {"m": "tests/test_sum.py::test_something"}
    assert figures.counts["tests_run"] == 2
    assert (product / "appliance" / "__init__.py").read_text().count("one + other") == 1, "the code itself is left alone"


@pytest.mark.parametrize(("what", "why"), [
    (mutant("return 1", "return 2"), "survives 2 tests"),
    (mutant("one + other", "one - other", within=1), "caught by the 2th test only"),
    (mutant("one * other", "one - other"), "does not apply any more"),
    (mutant("return", "yield"), "has 2 times"),
    (mutant("one + other", "one +"), "no test could judge it"),
])
def test_the_instrument_can_fail(product: Path, what: Mutant, why: str) -> None:
    figures = run(product, what)
    assert not figures.holds
    assert len(figures.failures) == 1 and why in figures.failures[0] and "m:" in figures.failures[0], figures.failures


def test_tests_that_fail_anyway_prove_nothing(product: Path) -> None:
    with (product / "tests" / "test_sum.py").open("a") as file:
        file.write("\n\ndef test_always():\n    assert False\n")
    figures = run(product, mutant("return 1", "return 2"))
    assert figures.failures[0].startswith("on the unbroken code: tests/test_sum.py::test_always")


def test_tests_that_are_skipped_judge_nothing(product: Path) -> None:
    (product / "tests" / "test_sum.py").write_text(
        "import pytest\n\n\n@pytest.mark.skip(reason='no root')\ndef test_it():\n    pass\n")
    figures = run(product, mutant("one + other", "one - other"))
    assert any("no test could judge it: skipped" in failure for failure in figures.failures), figures.failures
    assert figures.mutants == {"m": ""}


def test_an_interrupted_run_goes_on_where_it_stopped(product: Path) -> None:
    first, second = mutant("one + other", "one - other"), mutant("one + other", "one * other", name="n")
    said: list[str] = []
    bench = budget_of(product.parent, said=said)
    diary = mutants._Diary(bench, product)
    diary.write(first, mutants.Outcome(2, 0.1, "tests/test_sum.py::noted", "earlier"))
    figures = mutants.run_mutants(bench, [first, second], product)
    assert figures.mutants == {"m": "tests/test_sum.py::noted", "n": "tests/test_sum.py::test_something"}
    assert [line.split(":")[0] for line in said] == ["n"]
    assert run(product, first).mutants == {"m": "tests/test_sum.py::test_something"}, "after a whole run it begins anew"


def test_what_there_was_no_time_for_is_said(product: Path) -> None:
    figures = mutants.run_mutants(budget_of(product.parent, seconds=0.000_001), [mutant("one + other", "one - other")], product)
    assert figures.failures == ["m: not run, the time was over"]
