"""Power cuts, block by block: whatever a disk may hold after the power failed, nothing acknowledged is lost, and it goes on.

A case records the life of a gateway under load on a disk that logs every write
and flush (power_cuts_life), builds the disks that a power cut may leave of it
(everything up to a flush, of what came later any subset, torn at 512 bytes),
starts the product up on each and judges it (power_cuts_judge, power_cuts_case):
ext4 and XFS, around the page cache and through it.

A life is a race of real processes, so a seed alone does not repeat it: the
record of a case that failed is kept in the state folder, and its line names the
command that looks at it again. `cases.jsonl` has one line for each case.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from tests.proof.figures import Budget, CannotRun, Figures
from tests.proof.power_cuts_case import Case, Result
from tests.proof.power_cuts_inside import MISTAKES
from tests.support.crash import why_not

NAME = "power_cuts"
ABOUT = "disks that a power cut may leave, at every flush of a gateway's life under load, on ext4 and XFS"
REQUIREMENTS = ("I1", "I2", "I3", "I4")

ROOT = Path(__file__).resolve().parents[2]
STATES, QUICK_STATES = 300, 60
ROUNDS = 8
"""Lives of each file system and way of writing in a whole run: 4 of them a round."""

HUNT = 150
"""A mistake has to show within so many states."""

INVISIBLE = ("slots not synced", "digest not checked at start")
"""Mistakes that neither ext4 nor XFS punishes. Their journals are written in order: the sync of an object's file makes the
folder durable that it was made in before, and a file's length never becomes durable before the data that was written first.
POSIX promises nothing of the kind."""

EVERY_HOW = tuple((kind, direct) for kind in ("ext4", "xfs") for direct in (True, False))


def run(budget: Budget) -> Figures:
    """See `figures`. CannotRun where this machine has no FUSE, no loop devices or no mkfs, or we are not root."""
    if reason := why_not(budget.folder):
        raise CannotRun(reason)
    figures, began = Figures(NAME), time.monotonic()
    book = budget.state / "cases.jsonl"
    done = list(_written(book, budget.version))
    if budget.quick:
        wanted = [Case(kind, direct, budget.seed, QUICK_STATES, goes_on=20) for kind, direct in EVERY_HOW]
        done = []
    else:
        wanted = [Case(kind, direct, budget.seed + number, STATES) for number in range(ROUNDS) for kind, direct in EVERY_HOW]
        wanted = [case for case in wanted if case.name not in {name for name, _ in done}] or [
            Case(kind, direct, budget.seed + len(done), STATES) for kind, direct in EVERY_HOW]
    for case, result in in_parallel(wanted, budget):
        done.append((case.name, result))
        with book.open("a") as out:
            out.write(json.dumps({"version": budget.version, "case": case.name, **asdict(result)}) + "\n")
    for _, result in done:
        add(figures, result)
    left = budget.seconds - (time.monotonic() - began)
    if not budget.quick and (left > 0 or not budget.seconds):
        hunt(figures, replace(budget, seconds=max(left, 0.0)))
    return figures


def add(figures: Figures, result: Result) -> None:
    """Sum one case up."""
    figures.acknowledged += result.acknowledged
    figures.lost += result.lost
    figures.altered += result.altered
    figures.unaccounted += result.unaccounted
    figures.failures += result.failures
    counts = {"cases": 1, "states": result.states + result.second + result.third, "states_of_lives": result.states,
              "states_of_recoveries": result.second, "states_two_deep": result.third, "went_on": result.went_on,
              "flushes": result.flushes, "promises": result.promises, "adopted": result.adopted,
              "remnants": result.remnants, "torn_file_systems": result.unmountable, "not_judged": result.broken,
              "seconds": result.seconds}
    for name, count in counts.items():
        figures.counts[name] = figures.counts.get(name, 0) + count


def hunt(figures: Figures, budget: Budget, names: Iterable[str] = tuple(MISTAKES)) -> None:
    """Break the product on purpose: each mistake has to show on one of the file systems at least."""
    cases = [Case(kind, name != "objects not synced", budget.seed, HUNT, mistakes=(name,), first=True)
             for name in names for kind in ("ext4", "xfs")]
    caught: dict[str, list[str]] = {}
    for case, result in in_parallel(cases, budget):
        where_of = caught.setdefault(case.mistakes[0], [])
        if result.caught > 0:
            where_of.append(f"{case.kind} at state {result.caught}")
        else:
            why = result.failures[0][:200] if result.failures else f"not seen in {result.states} states"
            figures.notes.append(f"{case.mistakes[0]}, {case.kind}: {why}")
    figures.mutants |= {name: ", ".join(where) for name, where in caught.items() if where or name not in INVISIBLE}


# --- cases in processes -----------------------------------------------------------------------------------------------


def in_parallel(cases: list[Case], budget: Budget) -> Iterator[tuple[Case, Result]]:
    """Each case with its result, as they end; none is begun after the budget's time. A process that dies is a failure."""
    end = time.monotonic() + budget.seconds if budget.seconds else float("inf")
    running: dict[str, subprocess.Popen[str]] = {}

    def one(case: Case) -> tuple[Case, Result] | None:
        return (case, run_case(case, budget.folder / case.name, budget.state / "failed" / case.name, budget.say,
                               running)) if time.monotonic() < end else None

    pool = ThreadPoolExecutor(max(1, budget.cores))
    try:
        for future in [pool.submit(one, case) for case in cases]:
            if (found := future.result()) is not None:
                yield found
    finally:
        end = 0.0
        for process in list(running.values()):
            process.terminate()
        pool.shutdown(cancel_futures=True)


def run_case(case: Case, work: Path, kept: Path, say: Callable[[str], None],
             running: dict[str, subprocess.Popen[str]] | None = None) -> Result:
    """One case in a process of its own; what it says on the way goes to `say`."""
    log = work.with_name(work.name + ".log")
    for left in _folders(kept):
        shutil.rmtree(left, ignore_errors=True)
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.proof.power_cuts_case", json.dumps(asdict(case)), str(work), str(kept)], cwd=ROOT,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True)
    if running is not None:
        running[case.name] = process
    result: Result | None = None
    assert process.stdout is not None
    try:
        for line in process.stdout:
            try:
                told: dict[str, Any] = json.loads(line)
            except ValueError:                        # half a line of one that was killed, or of a program it runs
                say(f"{case.name}: {line.strip()[:200]}")
                continue
            if "say" in told:
                say(told["say"])
            else:
                result = Result(**told["result"])
    finally:
        process.stdout.close()
        if result is None:
            process.terminate()
        process.wait(60)
        if running is not None:
            running.pop(case.name, None)
    if result is None:
        tail = " | ".join(log.read_text(errors="replace").splitlines()[-6:])
        kept.parent.mkdir(parents=True, exist_ok=True)
        said = kept.with_name(f"{kept.name}.log")
        shutil.copy(log, said)
        return Result(failures=[f"{case.name}: the case ended with {_ending(process.returncode)}: {tail[-800:]} (all of it:"
                                f" {said})"])
    result.failures += [f"see again: python -m tests.proof.power_cuts_case again {folder}" for folder in _folders(kept)]
    return result


def _ending(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"


def _folders(kept: Path) -> list[Path]:
    """What a case kept: the record of its life, and those of recoveries."""
    return [folder for folder in (kept, *sorted(kept.parent.glob(f"{kept.name}-recovery*"))) if folder.is_dir()]


def _written(book: Path, version: str) -> Iterator[tuple[str, Result]]:
    """Whole cases of earlier runs on the same code."""
    names = {each.name for each in fields(Result)}
    for line in book.read_text().splitlines() if book.exists() else ():
        with suppress(ValueError, KeyError):      # a line that was being written when the run was ended
            found = json.loads(line)
            if found["version"] == version and found["states"] >= STATES:
                yield found["case"], Result(**{name: value for name, value in found.items() if name in names})
