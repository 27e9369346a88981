"""Runs one instrument in a process of its own, and comes back with its result whatever becomes of that process."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

from tests.proof.figures import Figures
from tests.proof.instruments import ROOT, Instrument

TAG = "DCMGATE_PROOF"
"""In the environment of all that an instrument starts: so that what it leaves behind is found, and nothing else is ended."""

PUTTING_AWAY = 20.0
"""Seconds between SIGTERM and SIGKILL: an instrument has mounts and peers to put away."""

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """What each instrument gets. `state`: the folder that holds one folder, one log and one result for each of them.

    `limit`: seconds after which an instrument counts as hanging (0: none);
    `silence`: seconds without a line of progress after which it does. `stop` ends
    what is running.
    """

    state: Path
    scratch: Path
    seed: int
    quick: bool
    seconds: float
    version: str
    limit: float
    silence: float
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(slots=True)
class Outcome:
    """`result`: holds, fails, cannot run, crashed or hung. `reason` says why it is one of the last three."""

    name: str
    result: str
    seconds: float
    reason: str = ""
    figures: Figures = field(default_factory=lambda: Figures(""))

    def as_json(self) -> dict[str, Any]:
        return {"result": self.result, "reason": self.reason, "seconds": round(self.seconds, 1), **asdict(self.figures)}


def run(instrument: Instrument, plan: Plan, cores: int, say: Callable[[str], None]) -> Outcome:
    """Runs it to its end, or ends it; what it leaves behind is put away. Only one run of an instrument at a time."""
    if instrument.fault:
        return _failed(instrument.name, "crashed", instrument.fault)
    state = plan.state / instrument.name
    state.mkdir(parents=True, exist_ok=True)
    with open(plan.state / f"{instrument.name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return _failed(instrument.name, "cannot run", "it is running already")
        return _Child(instrument, plan, cores, say).run()


class _Child:
    def __init__(self, instrument: Instrument, plan: Plan, cores: int, say: Callable[[str], None]) -> None:
        self.name, self._instrument, self._plan, self._cores, self._say = instrument.name, instrument, plan, cores, say
        self._folder = plan.scratch / self.name
        self._result = plan.state / f"{self.name}.result"
        self._log = plan.state / f"{self.name}.log"
        self._tag = str(plan.state.resolve() / self.name)

    def run(self) -> Outcome:
        self._put_away()  # of a run that was killed
        self._folder.mkdir(parents=True)
        self._result.unlink(missing_ok=True)
        began = time.monotonic()
        reading, writing = os.pipe()
        with open(self._log, "wb") as log, os.fdopen(reading, "rb", buffering=0) as progress:
            try:
                process = self._start(writing, log)
            finally:
                os.close(writing)
            try:
                hung = self._watch(process, progress, began)
            except BaseException:  # also a Ctrl-C: nothing may run on
                _end(process)
                self._put_away()
                raise
        left = self._put_away()
        return self._outcome(process.returncode, hung, left, time.monotonic() - began)

    def _start(self, progress: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
        spec = self._plan.state / f"{self.name}.spec"
        spec.write_text(json.dumps({
            "folder": str(self._folder), "state": str(self._plan.state / self.name), "seed": self._plan.seed,
            "quick": self._plan.quick, "seconds": self._plan.seconds, "cores": self._cores, "version": self._plan.version,
            "result": str(self._result), "progress": progress}))
        return subprocess.Popen(
            [sys.executable, "-m", "tests.proof.child", self._instrument.module, spec], cwd=ROOT, stdin=subprocess.DEVNULL,
            stdout=log, stderr=subprocess.STDOUT, pass_fds=[progress], start_new_session=True,
            env={**os.environ, TAG: self._tag}, preexec_fn=_last_in_line if self._instrument.spare else _die_with_parent)

    def _watch(self, process: subprocess.Popen[bytes], progress: IO[bytes], began: float) -> str:
        """Shows progress until it ends; why it had to be ended, or ""."""
        heard, rest, is_open = time.monotonic(), b"", True
        while process.poll() is None:
            if is_open and select.select([progress], [], [], 0.25)[0]:
                data = progress.read(65536)
                is_open, heard = bool(data), time.monotonic()
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._say(line.decode(errors="replace"))
            elif not is_open:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.25)
            now = time.monotonic()
            why = ""
            if self._plan.limit and now - began > self._plan.limit:
                why = f"not done after {self._plan.limit:.0f} s, for a budget of {self._plan.seconds:.0f} s"
            elif self._plan.stop.is_set():
                why = "stopped"
            elif now - heard > self._plan.silence:
                why = f"no sign of life for {self._plan.silence:.0f} s"
            if why:
                _end(process)
                return why
        return ""

    def _outcome(self, status: int, hung: str, left: list[str], seconds: float) -> Outcome:
        if hung:
            return _failed(self.name, "hung", f"{hung}; log: {self._log}", seconds)
        try:
            answer = json.loads(self._result.read_text())
        except (FileNotFoundError, ValueError):
            how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            return _failed(self.name, "crashed", f"ended by {how} without a result; log: {self._log}", seconds)
        if answer["ended"] != "ran":
            return _failed(self.name, answer["ended"], answer["reason"], seconds)
        figures = Figures(**answer["figures"])
        if figures.name != self.name:
            figures.notes.append(f"it calls itself {figures.name!r}")
        if not any(figures.counts.values()) and not figures.mutants:
            figures.failures.append("nothing was tried")
        if left:
            figures.failures.append("left behind: " + ", ".join(left))
        return Outcome(self.name, "holds" if figures.holds else "fails", seconds, figures=figures)

    def _put_away(self) -> list[str]:
        """Ends, unmounts and deletes what the instrument left, in this order; says what there was besides plain files."""
        left = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid != os.getpid() and process.environ().get(TAG) == self._tag:
                    left.append(f"process {process.pid} ({process.name()})")
                    process.kill()
                    with suppress(psutil.TimeoutExpired):
                        process.wait(5)
        for place in mounts_below(self._folder):
            left.append(f"mount {place}")
            subprocess.run(["umount", "--lazy", place], check=False, capture_output=True, timeout=60)
        if not mounts_below(self._folder):  # else deleting would go into a foreign file system
            shutil.rmtree(self._folder, ignore_errors=True)
        return left


def mounts_below(folder: Path) -> list[str]:
    """Mount points in the folder, the deepest first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].replace("\\040", " ") for line in lines]
    return sorted((point for point in points if Path(point).is_relative_to(folder)), key=len, reverse=True)


def _failed(name: str, result: str, reason: str, seconds: float = 0.0) -> Outcome:
    return Outcome(name, result, seconds, reason, Figures(name))


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the instrument alone, so that it can put away what it started; then SIGKILL to its session."""
    with suppress(ProcessLookupError):
        process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(PUTTING_AWAY)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _last_in_line() -> None:
    os.nice(19)
    _die_with_parent()
