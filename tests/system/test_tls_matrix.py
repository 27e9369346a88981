"""TLS with the real programs: what must work works and the data are identical; what must not is refused, named and counted.

One gateway listens in every way at once, and its plain destination shows what came through. The sending side is tried
against servers of DCMTK, pynetdicom, Orthanc and OpenSSL, good ones and bad ones.
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from appliance.clock import SystemClock
from appliance.config.settings import Destination, Limits
from appliance.forward.dimse import DimseTransport
from appliance.model import Fault
from appliance.policy import Finding
from appliance.spool.ledger import Ledger
from tests.support import objects, peers, pki
from tests.support.gateway import Gateway, to_peer
from tests.support.held import Held
from tests.support.objects import Part10
from tests.support.waiting import free_port, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]

LISTENERS = {"mutual": ("bcp195", "required"), "optional": ("bcp195-modified", "optional"), "oneway": ("bcp195", "off"),
             "old": ("legacy", "off")}


@dataclass
class Site:
    """A gateway with a TLS listener of each kind, and the authority that scanners and box come from."""

    gateway: Gateway
    ca: pki.Authority
    other: pki.Authority
    ports: dict[str, int]
    archive: peers.Destination
    folder: Path
    good: pki.Pair
    revoked: pki.Pair
    bound: pki.Pair

    def options(self, pair: pki.Pair | None, name: str, *more: str) -> list[str]:
        """DCMTK's, for a client that trusts the box."""
        trusted = self.folder / "trust.pem"
        if pair is None:
            return ["+tla", "+cf", str(trusted), *more]
        key, chain = pair.write(self.folder / name, name)
        return ["+tls", str(key), str(chain), "+cf", str(trusted), *more]

    def context(self, version: ssl.TLSVersion, pair: pki.Pair | None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.folder / "trust.pem")
        context.minimum_version = context.maximum_version = version
        if pair is not None:
            key, chain = pair.write(self.folder / "python", "python")
            context.load_cert_chain(chain, key)
        return context

    def knocks(self, words: str) -> int:
        """How often handshakes were refused with a sentence that has these words in it."""
        with closing(Ledger.open(self.gateway.spool / "ledger.sqlite", SystemClock(), read_only=True)) as ledger:
            return sum(knock.count for knock in ledger.knocks() if knock.verdict == "tls" and words in knock.text)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("tls")
    ca, other = pki.Authority("Clinic CA"), pki.Authority("Foreign CA")
    issuing = ca.intermediate("Clinic Issuing CA")
    revoked, bound = issuing.leaf("revoked"), issuing.leaf("ct1", dns=["ct1.example.org"])
    state = folder / "gateway" / "state"
    pki.place(state, "box", issuing.leaf("box", addresses=["127.0.0.1"], dns=["localhost"]), trust=[ca],
              crl=issuing.revoke(revoked).crl())
    # The suites of the AES profile need a key of RSA.
    pki.place(state, "rsa", issuing.leaf("rsa", addresses=["127.0.0.1"], dns=["localhost"], key="rsa-2048"), trust=[ca])
    (folder / "trust.pem").write_bytes(pki.pem(ca.certificate))
    ports = {name: free_port() for name in LISTENERS}
    extra = [("[listener]", {"id": name, "address": "127.0.0.1", "ports": [ports[name]], "unknown": "admit", "tls": profile,
                             "certificate": "rsa" if profile == "legacy" else "box", "client_certificates": clients})
             for name, (profile, clients) in LISTENERS.items()]
    extra += [("[certificate]", {"id": "box"}), ("[certificate]", {"id": "rsa", "key_type": "rsa-3072"}),
              ("[peer]", {"id": "ct1", "titles": ["CT1"], "listeners": ["mutual"], "certificates": ["dns:ct1.example.org"]})]
    with peers.storescp(folder / "archive") as archive, \
            Gateway(folder / "gateway", [to_peer(archive)], extra=extra) as gateway:
        gateway.start("run")
        yield Site(gateway, issuing, other, ports, archive, folder, issuing.leaf("scanner"), revoked, bound)


@pytest.fixture
def files(tmp_path: Path, request: pytest.FixtureRequest) -> list[Part10]:
    """Fresh ones for each test: their keys are what is waited for."""
    made = [objects.ct(n, request.node.name, side=64) for n in range(1, 4)]
    return peers.files_of([*made, objects.implicit(1, request.node.name)], tmp_path / "sent")


# --- what must work: receiving ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listener", ["mutual", "optional", "oneway", "old"])
@pytest.mark.parametrize("profile", ["+py", "+px", "+pz", "+pa"], ids=["bcp195-nd", "bcp195", "bcp195-ex", "aes"])
def test_storescu_by_its_profiles(site: Site, files: list[Part10], tmp_path: Path, listener: str, profile: str) -> None:
    options = site.options(site.good, "scanner", profile)
    if profile == "+pa" and listener != "old":
        with _counted(site, "no cipher suite"):
            assert peers.storescu(site.ports[listener], files, tmp_path, options=options).returncode != 0
        return
    done = peers.storescu(site.ports[listener], files, tmp_path, options=options)
    assert done.returncode == 0, done.stdout + done.stderr
    site.archive.wait_for([file.key for file in files])


@pytest.mark.parametrize("listener", ["mutual", "optional", "oneway"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_pynetdicom_in_both_versions(site: Site, files: list[Part10], listener: str, version: ssl.TLSVersion) -> None:
    pair = None if listener == "oneway" else site.good
    sent = peers.pynetdicom_send(site.ports[listener], files[:3], tls=(site.context(version, pair), "localhost"))
    assert set(sent.values()) == {0}
    site.archive.wait_for([file.key for file in files[:3]])


def test_orthanc_as_sender(site: Site, files: list[Part10], tmp_path: Path) -> None:
    key, chain = site.good.write(tmp_path, "orthanc")
    tls = {"DicomTlsCertificate": str(chain), "DicomTlsPrivateKey": str(key),
           "DicomTlsTrustedCertificates": str(site.folder / "trust.pem")}
    with peers.orthanc(tmp_path / "orthanc", title="SENDER", modalities={"box": ("DCMGATE", site.ports["mutual"])},
                       settings=tls, modality={"UseDicomTls": True}) as sender:
        rest = peers.Orthanc(sender.http)
        ids = [found for file in files if (found := rest.upload(file.path)) is not None]
        assert rest.send(ids, "box")
    site.archive.wait_for([file.key for file in files])


@pytest.mark.requirement("conformance: certificate in the custody record")
def test_the_certificate_is_stamped_in_the_custody_record(site: Site, files: list[Part10], tmp_path: Path) -> None:
    done = peers.storescu(site.ports["mutual"], files[:1], tmp_path, calling="CT1",
                          options=site.options(site.bound, "ct1"))
    assert done.returncode == 0, done.stderr
    site.archive.wait_for([files[0].key])
    held = [path.read_bytes()[:4096] for path in site.gateway.spool.rglob("*.dcm")]
    assert any(f"sha256:{site.bound.fingerprint}".encode() in head and b"ct1" in head for head in held)


# --- what must not: receiving -------------------------------------------------------------------------------------------


def _s_client(port: int, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([peers.program("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-brief", *options],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)


@contextmanager
def _counted(site: Site, words: str) -> Iterator[None]:
    """Within it, one more handshake is refused with a sentence that has these words in it."""
    before = site.knocks(words)
    yield
    wait_until(lambda: site.knocks(words) > before, 15, f"a refusal that says {words!r} is counted", every=0.1)


BAD_CLIENTS: dict[str, tuple[Callable[[Site], pki.Pair], str]] = {
    "expired": (lambda site: site.ca.expired("late"), "it has expired"),
    "not yet valid": (lambda site: site.ca.not_yet_valid("early"), "it is not valid yet"),
    "wrong authority": (lambda site: site.other.leaf("foreign"), "not trusted"),
    "self-signed": (lambda site: pki.self_signed("alone"), "self-signed"),
    "revoked": (lambda site: site.revoked, "it has been revoked"),
    "not for clients": (lambda site: site.ca.leaf("web", usage=(ExtendedKeyUsageOID.SERVER_AUTH,)), "not meant for"),
}


@pytest.mark.requirement("conformance: refused handshakes")
@pytest.mark.parametrize("why", BAD_CLIENTS)
def test_a_bad_client_certificate(site: Site, files: list[Part10], tmp_path: Path, why: str) -> None:
    make, words = BAD_CLIENTS[why]
    with _counted(site, words):
        done = peers.storescu(site.ports["mutual"], files, tmp_path, options=site.options(make(site), "bad"))
        assert done.returncode != 0
    with _counted(site, words):     # where one need not be shown, a bad one is refused all the same
        peers.storescu(site.ports["optional"], files, tmp_path, options=site.options(make(site), "bad"))


def test_no_client_certificate(site: Site) -> None:
    with _counted(site, "it shows no certificate"):
        _s_client(site.ports["mutual"], "-tls1_2")


@pytest.mark.requirement("conformance: refused handshakes")
@pytest.mark.parametrize("listener", ["mutual", "optional", "oneway"])
@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
def test_old_protocols_are_for_legacy(site: Site, listener: str, version: str) -> None:
    old = (version, "-cipher", "ALL:@SECLEVEL=0")
    with _counted(site, "versions of TLS"):
        done = _s_client(site.ports[listener], *old)
        assert done.returncode != 0, done.stderr
    assert "Protocol version: TLSv1" in _s_client(site.ports["old"], *old).stderr


@pytest.mark.parametrize("listener", ["mutual", "oneway"])
@pytest.mark.parametrize("suite", ["AES128-SHA", "AES256-SHA256", "ECDHE-RSA-AES128-SHA"])
def test_old_suites_are_for_legacy(site: Site, listener: str, suite: str) -> None:
    old = ("-tls1_2", "-cipher", f"{suite}:@SECLEVEL=0")
    with _counted(site, "no cipher suite"):
        assert _s_client(site.ports[listener], *old).returncode != 0
    assert suite in _s_client(site.ports["old"], *old).stderr


def test_plain_dicom_at_a_tls_port(site: Site, files: list[Part10], tmp_path: Path) -> None:
    with _counted(site, "speaks DICOM without TLS"):
        assert peers.storescu(site.ports["mutual"], files, tmp_path).returncode != 0


@pytest.mark.requirement("conformance: certificate in the custody record")
def test_a_title_that_is_bound_to_a_certificate_is_nobody_elses(site: Site, files: list[Part10], tmp_path: Path) -> None:
    for port, options in ((site.ports["mutual"], site.options(site.good, "scanner")), (site.gateway.port, [])):
        done = peers.storescu(port, files, tmp_path, calling="CT1", options=options)
        assert done.returncode != 0 and "Calling AE Title Not Recognized" in done.stdout + done.stderr
    wait_until(lambda: any("bound to the certificate of [[peer]] ct1" in row["text"]
                           for row in site.gateway.json("peers")["knocked"]), 15, "it is remembered", every=0.5)


@pytest.mark.requirement("hazard: TLS handshake")
def test_silent_and_dripping_clients_keep_nobody_waiting(site: Site) -> None:
    """30 silent connections and a handshake at one byte a second; DCMTK's echo meanwhile."""
    with ExitStack() as stack:
        port = site.ports["mutual"]
        for _ in range(30):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        dripping = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        out = ssl.MemoryBIO()
        hello = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            hello.do_handshake()
        first = out.read()
        dripping.sendall(first[:6])        # enough to be handed on to an association's thread
        for byte in first[6:9]:
            began = time.monotonic()
            done = subprocess.run([peers.program("echoscu"), *site.options(site.good, "scanner"), "127.0.0.1", str(port)],
                                  capture_output=True, text=True, timeout=30, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            assert time.monotonic() - began <= 1.0
            dripping.sendall(bytes((byte,)))
            time.sleep(max(0.0, began + 1.0 - time.monotonic()))
        with _counted(site, "took too long"):
            dripping.settimeout(30)
            while dripping.recv(4096):
                pass


# --- sending ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Held:
    return Held(tmp_path_factory.mktemp("held"))


class Sending:
    """Our side of a destination: certificate store and transport."""

    def __init__(self, folder: Path, held: Held) -> None:
        self.ca, self.other = pki.Authority("Cloud CA"), pki.Authority("Foreign CA")
        self.held = held
        self.folder = folder
        self.box = self.ca.leaf("box")
        pki.place(folder, "box", self.box, trust=[self.ca])
        (folder / "trust.pem").write_bytes(pki.pem(self.ca.certificate))

    def probe(self, port: int, **settings: object) -> Finding:
        """One C-ECHO."""
        transport = DimseTransport(self.destination(port, **settings), self.held.spool, Limits(), str(self.folder))
        try:
            return transport.probe()
        finally:
            transport.close()

    def destination(self, port: int, **settings: object) -> Destination:
        return Destination(**{  # type: ignore[arg-type]
            "id": "cloud", "address": "127.0.0.1", "port": port, "called": "PACS", "calling": "DCMGATE", "tls": "bcp195",
            "certificate": "box", "connect_seconds": 5.0, **settings})


@pytest.fixture
def sending(tmp_path: Path, held: Held) -> Sending:
    return Sending(tmp_path, held)


@contextmanager
def s_server(pair: pki.Pair, folder: Path, *options: str) -> Iterator[int]:
    """OpenSSL's server: it speaks no DICOM, which is told apart from a handshake that failed."""
    port = free_port()
    key, chain = pair.write(folder, "server")
    command: list[str | Path] = [peers.program("openssl"), "s_server", "-accept", f"127.0.0.1:{port}", "-key", key,
                                 "-cert", chain, "-cert_chain", chain, "-quiet", *options]
    with peers.running(command, [port], log=folder / "s_server.log"):
        yield port


def test_everywhere_at_once_and_identical(tmp_path: Path) -> None:
    """A plain scanner, and every kind of server behind the gateway, TLS 1.2 and 1.3, mutual or not."""
    ca = pki.Authority("Cloud CA")
    state = tmp_path / "gateway" / "state"
    pki.place(state, "box", ca.leaf("box"), trust=[ca])
    server = ca.leaf("cloud", addresses=["127.0.0.1"])
    key, chain = server.write(tmp_path, "cloud")
    trust = tmp_path / "trust.pem"
    trust.write_bytes(pki.pem(ca.certificate))
    sent = peers.files_of([*(objects.ct(n, "everywhere", side=64) for n in range(1, 5)), objects.implicit(1, "everywhere")],
                          tmp_path / "sent")
    keys = [file.key for file in sent]

    def context(version: ssl.TLSVersion, *, mutual: bool) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = made.maximum_version = version
        made.load_cert_chain(chain, key)
        made.load_verify_locations(trust)
        made.verify_mode = ssl.CERT_REQUIRED if mutual else ssl.CERT_NONE
        return made

    def tls(id: str, **settings: object) -> dict[str, object]:
        return {"id": id, "tls": "bcp195", "certificate": "box", **settings}

    with ExitStack() as stack:
        enter = stack.enter_context
        scps = {name: enter(peers.pynetdicom_scp(context=context(version, mutual=mutual))) for name, version, mutual in (
            ("py12", ssl.TLSVersion.TLSv1_2, False), ("py12m", ssl.TLSVersion.TLSv1_2, True),
            ("py13", ssl.TLSVersion.TLSv1_3, False), ("py13m", ssl.TLSVersion.TLSv1_3, True))}
        storescp = {name: enter(peers.storescp(tmp_path / name, options=[
            "+tls", str(key), str(chain), "+cf", str(trust), profile])) for name, profile in (("nd", "+py"), ("px", "+px"))}
        orthanc = enter(peers.orthanc(tmp_path / "orthanc", settings={
            "DicomTlsEnabled": True, "DicomTlsCertificate": str(chain), "DicomTlsPrivateKey": str(key),
            "DicomTlsTrustedCertificates": str(trust)}))
        destinations = [{"id": name, "type": "dimse", "address": "127.0.0.1", "port": scp.port, "called": "PYNET",
                         "calling": "DCMGATE", "default": True, **tls(name)} for name, scp in scps.items()]
        destinations[0] |= {"certificate": "", "trust": "box"}
        destinations += [to_peer(scp, **tls(name, tls="bcp195-modified", pins=[server.fingerprint]))
                         for name, scp in storescp.items()]
        destinations.append(to_peer(orthanc, **tls("orthanc")))
        gateway = enter(Gateway(tmp_path / "gateway", destinations, extra=[("[certificate]", {"id": "box"})]))
        gateway.start("run")
        assert peers.storescu(gateway.port, sent, tmp_path).returncode == 0
        for scp in scps.values():
            scp.wait_for(keys)
        for found in (*storescp.values(), orthanc):
            found.wait_for(keys)
        gateway.wait_settled(60, accepted=len(sent))


BAD_SERVERS: dict[str, tuple[Callable[[Sending], pki.Pair], Sequence[str], dict[str, object], str]] = {
    "wrong host": (lambda s: s.ca.leaf("x", dns=["other.example.org"]), (), {}, "not valid for '127.0.0.1'"),
    "wrong name": (lambda s: s.ca.leaf("x", addresses=["127.0.0.1"]), (), {"server_name": "pacs.example.org"},
                   "not valid for 'pacs.example.org'"),
    "wrong authority": (lambda s: s.other.leaf("x", addresses=["127.0.0.1"]), (), {}, "not trusted"),
    "the system's authorities": (lambda s: s.ca.leaf("x", addresses=["127.0.0.1"]), (), {"trust": "system"}, "not trusted"),
    "expired": (lambda s: s.ca.expired("x", addresses=["127.0.0.1"]), (), {}, "it has expired"),
    "not yet valid": (lambda s: s.ca.not_yet_valid("x", addresses=["127.0.0.1"]), (), {}, "not valid yet"),
    "self-signed": (lambda s: pki.self_signed("x", addresses=["127.0.0.1"]), (), {}, "self-signed"),
    "revoked": (lambda s: _revoked(s), (), {}, "has been revoked"),
    "not pinned": (lambda s: s.ca.leaf("x", addresses=["127.0.0.1"]), (), {"pins": ("ab" * 32,)}, "not one of the pins"),
    "not for servers": (lambda s: s.ca.leaf("x", addresses=["127.0.0.1"], usage=(ExtendedKeyUsageOID.CLIENT_AUTH,)), (),
                        {}, "not meant for"),
    "old protocol": (lambda s: s.ca.leaf("x", addresses=["127.0.0.1"]), ("-tls1_1", "-cipher", "ALL:@SECLEVEL=0"), {},
                     "versions of TLS"),
    "old suite": (lambda s: s.ca.leaf("x", addresses=["127.0.0.1"]),
                  ("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0"), {}, "cipher suite"),
    "ours is foreign": (lambda s: s.ca.leaf("x", addresses=["127.0.0.1"]), ("-Verify", "1", "-verify_return_error", "-CAfile",
                                                                           "OTHER"), {}, "our certificate"),
    "ours is wanted": (lambda s: s.ca.leaf("x", addresses=["127.0.0.1"]), ("-Verify", "1", "-CAfile", "OTHER"),
                       {"certificate": "", "trust": "box"}, "we showed none"),
}
LINE = ("old protocol", "old suite")
"""Where nobody's certificate is in question: the destination's fault, tried again for ever."""


def _revoked(sending: Sending) -> pki.Pair:
    pair = sending.ca.leaf("x", addresses=["127.0.0.1"])
    pki.place(sending.folder, "box", crl=sending.ca.revoke(pair).crl())
    return pair


@pytest.mark.requirement("conformance: refused handshakes")
@pytest.mark.parametrize("why", BAD_SERVERS)
def test_a_bad_server(sending: Sending, tmp_path: Path, why: str) -> None:
    make, options, settings, words = BAD_SERVERS[why]
    foreign = tmp_path / "foreign.pem"
    foreign.write_bytes(pki.pem(sending.other.certificate))
    with s_server(make(sending), tmp_path, *(str(foreign) if option == "OTHER" else option for option in options)) as port:
        finding = sending.probe(port, **settings)
    assert words in finding.text
    assert "127.0.0.1" in finding.text
    assert finding.fault is (Fault.DESTINATION if why in LINE else Fault.CONFIGURATION), finding.text


def test_a_server_that_speaks_no_tls(sending: Sending, tmp_path: Path) -> None:
    with peers.storescp(tmp_path / "plain") as plain:
        finding = sending.probe(plain.port)
    assert finding.fault is Fault.DESTINATION and "TLS handshake" in finding.text


def test_a_server_that_never_answers_the_handshake(sending: Sending) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        finding = sending.probe(silent.getsockname()[1], connect_seconds=1.0)
        assert time.monotonic() - began < 5
    assert finding.fault is Fault.DESTINATION and "in time" in finding.text


@pytest.mark.requirement("hazard: ssl")
def test_a_list_that_is_out_of_date_stops_nobody(sending: Sending, tmp_path: Path) -> None:
    server = sending.ca.leaf("cloud", addresses=["127.0.0.1"])
    pki.place(sending.folder, "box", crl=sending.ca.crl(start=-9 * pki.DAY, end=-2 * pki.DAY))
    key, chain = server.write(tmp_path, "cloud")
    with peers.storescp(tmp_path / "scp", options=["+tls", str(key), str(chain), "+cf", str(tmp_path / "trust.pem")]) as scp:
        assert sending.probe(scp.port).fault is None


def test_sessions_are_resumed_and_new_certificates_taken_up(sending: Sending, tmp_path: Path) -> None:
    """Three associations one after the other: the second resumes the first, the third has the new certificate."""
    server = sending.ca.leaf("cloud", addresses=["127.0.0.1"])
    key, chain = server.write(tmp_path, "cloud")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    context.load_verify_locations(tmp_path / "trust.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    seen: list[tuple[bool, bytes]] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        def serve() -> None:
            for _ in range(3):
                with context.wrap_socket(listening.accept()[0], server_side=True) as sock:
                    seen.append((bool(sock.session_reused), sock.getpeercert(True) or b""))
                    sock.recv(4096)
                    sock.sendall(bytes((3, 0, 0, 0, 0, 4, 0, 2, 3, 2)))     # A-ASSOCIATE-RJ: a word that brings the ticket
                    sock.recv(4096)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        transport = DimseTransport(sending.destination(listening.getsockname()[1]), sending.held.spool, Limits(),
                                   str(sending.folder))
        for nth in range(3):
            if nth == 2:
                pki.place(sending.folder, "box", sending.ca.leaf("box"), trust=[sending.ca])
            assert "limit" in transport.probe().text
        thread.join(20)
        transport.close()
    assert [reused for reused, _ in seen] == [False, True, False]
    assert seen[0][1] == seen[1][1] != seen[2][1]
