"""Tunnels with Debian's stunnel between the real programs: what has to get through does; what must not is refused and named."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from appliance.clock import SystemClock
from appliance.tunnel.through import learn, prove
from appliance.tunnel.watch import Watch
from tests.support import measure, objects, peers, pki
from tests.support.proxies import bad_proxy, password, says, tinyproxy
from tests.support.tunnels import Carried, echo, echoing, far_stunnel, options_of, tool
from tests.support.waiting import free_port, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]

HL7 = b"\x0bMSH|^~\\&|RIS|SITE|GATE|SITE|20260101||ORM^O01|1|P|2.3\rPID|1||P1\r\x1c\r"


class Ends:
    """The box's certificate store, and a far end of the same authority."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.ca, self.other = pki.Authority("Cloud CA"), pki.Authority("Foreign CA")
        self.issuing = self.ca.intermediate("Cloud Issuing CA")
        self.box = self.issuing.leaf("box", addresses=["127.0.0.1"])
        pki.place(self.state, "box", self.box, trust=[self.ca])
        self.trust = folder / "trust.pem"
        self.trust.write_bytes(pki.pem(self.ca.certificate))
        self.far = self.issuing.leaf("far", addresses=["127.0.0.1"], dns=["localhost"])

    def files(self, pair: pki.Pair | None = None, name: str = "far") -> tuple[Path, Path]:
        return (pair or self.far).write(self.folder / name, name)

    def tls(self, pair: pki.Pair | None = None, name: str = "far") -> list[str]:
        """DCMTK's options."""
        return options_of(self.files(pair, name), self.trust)

    def tunnel(self, connect: int, **settings: object) -> Carried:
        return Carried(self.folder, self.state, connect=f"127.0.0.1:{connect}", **settings)

    @contextmanager
    def stunnel(self, plain: int, pair: pki.Pair | None = None, *options: str) -> Iterator[int]:
        with far_stunnel(self.folder / "far-end", *self.files(pair), self.trust, plain, *options) as port:
            yield port


@pytest.fixture
def ends(tmp_path: Path) -> Ends:
    return Ends(tmp_path)


# --- what has to get through --------------------------------------------------------------------------------------------


@pytest.mark.requirement("conformance: tunnels")
@pytest.mark.parametrize("profile", ["bcp195", "bcp195-modified"])
def test_images_to_a_tls_server_and_identical(ends: Ends, tmp_path: Path, profile: str) -> None:
    """storescu, which speaks no TLS → tunnel → storescp, which speaks nothing else."""
    sent = peers.files_of((objects.ct(n, "tunnelled", side=128) for n in range(1, 5)), tmp_path / "sent")
    with peers.storescp(tmp_path / "scp", options=[*ends.tls(), "+px" if profile == "bcp195" else "+py"]) as scp, \
            ends.tunnel(scp.port, tls=profile, check="echo", called="STORESCP") as tunnel:
        assert echo(tunnel.port).returncode == 0
        assert peers.storescu(tunnel.port, sent, tmp_path).returncode == 0
        scp.wait_for([file.key for file in sent])
        assert prove(tunnel.entry, ends.state).up


def test_a_query_and_hl7_at_a_far_stunnel(ends: Ends, tmp_path: Path) -> None:
    sent = peers.files_of([objects.ct(1, "queried", side=32)], tmp_path / "sent")
    with ExitStack() as stack:
        enter = stack.enter_context
        archive = enter(peers.dcmqrscp(tmp_path / "qr"))
        tunnel = enter(ends.tunnel(enter(ends.stunnel(archive.port)), check="echo", called="QRSCP"))
        assert peers.storescu(tunnel.port, sent, tmp_path, called="QRSCP").returncode == 0
        found = tool("findscu", "-v", "-S", "-aec", "QRSCP", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID",
                     "-k", "PatientID", "127.0.0.1", str(tunnel.port))
        assert found.returncode == 0 and "Pending" in found.stdout + found.stderr, found.stderr
        assert prove(tunnel.entry, ends.state).up


def test_hl7_through_a_tunnel_that_is_proven_without_dicom(ends: Ends) -> None:
    with echoing() as plain, ends.stunnel(plain) as far, ends.tunnel(far) as tunnel:
        with socket.create_connection(("127.0.0.1", tunnel.port), 10) as sock:
            sock.settimeout(10)
            for _ in range(50):
                sock.sendall(HL7)
                said = b""
                while len(said) < len(HL7):
                    said += sock.recv(65536)
                assert said == HL7
        found = prove(tunnel.entry, ends.state)
        assert found.up and "takes a connection through" in found.text, found


def test_an_answer_to_who_has_ended_his_own_side(ends: Ends) -> None:
    """Half-closed, as `nc -N` does it: the answer still comes, and then the end."""
    with echoing() as plain, ends.stunnel(plain) as far, ends.tunnel(far) as tunnel, \
            socket.create_connection(("127.0.0.1", tunnel.port), 10) as sock:
        sock.settimeout(10)
        sock.sendall(HL7)
        sock.shutdown(socket.SHUT_WR)
        said = b""
        while part := sock.recv(65536):
            said += part
        assert said == HL7


def test_openssl_as_the_far_end(ends: Ends) -> None:
    """s_server asks for a certificate and sends each line back reversed."""
    port = free_port()
    key, chain = ends.files()
    command: list[str | Path] = [peers.program("openssl"), "s_server", "-accept", f"127.0.0.1:{port}", "-key", key, "-cert",
                                 chain, "-cert_chain", chain, "-CAfile", ends.trust, "-Verify", "4", "-verify_return_error",
                                 "-rev", "-quiet"]
    with peers.running(command, [port], log=ends.folder / "s_server.log"), ends.tunnel(port) as tunnel, \
            socket.create_connection(("127.0.0.1", tunnel.port), 10) as sock:
        sock.settimeout(10)
        sock.sendall(b"abc\n")
        assert sock.recv(100) == b"cba\n"


def test_a_plain_server_on_the_site_behind_a_tls_port(ends: Ends, tmp_path: Path) -> None:
    """storescu +tls → tunnel, side server → storescp, which speaks no TLS."""
    sent = peers.files_of((objects.ct(n, "inwards", side=64) for n in range(1, 4)), tmp_path / "sent")
    with peers.storescp(tmp_path / "scp") as scp, \
            ends.tunnel(scp.port, side="server", check="echo", called="STORESCP") as tunnel:
        client = ends.tls(ends.issuing.leaf("ws1"), "ws1")
        assert peers.storescu(tunnel.port, sent, tmp_path, options=client).returncode == 0
        scp.wait_for([file.key for file in sent])
        found = prove(tunnel.entry, ends.state)
        assert found.up and "C-ECHO is answered through the tunnel" in found.text, found


def test_a_server_is_proven_though_our_own_certificate_is_not_let_in(ends: Ends, tmp_path: Path) -> None:
    """The anchors of those who may come in are another authority's."""
    pki.place(ends.state, "others", trust=[ends.other])
    with peers.storescp(tmp_path / "scp") as scp, \
            ends.tunnel(scp.port, side="server", trust="others", check="echo", called="STORESCP") as tunnel:
        assert prove(tunnel.entry, ends.state).up
        (tmp_path / "box.pem").write_bytes(pki.pem(ends.ca.certificate))
        mine = options_of(ends.files(ends.other.leaf("ws"), "ws"), tmp_path / "box.pem")
        assert echo(tunnel.port, *mine).returncode == 0
        assert echo(tunnel.port, *ends.tls(ends.issuing.leaf("ws2"), "ws2")).returncode != 0


# --- what must not, towards a server ------------------------------------------------------------------------------------


def _revoked(ends: Ends) -> pki.Pair:
    pair = ends.issuing.leaf("x", addresses=["127.0.0.1"])
    pki.place(ends.state, "box", crl=ends.issuing.revoke(pair).crl())
    return pair


BAD_SERVERS: dict[str, tuple[Callable[[Ends], pki.Pair], dict[str, object], str, str]] = {
    "wrong authority": (lambda e: e.other.leaf("x", addresses=["127.0.0.1"]), {}, "unknown_authority", "not trusted"),
    "expired": (lambda e: e.issuing.expired("x", addresses=["127.0.0.1"]), {}, "expired", "has expired"),
    "not yet valid": (lambda e: e.issuing.not_yet_valid("x", addresses=["127.0.0.1"]), {}, "not_yet_valid", "not valid yet"),
    "wrong address": (lambda e: e.issuing.leaf("x", addresses=["127.0.0.9"]), {}, "wrong_name", "127.0.0.1"),
    "wrong name": (lambda e: e.far, {"server_name": "ris.example.org"}, "wrong_name", "ris.example.org"),
    "self-signed": (lambda e: pki.self_signed("x", addresses=["127.0.0.1"]), {}, "self_signed", "self-signed"),
    "revoked": (_revoked, {}, "revoked", "revoked"),
    "not for servers": (lambda e: e.issuing.leaf("x", addresses=["127.0.0.1"], usage=(ExtendedKeyUsageOID.CLIENT_AUTH,)), {},
                        "wrong_purpose", "not meant for"),
}


@pytest.mark.requirement("conformance: tunnels")
@pytest.mark.parametrize("check", ["echo", "tcp"])
@pytest.mark.parametrize("why", BAD_SERVERS)
def test_a_bad_server_is_refused_and_the_hop_named(ends: Ends, tmp_path: Path, why: str, check: str) -> None:
    make, settings, cause, words = BAD_SERVERS[why]
    pair = make(ends)
    with peers.storescp(tmp_path / "scp", options=ends.tls(pair, "bad")) as scp, \
            ends.tunnel(scp.port, check=check, called="STORESCP" if check == "echo" else "", **settings) as tunnel:
        assert echo(tunnel.port).returncode != 0
        found = prove(tunnel.entry, ends.state)
        assert not found.up and (found.hop, found.cause) == ("tls", cause), found
        assert words in found.text
        assert "Rejected by CERT" in tunnel.said()


def test_our_certificate_is_refused_there(ends: Ends, tmp_path: Path) -> None:
    (tmp_path / "foreign.pem").write_bytes(pki.pem(ends.other.certificate))
    for settings in ({"check": "echo", "called": "STORESCP"}, {}):
        with peers.storescp(tmp_path / "scp", options=options_of(ends.files(), tmp_path / "foreign.pem")) as scp, \
                ends.tunnel(scp.port, **settings) as tunnel:
            assert echo(tunnel.port).returncode != 0
            found = prove(tunnel.entry, ends.state)
            assert not found.up and found.hop == "tls" and "our_certificate" in found.cause, found


@pytest.mark.parametrize("check", ["echo", "tcp"])
def test_a_far_end_that_answers_and_a_tunnel_that_does_not_lead_there(ends: Ends, tmp_path: Path, check: str) -> None:
    """stunnel has read other trust anchors than those that are there by now: the hop is the tunnel itself."""
    pki.place(ends.state, "box", trust=[ends.other])
    with peers.storescp(tmp_path / "scp", options=ends.tls()) as scp, \
            ends.tunnel(scp.port, check=check, called="STORESCP" if check == "echo" else "") as tunnel:
        pki.place(ends.state, "box", trust=[ends.ca])
        found = prove(tunnel.entry, ends.state)
        assert not found.up and (found.hop, found.cause) == ("tunnel", "closed"), found


def _old(version: str) -> list[str]:
    return [version, "-cipher", "ALL:@SECLEVEL=0"]


@pytest.mark.parametrize("options", [_old("-tls1_1"), ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0"]],
                         ids=["protocol", "suite"])
def test_old_protocols_and_suites_are_refused(ends: Ends, options: Sequence[str]) -> None:
    port = free_port()
    key, chain = ends.files()
    command: list[str | Path] = [peers.program("openssl"), "s_server", "-accept", f"127.0.0.1:{port}", "-key", key, "-cert",
                                 chain, "-cert_chain", chain, "-quiet", "-rev", *options]
    with peers.running(command, [port], log=ends.folder / "s_server.log"), ends.tunnel(port) as tunnel:
        with socket.create_connection(("127.0.0.1", tunnel.port), 10) as sock:
            sock.settimeout(10)
            try:
                sock.sendall(b"abc\n")
                assert sock.recv(100) == b""
            except ConnectionError:
                pass
        found = prove(tunnel.entry, ends.state)
        assert not found.up and found.hop == "tls" and found.cause in ("protocol_version", "no_shared_suite"), found


def test_the_other_hops(ends: Ends, tmp_path: Path) -> None:
    """Name, TCP, no TLS there, title, and a tunnel that does not run."""
    with peers.storescp(tmp_path / "scp") as plain:
        cases: list[tuple[dict[str, object], str, str]] = [
            ({"connect": "ris.invalid:2762"}, "name", "ris.invalid"),
            ({"connect": f"127.0.0.1:{free_port()}"}, "tcp", "refuses"),
            ({"connect": f"127.0.0.1:{plain.port}"}, "tls", ""),
        ]
        for settings, hop, words in cases:
            for check in ({"check": "echo", "called": "X"}, {}):
                with Carried(tmp_path, ends.state, **settings, **check) as tunnel:
                    found = prove(tunnel.entry, ends.state)
                assert not found.up and found.hop == hop and words in found.text, (found, settings)
    with echoing() as silent, ends.stunnel(silent) as far:
        found = prove(ends.tunnel(far).entry, ends.state)
        assert not found.up and (found.hop, found.cause) == ("tunnel", "not_running"), found
    with peers.dcmqrscp(tmp_path / "qr") as archive, ends.stunnel(archive.port) as far, \
            ends.tunnel(far, check="echo", called="NOBODY") as tunnel:
        found = prove(tunnel.entry, ends.state)
        assert not found.up and found.hop == "association" and "NOBODY" in found.text, found


# --- what must not, from clients ----------------------------------------------------------------------------------------

BAD_CLIENTS: dict[str, tuple[Callable[[Ends], pki.Pair], str]] = {
    "wrong authority": (lambda e: e.other.leaf("x"), "unable to get"),
    "expired": (lambda e: e.issuing.expired("x"), "certificate has expired"),
    "revoked": (_revoked, "certificate revoked"),
    "self-signed": (lambda e: pki.self_signed("x"), "self-signed"),
    "not for clients": (lambda e: e.issuing.leaf("x", usage=(ExtendedKeyUsageOID.SERVER_AUTH,)), "purpose"),
}


@pytest.mark.requirement("conformance: tunnels")
@pytest.mark.parametrize("why", BAD_CLIENTS)
def test_a_bad_client_is_refused_and_said_so(ends: Ends, tmp_path: Path, why: str) -> None:
    make, words = BAD_CLIENTS[why]
    pair = make(ends)
    with peers.storescp(tmp_path / "scp") as scp, ends.tunnel(scp.port, side="server") as tunnel:
        assert echo(tunnel.port, *ends.tls(ends.issuing.leaf("ws1"), "ws1")).returncode == 0
        assert echo(tunnel.port, *ends.tls(pair, "bad")).returncode != 0
        wait_until(lambda: words in tunnel.said(), 5, words)


def test_a_client_without_a_certificate_and_one_without_tls(ends: Ends, tmp_path: Path) -> None:
    with peers.storescp(tmp_path / "scp") as scp, ends.tunnel(scp.port, side="server") as tunnel:
        assert echo(tunnel.port, "+tla", "+cf", ends.trust).returncode != 0
        wait_until(lambda: "peer did not return a certificate" in tunnel.said(), 5)
        assert echo(tunnel.port).returncode != 0
        assert echo(tunnel.port, *ends.tls(ends.issuing.leaf("ws1"), "ws1")).returncode == 0


# --- pins ---------------------------------------------------------------------------------------------------------------


def test_a_pinned_server_and_its_successor(ends: Ends, tmp_path: Path) -> None:
    """The same authority, the same name, and another certificate: refused until its fingerprint is a pin."""
    pins = (ends.far.fingerprint,)
    with peers.storescp(tmp_path / "scp", options=ends.tls()) as scp:
        tunnel = ends.tunnel(scp.port, check="echo", called="STORESCP", pins=pins)
        assert learn(tunnel.entry, ends.state) and not learn(tunnel.entry, ends.state)
        with tunnel:
            assert prove(tunnel.entry, ends.state).up
    successor = ends.issuing.leaf("far", addresses=["127.0.0.1"])
    with peers.storescp(tmp_path / "scp2", options=ends.tls(successor, "successor"), port=scp.port) as scp, tunnel:
        assert echo(tunnel.port).returncode != 0
        assert "not found in local repository" in tunnel.said()
        found = prove(tunnel.entry, ends.state)
        assert (found.hop, found.cause) == ("tls", "not_pinned") and successor.fingerprint in found.text
        with pytest.raises(OSError, match="not one of the pins"):
            learn(tunnel.entry, ends.state)
        tunnel.entry = replace(tunnel.entry, pins=(*pins, successor.fingerprint))
        watch = Watch(tunnel.config, SystemClock(), tunnel.run)
        assert learn(tunnel.entry, ends.state)
        watch.step()
        wait_until(lambda: echo(tunnel.port).returncode == 0, 10, "the successor is let in", every=0.2)


# --- proxies ------------------------------------------------------------------------------------------------------------


def test_through_a_proxy_with_a_password_and_with_a_wrong_one(ends: Ends, tmp_path: Path) -> None:
    with ExitStack() as stack:
        enter = stack.enter_context
        scp = enter(peers.storescp(tmp_path / "scp", options=ends.tls()))
        proxy = enter(tinyproxy(tmp_path / "proxy", ports=[scp.port]))
        password(ends.state, proxy.place)
        tunnel = enter(ends.tunnel(scp.port, check="echo", called="STORESCP", proxy=proxy.place))
        assert echo(tunnel.port).returncode == 0 and proxy.asked(scp.port)
        assert prove(tunnel.entry, ends.state).up
        assert (tunnel.place.configuration.stat().st_mode & 0o777, tunnel.place.folder.stat().st_mode & 0o777) == (0o600, 0o750)
        watch = Watch(tunnel.config, SystemClock(), tunnel.run)
        password(ends.state, proxy.place, "clinic:wrong")
        watch.step()                                        # a changed password is taken up like a changed certificate
        wait_until(lambda: echo(tunnel.port).returncode != 0, 10, "the wrong password counts", every=0.2)
        found = prove(tunnel.entry, ends.state)
        assert not found.up and (found.hop, found.cause) == ("proxy", "credentials"), found
        password(ends.state, proxy.place)
        watch.step()
        wait_until(lambda: prove(tunnel.entry, ends.state).up, 10, "the right one counts again", every=0.2)


def test_stunnel_says_the_same_to_a_proxy_as_we_do(ends: Ends) -> None:
    """Signs that configuration files and base64 could stumble over."""
    with bad_proxy(says(b"HTTP/1.1 407 No\r\n\r\n")) as proxy:
        password(ends.state, proxy.place, "kliník:;p#=$% \\\"ß:x")
        with ends.tunnel(2762, proxy=proxy.place) as tunnel:
            assert echo(tunnel.port).returncode != 0
            assert not prove(tunnel.entry, ends.state).up

        def authorization(request: bytes) -> list[bytes]:
            assert request.startswith(b"CONNECT 127.0.0.1:2762 HTTP/1.1\r\n")
            lines = [line for line in request.split(b"\r\n") if line.lower().startswith(b"proxy-authorization: basic ")]
            return [line.split()[-1] for line in lines]      # stunnel writes "basic", which is the same (RFC 9110, 11.1)

        theirs, ours = (authorization(request) for request in proxy.requests[:2])
        assert theirs == ours and len(ours) == 1


# --- what changes while it runs -----------------------------------------------------------------------------------------


@pytest.mark.requirement("certificates: renewal drops nothing")
def test_a_certificate_is_renewed_while_a_connection_is_up(ends: Ends) -> None:
    """Ten times: the connection from before goes on, and new ones show the new certificate."""
    with echoing() as plain, ends.tunnel(plain, side="server") as tunnel:
        context = ssl.create_default_context(cafile=str(ends.trust))
        key, chain = ends.files(ends.issuing.leaf("ws1"), "ws1")
        context.load_cert_chain(chain, key)

        def connected() -> ssl.SSLSocket:
            sock = context.wrap_socket(socket.create_connection(("127.0.0.1", tunnel.port), 10), server_hostname="127.0.0.1")
            sock.settimeout(10)
            return sock

        watch = Watch(tunnel.config, SystemClock(), tunnel.run)
        with connected() as old:
            for nth in range(10):
                renewed = ends.issuing.leaf(f"box{nth}", addresses=["127.0.0.1"])
                pki.place(ends.state, "box", renewed)
                watch.step()

                def shows(wanted: pki.Pair = renewed) -> bool:
                    with connected() as new:
                        return sha256(new.getpeercert(True) or b"").hexdigest() == wanted.fingerprint

                wait_until(shows, 10, "new connections show the new certificate", every=0.05)
                old.sendall(b"still here")
                assert old.recv(100) == b"still here"
        assert prove(tunnel.entry, ends.state).up


def test_what_stunnel_does_not_take_leaves_the_last_in_force(ends: Ends, tmp_path: Path) -> None:
    with peers.storescp(tmp_path / "scp", options=ends.tls()) as scp, \
            ends.tunnel(scp.port, check="echo", called="STORESCP") as tunnel:
        watch = Watch(tunnel.config, SystemClock(), tunnel.run)
        mixed = pki.Pair(ends.far.key, ends.box.certificate)
        pki.place(ends.state, "box", mixed)
        before = tunnel.written()
        watch.step()
        assert tunnel.written() == before and echo(tunnel.port).returncode == 0
        assert [alarm.key for alarm in watch.alarms()] == ["tunnel-stale:far"]
        assert "stunnel does not take the configuration" in watch.alarms()[0].text
        pki.place(ends.state, "box", ends.box)
        watch.step()
        assert watch.alarms() == [] and tunnel.written() != before


def test_a_list_that_runs_out_stops_nobody(ends: Ends, tmp_path: Path) -> None:
    with peers.storescp(tmp_path / "scp", options=ends.tls()) as scp:
        pki.place(ends.state, "box", crl=ends.issuing.crl(end=timedelta(seconds=2)))
        with ends.tunnel(scp.port, check="echo", called="STORESCP") as tunnel:
            assert "CRLfile" in tunnel.written() and echo(tunnel.port).returncode == 0
            watch = Watch(tunnel.config, SystemClock(), tunnel.run)

            def without_it() -> bool:
                watch.step()
                return "CRLfile" not in tunnel.written()

            wait_until(without_it, 10, "the list is out of force", every=0.2)
            wait_until(lambda: echo(tunnel.port).returncode == 0, 10, every=0.2)


def test_a_server_that_shows_another_certificate_than_the_one_in_force(ends: Ends) -> None:
    with echoing() as plain, ends.tunnel(plain, side="server") as tunnel:
        assert prove(tunnel.entry, ends.state).up
        pki.place(ends.state, "box", ends.issuing.leaf("new", addresses=["127.0.0.1"]))
        found = prove(tunnel.entry, ends.state)
        assert not found.up and (found.hop, found.cause) == ("tls", "old_certificate"), found


def test_silent_clients_keep_nobody_out(ends: Ends, tmp_path: Path) -> None:
    with peers.storescp(tmp_path / "scp") as scp, ends.tunnel(scp.port, side="server") as tunnel, ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(socket.create_connection(("127.0.0.1", tunnel.port)))
        client = ends.tls(ends.issuing.leaf("ws1"), "ws1")
        began = time.monotonic()
        assert echo(tunnel.port, *client).returncode == 0
        assert time.monotonic() - began < 1.0


def test_it_is_run_once_and_small(ends: Ends) -> None:
    with echoing() as plain, ends.tunnel(plain) as tunnel:
        assert tunnel.process is not None and tunnel.pid() == tunnel.process.pid
        with pytest.raises(Exception, match="runs already, as process"):
            tunnel.place.claim()
        assert measure.pss_bytes(tunnel.process.pid) < 12 << 20
        tunnel.process.kill()
        tunnel.process.wait()
        assert tunnel.pid() == 0
