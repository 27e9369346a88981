"""SIGKILL at every system call of taking, delivering and retiring an image and of every start after it, and at any moment.

Two kinds, one judge (oracle.py): *enumerated* kills of real stages that are forks
of a process which has imported everything (kills_ground.py, hundreds a minute),
each case judged as the dead process left it and again when the gateway has come
to rest; and *rounds* with the real processes under load (kills_rounds.py). What
reached the kernel survives a kill, so this proves crashes, not power cuts.

`state/kills.jsonl` has a line for each case that was done; a later run on the
same code adds to it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.proof import kills_rounds
from tests.proof.figures import Budget, CannotRun, Figures
from tests.proof.kills_cases import Measured, cases
from tests.support import syscalls
from tests.support.memory import in_memory

NAME = "kills"
ABOUT = "SIGKILL at every system call of accept, deliver, retire and recovery, and at random moments"
REQUIREMENTS = ("I1", "I2", "I3", "I4", "I9")

ROOT = Path(__file__).resolve().parents[2]
NEEDED = 512 << 20
PLACE = "dcmgate-kills-"

ROUNDS = 300
QUICK_CASES, QUICK_ROUNDS = 150, 6
WORKERS = 2
"""Of each core: half of a case is waiting for the gateway to come to rest."""

SLICE = 20
"""Rounds that are one case of the state."""


def run(budget: Budget) -> Figures:
    """See `figures`. CannotRun where processes cannot be traced."""
    if why := syscalls.available():
        raise CannotRun(f"system calls cannot be watched: {why}")
    figures = Figures(NAME)
    book = Book(budget.state / "kills.jsonl", budget.version)
    deadline = time.monotonic() + budget.seconds if budget.seconds else float("inf")
    if budget.quick:                             # a few rounds on a busy machine could take all of the time
        _enumerated(budget, book, deadline - 0.3 * budget.seconds)
        _rounds(budget, book, deadline)
    else:
        _rounds(budget, book, deadline)
        _enumerated(budget, book, deadline)
    book.sum_up(figures)
    return figures


class Book:
    """The cases that are done, in a file of JSON lines. `add` may be called from any thread.

    `broken`: cases in which the instrument itself failed. They are failures of this run; the next one tries them again.
    """

    def __init__(self, path: Path, version: str) -> None:
        self.path, self.version = path, version
        self.done: dict[str, dict[str, Any]] = {}
        self.broken: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            for line in path.read_text().splitlines():
                with suppress(ValueError):       # the last line of a run that was killed
                    entry = json.loads(line)
                    if entry["version"] == version:
                        self.done[entry["case"]] = entry

    def add(self, entry: dict[str, Any]) -> None:
        with self._lock:
            if entry.get("broken"):
                self.broken[entry["case"]] = entry
                return
            self.done[entry["case"]] = {"version": self.version, **entry}
            with self.path.open("a") as file:
                file.write(json.dumps(self.done[entry["case"]]) + "\n")

    def kills(self) -> int:
        with self._lock:
            return sum(entry["kills"] for entry in self.done.values())

    def sum_up(self, figures: Figures) -> None:
        calls: dict[str, Counter[str]] = {}
        counts: Counter[str] = Counter()
        seconds = 0.0
        for case, entry in sorted((self.done | self.broken).items()):
            path = case.split()[0]
            counts["cases"] += 1
            counts["kills"] += entry["kills"]
            counts[f"kills {path}"] += entry["kills"]
            counts["kills during a start or run after a kill"] += max(0, entry["kills"] - 1) if path != "rounds" else 0
            counts["kills at a moment"] += entry["at"].count("")
            seconds += entry["seconds"]
            calls.setdefault(path, Counter()).update(call for call in entry["at"] if call)
            for name in ("acknowledged", "lost", "altered", "unaccounted"):
                setattr(figures, name, getattr(figures, name) + entry[name])
            if entry["failures"] or entry["lost"] or entry["altered"] or entry["unaccounted"]:
                figures.failures.append(f"{case!r}: {'; '.join(entry['failures'])[:1500]}"
                                        f" — again: python -m tests.proof.kills {case!r}")
        figures.counts = {**counts, "seconds of cases": round(seconds, 1)}
        for path, found in sorted(calls.items()):
            if found:
                figures.notes.append(f"{path}: killed at {', '.join(f'{n} {call}' for call, n in found.most_common())}")


# --- enumerated kills -------------------------------------------------------------------------------------------------


def _enumerated(budget: Budget, book: Book, deadline: float) -> None:
    with ExitStack() as stack:
        crew = [stack.enter_context(worker(budget.folder)) for _ in range(budget.cores * (1 if budget.quick else WORKERS))]
        todo = [case for case in cases(crew[0].measured, budget.seed) if case not in book.done]
        if budget.quick:
            todo = todo[:max(0, QUICK_CASES - len(book.done))]
        line = iter(todo)
        lock = threading.Lock()
        said = time.monotonic()

        def next_case() -> str | None:
            nonlocal said
            with lock:
                if time.monotonic() > deadline:
                    return None
                if time.monotonic() - said > 10:
                    said = time.monotonic()
                    budget.say(f"{book.kills()} kills, {len(book.done)} cases")
                return next(line, None)

        threads = [threading.Thread(target=_work, args=(each, next_case, book)) for each in crew]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _work(worker: Worker, next_case: Callable[[], str | None], book: Book) -> None:
    while (case := next_case()) is not None:
        entry = worker.ask(case)
        book.add(entry)
        if entry.get("gone"):
            return


class Worker:
    """A `kills_worker`. `measured`: what its paths are without a kill."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        answer = self._line()
        if answer is None:
            raise AssertionError("a worker of the kills did not come up")
        self.measured = {name: Measured(**values) for name, values in answer.items()}

    def ask(self, case: str) -> dict[str, Any]:
        """The entry of that case."""
        assert self._process.stdin is not None
        answer = None
        with suppress(BrokenPipeError):
            self._process.stdin.write(case + "\n")
            self._process.stdin.flush()
            answer = self._line()
        if answer is None:
            return {"case": case, "kills": 0, "at": [], "acknowledged": 0, "lost": 0, "altered": 0, "unaccounted": 0,
                    "failures": ["the worker ended"], "seconds": 0.0, "broken": True, "gone": True}
        return answer

    def _line(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return dict(json.loads(line)) if line else None


@contextmanager
def worker(folder: Path, *breakage: str) -> Iterator[Worker]:
    """A worker on a place in memory, where there is room: a kill asks nothing of a disk. `breakage`: see kills_worker."""
    with in_memory(PLACE, NEEDED, folder) as place:
        process = subprocess.Popen([sys.executable, "-m", "tests.proof.kills_worker", str(place), *breakage], cwd=ROOT,
                                   text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   env={**os.environ, "PYTHONPATH": str(ROOT)})
        try:
            yield Worker(process)
        finally:
            with suppress(BrokenPipeError):
                process.communicate(timeout=60)
            process.kill()
            process.wait()


# --- rounds with the real processes -----------------------------------------------------------------------------------


def _rounds(budget: Budget, book: Book, deadline: float) -> None:
    size, count = (QUICK_ROUNDS, 1) if budget.quick else (SLICE, ROUNDS // SLICE)
    dice = random.Random(budget.seed)
    for _ in range(count):
        seed = dice.randrange(1 << 32)
        case = f"rounds {seed} {size}"
        if case in book.done or time.monotonic() > deadline:
            continue
        budget.say(f"{size} rounds with the real processes, seed {seed}")
        book.add(rounds_entry(budget.folder / f"rounds-{seed}", seed, size))


def rounds_entry(folder: Path, seed: int, size: int) -> dict[str, Any]:
    """Rounds as a case. What goes wrong in them is its failure."""
    begin = time.monotonic()
    entry: dict[str, Any] = {"case": f"rounds {seed} {size}", "kills": 0, "at": [], "acknowledged": 0, "lost": 0, "altered": 0,
                             "unaccounted": 0, "failures": []}
    try:
        verdict, killed = kills_rounds.rounds(folder, size, seed)
        entry |= {"kills": len(killed), "at": [""] * len(killed), "acknowledged": verdict.acknowledged, "lost": verdict.lost,
                  "altered": verdict.altered, "unaccounted": verdict.unaccounted, "failures": verdict.notes}
    except AssertionError as e:
        entry["failures"] = [str(e)[:2000]]
    shutil.rmtree(folder, ignore_errors=True)
    return {**entry, "seconds": round(time.monotonic() - begin, 1)}


def again(case: str) -> dict[str, Any]:
    """One case by itself: how a failure is seen again."""
    with tempfile.TemporaryDirectory() as folder:
        path, *words = case.split()
        if path == "rounds":
            return rounds_entry(Path(folder) / "rounds", int(words[0]), int(words[1]))
        with worker(Path(folder)) as one:
            return one.ask(case)


if __name__ == "__main__":
    for case in sys.argv[1:]:
        print(json.dumps(again(case), indent=1))
