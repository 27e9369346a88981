"""I/O errors: each call of one scripted life fails once, in each way; the disk is slow; the disk goes and comes back.

The calls are counted by a FUSE folder under the spool (`tests.support.faultfs`),
over all three stages, and a case is one of them: class of file, kind of call, its
number, and what becomes of it (EIO, EROFS, ENOSPC, EDQUOT, half a write). First
comes one number of each kind, then the next of each, in an order made from the
seed; `state` remembers what was tried on this version of the code, so that runs
add up to all of them.
"""

from __future__ import annotations

import errno
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.proof.figures import Budget, CannotRun, Figures
from tests.proof.io_errors_life import FULL_ERRORS, IO_ERRORS, Outcome, Stand, stand
from tests.support.faultfs import ALWAYS, Rule
from tests.support.peers import NoPeer
from tests.support.warm import nursery

NAME = "io_errors"
ABOUT = "EIO, EROFS, ENOSPC, EDQUOT and short writes at every call of a life; a slow disk; a disk that goes and comes back"
REQUIREMENTS = ("I1", "I2", "I3", "I6")

ERRORS = (*IO_ERRORS, *FULL_ERRORS)
OPS = {
    "object": ("create", "open", "write", "sync", "truncate", "unlink", "rename"),
    "folder": ("sync",),
    "quarantine": ("create", "write", "sync", "rename"),
    "ledger": ("open", "write", "sync", "truncate"),
    "wal": ("create", "open", "write", "sync"),
    "shm": ("create", "open", "write", "truncate"),
    "index": ("create", "open", "write", "sync"),
}
"""What is spoiled, by class of file: all by which a spool is written, and the opening of what is in it."""

SLOW = (0.05, 0.25, 1.0, 5.0, 30.0)
AWAY = (0.2, 3.0)
QUICK_CASES = 11

STANDS = 3
"""Of each core: a life is mostly waiting, for a quiet second or for a start."""


@dataclass(frozen=True, slots=True)
class Case:
    """One fault. `rule` None: `slow` or `away` seconds."""

    name: str
    rule: Rule | None = None
    slow: float = 0.0
    away: float = 0.0

    def run(self, place: Stand, seed: int) -> Outcome:
        if self.rule is not None:
            return place.live([self.rule], (seed, self.name))
        return place.slow(self.slow, (seed, self.name)) if self.slow else place.gone(self.away, (seed, self.name))


def cases(counts: dict[tuple[str, str], int], seed: int) -> Iterator[Case]:
    """Every case there is after a life with so many calls: groups in turn, numbers within each in an order of the seed.

    The last of a group are the faults that stay.
    """
    groups: list[list[Case]] = []
    for where, ops in OPS.items():
        for op in ops:
            calls = counts.get((where, op), 0)
            for error in ERRORS if calls else ():
                groups.append([_case(Rule(where, op, n, error)) for n in range(1, calls + 1)])
                groups.append([_case(Rule(where, op, n, error, times=ALWAYS)) for n in {1, 1 + calls // 2}])
            if op == "write" and calls:
                groups.append([_case(Rule(where, op, n, short=part)) for n in range(1, calls + 1) for part in (0.5, 0.0)])
    groups.append([Case(f"slow {seconds:g} s", slow=seconds) for seconds in SLOW])
    groups.append([Case(f"away {seconds:g} s", away=seconds) for seconds in AWAY])
    dice = random.Random(seed)
    for group in groups:
        dice.shuffle(group)
    dice.shuffle(groups)
    for turn in range(max(len(group) for group in groups)):
        yield from (group[turn] for group in groups if turn < len(group))


def _case(rule: Rule) -> Case:
    what = errno.errorcode[rule.error] if rule.error else f"short-{rule.short:g}"
    return Case(f"{what} {rule.where} {rule.op} {rule.first}" + ("+" if rule.times > 1 else ""), rule)


class Record:
    """What was tried on this version, a line each; the last line of a case counts."""

    def __init__(self, path: Path, version: str) -> None:
        self._path = path
        self._version = version
        self._lock = threading.Lock()
        self.done: dict[str, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:      # the run was ended in the middle of a line
                    continue
                if entry["version"] == version:
                    self.done[entry["case"]] = entry

    def add(self, case: str, seed: int, outcome: Outcome) -> None:
        verdict = outcome.verdict
        notes = [note for note in verdict.notes if not verdict.holds or "quarantine" in note]
        entry = {"version": self._version, "case": case, "seed": seed, "hits": len(outcome.hits),
                 "acknowledged": verdict.acknowledged, "lost": verdict.lost, "altered": verdict.altered,
                 "unaccounted": verdict.unaccounted, "aside": verdict.set_aside, "wrong": outcome.wrong, "notes": notes,
                 "elsewhere": outcome.elsewhere, "slowest": round(outcome.slowest, 2)}
        with self._lock:
            self.done[case] = entry
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps(entry) + "\n")

    def good(self, case: str) -> bool:
        """Whether it was tried and all was well: what was not is tried again."""
        entry = self.done.get(case)
        return entry is not None and not (entry["wrong"] or entry["lost"] or entry["altered"] or entry["unaccounted"])


def run(budget: Budget) -> Figures:
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise CannotRun("root and /dev/fuse are needed: the disk that fails is a FUSE folder")
    record = Record(budget.state / "cases.jsonl", budget.version)
    began = time.monotonic()
    with ExitStack() as stack:
        workers = max(1, budget.cores) * (1 if budget.quick else STANDS)
        try:
            starts = stack.enter_context(nursery())
            places = [stack.enter_context(stand(budget.folder / f"stand{n}", starts)) for n in range(workers)]
        except NoPeer as error:
            raise CannotRun(str(error)) from error
        plain = places[0].live([], (budget.seed, "no fault"))
        record.add("no fault", budget.seed, plain)
        everything = list(cases(plain.counts, budget.seed))
        chosen = everything[:QUICK_CASES] if budget.quick else [case for case in everything if not record.good(case.name)]
        budget.say(f"{len(everything)} cases, {len(chosen)} of them now")
        names = _try_all(budget, places, chosen, record, began)
        if budget.quick:
            return figures([record.done[name] for name in ("no fault", *names)], len(everything))
    return figures(list(record.done.values()), len(everything))


def _try_all(budget: Budget, places: list[Stand], chosen: list[Case], record: Record, began: float) -> list[str]:
    """Each stand takes the next case when it is done with the last; names of those that were run."""
    left = iter(chosen)
    lock = threading.Lock()
    tried: list[str] = []

    def work(place: Stand) -> None:
        while not budget.seconds or time.monotonic() - began < budget.seconds:
            with lock:
                case = next(left, None)
            if case is None:
                return
            try:
                outcome = case.run(place, budget.seed)
            except Exception as error:  # noqa: BLE001  top of a case: whatever it is, the others are tried
                outcome = Outcome(wrong=[f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"])
            record.add(case.name, budget.seed, outcome)
            with lock:
                tried.append(case.name)
                if outcome.wrong or not outcome.verdict.holds:
                    budget.say(f"{case.name}: {'; '.join(outcome.wrong)} {outcome.verdict.as_text()}")
                elif len(tried) % 10 == 0:
                    budget.say(f"{len(tried)} of {len(chosen)} cases, {time.monotonic() - began:.0f} s")

    with ThreadPoolExecutor(len(places)) as pool:
        for done in [pool.submit(work, place) for place in places]:
            done.result()
    return tried


def figures(entries: list[dict[str, Any]], of: int) -> Figures:
    """The sum of what was tried."""
    found = Figures(NAME)
    found.counts = {"cases": len(entries), "cases_in_all": of, "faults": sum(e["hits"] for e in entries),
                    "not_reached": sum(not e["hits"] for e in entries),
                    "set_aside": sum(e["aside"] for e in entries),
                    "slowest_answer_seconds": max((e["slowest"] for e in entries), default=0.0),
                    "successes_after_errors_of_other_stages": sum(e["elsewhere"] for e in entries)}
    for name in ("acknowledged", "lost", "altered", "unaccounted"):
        setattr(found, name, sum(e[name] for e in entries))
    for entry in entries:
        what = [*entry["wrong"], *(entry["notes"] if entry["lost"] or entry["altered"] or entry["unaccounted"] else ())]
        if what:
            found.failures.append(f"{entry['case']} (seed {entry['seed']}): {'; '.join(what)}"[:1000])
    return found
