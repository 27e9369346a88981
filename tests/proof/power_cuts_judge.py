"""Start-up after a power cut, and whether everything is there and goes on.

The product runs in a child process that is forked for each state, with a time
limit; what it leaves is judged here, outside of it, by the oracle.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.proof import oracle
from tests.proof import power_cuts_inside as inside
from tests.proof.oracle import Entry, Journal, Verdict
from tests.proof.power_cuts_inside import Inside
from tests.proof.power_cuts_life import RETENTION, Stored, destinations, kept, rebuilt_archive, received
from tests.proof.power_cuts_start import go_on, start_up
from tests.support import peers
from tests.support.gateway import toml
from tests.support.peers import Destination
from tests.support.waiting import free_port

PATIENCE = 60.0
"""Seconds after which a start-up counts as hanging."""


@dataclass(frozen=True, slots=True)
class Before:
    """What is known when the power comes back: what was acknowledged, what was offered, and what the destinations have."""

    promised: list[Entry]
    offered: list[Entry]
    there: dict[str, list[Stored]]


@dataclass(slots=True)
class Finding:
    """What one state came to. `faults`: one line each, empty where all is well.

    `adopted`, `remnants`, `void`: what recovery did. `more`: what was acknowledged
    since, with its position; `stores`: the destinations' copies by now.
    """

    verdict: Verdict
    stores: dict[str, list[Stored]]
    faults: list[str] = field(default_factory=list)
    adopted: int = 0
    remnants: int = 0
    void: int = 0
    more: list[tuple[int, Entry]] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return self.verdict.holds and not self.faults

    def as_text(self) -> str:
        return "; ".join([*self.faults, *([] if self.verdict.holds else [self.verdict.as_text()])])


class Judge:
    """Judges mounted spools, with a storescp that is there for all of them."""

    def __init__(self, work: Path, archive: Path, *, direct: bool, mistakes: tuple[str, ...] = ()) -> None:
        work.mkdir()
        self._work = work
        self._archive = archive
        self._direct = direct
        self._mistakes = mistakes
        self._count = 0
        self._ends = ExitStack()
        self._pacs: Destination | None = None

    def __enter__(self) -> Judge:
        self._pacs = self._ends.enter_context(peers.storescp(self._work / "pacs", profile=False))
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def look(self, mount: Path, known: Before, folder: Path, *, goes_on: bool,
             position: Callable[[], int] = lambda: 0) -> Finding:
        """Start up on that file system; `goes_on`: let all stages run until everything has arrived.

        `folder` is made, and kept as long as the finding's copies are wanted. `position`
        is asked after each success that is given here.
        """
        pacs = self._pacs
        assert pacs is not None
        self._count += 1
        for path in (folder, folder / "pacs"):
            path.mkdir()
        archive, port, number = folder / "archive", free_port(), self._count
        if goes_on:
            rebuilt_archive(archive, self._archive, known.there["archive"])
        told = Inside(f"cut-{os.getpid()}-{number}", inside.now(), self._direct, str(folder / "times"), "",
                      mistakes=self._mistakes)

        with tempfile.TemporaryDirectory(prefix="dg-") as sockets:     # whose paths may have 107 bytes
            def work() -> dict[str, Any]:
                inside.apply(told)
                config = _config(folder, mount / "spool", archive, port, pacs.port, sockets)
                return go_on(config, port, position, number) if goes_on else start_up(config, position, number)

            answer = _in_a_child(work, folder / "log")
        if "fault" in answer:
            # Of what was promised it can still be said whether it is there.
            verdict = oracle.judge(known.promised, _entries(known.there), spool=mount / "spool")
            pacs.clear()
            return Finding(verdict, known.there, [answer["fault"]])
        stores = _together(known.there, self._new(folder)) if goes_on else known.there
        return _judged(answer, mount / "spool", known, stores, everywhere=goes_on)

    def forget(self) -> None:
        """What has arrived since is nobody's: the state that it came from is not judged."""
        assert self._pacs is not None
        self._pacs.clear()

    def _new(self, folder: Path) -> dict[str, list[Stored]]:
        """What has arrived since; put out of the way of the next state."""
        assert self._pacs is not None
        aside = folder / "pacs"
        arrived = [replace(copy, path=copy.path.rename(aside / copy.path.name)) for copy in received(self._pacs.folder)]
        return {"pacs": arrived, "archive": kept(folder / "times", folder / "archive")}


def _judged(answer: dict[str, Any], spool: Path, known: Before, stores: dict[str, list[Stored]], *,
            everywhere: bool) -> Finding:
    more = [(position, Entry(*entry)) for position, entry in answer["acknowledged"]]
    journal = Journal()
    journal.offered = [*known.offered, *(entry for _, entry in more)]
    journal.acknowledged = [*known.promised, *(entry for _, entry in more)]
    objects = oracle.read_spool(spool)
    verdict = oracle.judge(journal, _entries(stores), spool=spool, balance=answer["balance"], held=objects)
    finding = Finding(verdict, stores, list(answer["faults"]), answer["adopted"], answer["remnants"], answer["void"], more)
    damaged = [held for held in objects if not held.intact or held.excess]
    finding.faults += [f"adopted as it is: {held.path.name}: {held.fault or 'too long'}" for held in damaged[:3]]
    if verdict.set_aside:
        finding.faults.append(f"{verdict.set_aside} acknowledged objects are in quarantine")
    for name, entries in _entries(stores).items() if everywhere else ():
        if missing := set(journal.acknowledged) - set(entries):
            finding.faults.append(f"{len(missing)} acknowledged objects never arrived at {name}: {min(map(str, missing))}")
    return finding


def _together(there: dict[str, list[Stored]], new: dict[str, list[Stored]]) -> dict[str, list[Stored]]:
    return {name: [*copies, *new[name]] for name, copies in there.items()}


def _entries(stores: dict[str, list[Stored]]) -> dict[str, list[Entry]]:
    return {name: [copy.entry for copy in copies] for name, copies in stores.items()}


def _config(folder: Path, spool: Path, archive: Path, port: int, pacs: int, sockets: str) -> Path:
    """As that of the life, with the places of this state; the identifier that is expected is the spool's own."""
    uuid = json.loads((spool / "SPOOL-ID").read_bytes())["uuid"]
    path = folder / "dcmgate.toml"
    path.write_text(toml([
        ("[listener]", {"id": "modality", "address": "127.0.0.1", "ports": [port], "unknown": "admit"}),
        *(("[destination]", table) for table in destinations(pacs, archive)),
        ("spool", {"path": spool, "uuid": uuid, "state": folder / "state", "receivers": 1, **RETENTION}),
        ("control", {"run": sockets})]))
    return path


# --- the child --------------------------------------------------------------------------------------------------------


def _in_a_child(work: Callable[[], dict[str, Any]], log: Path) -> dict[str, Any]:
    """What `work` answers in a process of its own; {"fault": …} where it raises, dies or hangs.

    The caller has one thread: a fork is safe, and saves the imports.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_the_child(work, log, writing)
    os.close(writing)
    try:
        said = _hear(reading)
    finally:
        os.close(reading)
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)      # with all that it started: the file system is unmounted next
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if said is None:
        return {"fault": f"start-up hangs: nothing for {PATIENCE:.0f} s; {_tail(log)}"}
    try:
        return dict(json.loads(said))
    except ValueError:
        return {"fault": f"start-up died; {_tail(log)}"}


def _be_the_child(work: Callable[[], dict[str, Any]], log: Path, writing: int) -> None:
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with open(log, "ab") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        try:
            answer = work()
        except BaseException as error:  # noqa: BLE001 whatever the product raises is a finding
            traceback.print_exc()
            where = traceback.extract_tb(error.__traceback__)[-1]
            answer = {"fault": f"start-up: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"}
        sys.stderr.flush()
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(json.dumps(answer).encode())
        status = 0
    finally:
        os._exit(status)


def _hear(fd: int) -> bytes | None:
    """All that is said until the end; None where that does not come."""
    said, deadline = b"", time.monotonic() + PATIENCE
    while (left := deadline - time.monotonic()) > 0:
        if select.select([fd], [], [], left)[0]:
            piece = os.read(fd, 1 << 16)
            if not piece:
                return said
            said += piece
    return None


def _tail(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").splitlines()[-5:])[-500:] if log.exists() else ""
