"""As SCP: a session is taken up again only while certificates, trust and lists are those that it was made by."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from appliance.config.settings import Listener
from appliance.net.secure import Secure
from appliance.net.tls import Contexts
from appliance.net.tlserrors import TlsError
from tests.support import pki

pytestmark = pytest.mark.requirement("conformance: resumption")


class Server:
    """Our side of a listener with mutual TLS, one connection after the other."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.ca = pki.Authority("Clinic CA")
        self.scanner = self.ca.leaf("scanner")
        pki.place(state, "box", self.ca.leaf("box", dns=["localhost"]), trust=[self.ca], crl=self.ca.crl())
        self.contexts = Contexts(state)
        self.listener = Listener(id="scanners", tls="bcp195", certificate="box")

    def client(self, version: ssl.TLSVersion) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trust = self.state / "trust.pem"
        trust.write_bytes(pki.pem(self.ca.certificate))
        context.load_verify_locations(trust)
        key, chain = self.scanner.write(self.state, "scanner")
        context.load_cert_chain(chain, key)
        context.minimum_version = context.maximum_version = version
        return context

    def meet(self, context: ssl.SSLContext, session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool, str]:
        """The session after one exchange, whether one was taken up again, and what our side refused it for."""
        ours, theirs = socket.socketpair()
        refused: list[str] = []

        def serve() -> None:
            try:
                secure = Secure(ours, self.contexts.server(self.listener), server_side=True)
                secure.handshake()
                secure.sendall(b"hello")
                assert secure.identity is not None and secure.identity.fingerprint == self.scanner.fingerprint
                secure.close()                    # in order, or OpenSSL forgets the session by itself
            except TlsError as e:
                refused.append(e.check)
            ours.close()
        thread = threading.Thread(target=serve)
        thread.start()
        theirs.settimeout(20)
        kept, reused = None, False
        with suppress(OSError), context.wrap_socket(theirs, server_hostname="localhost", session=session) as sock:
            with suppress(OSError):                   # refused after the handshake
                assert sock.recv(5) in (b"hello", b"")
            kept, reused = sock.session, bool(sock.session_reused)
        thread.join(20)
        return kept, reused, "".join(refused)


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


def test_by_session_id_while_nothing_has_changed(server: Server) -> None:
    context = server.client(ssl.TLSVersion.TLSv1_2)
    session, reused, _ = server.meet(context, None)
    assert session is not None and not reused and not session.has_ticket
    assert server.meet(context, session)[1]


def test_never_in_tls_1_3(server: Server) -> None:
    context = server.client(ssl.TLSVersion.TLSv1_3)
    session, _, _ = server.meet(context, None)
    assert session is None or not session.has_ticket
    assert not server.meet(context, session)[1]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_who_was_revoked_meanwhile_does_not_come_in_by_an_old_session(server: Server, version: ssl.TLSVersion) -> None:
    context = server.client(version)
    session, _, refused = server.meet(context, None)
    assert refused == ""
    pki.place(server.state, "box", crl=server.ca.revoke(server.scanner).crl())
    _, reused, _ = server.meet(context, session)
    assert not reused
    refused = server.meet(context, session)[2]
    assert refused == "revoked"


def test_new_trust_ends_old_sessions(server: Server) -> None:
    context = server.client(ssl.TLSVersion.TLSv1_2)
    session, _, _ = server.meet(context, None)
    other = pki.Authority("Another CA")
    pki.place(server.state, "box", trust=[other])
    _, reused, refused = server.meet(context, session)
    assert not reused and refused == "unknown_authority"
