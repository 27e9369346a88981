"""The cases of the enumerated kills, each a line of text by which it is told apart and seen again.

    accept 17b 240a       the path, then one kill after another, each in a new run of it: at the entry (b) or at the
                          exit (a) of the so-many-th call that changes anything
    deliver 88B           the same, counted over all calls, those that only ask included
    run 41.5ms            after so much time, wherever it is then
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from tests.support.syscalls import AFTER, BEFORE

ROWS = 400
"""Chains of several kills in a row during start-up."""

MOMENTS = 700
"""Cases of kills at random moments."""

ASKING = 400
"""Kills at calls that only ask."""

START_UP = 90
"""Calls of a start, about: later ones belong to the work."""


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill. `at` is the number of a call, or 0: then `seconds` from the start count."""

    at: int = 0
    where: str = BEFORE
    asking: bool = False
    seconds: float = 0.0

    def __str__(self) -> str:
        if not self.at:
            return f"{1000 * self.seconds:.1f}ms"
        letter = "b" if self.where == BEFORE else "a"
        return f"{self.at}{letter.upper() if self.asking else letter}"


def kill_of(text: str) -> Kill:
    """The kill that a word of a case means. ValueError."""
    if text.endswith("ms"):
        return Kill(seconds=float(text[:-2]) / 1000)
    return Kill(int(text[:-1]), {"b": BEFORE, "a": AFTER}[text[-1].lower()], text[-1].isupper())


def parse(case: str) -> tuple[str, list[Kill]]:
    path, *kills = case.split()
    return path, [kill_of(kill) for kill in kills]


@dataclass(frozen=True, slots=True)
class Measured:
    """A path that was let be: its calls that change anything, all its calls, and its time in seconds."""

    calls: int
    asking: int
    seconds: float


def cases(measured: Mapping[str, Measured], seed: int) -> list[str]:
    """All cases of the full run, in an order in which a part of them is a fair sample.

    Each call of each path before and after it; each call of a run that comes after
    a kill; several kills in a row while starting; calls that only ask; moments.
    """
    dice = random.Random(seed)
    found: list[str] = []

    def add(path: str, *kills: Kill) -> None:
        found.append(" ".join([path, *map(str, kills)]))

    for path, size in measured.items():
        for at in range(1, size.calls + 1):
            add(path, Kill(at, BEFORE))
            add(path, Kill(at, AFTER))
            add(path, Kill(dice.randint(1, size.calls), dice.choice((BEFORE, AFTER))), Kill(at, (BEFORE, AFTER)[at % 2]))
    paths = sorted(measured)
    for n in range(ROWS):
        path = paths[n % len(paths)]
        first = Kill(dice.randint(1, measured[path].calls), dice.choice((BEFORE, AFTER)))
        add(path, first, *(Kill(dice.randint(1, START_UP), dice.choice((BEFORE, AFTER))) for _ in range(dice.randint(2, 5))))
    for n in range(ASKING):
        path = paths[n % len(paths)]
        add(path, Kill(dice.randint(1, measured[path].asking), dice.choice((BEFORE, AFTER)), asking=True))
    for n in range(MOMENTS):
        path = paths[n % len(paths)]
        add(path, *(Kill(seconds=round(dice.uniform(0.0005, measured[path].seconds), 4)) for _ in range(dice.randint(1, 3))))
    found = list(dict.fromkeys(found))
    dice.shuffle(found)
    return found
