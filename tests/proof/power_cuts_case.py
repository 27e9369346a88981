"""One case of the power cuts, in a process of its own: a recorded life, and many of the disks that a power cut may leave of it.

    python -m tests.proof.power_cuts_case '{"kind": "ext4", "direct": true, "seed": 1, "states": 150, …}' <folder>
    python -m tests.proof.power_cuts_case again <folder kept of a case that failed>

It prints lines of JSON: {"say": …} on the way, {"result": …} at the end. Some
states are started up on a recorded disk again, and crashed during that; some of
those once more.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from tests.proof.oracle import Entry
from tests.proof.power_cuts_judge import Before, Finding, Judge
from tests.proof.power_cuts_life import MARKER, Recording, Stored, recorded_life
from tests.support.crash import Images, Record, RecordedDisk, State, mounted, run, states
from tests.support.memory import in_memory

DEEPER = 30
"""Of so many states one is started on a recorded disk, and crashed again."""

SECOND, THIRD = 8, 4
"""States of a recovery that are looked at, and of the recovery of one of those."""

NAMED = 5

PLACE = "dcmgate-cuts-"
NEEDED = 1 << 30
"""Bytes of memory, more than a case has ever filled."""

_CLONE_NEWNS = 0x00020000
_TERMINATED = 128 + signal.SIGTERM
_CORRUPT = (errno.EBADMSG, errno.EUCLEAN)
"""What XFS answers for a block whose CRC is wrong."""


@dataclass(frozen=True, slots=True)
class Case:
    """`states`: crash states of the life itself, those of recoveries come on top. `count`: objects of each scanner.

    `goes_on`: of so many states one runs on until everything was delivered.
    `mistakes`: what is broken on purpose; `first`: stop at the first state that
    shows it, and look at no recovery of one.
    """

    kind: str
    direct: bool
    seed: int
    states: int
    count: int = 40
    goes_on: int = 8
    mistakes: tuple[str, ...] = ()
    first: bool = False

    @property
    def name(self) -> str:
        return "-".join([self.kind, "direct" if self.direct else "cached", str(self.seed), *self.mistakes]).replace(" ", "-")


@dataclass(slots=True)
class Result:
    """`second` and `third`: states of a recovery, and of the recovery of one of those. `promises`: how often an
    acknowledged instance was looked for. `unmountable`: see `Explorer._look`; `broken`: not judged for an error. `caught`:
    number of the state that showed a mistake first, -1 for none. `ended`: by a signal, before all was done."""

    states: int = 0
    second: int = 0
    third: int = 0
    went_on: int = 0
    flushes: int = 0
    acknowledged: int = 0
    promises: int = 0
    adopted: int = 0
    remnants: int = 0
    void: int = 0
    unmountable: int = 0
    broken: int = 0
    ended: bool = False
    lost: int = 0
    altered: int = 0
    unaccounted: int = 0
    caught: int = -1
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


class Enough(Exception):
    """The mistake has shown."""


class Explorer:
    """Goes through the states of one case; `say` hears of the progress, what failed is kept in `kept`."""

    def __init__(self, case: Case, work: Path, judge: Judge, result: Result, kept: Path | None,
                 say: Callable[[str], None]) -> None:
        self._case = case
        self._work = work
        self._judge = judge
        self._result = result
        self._kept = kept
        self._say = say
        self._dice = random.Random(f"{case.seed} {case.kind} {case.direct}")
        self._mount = work / "after"
        self._mount.mkdir()
        self._failed: list[tuple[str, State]] = []

    def life(self, recording: Recording) -> None:
        """The states of the life itself, and from some of them on deeper."""
        try:
            self._life(recording)
        finally:
            self._keep(recording, self._kept)

    def _keep(self, recording: Recording, kept: Path | None) -> None:
        if self._failed and kept is not None:
            keep(self._case, recording, self._failed, self._work / "archive", kept)

    def _life(self, recording: Recording) -> None:
        records = recording.disk.records(recording.end)
        self._result.flushes = sum(1 for record in records if not record.data)
        self._result.acknowledged = len(recording.acknowledged)
        images = Images(recording.disk, records, self._work / "crashed")
        told = time.monotonic()
        for number, state in enumerate(states(records, recording.start, self._case.states, self._dice)):
            known = _before(recording, records, state)
            goes_on = number % self._case.goes_on == self._case.goes_on - 1
            try:
                state = self._look(images, known, state, goes_on=goes_on)
                if number % DEEPER == DEEPER // 2 and not self._case.first:
                    self._deeper(images, state, known, 2, SECOND, goes_on=number % (2 * DEEPER) == DEEPER // 2)
            except Enough:
                raise
            except Exception as error:  # noqa: BLE001  one state that cannot be judged is a failure, and the others go on
                self._broke(state, error)
            self._result.states += 1
            if time.monotonic() > told + 10:
                told = time.monotonic()
                self._say(f"{self._case.name}: {number + 1} of {self._case.states} states")

    def _broke(self, state: State, error: Exception) -> None:
        """That state, or its recovery, could not be judged: no mount, no loop device, a file that cannot be read."""
        text = (f"{self._case.name}: flush {state.flush}, cut at {state.crash}, {len(state.kept)} later writes kept:"
                f" not judged: {in_words(error, self._kept, f'at-{state.crash}')}")
        self._result.broken += 1
        if self._result.broken <= NAMED:
            self._result.failures.append(text)
        self._failed.append((text, state))

    def _look(self, images: Images, known: Before, state: State, *, goes_on: bool, what: str = "") -> State:
        """Judge that state; where its file system refuses it, the one in which nothing is torn. What was judged.

        Where a block of 4096 bytes was torn at 512, once in some thousand states, XFS says "Metadata CRC error", at the
        mount or when it comes to that block: it does not replay one whose first sector is new already. ext4 says "invalid
        superblock checksum" where that block was the superblock, until e2fsck has put a copy in its place. That is not ours
        to mend. What is not torn has to be sound.
        """
        finding = self._judged(images, known, state, goes_on=goes_on)
        if finding is None:
            self._result.unmountable += 1
            state = untorn(state)
            finding = self._judged(images, known, state, goes_on=goes_on)
            assert finding is not None
        self._count(finding, known, state, goes_on=goes_on, what=what)
        return state

    def _judged(self, images: Images, known: Before, state: State, *, goes_on: bool) -> Finding | None:
        """None where the file system refuses a torn state."""
        folder = self._work / "start"
        torn = untorn(state) != state
        with ExitStack() as stack:
            try:
                stack.enter_context(mounted(images.build(state), self._mount, self._case.kind))
            except subprocess.CalledProcessError:
                if not torn:
                    raise
                return None
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            try:
                finding = self._judge.look(self._mount, known, folder, goes_on=goes_on)
            except OSError as error:
                self._judge.forget()
                if not torn or error.errno not in _CORRUPT:
                    raise
                return None
        refused = any(os.strerror(number) in fault for number in _CORRUPT for fault in finding.faults)
        return None if torn and refused else finding

    def _count(self, finding: Finding, known: Before, state: State, *, goes_on: bool, what: str) -> None:
        result = self._result
        result.went_on += goes_on
        result.promises += len(known.promised)
        for name in ("adopted", "remnants", "void"):
            setattr(result, name, getattr(result, name) + getattr(finding, name))
        if finding.holds:
            return
        for name in ("lost", "altered", "unaccounted"):
            setattr(result, name, getattr(result, name) + getattr(finding.verdict, name))
        text = (f"{self._case.name}{what}: flush {state.flush}, cut at {state.crash}, {len(state.kept)} later writes kept"
                f"{', everything running' if goes_on else ''}: {finding.as_text()[:500]}")
        if len(result.failures) < NAMED:
            result.failures.append(text)
        self._failed.append((text, state))
        if result.caught < 0:
            result.caught = result.states + result.second + result.third + 1
        if self._case.first:
            raise Enough

    def _deeper(self, images: Images, state: State, known: Before, depth: int, count: int, *, goes_on: bool) -> None:
        """Start up after this cut on a recorded disk, and cut the power during that."""
        work = self._work / f"recovery{depth}"
        what = f", recovery {depth - 1} after a cut at {state.crash}"
        above, self._failed = self._failed, []
        recording: Recording | None = None
        try:
            work.mkdir()
            with ExitStack() as recorded:
                disk, state = self._recorded(recorded, images, state, work)
                finding = self._judge.look(disk.mount, known, work / "start", goes_on=goes_on, position=lambda: disk.position)
                end = disk.position
            self._failed = above
            self._count(finding, known, state, goes_on=goes_on, what="")
            self._failed = []
            recording = Recording(disk, 0, end, [*known.offered, *(entry for _, entry in finding.more)],
                                  [*((0, entry) for entry in known.promised), *finding.more], finding.stores)
            records = disk.records(end)
            second = Images(disk, records, work / "crashed")
            chosen = states(records, 0, count, self._dice)
            deepest = self._dice.randrange(len(chosen)) if depth < 3 else -1
            for number, next_state in enumerate(chosen):
                next_known = _before(recording, records, next_state)
                next_state = self._look(second, next_known, next_state, goes_on=number == count - 1, what=what)
                if depth == 2:
                    self._result.second += 1
                else:
                    self._result.third += 1
                if number == deepest:
                    self._deeper(second, next_state, next_known, depth + 1, THIRD, goes_on=False)
        finally:
            if recording is not None and self._kept is not None:
                self._keep(recording, self._kept.with_name(f"{self._kept.name}-recovery{depth}-at-{state.crash}"))
            self._failed = above
            shutil.rmtree(work, ignore_errors=True)


    def _recorded(self, stack: ExitStack, images: Images, state: State, work: Path) -> tuple[RecordedDisk, State]:
        """A recorded disk in that state, mounted; in the one in which nothing is torn where it is refused. And that state."""
        disk = RecordedDisk(work, self._case.kind, images.build(state))
        try:
            return stack.enter_context(disk), state
        except subprocess.CalledProcessError:
            whole = untorn(state)
            if whole == state:
                raise
            self._result.unmountable += 1
            (work / "untorn").mkdir()
            return stack.enter_context(RecordedDisk(work / "untorn", self._case.kind, images.build(whole))), whole


def untorn(state: State) -> State:
    """The same one, with every write that is there in part there in full."""
    return State(state.flush, state.crash, tuple((index, (True,) * len(sectors)) for index, sectors in state.kept))


def in_words(error: BaseException, kept: Path | None, what: str) -> str:
    """The error in a line, with what the command that failed said; the whole of it in a file beside what is kept."""
    text = "".join(traceback.format_exception(error))
    notes = " ".join(getattr(error, "__notes__", ()))
    line = " ".join(f"{type(error).__name__}: {error} {notes}".split())[:600]
    sys.stderr.write(text)
    if kept is None:
        return line
    kept.parent.mkdir(parents=True, exist_ok=True)
    file = kept.with_name(f"{kept.name}-{what}.txt")
    file.write_text(text)
    return f"{line} (all of it: {file})"


def _before(recording: Recording, records: list[Record], state: State) -> Before:
    """The moment of the cut is just before the disk was given record `crash`."""
    when = records[state.crash].at if state.crash < len(records) else 1 << 63
    return Before(recording.promised(state), recording.offered, recording.there(when))


def explore(case: Case, work: Path, kept: Path | None, say: Callable[[str], None] = lambda line: None) -> Result:
    """The whole case; where a state fails, what is needed to see it again goes to `kept`.

    In memory, where there is room, else in the new folder `work`: what the disks owe
    is in the record, and whoever waits for the machine's own disk learns nothing.
    """
    work.mkdir(parents=True)
    try:
        with in_memory(PLACE, NEEDED, work) as place:
            return _explore(case, place, kept, say)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _explore(case: Case, work: Path, kept: Path | None, say: Callable[[str], None]) -> Result:
    result = Result()
    began = time.monotonic()
    try:
        with (recorded_life(work, case.kind, seed=case.seed, direct=case.direct, count=case.count,
                            mistakes=case.mistakes) as recording,
              Judge(work / "judge", work / "archive", direct=case.direct, mistakes=case.mistakes) as judge):
            say(f"{case.name}: {len(recording.acknowledged)} acknowledged, recorded in {time.monotonic() - began:.1f} s")
            with suppress(Enough):
                Explorer(case, work, judge, result, kept, say).life(recording)
    except AssertionError as error:
        # A life that does not get to its end is a failure, and nothing that the crash states have caught.
        result.failures.append(f"{case.name}: the recorded life itself failed: {str(error)[:6000]}")
    except (Exception, SystemExit) as error:  # noqa: BLE001  what was judged until then counts, and the error is shown
        result.ended = isinstance(error, SystemExit)
        far = f"{result.states} of {case.states} states"
        result.failures.append(f"{case.name}: ended after {far}: {in_words(error, kept, 'end')}")
    result.seconds = round(time.monotonic() - began, 1)
    return result


# --- to see a state again ---------------------------------------------------------------------------------------------


def keep(case: Case, recording: Recording, failed: list[tuple[str, State]], archive: Path, kept: Path) -> None:
    """The record with what is known of it, and the states that failed."""
    shutil.rmtree(kept, ignore_errors=True)
    (kept / "archive").mkdir(parents=True)
    shutil.copy(archive / MARKER, kept / "archive" / MARKER)
    recording.disk.keep(kept)
    stores: dict[str, list[Any]] = {name: [] for name in recording.stores}
    for name, copies in recording.stores.items():
        for copy in copies:
            # Of the archive the folders count, of storescp only the file.
            place = Path(name, copy.path.relative_to(copy.path.parents[2]) if name == "archive" else copy.path.name)
            (kept / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(copy.path, kept / place)
            stores[name].append([astuple(copy.entry), copy.since, str(place)])
    (kept / "case.json").write_text(json.dumps({
        "case": asdict(case), "start": recording.start, "end": recording.end,
        "offered": [astuple(entry) for entry in recording.offered],
        "acknowledged": [[position, astuple(entry)] for position, entry in recording.acknowledged],
        "stores": stores,
        "failed": [[text, astuple(state)] for text, state in failed[:20]]}))


def again(kept: Path, work: Path) -> list[str]:
    """What the states that failed come to now."""
    found = json.loads((kept / "case.json").read_text())
    case = Case(**{**found["case"], "mistakes": tuple(found["case"]["mistakes"])})
    work.mkdir(parents=True)
    recording = Recording(RecordedDisk.kept(kept, case.kind), found["start"], found["end"],
                          [Entry(*entry) for entry in found["offered"]],
                          [(position, Entry(*entry)) for position, entry in found["acknowledged"]],
                          {name: [Stored(Entry(*entry), since, kept / path) for entry, since, path in found["stores"][name]]
                           for name in found["stores"]})
    records = recording.disk.records(recording.end)
    images = Images(recording.disk, records, work / "crashed")
    lines = []
    try:
        (work / "after").mkdir()
        with Judge(work / "judge", kept / "archive", direct=case.direct, mistakes=case.mistakes) as judge:
            for number, (text, (flush, crash, later)) in enumerate(found["failed"]):
                state = State(flush, crash, tuple((index, tuple(sectors)) for index, sectors in later))
                lines.append(f"was: {text}")
                with ExitStack() as stack:
                    try:
                        stack.enter_context(mounted(images.build(state), work / "after", case.kind))
                    except subprocess.CalledProcessError:
                        if untorn(state) == state:
                            raise
                        lines.append("its file system refuses it, torn as it is; as if nothing were torn:")
                        state = untorn(state)
                        stack.enter_context(mounted(images.build(state), work / "after", case.kind))
                    finding = judge.look(work / "after", _before(recording, records, state), work / f"start{number}",
                                         goes_on="everything running" in text)
                lines.append(f"now: {finding.as_text() or 'holds'}")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return lines


def _unwind(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(_TERMINATED)


def _own_mounts() -> None:
    """A mount namespace of our own: what we mount is nobody else's, and ends with us, however we end."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    run("mount", "--make-rprivate", "/")


def _print(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


def main(arguments: list[str]) -> None:
    signal.signal(signal.SIGTERM, _unwind)
    _own_mounts()
    if arguments[0] == "again":
        print("\n".join(again(Path(arguments[1]), Path(arguments[1]) / "work")))
        return
    settings = json.loads(arguments[0])
    case = Case(**{**settings, "mistakes": tuple(settings["mistakes"])})
    kept = Path(arguments[2]) if len(arguments) > 2 else None
    result = explore(case, Path(arguments[1]), kept, lambda line: _print({"say": line}))
    _print({"result": asdict(result)})
    if result.ended:
        sys.exit(_TERMINATED)


if __name__ == "__main__":
    main(sys.argv[1:])
