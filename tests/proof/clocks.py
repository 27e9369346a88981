"""Wall clocks that are wrong at boot, and jump while the gateway works: nothing may change but labels and rules by the hour.

    twins        weeks of a lane and of a keeper lived twice, on a clock that is right and on one that jumps; the two
                 ledgers must be the same, row by row; and windows of the day on a clock that jumps (`clocks_twins`)
    processes    the real processes under libfaketime: 1970 at boot, ten years off, steps within a back-off and during
                 retention, and a clock that is set five times a second under load with kills (`clocks_real`)
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tests.proof import clocks_real, clocks_twins
from tests.proof.clocks_real import DAY, YEAR
from tests.proof.figures import Budget, CannotRun, Figures
from tests.proof.network_part import Part
from tests.support import faked

NAME = "clocks"
ABOUT = "a wall clock in 1970 at boot, ten years off, set in a back-off, during retention, and all the time"
REQUIREMENTS = ("I1", "I2", "I4", "I7")

QUICK_LIVES, LIVES = 4, 100

Case = tuple[str, Callable[[Budget, Part], None]]


def run(budget: Budget) -> Figures:
    """Every part. CannotRun without libfaketime."""
    if faked.library() is None:
        raise CannotRun("libfaketime is missing: run `.ci/setup peers` (Debian package faketime)")
    part = Part(Figures(NAME), budget.seed, budget.say)
    began = time.monotonic()

    def one(case: Case) -> None:
        name, work = case
        if budget.seconds and time.monotonic() - began > budget.seconds:
            part.note(f"{name}: not run, the time was over")
            return
        begun = time.monotonic()
        try:
            work(budget, part)
        except Exception as error:  # noqa: BLE001  a part that breaks is a failure of that part, and ends no other
            part.fail(f"{name}, seed {budget.seed}: {type(error).__name__}: {error}")
        part.set(f"seconds_of_{name}", round(time.monotonic() - begun, 1))

    with ThreadPoolExecutor(max(2, budget.cores)) as pool:
        list(pool.map(one, PARTS))
    return part.figures


def _twins(budget: Budget, part: Part) -> None:
    chance = random.Random(budget.seed)
    clocks_twins.run_twins(part, [chance.randrange(1 << 31) for _ in range(QUICK_LIVES if budget.quick else LIVES)])


def _boot(budget: Budget, part: Part) -> None:
    clocks_real.boot_in_1970(budget.folder / "boot", part, patient=not budget.quick)


def _back_off(years: float, budget: Budget, part: Part) -> None:
    clocks_real.step_in_a_back_off(budget.folder / f"back_off{years:+g}", part, years, 4 if budget.quick else 6)


def _retention(budget: Budget, part: Part) -> None:
    offsets = [10 * YEAR, -10 * YEAR] + ([] if budget.quick else [0.0, 30 * DAY, -55 * YEAR, 55 * YEAR, 0.0])
    clocks_real.retention(budget.folder / "retention", part, offsets)


def _wild(budget: Budget, part: Part) -> None:
    clocks_real.wild(budget.folder / "wild", part, 8.0 if budget.quick else 60.0)


PARTS: tuple[Case, ...] = (
    ("boot", _boot), ("retention", _retention), ("forward_in_a_back_off", partial(_back_off, 10.0)),
    ("back_in_a_back_off", partial(_back_off, -10.0)), ("wild", _wild), ("twins", _twins))
