"""Place: the folder of one tunnel in `[control] run`, and who runs it by what.

    <run>/tunnels/<id>/stunnel.conf      0600: a proxy's password may stand in it
                       trust.pem         trust anchors and pinned certificates, where there are pins
                       record            who runs it, and by which setup; locked for as long as stunnel lives, which inherits
                                         the descriptor
    <run>/tunnels/<id>.reload            touched where the keeper may not send a signal to stunnel, because that is another
                                         user: the service manager then calls `dcmgate tunnel ID --reload`

So one tunnel is run once, and whether it runs is known without guessing.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import TunnelError
from appliance.tunnel.setup import ANCHORS, FOLDER, LISTENS, Setup

CONFIGURATION = "stunnel.conf"
RECORD = "record"
CLAIM_SECONDS = 2.0
"""Who only looks whether it runs holds the lock for a moment, too."""


@dataclass(frozen=True, slots=True)
class Running:
    """Who runs a tunnel: its process, the digest of the setup it was given last, and where it listens. `ours`: whether this
    process may write its files and send it signals."""

    pid: int
    digest: str
    listen: str
    ours: bool


class Place:
    """`run` is the folder of `[control] run`. OSError where it cannot be used."""

    def __init__(self, run: Path, id: str) -> None:
        self.id = id
        self.folder = run / FOLDER / id

    @property
    def configuration(self) -> Path:
        return self.folder / CONFIGURATION

    def write(self, setup: Setup) -> Path:
        """Write the setup, each file in one step; the configuration."""
        self._make()
        if setup.anchors:
            self._put(self.folder / ANCHORS, setup.anchors)
        self._put(self.configuration, setup.text.encode())
        return self.configuration

    def last(self) -> Setup | None:
        """The setup that was written last, since the box was started; None where there is none."""
        try:
            text = self.configuration.read_text()
        except (OSError, UnicodeDecodeError):
            return None
        listen = next((line.removeprefix(LISTENS) for line in text.split("\n") if line.startswith(LISTENS)), "")
        return Setup(self.id, listen, text) if listen else None

    def _make(self) -> None:
        for folder, mode in ((self.folder.parent, 0o770), (self.folder, 0o750)):
            with suppress(FileExistsError):
                folder.mkdir(mode)

    def _put(self, path: Path, data: bytes) -> None:
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
        beside.rename(path)

    # --- who runs it --------------------------------------------------------------------------------------------------

    def claim(self) -> int:
        """A descriptor that stunnel inherits: while it is open, nobody else runs this tunnel. TunnelError: somebody does."""
        self._make()
        descriptor = os.open(self.folder / RECORD, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
        deadline = time.monotonic() + CLAIM_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return descriptor
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(descriptor)
                    running = self.running()
                    raise TunnelError(f"tunnel {self.id} runs already, as process {running.pid if running else '?'}",
                                      mend="Stop that one first, or leave it.") from None
                time.sleep(0.05)

    def sign(self, descriptor: int, pid: int, setup: Setup) -> None:
        """Write who runs it by what into a claim."""
        record = f"{pid} {setup.digest} {setup.listen}\n".encode()
        os.pwrite(descriptor, record, 0)
        os.ftruncate(descriptor, len(record))

    def running(self) -> Running | None:
        """Who runs it; None where nobody does."""
        path = self.folder / RECORD
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            words = os.pread(descriptor, 512, 0).decode("utf-8", "replace").split()
            if len(words) != 3 or not words[0].isdigit():
                return None                      # it is just starting
            ours = os.geteuid() in (0, os.fstat(descriptor).st_uid)
            return Running(int(words[0]), words[1], words[2], ours)
        finally:
            os.close(descriptor)

    # --- what has changed ---------------------------------------------------------------------------------------------

    def take_up(self, running: Running, setup: Setup) -> None:
        """Have it go by this setup: new connections do, those that are up stay. Where it listens cannot change while it runs:
        then it is ended, and whoever runs it starts it again. OSError."""
        path = self.write(setup)
        with suppress(ProcessLookupError):
            os.kill(running.pid, signal.SIGHUP if running.listen == setup.listen else signal.SIGTERM)
        descriptor = os.open(path.with_name(RECORD), os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            self.sign(descriptor, running.pid, setup)
        finally:
            os.close(descriptor)

    def ask(self) -> None:
        """Ask whoever runs it to do that. OSError."""
        path = self.folder.with_name(f"{self.id}.reload")
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640))
        os.utime(path)
