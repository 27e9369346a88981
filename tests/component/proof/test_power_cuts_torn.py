"""File systems that XFS itself refuses, and states that cannot be judged: counted, judged untorn, and no end of the case."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.proof import power_cuts_case
from tests.proof.oracle import Verdict
from tests.proof.power_cuts import run_case
from tests.proof.power_cuts_case import Case, Explorer, Result, untorn
from tests.proof.power_cuts_judge import Before, Finding
from tests.proof.power_cuts_life import Recording
from tests.support.crash import Images, Record, RecordedDisk, State, flushes, mounted, need_root_and_loops, run
from tests.support.memory import in_memory
from tests.support.recorder import WRITE

pytestmark = [pytest.mark.slow, pytest.mark.system]

CASE = Case("xfs", True, 1, 4)
LEAF = b"XDD3"


class Looks:
    """In place of the judge: reads every name, and says what it found."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.raises: list[Exception] = []

    def look(self, mount: Path, known: Before, folder: Path, *, goes_on: bool,
             position: Callable[[], int] = lambda: 0) -> Finding:
        if self.raises:
            raise self.raises.pop()
        self.seen.append(sum(1 for path in (mount / "many").iterdir() if path.stat()))
        return Finding(Verdict(), {})

    def forget(self) -> None:
        """Nothing arrives here."""


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    need_root_and_loops(tmp_path)
    with in_memory("dcmgate-torn-", 1 << 30, tmp_path) as place:
        yield place


def recorded(work: Path) -> tuple[RecordedDisk, list[Record]]:
    """An XFS with a folder of many names, some gone again, of which every block was written at last."""
    disk = RecordedDisk(work, "xfs")
    with disk:
        many = disk.mount / "many"
        many.mkdir()
        for n in range(200):
            (many / f"file-{n:04}").write_bytes(b"x")
        run("sync", "-f", str(many))
        for n in range(0, 200, 2):
            (many / f"file-{n:04}").unlink()
        run("sync", "-f", str(many))
        run("fsfreeze", "-f", str(disk.mount))
        end = disk.position
        run("fsfreeze", "-u", str(disk.mount))
    return disk, disk.records(end)


def torn_states(records: list[Record]) -> Iterator[State]:
    """Of each block of the folder the first sector alone is new: that of the log is not replayed over it."""
    points = flushes(records, 0)
    for flush, crash in pairwise(points):
        for index in range(flush + 1, crash):
            data = records[index].data
            if records[index].kind == WRITE and any(data[at:at + 4] == LEAF for at in range(0, len(data), 4096)):
                yield State(flush, crash, ((index, tuple(n % 8 == 0 for n in range(len(data) // 512))),))


def explorer(work: Path, judge: Any, kept: Path | None = None) -> Explorer:
    return Explorer(CASE, work, judge, Result(), kept, lambda line: None)


def test_xfs_refuses_a_torn_block_and_the_untorn_one_is_judged(work: Path) -> None:
    disk, records = recorded(work)
    judge = Looks()
    case = explorer(work, judge)
    images = Images(disk, records, work / "crashed")
    states = list(torn_states(records))
    assert states
    refused = 0
    for state in states:
        before = case._result.unmountable
        looked = case._look(images, Before([], [], {}), state, goes_on=False)
        assert looked == (untorn(state) if case._result.unmountable > before else state)
        refused += case._result.unmountable - before
        assert judge.seen.pop() == 100 and not judge.seen, "what is judged is whole"
    assert refused, "the path is walked: this XFS replays over every torn block"


def test_what_is_refused_untorn_is_a_failure(work: Path) -> None:
    disk, records = recorded(work)
    for record in records[:-1]:
        if record.kind == WRITE and record.offset == 0:
            records[records.index(record)] = Record(WRITE, 0, bytes(len(record.data)), record.at)
    case = explorer(work, Looks())
    last = flushes(records, 0)[-1]
    with pytest.raises(subprocess.CalledProcessError):
        case._look(Images(disk, records, work / "crashed"), Before([], [], {}), State(last, len(records), ()), goes_on=False)
    assert not case._result.unmountable


def test_a_recovery_that_cannot_be_recorded_torn_is_recorded_untorn(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount that failed there ended the case."""
    disk, records = recorded(work)
    monkeypatch.setattr(power_cuts_case, "SECOND", 1)
    monkeypatch.setattr(power_cuts_case, "THIRD", 1)
    images = Images(disk, records, work / "crashed")
    (work / "probe").mkdir()
    for state in torn_states(records):
        try:
            with mounted(images.build(state), work / "probe", "xfs"):
                continue
        except subprocess.CalledProcessError:
            break
    case = explorer(work, Looks())
    case._deeper(images, state, Before([], [], {}), 2, 1, goes_on=False)
    assert case._result.unmountable == 1 and case._result.second == 1 and not case._result.failures


def test_a_state_that_cannot_be_judged_is_a_failure_and_the_others_go_on(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, records = recorded(work)
    judge = Looks()
    judge.raises = [OSError(5, "Input/output error")]
    kept = work / "kept"
    case = explorer(work, judge, kept)
    monkeypatch.setattr(power_cuts_case, "keep", lambda *_: None)
    monkeypatch.setattr(power_cuts_case, "DEEPER", 1000)
    end = len(records)
    case.life(Recording(disk, flushes(records, 0)[-4], end, [], [], {}))
    result = case._result
    assert (result.states, result.broken, len(result.failures), len(judge.seen)) == (4, 1, 1, 3)
    assert "not judged: OSError: [Errno 5] Input/output error" in result.failures[0]
    shown = next(work.glob("kept-at-*.txt"))
    assert str(shown) in result.failures[0] and "Traceback" in shown.read_text()


def test_what_a_case_said_before_it_ended_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!{sys.executable}\nimport os, sys\nprint('half a li')\nsys.stderr.write('the reason\\n')\n"
                       f"sys.stderr.flush()\nos.kill(os.getpid(), {int(signal.SIGKILL)})\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    said: list[str] = []
    result = run_case(CASE, tmp_path / "work", tmp_path / "failed" / "case", said.append)
    assert "signal SIGKILL" in result.failures[0] and "the reason" in result.failures[0]
    assert (tmp_path / "failed" / "case.log").read_text() == "the reason\n"


def test_a_case_that_is_ended_says_how_far_it_got(tmp_path: Path) -> None:
    need_root_and_loops(tmp_path)
    lines: list[str] = []
    process = subprocess.Popen([sys.executable, "-m", "tests.proof.power_cuts_case", json.dumps({
        "kind": "ext4", "direct": True, "seed": 1, "states": 400, "count": 4, "mistakes": []}), str(tmp_path / "work"),
        str(tmp_path / "failed" / "case")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        cwd=Path(power_cuts_case.__file__).parents[2], env={**os.environ})
    assert process.stdout is not None
    with process.stdout as out:
        for line in out:
            lines.append(line)
            if "recorded in" in line:
                process.terminate()
    assert process.wait(60) == 143
    result = json.loads(lines[-1])["result"]
    assert "ended after" in result["failures"][0] and "SystemExit" in result["failures"][0]
