"""Two rows of the hazards file that want a gateway of their own: an error in the handler, and a link that is too slow."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.proof.oracle import entry_of, judge
from tests.support import badpeers, nonsense, objects
from tests.support.acceptor import echo
from tests.support.gateway import Gateway
from tests.support.scu import IMPLICIT, VERIFICATION, Scanner
from tests.support.waiting import wait_until

MIB = 1 << 20
QUOTA = 300 * MIB
PROGRESS = 2.0
"""Seconds without progress that the gateway allows the destination; the object takes several times as long."""


class _Crawling(socket.socket):
    """Reads 30 kB every tenth of a second."""

    def recv(self, size: int, flags: int = 0) -> bytes:
        time.sleep(min(size, 30_000) / 300_000)
        return super().recv(min(size, 30_000), flags)


@contextmanager
def crawling(received: list[bytes]) -> Iterator[int]:
    """A destination at the end of a slow link; `received` gets the UIDs of what came whole."""

    def behave(sock: socket.socket, stop: threading.Event) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        slow = _Crawling(fileno=sock.detach())
        with slow:
            badpeers.accept_association(slow)
            for context, message, instance in nonsense._received(slow):
                slow.sendall(nonsense._answer(context, message, instance, 0))
                received.append(instance.rstrip(b"\0"))

    with badpeers._serving(behave) as port:
        yield port


def handler_and_link(folder: Path, say: Callable[[str], None]) -> list[str]:
    """What is wrong, one line each; a minute at most."""
    failures: list[str] = []
    received: list[bytes] = []
    with crawling(received) as port, Gateway(folder, [{
            "id": "crawling", "type": "dimse", "address": "127.0.0.1", "port": port, "called": "SLOW", "default": True,
            "progress_seconds": PROGRESS, "connect_seconds": 5.0}], receivers=2, size=QUOTA) as gateway:
        gateway.start_stages()
        large, small = objects.multiframe(1, "hostile", size=QUOTA + 20 * MIB), objects.dx(1, "hostile", size=3_000_000)
        with Scanner(gateway.port, [(VERIFICATION, IMPLICIT), (large.sop_class, large.syntax), (small.sop_class, small.syntax)],
                     timeout=60) as scanner:
            status = scanner.store(large)
            if status != 0xA700:
                failures.append(f"an object that the spool has no room for: status {status:04X} instead of A700")
            slowest = max(echo(gateway.port) for _ in range(5))
            status = scanner.store(small)
            if status or slowest > 1.0:
                failures.append(f"after an object without room: status {status:04X}, slowest echo {slowest:.2f} s")
        begin = time.monotonic()
        try:
            wait_until(lambda: received, 60, "the object at the end of the slow link", every=0.1)
        except AssertionError as error:
            failures.append(str(error))
        seconds = time.monotonic() - begin
        if not failures and seconds < 2 * PROGRESS:
            failures.append(f"the slow link was none: {seconds:.1f} s")
        say(f"handler and link: A700 and on; 3 MB in {seconds:.1f} s with {PROGRESS:g} s allowed without progress")
        for name in list(gateway.processes):
            gateway.stop(name)
        verdict = judge([entry_of(small)], {}, spool=gateway.spool, balance=gateway.balance(status=None))
        if not verdict.holds:
            failures.append(verdict.as_text())
    return failures
