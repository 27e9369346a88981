"""Self-echo: the receiver calls itself, over its real ports, as a scanner does: from the system's queue to an answered C-ECHO.

What is seen from inside may look well while nobody outside is answered. Any answer
of DICOM or of TLS counts, a rejection too: then somebody is there. A token that is
new at each start lets it in where no `[[peer]]` would, for Verification alone,
and leaves no line in the log or among those who knocked.
"""

from __future__ import annotations

import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence

from appliance.clock import SECOND
from appliance.dicom import pdu, uids
from appliance.dicom.pdu import AssociateRequest
from appliance.net import sidedoor, sockets
from appliance.policy import Rejected
from appliance.probe.requestor import NoAnswer, Requestor
from appliance.receive.guard import now_ns
from appliance.telemetry.log import Log

EVERY = 10.0
SECONDS = 10.0
"""So long one may take. Without any answer for LATE seconds the watchdog is fed no more."""

LATE = 60.0
TITLE = "DCMGATE"

Port = tuple[str, int, bool]
"""Address, port, and whether TLS is spoken there."""

log = Log("receive")


def new_token() -> str:
    return secrets.token_hex(16)


def is_own(request: AssociateRequest, token: str) -> bool:
    """Whether a request is our own: it carries the token, and proposes nothing but Verification."""
    return sidedoor.opens(request, token) and _only_verification(request)


def is_left_over(request: AssociateRequest, address: str) -> bool:
    """Whether it is the call of a receiver before this one, which has waited at the port since: nobody who knocked."""
    identity = request.user_identity
    return (address in ("127.0.0.1", "::1") and identity is not None and identity.primary == sidedoor.USER
            and _only_verification(request))


def _only_verification(request: AssociateRequest) -> bool:
    return all(context.abstract == uids.VERIFICATION for context in request.contexts)


class SelfEcho:
    """`ports` gives those that are open. `answered` may be asked from any thread."""

    def __init__(self, ports: Callable[[], Sequence[Port]], token: str, *, every: float = EVERY, seconds: float = SECONDS,
                 late: float = LATE) -> None:
        self._ports = ports
        self._token = token
        self._every, self._seconds, self._late = every, seconds, late
        self._turn = 0
        self._at = now_ns()
        self._silent = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="self-echo", daemon=True)

    def start(self) -> None:
        self._at = now_ns()
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def answered(self) -> bool:
        """Whether somebody has answered lately. Does not block."""
        return now_ns() - self._at <= self._late * SECOND

    def _run(self) -> None:
        while not self._stopping.wait(self._every):
            try:
                why = self.once()
            except Exception:  # noqa: BLE001  top of the thread: a fault of ours in asking is no silence of the box
                log.crash("the receiver could not call itself")
                why = ""
            if not why:
                self._at = now_ns()
            elif not self._silent:
                log.error("the receiver does not answer itself", why=why)
            self._silent = bool(why)

    def once(self) -> str:
        """Ask at the next port in turn: why nobody answered, empty where somebody did, or where no port is open."""
        ports = self._ports()
        if not ports:
            return ""
        self._turn += 1
        address, port, secure = ports[self._turn % len(ports)]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(address, address)
        try:
            with sockets.connect(host, port, self._seconds) as sock:
                return self._shake_hands(sock, host, port) if secure else self._echo(sock, host, port)
        except OSError as e:
            return f"{host}:{port}: {e.strerror or e}"

    def _echo(self, sock: socket.socket, host: str, port: int) -> str:
        deadline = time.monotonic() + self._seconds
        requestor = Requestor(sock)
        try:
            requestor.associate(TITLE, TITLE, [pdu.ProposedContext(1, uids.VERIFICATION, (uids.IMPLICIT_LE,))], deadline,
                                sidedoor.SideDoor(port, self._token).identity())
            requestor.echo(deadline)
            requestor.release(deadline)
        except NoAnswer as lost:
            return "" if isinstance(lost.answer, Rejected) else f"{host}:{port}: no answer to a C-ECHO"
        return ""

    def _shake_hands(self, sock: socket.socket, host: str, port: int) -> str:
        """A handshake that fails for want of a certificate of ours is an answer."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        sock.settimeout(self._seconds)
        try:
            with context.wrap_socket(sock):
                pass
        except ssl.SSLError as e:
            if isinstance(e, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
                return f"{host}:{port}: no answer to a TLS handshake"
        return ""
