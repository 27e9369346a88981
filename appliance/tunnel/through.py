"""Through: one exchange through the tunnel itself, and where it fails, the walk to its far end that names the hop.

    client   a C-ECHO into the plain port here, answered by the far end; without DICOM, a walk to the far end by the tunnel's
             own certificates, and a connection through the tunnel that is ended and not reset
    server   a handshake with the TLS port here, which has to show the certificate that is in force, and a C-ECHO through it
             where our own certificate is let in; and a walk to the plain server behind it
"""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.config.hosts import host_port
from appliance.config.secure import fingerprint
from appliance.config.settings import Tunnel
from appliance.errors import CertificateError
from appliance.net import sockets
from appliance.net.certstore import Material, Store
from appliance.net.secure import Secure
from appliance.net.tls import Client
from appliance.net.tlserrors import TlsError
from appliance.policy import Failure, FailureKind, classify
from appliance.probe.report import Report
from appliance.probe.requestor import NoAnswer, Requestor
from appliance.probe.service import VERIFICATION, party_of
from appliance.probe.target import Target, of_tunnel
from appliance.probe.walk import walk
from appliance.tunnel import pins
from appliance.tunnel.setup import CONNECT_SECONDS, HANDSHAKE_SECONDS

SECONDS = 15.0
"""For the exchange; longer than stunnel takes to give up a far end that does not answer."""

GIVES_UP_SECONDS = CONNECT_SECONDS + HANDSHAKE_SECONDS + 2.0
"""After which stunnel has reset a connection that it cannot lead through."""

HOP = "tunnel"
LOG = "Look at the log of this tunnel."


@dataclass(frozen=True, slots=True)
class Found:
    """Whether it leads through. `hop` is where it ends, `cause` a word for it, `text` a sentence, `mend` what a person does."""

    up: bool
    text: str
    hop: str = ""
    cause: str = ""
    mend: str = ""
    milliseconds: float = 0.0


class _Ends(Exception):
    def __init__(self, cause: str, text: str, mend: str = LOG, hop: str = HOP) -> None:
        super().__init__(text)
        self.found = Found(False, text, hop, cause, mend)


def prove(tunnel: Tunnel, state: str | Path) -> Found:
    """Blocking, for two minutes at most. `state` is the folder of `[spool] state`. Never raises for what is found."""
    target = of_tunnel(tunnel, through=False)
    began = time.monotonic()
    try:
        text = (_client if tunnel.side == "client" else _server)(tunnel, target, Path(state))
    except _Ends as e:
        return e.found
    return Found(True, text, milliseconds=(time.monotonic() - began) * 1000)


def _client(tunnel: Tunnel, target: Target, state: Path) -> str:
    if target.called:
        try:
            with _near(tunnel) as sock:
                return _echo(sock, target)
        except _Ends as e:
            if e.found.cause != "not_running":
                _walked(walk(target, state, deep=False))
            raise
    _walked(walk(target, state, deep=False))
    with _near(tunnel) as sock:
        _ended(sock, target)
    return f"{target.place} answers by TLS, and takes a connection through {tunnel.listen}"


def _server(tunnel: Tunnel, target: Target, state: Path) -> str:
    material = Store(state).material(tunnel.certificate)
    said = ""
    with closing(_shaken(_near(tunnel), tunnel, material)) as secure:
        shown = secure.chain()
        if material.chain is not None and shown[:1] != tuple(pins.ders(material.chain.read_bytes())[:1]):
            raise _Ends("old_certificate", f"{tunnel.listen} shows another certificate than the one in force",
                        "It was not taken up: stop this tunnel and start it again.", "tls")
        if target.called:
            said = _echo_if_let_in(secure, target)
    _walked(walk(target, state, deep=False))
    return said or f"{tunnel.listen} answers by TLS with the certificate in force, and {target.place} answers"


def _walked(report: Report) -> Report:
    """The hop at which the way ends without the tunnel, if it does."""
    if (hop := report.failed) is not None:
        raise _Ends(hop.cause, hop.text, hop.mend, hop.name)
    return report


def _near(tunnel: Tunnel) -> socket.socket:
    host, port = host_port(tunnel.listen) or ("", 0)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        return sockets.connect(host, port, SECONDS)
    except ConnectionResetError:             # taken, and given up before we knew
        raise _Ends("closed", f"{tunnel.listen} takes connections and resets them") from None
    except OSError as e:
        raise _Ends("not_running", f"{tunnel.listen}, where it should listen, does not answer: {e.strerror or e}") from None


def _echo(sock: sockets.Stream, target: Target) -> str:
    deadline = time.monotonic() + SECONDS
    requestor = Requestor(sock)
    try:
        requestor.associate(target.called, target.calling, [VERIFICATION], deadline)
        status = requestor.echo(deadline)
    except NoAnswer as lost:
        answer = lost.answer
        if isinstance(answer, Failure):
            late = answer.kind is FailureKind.TIMEOUT
            raise _Ends("no_answer" if late else "closed", f"a C-ECHO through the tunnel to {target.place} is not answered: "
                        + ("nothing comes back" if late else "the connection is closed")) from lost
        text, _, mend = classify(answer, party_of(target)).text.rpartition(" — ")
        raise _Ends("association", text, f"{mend[:1].upper()}{mend[1:]}.", "association") from lost
    if status:
        raise _Ends("echo_status", f"{target.place} answers C-ECHO with status {status:04X}", "Look in its log.", "service")
    requestor.release(time.monotonic() + 2.0)
    return "C-ECHO is answered through the tunnel" if status == 0 else \
        "an association is taken through the tunnel; Verification is not"


def _ended(sock: socket.socket, target: Target) -> None:
    """End a connection through the tunnel and see how its end comes back. stunnel resets one where TCP, proxy or TLS fail, our
    own certificate refused there included; once TLS is up it tells the far end, whose end it passes on, or waits for it."""
    sock.settimeout(GIVES_UP_SECONDS)
    try:
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)
    except TimeoutError:
        return                               # TLS is up, and the far end keeps its side open
    except OSError:
        raise _Ends("closed", f"{target.place} can be reached, and the tunnel to it resets each connection") from None


def _shaken(sock: socket.socket, tunnel: Tunnel, ours: Material) -> Secure:
    """TLS with our own near end, which has nothing to prove: what it shows is compared."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with suppress(OSError, ValueError):
        if ours.chain is not None and ours.key is not None:
            context.load_cert_chain(ours.chain, ours.key, password="")
    secure = Secure(sock, context, whose=f"the certificate of {tunnel.listen}")
    try:
        secure.handshake(time.monotonic() + SECONDS)
    except OSError as e:
        if isinstance(e, TlsError) and secure.chain():     # TLS 1.2 says at once that our own certificate is not let in
            return secure
        secure.close()
        raise _Ends(getattr(e, "check", "no_answer"), f"{tunnel.listen} does not answer by TLS: {e}", LOG, "tls") from None
    return secure


def _echo_if_let_in(secure: Secure, target: Target) -> str:
    """A C-ECHO by our own certificate; empty where that is not let in: it is for others."""
    try:
        return _echo(secure, target)
    except _Ends as e:
        if isinstance(e.__cause__, NoAnswer) and isinstance(e.__cause__.error, TlsError):
            return ""
        if e.found.cause == "closed":
            return ""                      # the walk to the server says whether it is that
        raise


def learn(tunnel: Tunnel, state: str | Path, seconds: float = SECONDS) -> bool:
    """Fetch the certificate that a server shows, where it has one of the tunnel's pins; whether it is new here.
    OSError (TlsError, ProxyError) where it cannot be had or is none of them, CertificateError where it cannot be kept."""
    from appliance.net.proxy import Proxy
    host, port = host_port(tunnel.connect) or ("", 0)
    deadline = time.monotonic() + seconds
    connect = Proxy(tunnel.proxy, state).connect if tunnel.proxy else sockets.connect
    with connect(host, port, seconds) as sock:
        secure = Client(Store(state), tunnel, host).wrap(sock, deadline, f"the certificate of {tunnel.connect}")
        try:
            leaf = next(iter(secure.chain()), b"")
        finally:
            secure.close()
    if not leaf:
        raise CertificateError(f"{tunnel.connect} shows no certificate")
    return pins.keep(Path(state), leaf, [fingerprint(pin) for pin in tunnel.pins])
