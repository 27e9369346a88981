"""TLS with the real programs: what must work works and the data are identical; what must not is refused, named and counted.

One gateway listens in every way at once, and its plain destination shows what came through; `tests/support/tls_site.py` has
the programs. The sending side is tried against servers of the same programs, good ones and bad ones.

That the matrix can fail was seen with a broken copy of the product (`tests/proof/mutants.toml` keeps them):

| broken                                          | what turned red                                                         |
| ---                                             | ---                                                                     |
| host name unchecked (`check_hostname = False`)  | a bad server: wrong host, wrong name, with each of four programs        |
| any authority (`CERT_NONE` towards servers)     | a bad server: all but not pinned, wrong protocol, wrong suite           |
| any client (`CERT_NONE` at listeners)           | a bad client certificate: all; no client certificate                    |
| revocation lists ignored                        | a bad client certificate [revoked], a bad server [revoked]              |
| old protocols allowed (`lowest` TLS 1.0)        | old protocols are for legacy; a bad server [old protocol]               |
| old suites allowed                              | old suites are for legacy; storescu by its profiles [aes]; [old suite]  |
| titles not bound to certificates                | a title that is bound to a certificate is nobody else's                 |
"""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from appliance.config.settings import Limits
from appliance.forward.dimse import DimseTransport
from appliance.model import Fault
from tests.support import objects, peers, pki, tls_site
from tests.support.gateway import Gateway
from tests.support.held import Held
from tests.support.objects import Part10
from tests.support.stunnels import s_server
from tests.support.tls_site import SENDERS, SERVERS, VERSIONS, Sending, Site, all_at_once, sender
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with tls_site.site(tmp_path_factory.mktemp("tls")) as made:
        yield made


@pytest.fixture
def files(tmp_path: Path, request: pytest.FixtureRequest) -> list[Part10]:
    """Fresh ones for each test: their keys are what is waited for."""
    made = [objects.ct(1, request.node.name, side=64), objects.implicit(1, request.node.name)]
    return peers.files_of(made, tmp_path / "sent")


# --- what must work: receiving ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listener", ["mutual", "optional", "oneway", "old"])
@pytest.mark.parametrize("profile", ["+py", "+px", "+pz", "+pa"], ids=["bcp195-nd", "bcp195", "bcp195-ex", "aes"])
def test_storescu_by_its_profiles(site: Site, files: list[Part10], tmp_path: Path, listener: str, profile: str) -> None:
    send = partial(tls_site.by_storescu, site.ports[listener], files, tmp_path, "1.3", site.good, site.trust, profile,
                   f"DCMTK{profile}")
    if profile == "+pa" and listener != "old":
        with site.counted("no cipher suite"):
            assert not send()
        return
    assert send()
    site.archive.wait_for([file.key for file in files])
    if listener == "old":
        assert site.spoken(f"DCMTK{profile}") == {
            "+py": ("TLSv1.3", "TLS_AES_256_GCM_SHA384"), "+px": ("TLSv1.3", "TLS_AES_256_GCM_SHA384"),
            "+pz": ("TLSv1.2", "ECDHE-RSA-AES256-GCM-SHA384"), "+pa": ("TLSv1.2", "AES128-SHA")}[profile]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("listener", "shown"), [("mutual", True), ("optional", True), ("optional", False), ("oneway", False)],
                         ids=["mutual", "optional", "optional-none", "oneway"])
@pytest.mark.parametrize("program", SENDERS)
def test_each_sender_in_each_version_mutual_or_not(site: Site, files: list[Part10], tmp_path: Path, program: str, listener: str,
                                                   shown: bool, version: str) -> None:
    pair = site.good if shown else None
    wanted = [file for file in files if file.syntax == objects.EXPLICIT] if program == "pynetdicom" else files
    assert sender(program, listener, version)(site.ports[listener], wanted, tmp_path, version, pair, site.trust)
    site.archive.wait_for([file.key for file in wanted])


def test_dcmtk_of_debian_12_speaks_tls_1_2_with_a_certificate_of_rsa_only(site: Site, files: list[Part10], tmp_path: Path
                                                                          ) -> None:
    """As the page `conformance` says: why a listener's certificate is better one of RSA."""
    with site.counted("no cipher suite"):
        assert not tls_site.by_storescu(site.ports["optional"], files, tmp_path, "1.2", site.good, site.trust, "+px")


@pytest.mark.parametrize("version", VERSIONS)
def test_orthanc_as_sender(site: Site, files: list[Part10], tmp_path: Path, version: str) -> None:
    key, chain = site.good.write(tmp_path, "orthanc")
    tls = {"DicomTlsCertificate": str(chain), "DicomTlsPrivateKey": str(key), "DicomTlsTrustedCertificates": str(site.trust)}
    with peers.orthanc(tmp_path / "orthanc", title="SENDER", settings=tls, modality={"UseDicomTls": True},
                       modalities={name: ("DCMGATE", site.ports[name]) for name in ("mutual", "oneway")},
                       more=tls_site.openssl_of(version, tmp_path)) as sender:
        rest = peers.Orthanc(sender.http)
        ids = [found for file in files if (found := rest.upload(file.path)) is not None]
        assert len(ids) == len(files)
        for nth, modality in enumerate(("mutual", "oneway")):
            assert rest.send(ids[nth:nth + 1], modality)
    site.archive.wait_for([file.key for file in files])


@pytest.mark.requirement("conformance: certificate in the custody record")
def test_the_certificate_is_stamped_in_the_custody_record(site: Site, files: list[Part10], tmp_path: Path) -> None:
    assert tls_site.by_storescu(site.ports["mutual"], files[:1], tmp_path, "1.3", site.bound, site.trust, title="CT1")
    site.archive.wait_for([files[0].key])
    held = [path.read_bytes()[:4096] for path in site.gateway.spool.rglob("*.dcm")]
    assert any(f"sha256:{site.bound.fingerprint}".encode() in head and b"ct1" in head for head in held)


# --- what must not: receiving -------------------------------------------------------------------------------------------


def _s_client(port: int, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([peers.program("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-brief", *options],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)


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
    """Each program in each version, at the listener that wants a certificate and at the one that need not be shown any."""
    make, words = BAD_CLIENTS[why]
    pair = make(site)

    def cell(program: str, version: str, listener: str) -> bool:
        folder = tmp_path / f"{program}-{version}-{listener}"
        folder.mkdir()
        return sender(program, listener, version)(site.ports[listener], files[:1], folder, version, pair, site.trust)
    cells = {f"{program} {version} {listener}": partial(cell, program, version, listener) for program in SENDERS
             for version in VERSIONS for listener in ("mutual", "optional")}
    with site.counted(words, len(cells)):
        assert all_at_once(cells) == dict.fromkeys(cells, False)


@pytest.mark.requirement("conformance: refused handshakes")
def test_no_client_certificate(site: Site, files: list[Part10], tmp_path: Path) -> None:
    def cell(program: str, version: str) -> bool:
        folder = tmp_path / f"{program}-{version}"
        folder.mkdir()
        return SENDERS[program](site.ports["mutual"], files[:1], folder, version, None, site.trust)
    cells = {f"{program} {version}": partial(cell, program, version) for program in SENDERS for version in VERSIONS}
    with site.counted("it shows no certificate", len(cells)):
        assert all_at_once(cells) == dict.fromkeys(cells, False)


@pytest.mark.requirement("conformance: refused handshakes")
def test_old_protocols_are_for_legacy(site: Site) -> None:
    listeners, versions = ("mutual", "optional", "oneway"), ("-tls1", "-tls1_1")

    def refused(listener: str, version: str) -> bool:
        return _s_client(site.ports[listener], version, "-cipher", "ALL:@SECLEVEL=0").returncode != 0
    cells = {f"{listener} {version}": partial(refused, listener, version) for listener in listeners for version in versions}
    with site.counted("versions of TLS", len(cells)):
        assert all_at_once(cells) == dict.fromkeys(cells, True)
    for version in versions:
        spoken = _s_client(site.ports["old"], version, "-cipher", "ALL:@SECLEVEL=0").stderr
        assert f"Protocol version: {version.replace('-tls', 'TLSv').replace('_', '.')}\n" in spoken


@pytest.mark.requirement("conformance: refused handshakes")
def test_old_suites_are_for_legacy(site: Site) -> None:
    suites = ("AES128-SHA", "AES256-SHA256", "ECDHE-RSA-AES128-SHA", "AES128-GCM-SHA256")

    def refused(listener: str, suite: str) -> bool:
        return _s_client(site.ports[listener], "-tls1_2", "-cipher", f"{suite}:@SECLEVEL=0").returncode != 0
    cells = {f"{listener} {suite}": partial(refused, listener, suite) for listener in ("mutual", "optional", "oneway")
             for suite in suites}
    with site.counted("no cipher suite", len(cells)):
        assert all_at_once(cells) == dict.fromkeys(cells, True)
    for suite in suites:
        assert suite in _s_client(site.ports["old"], "-tls1_2", "-cipher", f"{suite}:@SECLEVEL=0").stderr


def test_what_no_listener_speaks(site: Site) -> None:
    """Suites without encryption, without a certificate, with Diffie-Hellman of unknown length: not even by `legacy`."""
    for suite in ("NULL-SHA256", "ADH-AES128-SHA", "DHE-RSA-AES128-GCM-SHA256", "AES128-CCM"):
        with site.counted("no cipher suite", 2):
            for listener in ("old", "oneway"):
                assert _s_client(site.ports[listener], "-tls1_2", "-cipher", f"{suite}:@SECLEVEL=0").returncode != 0


def test_plain_dicom_at_a_tls_port(site: Site, files: list[Part10], tmp_path: Path) -> None:
    with site.counted("speaks DICOM without TLS"):
        assert peers.storescu(site.ports["mutual"], files, tmp_path).returncode != 0


@pytest.mark.requirement("conformance: certificate in the custody record")
def test_a_title_that_is_bound_to_a_certificate_is_nobody_elses(site: Site, files: list[Part10], tmp_path: Path) -> None:
    for port, options in ((site.ports["mutual"], site.options(site.good, tmp_path)), (site.gateway.port, [])):
        done = peers.storescu(port, files, tmp_path, calling="CT1", options=options)
        assert done.returncode != 0 and "Calling AE Title Not Recognized" in done.stdout + done.stderr
    wait_until(lambda: any("bound to the certificate of [[peer]] ct1" in row["text"]
                           for row in site.gateway.json("peers")["knocked"]), 15, "it is remembered", every=0.3)


def test_what_was_refused_is_counted_in_status(site: Site) -> None:
    """By the check that failed, for each listener."""
    with site.counted("versions of TLS"):
        _s_client(site.ports["oneway"], "-tls1", "-cipher", "ALL:@SECLEVEL=0")
    shown = {told["listener"]: told for told in site.gateway.json("status")["listeners"]}
    assert shown["oneway"]["refused"]["protocol_version"] >= 1
    assert "handshake" in site.gateway.command("status", "--once") and "refused" in site.gateway.command("status", "--once")


@pytest.mark.requirement("hazard: TLS handshake")
def test_silent_and_dripping_clients_keep_nobody_waiting(site: Site, tmp_path: Path) -> None:
    """30 silent TLS clients and a handshake at one byte a second: a real peer's association (DCMTK's echo) within a second."""
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
            done = subprocess.run([peers.program("echoscu"), *site.options(site.good, tmp_path), "127.0.0.1", str(port)],
                                  capture_output=True, text=True, timeout=30, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            assert time.monotonic() - began <= 1.0
            dripping.sendall(bytes((byte,)))
            time.sleep(max(0.0, began + 1.0 - time.monotonic()))
        with site.counted("took too long"):
            dripping.settimeout(30)
            while dripping.recv(4096):
                pass


# --- sending ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Held:
    return Held(tmp_path_factory.mktemp("held"))


@pytest.fixture
def sending(tmp_path: Path, held: Held) -> Sending:
    return Sending(tmp_path, held)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mutual", [True, False], ids=["mutual", "oneway"])
@pytest.mark.parametrize("program", SERVERS)
def test_each_server_in_each_version_mutual_or_not(sending: Sending, tmp_path: Path, program: str, mutual: bool,
                                                   version: str) -> None:
    pair = sending.ca.leaf("cloud", addresses=["127.0.0.1"], key="rsa-2048" if version == "1.2" else "ec-p256")
    settings: dict[str, object] = {"tls": "bcp195-modified", "pins": (pair.fingerprint,)} if mutual else {
        "certificate": "", "trust": "box"}
    with SERVERS[program](tmp_path, version, pair, sending.trust, mutual) as (port, arrived):
        with sending.transport(port, **settings) as transport:
            assert transport._tls is not None
            keys = sending.deliver(transport, f"{program} {version} {mutual}")
            assert transport._tls.spoken[0] == f"TLSv{version}"
        arrived(keys)
    assert sending.refused == []


def test_everywhere_at_once_and_identical(tmp_path: Path) -> None:
    """A plain scanner, and every kind of server behind a whole gateway at once."""
    ca = pki.Authority("Cloud CA")
    pki.place(tmp_path / "gateway" / "state", "box", ca.leaf("box"), trust=[ca])
    server = ca.leaf("cloud", addresses=["127.0.0.1"], key="rsa-2048")
    trust = tmp_path / "trust.pem"
    trust.write_bytes(pki.pem(ca.certificate))
    sent = peers.files_of([*(objects.ct(n, "everywhere", side=64) for n in range(1, 5)), objects.implicit(1, "everywhere")],
                          tmp_path / "sent")
    keys = [file.key for file in sent]
    with ExitStack() as stack:
        waits, destinations = [], []
        for program in ("storescp", "pynetdicom", "stunnel", "orthanc"):
            for version, mutual in (("1.2", True), ("1.3", False)) if program != "orthanc" else (("1.3", True),):
                id = f"{program}-{version}"
                (tmp_path / id).mkdir()
                port, arrived = stack.enter_context(SERVERS[program](tmp_path / id, version, server, trust, mutual))
                waits.append(arrived)
                destinations.append({"id": id, "type": "dimse", "address": "127.0.0.1", "port": port, "called": "ANY",
                                     "calling": "DCMGATE", "default": True, "tls": "bcp195",
                                     **({"certificate": "box"} if mutual else {"trust": "box"})})
        gateway = stack.enter_context(Gateway(tmp_path / "gateway", destinations, extra=[("[certificate]", {"id": "box"})]))
        gateway.start("run")
        assert peers.storescu(gateway.port, sent, tmp_path).returncode == 0
        for arrived in waits:
            arrived(keys)
        gateway.wait_settled(60, accepted=len(sent))


Make = Callable[[Sending], pki.Pair]


def _good(sending: Sending) -> pki.Pair:
    return sending.ca.leaf("x", addresses=["127.0.0.1"])


def _revoked(sending: Sending) -> pki.Pair:
    pair = _good(sending)
    pki.place(sending.folder, "box", crl=sending.ca.revoke(pair).crl())
    return pair


WRONG: dict[str, tuple[Make, dict[str, object], str, str]] = {
    "wrong host": (lambda s: s.ca.leaf("x", dns=["other.example.org"]), {}, "wrong_name", "not valid for '127.0.0.1'"),
    "wrong name": (_good, {"server_name": "pacs.example.org"}, "wrong_name", "not valid for 'pacs.example.org'"),
    "wrong authority": (lambda s: s.other.leaf("x", addresses=["127.0.0.1"]), {}, "unknown_authority", "not trusted"),
    "the system's authorities": (_good, {"trust": "system"}, "unknown_authority", "not trusted"),
    "expired": (lambda s: s.ca.expired("x", addresses=["127.0.0.1"]), {}, "expired", "it has expired"),
    "not yet valid": (lambda s: s.ca.not_yet_valid("x", addresses=["127.0.0.1"]), {}, "not_yet_valid", "not valid yet"),
    "self-signed": (lambda s: pki.self_signed("x", addresses=["127.0.0.1"]), {}, "self_signed", "self-signed"),
    "revoked": (_revoked, {}, "revoked", "has been revoked"),
    "not pinned": (_good, {"pins": ("ab" * 32,)}, "not_pinned", "not one of the pins"),
    "not for servers": (lambda s: s.ca.leaf("x", addresses=["127.0.0.1"], usage=(ExtendedKeyUsageOID.CLIENT_AUTH,)), {},
                        "wrong_purpose", "not meant for"),
}
"""What is wrong with the server's certificate: how it is made, what our side wants, the check that fails, and words for it."""


@pytest.mark.requirement("conformance: refused handshakes")
@pytest.mark.parametrize("why", WRONG)
def test_a_bad_server(sending: Sending, tmp_path: Path, why: str) -> None:
    """Each program but Orthanc, which is DCMTK; OpenSSL's in both versions."""
    make, settings, check, words = WRONG[why]
    pair = make(sending)
    told = {}
    for program, version in (("s_server", "1.2"), ("s_server", "1.3"), ("storescp", "1.3"), ("pynetdicom", "1.2"),
                             ("stunnel", "1.3")):
        folder = tmp_path / f"{program}-{version}"
        folder.mkdir()
        sending.refused.clear()
        with SERVERS[program](folder, version, pair, sending.trust, True) as (port, _):
            finding = sending.probe(port, **settings)
        told[program, version] = (finding.fault, words in finding.text and "127.0.0.1" in finding.text, sending.refused[:])
    assert told == dict.fromkeys(told, (Fault.CONFIGURATION, True, [check]))


REFUSING: dict[str, tuple[Sequence[str], dict[str, object], str, str]] = {
    "old protocol": (("-tls1_1", "-cipher", "ALL:@SECLEVEL=0"), {}, "protocol_version", "versions of TLS"),
    "oldest protocol": (("-tls1", "-cipher", "ALL:@SECLEVEL=0"), {}, "protocol_version", "versions of TLS"),
    "old suite": (("-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0"), {}, "no_shared_suite", "cipher suite"),
    "ours is foreign 1.2": (("-tls1_2", "-Verify", "1", "-verify_return_error", "-CAfile", "OTHER"), {}, "unknown_authority",
                            "our certificate"),
    "ours is foreign": (("-tls1_3", "-Verify", "1", "-verify_return_error", "-CAfile", "OTHER"), {}, "unknown_authority",
                        "our certificate"),
    "ours is wanted 1.2": (("-tls1_2", "-Verify", "1", "-CAfile", "OTHER"), {"certificate": "", "trust": "box"},
                           "no_shared_suite", "misses a certificate of ours"),
    "ours is wanted": (("-tls1_3", "-Verify", "1", "-CAfile", "OTHER"), {"certificate": "", "trust": "box"}, "missing",
                       "we showed none"),
}
"""Servers whose certificate is good: OpenSSL's options, what our side does, the check, and words for it."""


@pytest.mark.requirement("conformance: refused handshakes")
@pytest.mark.parametrize("why", REFUSING)
def test_a_server_that_wants_what_we_do_not(sending: Sending, tmp_path: Path, why: str) -> None:
    options, settings, check, words = REFUSING[why]
    foreign = tmp_path / "foreign.pem"
    foreign.write_bytes(pki.pem(sending.other.certificate))
    with s_server(tmp_path, 0, _good(sending), *(str(foreign) if option == "OTHER" else option for option in options)) as port:
        finding = sending.probe(port, **settings)
    assert words in finding.text and "127.0.0.1" in finding.text
    assert sending.refused == [check]
    # Where nobody's certificate is in question it is the destination's fault, tried again for ever.
    line = check in ("protocol_version", "no_shared_suite")
    assert finding.fault is (Fault.DESTINATION if line else Fault.CONFIGURATION), finding.text


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
    pki.place(sending.folder, "box", crl=sending.ca.crl(start=-9 * pki.DAY, end=-2 * pki.DAY))
    with SERVERS["storescp"](tmp_path, "1.3", _good(sending), sending.trust, True) as (port, _):
        assert sending.probe(port).fault is None


@pytest.mark.requirement("conformance: resumption")
def test_sessions_are_resumed_and_new_certificates_taken_up(sending: Sending, tmp_path: Path) -> None:
    """Three associations one after the other: the second resumes the first, the third has the new certificate."""
    server = sending.ca.leaf("cloud", addresses=["127.0.0.1"])
    key, chain = server.write(tmp_path, "cloud")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    context.load_verify_locations(sending.trust)
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
