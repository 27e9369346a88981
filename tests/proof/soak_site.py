"""The destinations of the soak, which come and go, and what arrived there, read by the oracle before it is thrown away."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from tests.proof import oracle
from tests.proof.oracle import Entry, Journal
from tests.support import peers
from tests.support.peers import Destination
from tests.support.waiting import free_port

DYING = 10.0
"""A file that storescp wrote to so many seconds before it was killed may be torn: nobody was told that it is there."""


class Pacs:
    """storescp of DCMTK on one port and folder, killed, stopped and started again; `collect` takes its files away.

    `store` has what arrived whole, `copies` counts it with its repetitions. A
    file that is no object anybody offered stays: `rest` says at the end what it
    is, and whether it is only torn.
    """

    def __init__(self, folder: Path, journal: Journal) -> None:
        self.store: set[Entry] = set()
        self.copies = 0
        self.torn = 0
        self.kills = 0
        self._folder = folder
        self._journal = journal
        self._port = free_port()
        self._running: AbstractContextManager[Destination] | None = None
        self.destination: Destination = Destination("storescp", "STORESCP", self._port, folder)
        self._killed_at: list[float] = []
        self._looked: dict[Path, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def start(self) -> None:
        running = peers.storescp(self._folder, port=self._port, profile=False)
        self.destination = running.__enter__()
        self._running = running

    def kill(self) -> None:
        """SIGKILL to it and the children of its associations."""
        if self._running is not None:
            self._running.__exit__(None, None, None)
            self._running = None
            self.kills += 1
            self._killed_at.append(time.time())

    def hang(self, seconds: float, stop: threading.Event) -> None:
        """Stopped: its sockets stay open, and nobody reads."""
        process = self.destination.process
        if process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGSTOP)
        try:
            stop.wait(seconds)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)

    def collect(self) -> None:
        """Read what is there, and delete what is whole."""
        with self._lock:
            offered = set(self._journal.offered)
            for path in sorted(self._folder.iterdir()):
                if path.suffix in (".log", ".cfg") or not path.is_file():
                    continue
                state = path.stat()
                seen = (state.st_size, state.st_mtime_ns)
                if self._looked.get(path) == seen:
                    continue
                self._looked[path] = seen
                entry = _entry(path)
                if entry in offered:
                    self.store.add(entry)
                    self.copies += 1
                    path.unlink()
                    del self._looked[path]

    def rest(self) -> set[Entry]:
        """Everything that arrived. What is neither whole nor torn by a kill is among it, for the oracle to judge."""
        self.collect()
        lengths: dict[str, int] = {entry.instance: entry.length for entry in self._journal.offered}
        found = set(self.store)
        for path in sorted(self._folder.iterdir()):
            if path.suffix in (".log", ".cfg"):
                continue
            entry, written = _entry(path), path.stat().st_mtime
            killed = any(at - DYING <= written <= at + 1 for at in self._killed_at)
            if killed and (entry is None or entry.length < lengths.get(entry.instance, 0)):
                self.torn += 1
            else:
                found.add(entry or Entry(f"unreadable file {path.name}", "", "", path.stat().st_size))
        return found


def _entry(path: Path) -> Entry | None:
    """The object in a file; None where it is not even a whole head."""
    try:
        return oracle.read_bytes(path.read_bytes())
    except (ValueError, FileNotFoundError):
        return None


class Shelf:
    """A destination of type "folder" that is unmounted now and then: its folder has another name meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._away = path.with_name(path.name + ".away")

    def away(self, seconds: float, stop: threading.Event) -> None:
        self.path.rename(self._away)
        try:
            stop.wait(seconds)
        finally:
            self._away.rename(self.path)
