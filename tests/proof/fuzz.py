"""Coverage-guided fuzzing of whatever reads a peer's bytes, with atheris (libFuzzer): hours that add up, in chunks.

One target at a time in a process of its own (`fuzz_child`); what the targets
compare is said there. `budget.state` keeps the corpora, what crashed, and one
line a chunk, so an interrupted run goes on where it stopped. Processor time
counts for as long as the modules that a target reaches stay as they are.

A failure is: an exception other than the error of ours that the parser names;
two readings of the same bytes that differ; more than 10 s for an input; memory
that grows. What failed once is tried again by every later run.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from tests.proof import fuzz_seeds
from tests.proof.figures import Budget, CannotRun, Figures

NAME = "fuzz"
ABOUT = "coverage-guided fuzzing of the parsers and of a live acceptor, and against pynetdicom and pydicom"
REQUIREMENTS = ("I8", "hazard: 1,500 mutated inputs")

ROOT = Path(__file__).resolve().parents[2]

WHOLE = 7200.0
"""Seconds of processor time that the full run adds up to."""

CHUNK = 100
"""Seconds of one chunk at most, so that others get at the machine in between."""

HANG = 10
"""Seconds that one input may take."""

GROWTH = 100
"""MiB that a chunk's resident memory may be above what it was when the corpus had been read."""

_DICOM = ("appliance/dicom",)
_TAGS = (*_DICOM, "appliance/sandbox/dictionary.py", "appliance/sandbox/inflate.py")
_LIVE = (*_DICOM, "appliance/receive")

TARGETS: dict[str, tuple[float, tuple[str, ...]]] = {
    "pdus": (1, _DICOM), "pdu_meaning": (2, _DICOM), "acceptor": (4, _DICOM), "messages": (4, _DICOM), "requestor": (2, _DICOM),
    "commands": (1, _DICOM), "heads": (1, _DICOM), "elements": (2, _TAGS), "element_meaning": (3, _TAGS),
    "deflated": (1, _TAGS), "recoding": (3, _TAGS), "recoding_meaning": (3, _TAGS), "text": (0.5, _DICOM),
    "replies": (0.2, ("appliance/sandbox/parent.py",)), "live": (6, _LIVE), "structured_pdus": (1, _DICOM),
    "structured_messages": (2, _DICOM), "structured_data_sets": (3, _TAGS), "structured_heads": (1, _DICOM),
}
"""Name → its share of the time, and the code that it reaches."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one chunk did: a line of the state. `cpu` in seconds; `features` and `corpus` as libFuzzer counts them."""

    target: str
    version: str
    seed: int
    cpu: float
    inputs: int
    features: int
    corpus: int
    peak_mb: int
    result: str


def code_of(target: str) -> str:
    """A digest of the modules that read a target's input: processor time spent on other code does not count.

    Of what they say as programs: a comment or a docstring is no other code.
    """
    digest = hashlib.sha256()
    for name in TARGETS[target][1]:
        path = ROOT / name
        for module in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{module.relative_to(ROOT)}\0{_program(module.read_text())}\0".encode())
    return digest.hexdigest()[:16]


@cache
def _program(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not (  # type: ignore[attr-defined]
                isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant) and isinstance(one.value.value, str))]
    return ast.dump(tree)


class State:
    """What is kept from run to run. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines = folder / "chunks.jsonl"
        self._lock = threading.Lock()
        lines = self._lines.read_text().splitlines() if self._lines.exists() else []
        self.chunks = [Chunk(**json.loads(line)) for line in lines if line.endswith("}")]    # the last may be cut off

    def add(self, chunk: Chunk) -> None:
        with self._lock, self._lines.open("a") as file:
            file.write(json.dumps(asdict(chunk)) + "\n")
            self.chunks.append(chunk)

    def seconds(self, target: str) -> float:
        """Processor seconds of a target on the code as it is."""
        version = code_of(target)
        return sum(chunk.cpu for chunk in self.chunks if chunk.target == target and chunk.version == version)

    def corpus(self, target: str) -> Path:
        """The target's corpus, with everything in it that it begins with."""
        path = self.folder / "corpus" / target
        path.mkdir(parents=True, exist_ok=True)
        for data in (*fuzz_seeds.kept(target), *fuzz_seeds.generated(target, 3)):
            name = path / hashlib.sha1(data).hexdigest()
            if not name.exists():
                name.write_bytes(data)
        return path

    def crashes(self, target: str) -> Path:
        path = self.folder / "crashes" / target
        path.mkdir(parents=True, exist_ok=True)
        return path


def _child(target: str, scratch: Path, *options: str | Path) -> list[str]:
    return [sys.executable, "-m", "tests.proof.fuzz_child", target, str(scratch), *map(str, options)]


def _run(command: list[str], log: Path, seconds: float) -> tuple[int, float]:
    """Exit status and processor seconds of a child; killed with all that it started where it takes longer than `seconds`."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=ROOT, start_new_session=True,
                                   env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"})

    def kill() -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(seconds, kill)
    timer.start()
    try:
        _, status, used = os.wait4(process.pid, 0)
    finally:
        timer.cancel()
        kill()
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, used.ru_utime + used.ru_stime


def fuzz(state: State, target: str, seed: int, seconds: float, scratch: Path) -> Chunk:
    """One chunk of a target, noted in the state."""
    scratch.mkdir(parents=True, exist_ok=True)
    crashes, log = state.crashes(target), scratch / "log"
    before = set(crashes.iterdir())
    version = code_of(target)
    status, cpu = _run(_child(
        target, scratch / "work", f"-max_total_time={max(int(seconds), 1)}", f"-timeout={HANG}", "-rss_limit_mb=600",
        "-max_len=16384", f"-seed={seed or 1}", "-print_final_stats=1", f"-artifact_prefix={crashes}/", state.corpus(target)),
        log, seconds + 90)
    text = log.read_text(errors="replace")
    stats = {key: int(value) for key, value in re.findall(r"^stat::(\w+):\s+(\d+)", text, re.MULTILINE)}
    marks = re.findall(r"^#\d+\s+\w+\s+cov: \d+ ft: (\d+) corp: (\d+)/\S+ .*?rss: (\d+)Mb", text, re.MULTILINE)
    result = "done"
    if status:
        new = sorted(path.name for path in set(crashes.iterdir()) - before)
        result = f"status {status}: {' '.join(new) or _tail(text)}"
    elif marks and int(marks[-1][2]) - int(marks[0][2]) > GROWTH:
        result = f"memory: from {marks[0][2]} to {marks[-1][2]} MiB in {seconds:g} s"
    features, corpus = (int(marks[-1][0]), int(marks[-1][1])) if marks else (0, 0)
    chunk = Chunk(target, version, seed, round(cpu, 1), stats.get("number_of_executed_units", 0), features, corpus,
                  stats.get("peak_rss_mb", 0), result)
    state.add(chunk)
    return chunk


def _tail(text: str) -> str:
    return " | ".join(line for line in text.splitlines()[-6:] if line)[-600:]


def replay(state: State, target: str, scratch: Path) -> list[str]:
    """What failed once, tried again, each input by itself: one line for each that still fails."""
    scratch.mkdir(parents=True, exist_ok=True)
    failures = []
    for path in sorted(state.crashes(target).iterdir()):
        status, _ = _run(_child(target, scratch / "work", f"-timeout={HANG}", "-rss_limit_mb=600", path), scratch / "log", 120)
        if status:
            failures.append(f"{target}: {path} ends with {status}: {_reason((scratch / 'log').read_text(errors='replace'))}")
    return failures


def _reason(text: str) -> str:
    """The exception's own words, out of what the child said."""
    found = re.search(r"=== Uncaught Python exception: ===\n(.*(?:\n.*){0,2})", text)
    return found[1].replace("\n", " ")[:400] if found else _tail(text)


def run(budget: Budget) -> Figures:
    """Quick: a moment for every target. Full: until WHOLE processor seconds have been added up on this very code."""
    try:
        import atheris  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as error:
        raise CannotRun(f"atheris is not installed ({error}): it has wheels for x86-64 only") from error
    state = State(budget.state)
    figures = Figures(NAME)
    with ThreadPoolExecutor(max(budget.cores, 1)) as pool:
        end = time.monotonic() + budget.seconds if budget.seconds else float("inf")
        if budget.quick:
            list(pool.map(lambda item: _chunk(state, budget, item[1], item[0], 1.0), enumerate(TARGETS)))
        else:
            _until_done(state, budget, pool, end)
        # What failed just now, too: a chunk that ends with a crash says no more than that.
        for failures in pool.map(lambda target: replay(state, target, budget.folder / target), TARGETS):
            figures.failures += failures
    found = {f"{chunk.target}: {chunk.result}, seed {chunk.seed}" for chunk in state.chunks
             if not chunk.result.startswith(("done", "status 77")) and chunk.version == code_of(chunk.target)}
    figures.failures += sorted(found)
    _count(state, figures)
    return figures


def _chunk(state: State, budget: Budget, target: str, number: int, seconds: float) -> None:
    chunk = fuzz(state, target, budget.seed + number, seconds, budget.folder / f"{target}-{number}")
    budget.say(f"{target}: {chunk.inputs} inputs in {chunk.cpu:.0f} s, {chunk.features} features: {chunk.result}")


def _until_done(state: State, budget: Budget, pool: ThreadPoolExecutor, end: float) -> None:
    """Chunks for the target that is furthest behind its share, until the whole is reached; at least one for each."""
    share = {target: weight / sum(weight for weight, _ in TARGETS.values()) for target, (weight, _) in TARGETS.items()}
    number = len(state.chunks)
    while time.monotonic() < end:
        behind = {target: WHOLE * part - state.seconds(target) for target, part in share.items()}
        if sum(seconds for seconds in behind.values() if seconds > 0) < 1:
            return
        next_ones = sorted(behind, key=lambda target: behind[target], reverse=True)[:max(budget.cores, 1)]
        left = end - time.monotonic()
        jobs = [pool.submit(_chunk, state, budget, target, number + n, max(min(CHUNK, behind[target], left), 1.0))
                for n, target in enumerate(next_ones) if behind[target] > 0]
        number += len(jobs)
        for job in jobs:
            job.result()


def _count(state: State, figures: Figures) -> None:
    now = [chunk for chunk in state.chunks if chunk.version == code_of(chunk.target)]
    last = {chunk.target: chunk for chunk in now}
    figures.counts = {
        "cpu_seconds": round(sum(chunk.cpu for chunk in now)),
        "cpu_seconds_ever": round(sum(chunk.cpu for chunk in state.chunks)),
        "inputs": sum(chunk.inputs for chunk in now), "targets": len(last), "chunks": len(now),
        "features": sum(chunk.features for chunk in last.values()), "corpus": sum(chunk.corpus for chunk in last.values()),
        "crashes": sum(len(list(state.crashes(target).iterdir())) for target in TARGETS),
    }
    behind = WHOLE - figures.counts["cpu_seconds"]
    if behind > 0:
        figures.notes.append(f"{behind:.0f} of {WHOLE:.0f} processor seconds are still to come on this code: run it again")
