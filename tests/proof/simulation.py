"""Deterministic simulation: the product's own stages on a simulated disk, clock and network, held against I1 to I9.

    python -m tests.proof.simulation --seed 7 --walks 100      walks 7 to 106
    python -m tests.proof.simulation --seed 23 --show          walk 23 alone, step by step
    python -m tests.proof.simulation --seed 7 --examples 200   200 examples of hypothesis, from seed 7
    python -m tests.proof.simulation --script FILE --show      what a failure left behind, step by step
    python -m tests.proof.simulation --break NAME              in how many walks that breakage of the core is found

A *walk* is all that one seed says: a setting, a script of weighted random steps
(`simulation_steps.VOCABULARY`), and the quiet end, in which every fault is over
and everything must come right. The same vocabulary drives a hypothesis state
machine. A failure is shortened to the steps that it needs; its line names the
seed and a file with the script, and either plays it again exactly.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.proof.figures import Budget, Figures
from tests.proof.mutants import copy
from tests.proof.simulation_breaks import BREAKS, Break, by_name
from tests.proof.simulation_oracle import CHECKS
from tests.proof.simulation_walk import Case, case_of, play, scratch, shrink

NAME = "simulation"
ABOUT = "the real stages on a simulated disk, clock and network; crashes at any step; I1 to I9 by a judge of its own"
REQUIREMENTS = ("I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9")

WALKS, QUICK_WALKS = 3000, 40
EXAMPLES, QUICK_EXAMPLES = 400, 10
BATCH = 20
"""Walks, or examples, of one process: what an interrupted run loses at most."""

BREAK_WALKS = 400
"""A breakage that is not found in so many walks is not found."""

ROOT = Path(__file__).resolve().parents[2]


# --- the instrument -------------------------------------------------------------------------------------------------------

def run(budget: Budget) -> Figures:
    """Breakages, walks, examples. What was done on this version of the code before is not done again."""
    figures = Figures(NAME)
    began = time.monotonic()
    diary = _Diary(budget)
    with ThreadPoolExecutor(max(1, budget.cores)) as pool:
        for each, found in pool.map(lambda b: (b, _broken(budget, diary, b, began)), _breaks(budget)):
            if found is not None:
                diary.write(found)
            else:
                figures.notes.append(f"breakage not tried, the time was over: {each.name}")
        for batch in pool.map(lambda b: _batch(budget, diary, b, began), _batches(budget)):
            if batch is not None:
                diary.write(batch)
    diary.sum_up(figures)
    figures.counts["seconds"] = round(time.monotonic() - began, 1)
    return figures


def _batches(budget: Budget) -> list[tuple[str, int, int]]:
    """(kind, first seed, how many) of all that is to be done."""
    walks, examples = (QUICK_WALKS, QUICK_EXAMPLES) if budget.quick else (WALKS, EXAMPLES)
    found = [("walks", budget.seed + at, min(BATCH, walks - at)) for at in range(0, walks, BATCH)]
    return found + [("examples", budget.seed + at, min(BATCH, examples - at)) for at in range(0, examples, BATCH)]


def _breaks(budget: Budget) -> list[Break]:
    return [each for each in BREAKS if each.quick or not budget.quick]


def _out_of_time(budget: Budget, began: float) -> bool:
    return bool(budget.seconds) and time.monotonic() - began > budget.seconds


def _batch(budget: Budget, diary: _Diary, batch: tuple[str, int, int], began: float) -> dict[str, Any] | None:
    kind, first, count = batch
    if (known := diary.known(f"{kind} {first} {count}")) is not None or _out_of_time(budget, began):
        return known
    result = _child(ROOT, "--seed", str(first), f"--{kind}", str(count), "--failures", str(budget.state))
    budget.say(f"{kind} {first} to {first + count - 1}: {result.get('steps', 0)} steps, {len(result['failures'])} failures")
    return {"case": f"{kind} {first} {count}", kind: count, **result}


def _broken(budget: Budget, diary: _Diary, each: Break, began: float) -> dict[str, Any] | None:
    """In which walk the breakage is found, and by which check."""
    if (known := diary.known(f"break {each.name}")) is not None or _out_of_time(budget, began):
        return known
    code = broken_copy(each, budget.folder / each.name.replace(" ", "-"))
    try:
        result = _child(code, "--seed", str(each.seed or budget.seed), "--walks", str(BREAK_WALKS), "--stop")
    finally:
        shutil.rmtree(code)
    budget.say(f"{each.name}: {result['caught'] or 'NOT FOUND'} in walk {result['done_walks']}")
    return {"case": f"break {each.name}", "mutant": each.name, "caught": result["caught"], "in": result["done_walks"]}


def broken_copy(each: Break, target: Path) -> Path:
    """A copy of the code with that breakage. ValueError where the text that it replaces is not there exactly once."""
    copy(target)
    for file, old, new in each.edits:
        path = target / file
        text = path.read_text()
        if text.count(old) != 1:
            raise ValueError(f"{each.name} does not apply any more: {text.count(old)} times in {file}")
        path.write_text(text.replace(old, new))
    return target


def _child(code: Path, *arguments: str) -> dict[str, Any]:
    """This module in a process of its own, on that copy of the code; its last line is the result."""
    done = subprocess.run([sys.executable, "-m", "tests.proof.simulation", *arguments, "--json"], cwd=code, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=3600, check=False)
    lines = done.stdout.strip().splitlines()
    try:
        result: dict[str, Any] = json.loads(lines[-1])
    except (ValueError, IndexError):
        text = " | ".join(lines[-3:])
        return {"failures": [f"{' '.join(arguments)}: ended with {done.returncode}: {text}"], "caught": "", "done_walks": 0}
    return result


class _Diary:
    """One line for each batch that was done, in the folder that survives. One that failed is done again."""

    def __init__(self, budget: Budget) -> None:
        budget.state.mkdir(parents=True, exist_ok=True)
        self._path = budget.state / "simulation.jsonl"
        self._version = budget.version
        self._lines: dict[str, dict[str, Any]] = {}
        self._mine: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            for line in self._path.read_text().splitlines():
                body = json.loads(line)
                if body["version"] == budget.version:
                    self._lines[body["case"]] = body

    def known(self, case: str) -> dict[str, Any] | None:
        return self._lines.get(case)

    def write(self, body: dict[str, Any]) -> None:
        self._mine[body["case"]] = body
        failed = body.get("failures") or ("mutant" in body and not body["caught"])
        if body["case"] not in self._lines and not failed:
            self._lines[body["case"]] = body
            with open(self._path, "a") as file:
                file.write(json.dumps({"version": self._version, **body}) + "\n")

    def sum_up(self, figures: Figures) -> None:
        checks: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        for body in self._mine.values():
            if "mutant" in body:
                figures.mutants[body["mutant"]] = f"{body['caught']} (walk {body['in']})" if body["caught"] else ""
                continue
            for name in ("walks", "examples", "steps"):
                counts[name] += body.get(name, 0)
            checks.update(body.get("checks", {}))
            figures.acknowledged += body.get("acknowledged", 0)
            figures.lost += body.get("lost", 0)
            figures.altered += body.get("altered", 0)
            figures.unaccounted += body.get("unaccounted", 0)
            figures.failures += body["failures"]
        figures.counts.update(counts, checks=sum(checks.values()), named_checks=len(CHECKS),
                              seeds=sum(body.get("walks", 1) for body in self._mine.values() if "mutant" not in body))
        if counts["walks"] >= QUICK_WALKS:
            figures.failures += [f"never asked: {name}" for name in CHECKS if not checks[name]]
        figures.notes += [f"{name}: {about} ({checks[name]} times)" for name, about in CHECKS.items()]


# --- by itself --------------------------------------------------------------------------------------------------------------

def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if getattr(options, "break"):
        return _try_break(by_name(getattr(options, "break")), options.seed)
    totals = Case(case_of(0).setting, [])
    failures: list[str] = []
    caught, walks = "", 0
    with scratch() as folder:
        for name, case in _cases(options, folder):
            walks += 1
            _add(totals, case)
            if case.found:
                caught = caught or case.found[0][0]
                failures.append(_failure(name, case, folder, options))
                if not options.json:
                    print(failures[-1], flush=True)
                if options.stop:
                    break
    if options.json:
        print(json.dumps({"steps": totals.steps, "acknowledged": totals.acknowledged, "lost": totals.lost,
                          "altered": totals.altered, "unaccounted": totals.unaccounted, "checks": totals.done,
                          "failures": failures, "caught": caught, "done_walks": walks}))
    else:
        print(f"{walks} cases, {totals.steps} steps, {totals.acknowledged} acknowledged, {len(failures)} failures")
        for check in CHECKS:
            print(f"{totals.done[check]:8}  {check}")
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.proof.simulation", description=ABOUT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--walks", type=int, default=0, help="so many walks, each with a seed of its own")
    parser.add_argument("--examples", type=int, default=0, help="so many examples of hypothesis, from one seed")
    parser.add_argument("--script", type=Path, help="a case that a failure left behind")
    parser.add_argument("--show", action="store_true", help="every step as it is done")
    parser.add_argument("--stop", action="store_true", help="end at the first failure, and do not shorten it")
    parser.add_argument("--failures", type=Path, help="folder for the scripts of failures")
    parser.add_argument("--json", action="store_true", help="one line at the end, for the instrument")
    parser.add_argument("--break", metavar="NAME", help="one of simulation_breaks.py")
    return parser


def _cases(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Case]]:
    """Each with the arguments that play it again."""
    def tell(line: str) -> None:
        if options.show:
            print(line, flush=True)
    if options.script:
        yield f"--script {options.script}", play(Case.from_json(json.loads(options.script.read_text())), folder, tell)
        return
    if options.examples:
        from tests.proof.simulation_machine import Machine, explore
        found = explore(options.seed, options.examples)
        totals = Machine.totals
        if found is not None:
            totals.setting, totals.script, totals.found = found.setting, found.script, found.found
        yield f"--seed {options.seed} --examples {options.examples}", totals
        return
    for seed in range(options.seed, options.seed + max(1, options.walks)):
        yield f"--seed {seed}", play(case_of(seed), folder, tell)


def _add(totals: Case, case: Case) -> None:
    for name in ("steps", "acknowledged", "lost", "altered", "unaccounted"):
        setattr(totals, name, getattr(totals, name) + getattr(case, name))
    totals.done.update(case.done)


def _failure(name: str, case: Case, folder: Path, options: argparse.Namespace) -> str:
    """One line that says what went wrong and how to see it again; its shortest script goes to a file."""
    check, detail = case.found[0]
    line = f"python -m tests.proof.simulation {name}: {check}: {detail}"
    if options.stop or options.script:
        return line
    short = case if options.examples else shrink(case, folder)
    target = (options.failures or Path("/tmp")) / f"simulation{name.replace('--', '').replace(' ', '-')}.json"
    target.write_text(json.dumps(short.as_json(), indent=1) + "\n")
    return f"{line} (or --script {target} --show: {len(short.script)} steps)"


def _try_break(each: Break, seed: int) -> int:
    with scratch() as folder:
        result = _child(broken_copy(each, folder / "code"), "--seed", str(seed), "--walks", str(BREAK_WALKS), "--stop")
    print(f"{each.name}: {result['caught'] or 'NOT FOUND'} in walk {result['done_walks']}")
    print("   " + " ".join(result["failures"])[:400])
    return 0 if result["caught"] else 1


if __name__ == "__main__":
    sys.exit(main())
