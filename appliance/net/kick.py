"""Kicks: a Unix datagram that says "look at the ledger". The ledger is the queue; a lost kick costs a second.

`send` goes to whoever has a `Mailbox` at that path. The names are fixed:
`kick-forwarder` and `kick-keeper` in `[control] run`.
"""

from __future__ import annotations

import os
import select
import socket
from contextlib import suppress
from pathlib import Path

FORWARDER = "kick-forwarder"
KEEPER = "kick-keeper"


def send(path: Path) -> None:
    """Kick whoever listens at `path`. Never blocks, never raises: nobody there, or busy, is fine."""
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)
        sender.sendto(b"\0", str(path))


def listens(path: Path) -> bool:
    """Whether a process has its mailbox at `path`. It is not disturbed by the question."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asker:
        try:
            asker.connect(str(path))
        except OSError:
            return False
        return True


class Mailbox:
    """The listening end. OSError from the constructor where the folder does not let us."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        # Bound under another name and renamed over what a dead process left: nobody finds it missing, nothing is deleted.
        beside = path.with_name(f".{path.name}.{os.getpid()}.{self._sock.fileno()}")
        try:
            self._sock.bind(str(beside))
            os.chmod(beside, 0o660)
            beside.rename(path)
        except OSError:
            self._sock.close()
            raise
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)

    def fileno(self) -> int:
        return self._sock.fileno()

    def wait(self, seconds: float) -> bool:
        """Wait for a kick at most that long. True if there was one; all that have come are taken together."""
        if not self._poll.poll(max(0, round(seconds * 1000))):
            return False
        self.drain()
        return True

    def drain(self) -> None:
        """Take every kick that has come."""
        with suppress(BlockingIOError):
            while True:
                self._sock.recv(16)

    def close(self) -> None:
        """The name stays behind: a kick to it is refused, which the sender does not mind."""
        self._sock.close()
