"""Both sides of TLS for the matrix: a gateway that listens in every way at once, and programs that speak TLS with it.

A sender is (port, files, folder, version, pair, trust) → whether all were stored; a server is a context manager that yields
the port, and where what arrives can be seen.
"""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from appliance.clock import SystemClock
from appliance.config.settings import Destination, Limits
from appliance.forward.dimse import DimseTransport
from appliance.model import Outcome
from appliance.policy import Finding
from appliance.policy.handshakes import read
from appliance.spool.ledger import Ledger
from tests.support import objects, peers, pki
from tests.support.gateway import Gateway, to_peer
from tests.support.held import Held
from tests.support.objects import Key, Part10
from tests.support.stunnels import s_client, s_server, stunnel
from tests.support.waiting import free_port, wait_until

LISTENERS = {"mutual": ("bcp195", "required", "rsa"), "optional": ("bcp195-modified", "optional", "ec"),
             "oneway": ("bcp195", "off", "rsa"), "old": ("legacy", "off", "rsa")}
"""Profile, client certificates, our own. DCMTK 3.6.7 has no suites of ECDSA in TLS 1.2, but in its retired profile `+pz`."""
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

_MAX_1_2 = """openssl_conf = one
[one]
ssl_conf = two
[two]
system_default = three
[three]
MaxProtocol = TLSv1.2
"""


# --- the gateway as listener --------------------------------------------------------------------------------------------


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

    @property
    def trust(self) -> Path:
        return self.folder / "trust.pem"

    def options(self, pair: pki.Pair | None, folder: Path, *more: str) -> list[str]:
        """DCMTK's, for a client that trusts the box."""
        if pair is None:
            return ["+tla", "+cf", str(self.trust), *more]
        key, chain = pair.write(folder, "scanner")
        return ["+tls", str(key), str(chain), "+cf", str(self.trust), *more]

    def handshakes(self, words: str) -> int:
        """How often handshakes were refused at a listener with a sentence that has these words in it."""
        with closing(Ledger.open(self.gateway.spool / "ledger.sqlite", SystemClock(), read_only=True)) as ledger:
            return sum(knock.count for knock in ledger.knocks(1000, only=["tls"]) if words in knock.text)

    @contextmanager
    def counted(self, words: str, times: int = 1) -> Iterator[None]:
        """Within it, so many more handshakes are refused with a sentence that has these words in it."""
        before = self.handshakes(words)
        yield

        def there() -> bool:
            self.gateway.nudge()         # who knocks again is written down at the tick, which is not waited for
            return self.handshakes(words) >= before + times
        wait_until(there, 20, f"{times} refusals that say {words!r} are counted", every=0.2)
        assert self.handshakes(words) == before + times

    def spoken(self, title: str) -> tuple[str, str]:
        """Version and suite of what this title spoke at the listener for old scanners."""
        def found() -> tuple[str, str] | None:
            with closing(Ledger.open(self.gateway.spool / "ledger.sqlite", SystemClock(), read_only=True)) as ledger:
                said = [read(knock.verdict, knock.called) for knock in ledger.knocks(1000, only=["legacy"])
                        if knock.title == title]
            return next(((one.version, one.suite) for one in said if one is not None), None)
        return wait_until(found, 15, f"what {title} spoke is known", every=0.1) or ("", "")


@contextmanager
def site(folder: Path) -> Iterator[Site]:
    """A running one. Its plain destination shows what came through."""
    ca, other = pki.Authority("Clinic CA"), pki.Authority("Foreign CA")
    issuing = ca.intermediate("Clinic Issuing CA")
    revoked, bound = issuing.leaf("revoked"), issuing.leaf("ct1", dns=["ct1.example.org"])
    state = folder / "gateway" / "state"
    issuing.revoke(revoked)
    for id, key in (("ec", "ec-p256"), ("rsa", "rsa-2048")):
        pki.place(state, id, issuing.leaf(id, addresses=["127.0.0.1"], dns=["localhost"], key=key), trust=[ca],
                  crl=issuing.crl())
    (folder / "trust.pem").write_bytes(pki.pem(ca.certificate))
    ports = {name: free_port() for name in LISTENERS}
    extra = [("[listener]", {"id": name, "address": "127.0.0.1", "ports": [ports[name]], "unknown": "admit", "tls": profile,
                             "certificate": own, "client_certificates": clients})
             for name, (profile, clients, own) in LISTENERS.items()]
    extra += [("[certificate]", {"id": "ec"}), ("[certificate]", {"id": "rsa", "key_type": "rsa-3072"}),
              ("[peer]", {"id": "ct1", "titles": ["CT1"], "listeners": ["mutual"], "certificates": ["dns:ct1.example.org"]})]
    with peers.storescp(folder / "archive") as archive, \
            Gateway(folder / "gateway", [to_peer(archive)], extra=extra) as gateway:
        gateway.start("run")
        yield Site(gateway, issuing, other, ports, archive, folder, issuing.leaf("scanner"), revoked, bound)


# --- senders ------------------------------------------------------------------------------------------------------------

Sender = Callable[[int, Sequence[Part10], Path, str, pki.Pair | None, Path], bool]


def openssl_of(version: str, folder: Path) -> dict[str, str]:
    """An environment in which OpenSSL speaks no newer version, whatever program it is in."""
    config = folder / "max12.cnf"
    config.write_text(_MAX_1_2)
    return {"OPENSSL_CONF": str(config)} if version == "1.2" else {}


def by_storescu(port: int, files: Sequence[Part10], folder: Path, version: str, pair: pki.Pair | None, trust: Path,
                profile: str = "+py", title: str = "STORESCU") -> bool:
    """DCMTK, whose version only OpenSSL's own configuration can bound."""
    options = ["+tla"]
    if pair is not None:
        key, chain = pair.write(folder, "storescu")
        options = ["+tls", str(key), str(chain)]
    contexts = peers.requestor_profile(folder / "storescu.cfg", dict.fromkeys((f.sop_class, f.syntax) for f in files))
    done = subprocess.run(
        [peers.program("storescu"), "-nh", "-aet", title, "-xf", str(contexts), "Default", *options, "+cf", str(trust), profile,
         "127.0.0.1", str(port), *(str(f.path) for f in files)], stdin=subprocess.DEVNULL, capture_output=True, timeout=60,
        env={**peers.environment(), **openssl_of(version, folder)}, check=False)
    return done.returncode == 0


def by_pynetdicom(port: int, files: Sequence[Part10], folder: Path, version: str, pair: pki.Pair | None, trust: Path) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(trust)
    context.minimum_version = context.maximum_version = VERSIONS[version]
    if pair is not None:
        key, chain = pair.write(folder, "python")
        context.load_cert_chain(chain, key)
    try:
        return set(peers.pynetdicom_send(port, files, tls=(context, "localhost")).values()) == {0}
    except AssertionError:                           # it could not associate
        return False


def by_s_client(port: int, files: Sequence[Part10], folder: Path, version: str, pair: pki.Pair | None, trust: Path) -> bool:
    """OpenSSL's program carries what storescu says."""
    options = [f"-tls{version.replace('.', '_')}", "-CAfile", str(trust), "-verify_return_error", "-verify_ip", "127.0.0.1"]
    if pair is not None:
        key, chain = pair.write(folder, "openssl")
        options += ["-key", str(key), "-cert", str(chain), "-cert_chain", str(chain)]
    with s_client(folder, port, *options) as tunnel:
        return peers.storescu(tunnel, files, folder).returncode == 0


def by_stunnel(port: int, files: Sequence[Part10], folder: Path, version: str, pair: pki.Pair | None, trust: Path) -> bool:
    with stunnel(folder, port, client=True, pair=pair, trust=trust,
                 options=(f"sslVersion = TLSv{version}", "checkIP = 127.0.0.1")) as tunnel:
        return peers.storescu(tunnel, files, folder).returncode == 0


SENDERS: dict[str, Sender] = {"storescu": by_storescu, "pynetdicom": by_pynetdicom, "s_client": by_s_client,
                              "stunnel": by_stunnel}


def sender(program: str, listener: str, version: str) -> Sender:
    """The one that can: DCMTK needs its retired profile where ours is a certificate of elliptic curves, in TLS 1.2."""
    if program == "storescu" and version == "1.2" and LISTENERS[listener][2] == "ec":
        return partial(by_storescu, profile="+pz")
    return SENDERS[program]


def all_at_once(cells: dict[str, Callable[[], object]], most: int = 6) -> dict[str, object]:
    """What each cell said; they wait for programs more than they work."""
    with ThreadPoolExecutor(most) as pool:
        return dict(zip(cells, pool.map(lambda cell: cell(), cells.values()), strict=True))


# --- the gateway as sender ----------------------------------------------------------------------------------------------


class Sending:
    """Our side of a destination: certificate store and transport. `refused` are the checks that failed."""

    def __init__(self, folder: Path, held: Held) -> None:
        self.ca, self.other = pki.Authority("Cloud CA"), pki.Authority("Foreign CA")
        self.held = held
        self.folder = folder
        self.box = self.ca.leaf("box")
        self.refused: list[str] = []
        pki.place(folder, "box", self.box, trust=[self.ca])
        self.trust = folder / "trust.pem"
        self.trust.write_bytes(pki.pem(self.ca.certificate))

    @contextmanager
    def transport(self, port: int, **settings: object) -> Iterator[DimseTransport]:
        made = DimseTransport(self.destination(port, **settings), self.held.spool, Limits(), str(self.folder),
                              refused=lambda destination, check, text: self.refused.append(check))
        try:
            yield made
        finally:
            made.close()

    def probe(self, port: int, **settings: object) -> Finding:
        """One C-ECHO."""
        with self.transport(port, **settings) as transport:
            return transport.probe()

    def deliver(self, transport: DimseTransport, name: str) -> list[Key]:
        """Two objects, each stored: what they are."""
        instances = [objects.ct(1, name, side=64), objects.implicit(1, name)]
        queued = [self.held.keep(b"".join(map(bytes, one.parts)), sop_class=one.sop_class, uid=one.sop_instance.encode(),
                                 syntax=one.syntax) for one in instances]
        outcomes: list[Outcome] = []

        def emit(outcome: Outcome) -> bool:
            outcomes.append(outcome)
            return False
        transport.send(queued, emit)
        assert [outcome.fault for outcome in outcomes] == [None, None], outcomes
        return [one.key for one in instances]

    def destination(self, port: int, **settings: object) -> Destination:
        return Destination(**{  # type: ignore[arg-type]
            "id": "cloud", "address": "127.0.0.1", "port": port, "called": "PACS", "calling": "DCMGATE", "tls": "bcp195",
            "certificate": "box", "connect_seconds": 5.0, **settings})


Arrived = Callable[[Sequence[Key]], None]
"""Waits until these are there."""

Server = Callable[[Path, str, pki.Pair, Path, bool], AbstractContextManager[tuple[int, Arrived]]]
"""(folder, version, its certificate, whom it trusts, mutual)."""


@contextmanager
def storescp(folder: Path, version: str, pair: pki.Pair, trust: Path, mutual: bool) -> Iterator[tuple[int, Arrived]]:
    key, chain = pair.write(folder, "scp")
    options = ["+tls", str(key), str(chain), "+cf", str(trust), "-rc" if mutual else "-ic"]
    with peers.storescp(folder / "storescp", options=options, more=openssl_of(version, folder)) as scp:
        yield scp.port, scp.wait_for


@contextmanager
def pynetdicom(folder: Path, version: str, pair: pki.Pair, trust: Path, mutual: bool) -> Iterator[tuple[int, Arrived]]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = VERSIONS[version]
    key, chain = pair.write(folder, "scp")
    context.load_cert_chain(chain, key)
    context.load_verify_locations(trust)
    context.verify_mode = ssl.CERT_REQUIRED if mutual else ssl.CERT_NONE
    with peers.pynetdicom_scp(context=context) as scp:
        yield scp.port, scp.wait_for


@contextmanager
def behind_stunnel(folder: Path, version: str, pair: pki.Pair, trust: Path, mutual: bool) -> Iterator[tuple[int, Arrived]]:
    with peers.storescp(folder / "behind") as scp, stunnel(
            folder, scp.port, client=False, pair=pair, trust=trust if mutual else None,
            options=(f"sslVersion = TLSv{version}", *(["requireCert = yes"] if mutual else []))) as port:
        yield port, scp.wait_for


@contextmanager
def behind_s_server(folder: Path, version: str, pair: pki.Pair, trust: Path, mutual: bool) -> Iterator[tuple[int, Arrived]]:
    verify = ("-Verify", "2", "-verify_return_error", "-CAfile", str(trust)) if mutual else ()
    with peers.storescp(folder / "behind") as scp, s_server(folder, scp.port, pair, f"-tls{version.replace('.', '_')}",
                                                            *verify) as port:
        yield port, scp.wait_for


@contextmanager
def orthanc(folder: Path, version: str, pair: pki.Pair, trust: Path, mutual: bool) -> Iterator[tuple[int, Arrived]]:
    key, chain = pair.write(folder, "scp")
    with peers.orthanc(folder / "orthanc", more=openssl_of(version, folder), settings={
            "DicomTlsEnabled": True, "DicomTlsCertificate": str(chain), "DicomTlsPrivateKey": str(key),
            "DicomTlsTrustedCertificates": str(trust), "DicomTlsRemoteCertificateRequired": mutual}) as scp:
        yield scp.port, scp.wait_for


SERVERS: dict[str, Server] = {"storescp": storescp, "pynetdicom": pynetdicom, "stunnel": behind_stunnel,
                              "s_server": behind_s_server, "orthanc": orthanc}
