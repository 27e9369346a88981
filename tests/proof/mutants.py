"""Mutation check of the checks: the product is broken on purpose, and the suite has to notice (issue 3, item 10).

Each entry of mutants.toml is applied to a copy of `appliance/` and `tests/`: a
text that occurs exactly once is replaced. Then the tests that are named for it
run on that copy. A mutant is caught when one of them fails; the same tests pass
on an unbroken copy, which is looked at first. Fails where a mutant survives,
does not apply any more, cannot even be imported, or is caught later than stated.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import tomllib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tests.proof.figures import Budget, Figures

NAME = "mutants"
ABOUT = "deliberate breakages of the product, each caught by the suite"
REQUIREMENTS = ("I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9")

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(__file__).with_suffix(".toml")
COPIED = ("appliance", "tests", "pyproject.toml")
PATIENCE = 240.0
"""Seconds for one run of tests."""

MOST = 3
"""Copies that run at once."""


class DoesNotApply(Exception):
    """The text that a mutant replaces is not there exactly once: the entry has to follow the code."""


@dataclass(frozen=True, slots=True)
class Edit:
    """`old`, which occurs exactly once in `file`, becomes `new`."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """One breakage. Caught by one of `tests` (pytest's node ids), at the latest by the `within`th test that is run.

    `states` is how many crash states, walks or examples a test that counts them may look at; 0: those of `make test`.
    """

    name: str
    about: str
    requirement: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]
    within: int
    states: int = 0
    quick: bool = False

    @property
    def environment(self) -> dict[str, str]:
        """What the tests read their number of states from."""
        names = ("DCMGATE_CRASH_STATES", "DCMGATE_WALKS", "DCMGATE_EXAMPLES")
        return dict.fromkeys(names, str(self.states)) if self.states else {}


@dataclass(frozen=True, slots=True)
class Outcome:
    """`ran` tests in `seconds`; `failed` is the first that failed, `why` how; `broken`: why nothing could be judged."""

    ran: int
    seconds: float
    failed: str = ""
    why: str = ""
    broken: str = ""


def load(path: Path = DATA) -> list[Mutant]:
    """The mutants of a file. ValueError where two have the same name."""
    entries = tomllib.loads(path.read_text())["mutant"]
    mutants = [Mutant(**{**entry, "tests": tuple(entry["tests"]), "edits": tuple(Edit(**edit) for edit in entry["edits"])})
               for entry in entries]
    names = [mutant.name for mutant in mutants]
    if len(set(names)) != len(names):
        raise ValueError(f"the same name twice in {path}")
    return mutants


def copy(target: Path, root: Path = ROOT) -> Path:
    """The code as it is, in a new folder; compiled files go with it, they know their source by its time."""
    target.mkdir(parents=True)
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, target / name)
        else:
            shutil.copy2(root / name, target / name)
    return target


def interpreter(target: Path, code: Path) -> Path:
    """A virtual environment in a new folder: our libraries, and the product from `code` whatever a process is started with.

    The limited children run isolated (`python -I`): no variable and no current folder leads them to the copy.
    """
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = target / "lib" / version / "site-packages"
    packages.mkdir(parents=True)
    (target / "bin").mkdir()
    base = Path(getattr(sys, "_base_executable", sys.executable))
    (target / "pyvenv.cfg").write_text(f"home = {base.parent}\n")
    # The libraries' own .pth files are not read: what is installed in place stays out of the way.
    (packages / "mutant.pth").write_text(f"{code}\n{sysconfig.get_path('purelib')}\n")
    for name in ("python", "python3", version):
        (target / "bin" / name).symlink_to(base)
    return target / "bin" / "python"


def run(budget: Budget) -> Figures:
    return run_mutants(budget, [mutant for mutant in load() if mutant.quick or not budget.quick])


def run_mutants(budget: Budget, mutants: Sequence[Mutant], root: Path = ROOT) -> Figures:
    """The unbroken copy first, then every mutant; what an interrupted run has done already is not done again."""
    figures = Figures(NAME)
    bench = _Bench(budget, root)
    diary = _Diary(budget, root)
    begin = time.monotonic()
    applying = [mutant for mutant in mutants if _applies(mutant, bench, figures)]
    jobs = min(MOST, max(1, budget.cores))
    with ThreadPoolExecutor(jobs) as pool:
        for unsound in pool.map(lambda group: _unbroken(bench, *group), _groups(applying)):
            figures.failures += unsound
        late = [mutant for mutant in applying if not diary.knows(mutant)]
        for mutant, outcome in pool.map(lambda m: (m, _tried(bench, m, begin)), late):
            if outcome is not None:
                diary.write(mutant, outcome)
    told = 0.0
    for mutant in applying:
        found = diary.found.get(mutant.name)
        if found is None:
            figures.failures.append(f"{mutant.name}: not run, the time was over")
            continue
        told += found.seconds
        _judge(mutant, found, figures)
    figures.counts.update(mutants=len(mutants), mutants_caught=sum(bool(test) for test in figures.mutants.values()),
                          tests_run=sum(found.ran for found in diary.found.values()), test_seconds=round(told, 1),
                          seconds=round(time.monotonic() - begin, 1))
    diary.close(complete=len(diary.found) >= len(applying))
    return figures


def _applies(mutant: Mutant, bench: _Bench, figures: Figures) -> bool:
    try:
        bench.broken(mutant)
    except DoesNotApply as error:
        figures.failures.append(f"{mutant.name}: does not apply any more: {error}")
        figures.mutants[mutant.name] = ""
        return False
    return True


def _groups(mutants: Iterable[Mutant]) -> list[tuple[list[str], dict[str, str]]]:
    """All tests that are named, once for each number of states."""
    groups: dict[int, dict[str, None]] = {}
    for mutant in mutants:
        groups.setdefault(mutant.states, {}).update(dict.fromkeys(mutant.tests))
    return [(list(tests), Mutant("", "", "", (), (), 0, states).environment) for states, tests in groups.items()]


def _unbroken(bench: _Bench, tests: list[str], environment: dict[str, str]) -> list[str]:
    """They must pass as long as nothing is broken, or they prove nothing: what is wrong with them."""
    outcome = bench.test({}, tests, environment, patience=3 * PATIENCE)
    if not outcome.failed and not outcome.broken:
        return []
    return [f"on the unbroken code: {outcome.failed or 'no test was run'}: {outcome.why or outcome.broken}"]


def _tried(bench: _Bench, mutant: Mutant, begin: float) -> Outcome | None:
    if bench.budget.seconds and time.monotonic() - begin > bench.budget.seconds:
        return None
    outcome = bench.test(bench.broken(mutant), mutant.tests, mutant.environment)
    bench.budget.say(f"{mutant.name}: {outcome.failed or outcome.broken or 'SURVIVES'}, {outcome.seconds:.1f} s")
    return outcome


def _judge(mutant: Mutant, outcome: Outcome, figures: Figures) -> None:
    again = f"python -m tests.proof --only {NAME}, mutant {mutant.name!r}"
    figures.mutants[mutant.name] = outcome.failed
    if outcome.broken:
        figures.mutants[mutant.name] = ""
        figures.failures.append(f"{mutant.name}: no test could judge it: {outcome.broken} ({again})")
    elif not outcome.failed:
        figures.failures.append(f"{mutant.name}: survives {outcome.ran} tests: {mutant.about} ({again})")
    elif outcome.ran > mutant.within:
        figures.failures.append(f"{mutant.name}: caught by the {outcome.ran}th test only, not within {mutant.within}")
    states = f", {mutant.states} states each" if mutant.states else ""
    figures.notes.append(f"{mutant.name} [{mutant.requirement}]: {outcome.failed or 'survives'} after {outcome.ran} "
                         f"tests{states}, {outcome.seconds:.1f} s: {outcome.why[:120]}")


class _Bench:
    """Makes copies in the budget's folder, and runs tests in them."""

    def __init__(self, budget: Budget, root: Path) -> None:
        self.budget = budget
        self._root = root
        self._count = 0
        self._slots: SimpleQueue[int] = SimpleQueue()
        for slot in range(MOST):
            self._slots.put(slot)

    def broken(self, mutant: Mutant) -> dict[str, str]:
        """The files that the mutant changes, with their new text. DoesNotApply."""
        texts: dict[str, str] = {}
        for edit in mutant.edits:
            path = self._root / edit.file
            text = texts.get(edit.file, path.read_text() if path.is_file() else "")
            found = text.count(edit.old)
            if found != 1:
                raise DoesNotApply(f"{edit.file} has {found} times: {edit.old.strip().splitlines()[0]}")
            texts[edit.file] = text.replace(edit.old, edit.new)
        return texts

    def test(self, changed: dict[str, str], tests: Sequence[str], environment: dict[str, str],
             patience: float = PATIENCE) -> Outcome:
        """Run these tests until the first that fails, on a copy with these files changed."""
        slot = self._slots.get()
        self._count += 1
        folder = self.budget.folder / f"{self._count}"
        try:
            code = copy(folder / "code", self._root)
            for file, text in changed.items():
                (code / file).write_text(text)
            return self._pytest(code, folder, tests, environment, slot, patience)
        finally:
            self._slots.put(slot)
            shutil.rmtree(folder, ignore_errors=True)

    def _pytest(self, code: Path, folder: Path, tests: Sequence[str], environment: dict[str, str], slot: int,
                patience: float) -> Outcome:
        report, said = folder / "report.jsonl", folder / "said"
        python = interpreter(folder / "python", code)
        command = [str(python), "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p",
                   "tests.proof.mutants_watch", f"--timeout={patience / 2:g}", f"--basetemp={folder / 'tmp'}", *tests]
        # The worker's name makes free ports differ between the copies.
        env = {**os.environ, **environment, "PYTHONPATH": str(code), "PYTEST_XDIST_WORKER": f"gw{4 + slot}",
               "DCMGATE_MUTANT_REPORT": str(report)}
        begin = time.monotonic()
        with said.open("wb") as out:
            process = subprocess.Popen(command, cwd=code, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                       start_new_session=True)
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                _end(process)
                _unmount(folder)
                return Outcome(0, patience, broken=f"no end after {patience:g} s")
        lines = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
        return _outcome(lines, process.returncode, time.monotonic() - begin, said)


def _outcome(lines: list[dict[str, Any]], status: int, seconds: float, said: Path) -> Outcome:
    """What a run came to; pytest's exit statuses are 0 for passed, 1 for failed, others for no verdict at all."""
    calls = [line for line in lines if line["when"] != "collect"]
    failed = next((line for line in calls if line["outcome"] == "failed"), None)
    if status == 1 and failed is not None:
        return Outcome(len({line["test"] for line in calls}), seconds, failed["test"], failed["why"])
    skipped = [f"{line['test']}: {line['why']}" for line in calls if line["outcome"] == "skipped"]
    if status == 0 and skipped:
        return Outcome(len(calls), seconds, broken=f"skipped: {skipped[0]}")
    if status == 0 and calls:
        return Outcome(len(calls), seconds)
    why = next((line["why"] for line in lines if line["when"] == "collect"), "")
    last = said.read_text(errors="replace")[-300:].strip()
    return Outcome(len(calls), seconds, broken=why or f"exit status {status}: {last}")


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(20)


def _unmount(folder: Path) -> None:
    """Let go of what a test that had to be killed left mounted."""
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        source, where = line.split()[:2]
        if Path(where).is_relative_to(folder):
            subprocess.run(["umount", "-l", where], capture_output=True, timeout=60, check=False)
            if source.startswith("/dev/loop"):
                subprocess.run(["losetup", "-d", source], capture_output=True, timeout=60, check=False)


def _tests_digest(root: Path) -> str:
    """Of the tests as they are: the product's version says nothing of them."""
    digest = hashlib.sha256()
    for path in sorted((root / "tests").rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


class _Diary:
    """What is known of this version's mutants, kept so that an interrupted run goes on where it stopped."""

    def __init__(self, budget: Budget, root: Path) -> None:
        budget.state.mkdir(parents=True, exist_ok=True)
        self._path = budget.state / f"{NAME}.jsonl"
        self._version = f"{budget.version} {_tests_digest(root)}"
        self.found: dict[str, Outcome] = {}
        self._keys: dict[str, str] = {}
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            for line in self._path.read_text().splitlines():
                entry = json.loads(line)
                if entry["version"] == self._version:
                    self.found[entry["name"]] = Outcome(**entry["outcome"])
                    self._keys[entry["name"]] = entry["mutant"]

    def knows(self, mutant: Mutant) -> bool:
        if self._keys.get(mutant.name) == repr(mutant):
            return True
        self.found.pop(mutant.name, None)
        return False

    def write(self, mutant: Mutant, outcome: Outcome) -> None:
        self.found[mutant.name] = outcome
        entry = {"version": self._version, "name": mutant.name, "mutant": repr(mutant),
                 "outcome": {name: getattr(outcome, name) for name in outcome.__slots__}}
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def close(self, *, complete: bool) -> None:
        """After a whole run the next one begins anew."""
        if complete:
            self._path.unlink(missing_ok=True)
