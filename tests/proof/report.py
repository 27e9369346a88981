"""What the proof says: `build/proof.json`, and the same as a table for people."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SUMMED = ("acknowledged", "lost", "altered", "unaccounted")


def totals(instruments: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """The sums over all instruments; a mutant is caught if a test is named for it."""
    sums = {name: sum(int(one[name]) for one in instruments.values()) for name in SUMMED}
    mutants = [test for one in instruments.values() for test in one["mutants"].values()]
    return {**sums, "mutants": len(mutants), "mutants_caught": sum(1 for test in mutants if test)}


def wanting(instruments: Mapping[str, Mapping[str, Any]], expected: Iterable[str], version: str) -> list[str]:
    """What keeps the proof from holding, one line each: instruments that failed, never ran, or ran on other code."""
    lines = []
    for name in sorted({*expected, *instruments}):
        one = instruments.get(name)
        if one is None:
            lines.append(f"{name}: not run")
        elif one["result"] != "holds":
            lines.append(f"{name}: {one['result']}{': ' if one['reason'] else ''}{one['reason']}")
        elif one["version"] != version:
            lines.append(f"{name}: run on other code ({one['commit']})")
    return lines


def tried(one: Mapping[str, Any]) -> str:
    """The counts of an instrument, as "3,000 states, 12 seeds"."""
    return ", ".join(f"{number(value)} {name.replace('_', ' ')}" for name, value in one["counts"].items()) or "nothing"


def number(value: float) -> str:
    """As people read it: whole from 100 on, else with two decimals at most."""
    return f"{value:,.0f}" if value % 1 == 0 or abs(value) >= 100 else f"{value:.2f}"


def table(proof: Mapping[str, Any]) -> str:
    """`build/proof.md`."""
    about = f"commit {proof['commit']}, {proof['ended']}, seed {proof['seed']}, {proof['seconds']:.0f} s"
    lines = [f"# Proof: {'holds' if proof['holds'] else 'DOES NOT HOLD'}", "",
             about + (", a quick sample" if proof["quick"] else ""), "",
             "| instrument | result | tried | acknowledged | lost | altered | unaccounted | s |",
             "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    for name, one in proof["instruments"].items():
        sums = " | ".join(f"{one[key]:,}" for key in SUMMED)
        lines.append(f"| {name} | {one['result']} | {tried(one)} | {sums} | {one['seconds']:.0f} |")
    sums = " | ".join(f"{proof['totals'][key]:,}" for key in SUMMED)
    caught = f"{proof['totals']['mutants_caught']} of {proof['totals']['mutants']} mutants caught"
    lines.append(f"| **all** | | {caught} | {sums} | |")
    parts = {"Wanting": proof["wanting"], "Failures": _lines(proof, "failures"), "Notes": _lines(proof, "notes")}
    for title, found in parts.items():
        if found:
            lines += ["", f"## {title}", "", *(f"- {line}" for line in found)]
    mutants = {mutant: test for one in proof["instruments"].values() for mutant, test in one["mutants"].items()}
    if mutants:
        lines += ["", "## Mutants", "", "| breakage | caught by |", "| --- | --- |",
                  *(f"| {mutant} | {test or '**nothing**'} |" for mutant, test in mutants.items())]
    return "\n".join(lines) + "\n"


def _lines(proof: Mapping[str, Any], key: str) -> list[str]:
    return [f"{name}: {line}" for name, one in proof["instruments"].items() for line in one[key]]


def read(file: Path) -> dict[str, Any]:
    """The proof in the file, or {} where there is none that can be read."""
    try:
        found = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) and "instruments" in found else {}


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Nobody else reads it, adds to it and writes it meanwhile: two runs of different instruments may end at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write(proof: Mapping[str, Any], file: Path) -> None:
    """The JSON and, beside it, the table."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.write_text(json.dumps(proof, indent=1) + "\n")
    new.rename(file)
    file.with_suffix(".md").write_text(table(proof))
