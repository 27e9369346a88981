"""What an instrument of the proof is given, and what it answers.

An instrument is a module of this package with NAME, ABOUT, REQUIREMENTS and
`run(budget) -> Figures`. It is repeatable from `budget.seed`, keeps what it needs
to go on later in `budget.state`, and works in `budget.folder`, which is emptied
before and removed after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


class CannotRun(Exception):
    """This machine lacks what the instrument needs (loop devices, root, a program); the text says what."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may be done. `quick`: a sample, within a minute on 2 cores; else the whole of it.

    `seconds`: stop beginning new cases after that long (0: no bound). `cores`: most
    processes at once. `state`: a folder of this instrument that survives from run
    to run, for counts that add up; only cases that were run on the same `version`
    of the code may be added together. `say` shows progress, one line each.
    """

    folder: Path
    state: Path
    seed: int
    quick: bool
    seconds: float
    cores: int
    version: str
    say: Callable[[str], None]


@dataclass(slots=True)
class Figures:
    """The result of one instrument. The proof holds if every one has no failures, and lost, altered, unaccounted are 0.

    `counts`: what was tried, by name (states, kills, faults, cases, seeds,
    cpu_seconds, …). `acknowledged`: instances that a sender was told success for.
    `failures`: one line each that says what went wrong and how to see it again.
    `mutants`: name → the test that caught it, or "" where none did.
    """

    name: str
    counts: dict[str, int | float] = field(default_factory=dict)
    acknowledged: int = 0
    lost: int = 0
    altered: int = 0
    unaccounted: int = 0
    failures: list[str] = field(default_factory=list)
    mutants: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return not (self.failures or self.lost or self.altered or self.unaccounted or "" in self.mutants.values())

    def as_json(self) -> dict[str, Any]:
        """For `build/proof.json`; `Figures(**…)` takes it back."""
        return asdict(self)
