"""Twenty renewals by EST while scanners send and the cloud is sent to: nobody notices, but for the new certificate."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography import x509
from pydicom import dcmread
from pynetdicom import AE
from pynetdicom.association import Association

from tests.support import objects, peers, pki
from tests.support.est import Est
from tests.support.gateway import Gateway, to_peer
from tests.support.objects import Part10
from tests.support.waiting import free_port, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]

RENEWALS = 20
HELD = 3
"""Associations that are up from before the first renewal to after the last."""


class Site:
    """A gateway whose one certificate is enrolled at a real EST server, and shown to scanners and to the archive."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.ca = pki.Authority("Hospital CA")
        self.est = stack.enter_context(Est(self.ca))
        self.est.users["box"] = "secret"
        self.scanner = self.ca.leaf("scanner")
        (folder / "trust.pem").write_bytes(pki.pem(self.ca.certificate))
        key, chain = self.ca.leaf("cloud", addresses=["127.0.0.1"]).write(folder, "cloud")
        self.archive = stack.enter_context(peers.storescp(folder / "archive", options=[
            "+tls", str(key), str(chain), "+cf", str(folder / "trust.pem"), "+py"]))
        self.port = free_port()
        self.gateway = stack.enter_context(Gateway(
            folder / "gateway", [to_peer(self.archive, id="cloud", tls="bcp195", certificate="box")],
            extra=[("[listener]", {"id": "tls", "address": "127.0.0.1", "ports": [self.port], "unknown": "admit",
                                   "tls": "bcp195", "certificate": "box"}),
                   ("[certificate]", {"id": "box", "names": ["localhost", "127.0.0.1"], "est_url": self.est.url,
                                      "est_user": "box"})]))
        (folder / "password").write_text("secret\n")
        self.gateway.command("cert", "enroll", "box", "--fingerprint", self.ca.fingerprint,
                             "--password-file", str(folder / "password"))
        self.gateway.start_stages()

    def context(self) -> ssl.SSLContext:
        key, chain = self.scanner.write(self.folder, "scanner")
        context = ssl.create_default_context(cafile=str(self.folder / "trust.pem"))
        context.load_cert_chain(chain, key)
        return context

    def shown(self) -> int:
        """Serial number of the certificate that the listener shows now."""
        with socket.create_connection(("127.0.0.1", self.port), 10) as plain, \
                self.context().wrap_socket(plain, server_hostname="localhost") as sock:
            return x509.load_der_x509_certificate(sock.getpeercert(True) or b"").serial_number

    def hold(self, files: list[Part10]) -> Association:
        ae = AE("HELD")
        for sop_class, syntax in {(file.sop_class, file.syntax) for file in files}:
            ae.add_requested_context(sop_class, syntax)
        found = ae.associate("127.0.0.1", self.port, ae_title="DCMGATE", tls_args=(self.context(), "localhost"))
        assert found.is_established
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(tmp_path, stack)


class Sending:
    """storescu over and over, each time a new association, until `stop`."""

    def __init__(self, site: Site, name: str) -> None:
        self.site, self.name = site, name
        self.sent: list[Part10] = []
        self.faults: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        folder = self.site.folder / self.name
        key, chain = self.site.scanner.write(folder, self.name)
        options = ["+tls", str(key), str(chain), "+cf", str(self.site.folder / "trust.pem"), "+py"]
        for n in range(10_000):
            if self._stop.is_set():
                return
            files = peers.files_of([objects.ct(2 * n + k, self.name, side=64) for k in (1, 2)], folder / str(n))
            done = peers.storescu(self.site.port, files, folder, calling=self.name.upper(), options=options)
            if done.returncode:
                self.faults.append(done.stdout + done.stderr)
            self.sent += files


@pytest.mark.requirement("conformance: renewal under load")
def test_twenty_renewals_and_nobody_notices(site: Site, tmp_path: Path) -> None:
    files = [peers.files_of([objects.ct(n, f"held{who}", side=64) for n in range(1, RENEWALS + 2)], tmp_path / f"held{who}")
             for who in range(HELD)]
    held = [site.hold(mine) for mine in files]
    senders = [Sending(site, "first"), Sending(site, "second")]
    try:
        seen = [site.shown()]
        for nth in range(RENEWALS):
            _store_all(held, files, nth)
            site.gateway.command("cert", "enroll", "box")
            seen.append(site.shown())
        _store_all(held, files, RENEWALS)
    finally:
        for sender in senders:
            sender.stop()
    assert seen == [one.serial_number for one in site.est.issued], "each one is shown at once, to whoever comes next"
    assert len(set(seen)) == RENEWALS + 1
    assert [one.what for one in site.est.asked].count("simplereenroll") == RENEWALS
    for association in held:
        assert association.is_established, "none was dropped"
        association.release()
    assert [sender.faults for sender in senders] == [[], []], "no association was refused or broken, no instance failed"
    sent = [file for mine in files for file in mine] + [file for sender in senders for file in sender.sent]
    assert all(len(sender.sent) >= RENEWALS for sender in senders)
    site.archive.wait_for([file.key for file in sent], 120)
    balance = site.gateway.wait_settled(60, accepted=len(sent))
    assert (balance["accepted"], balance["unaccounted"]) == (len(sent), 0)
    turned_away = [row for row in site.gateway.json("peers")["knocked"] if row["verdict"] != "accept"]
    assert turned_away == []
    log = site.gateway.log("forwarder").read_text()
    assert "warning " not in log and "error " not in log, "nor were we"


def _store_all(held: list[Association], files: list[list[Part10]], nth: int) -> None:
    for association, mine in zip(held, files, strict=True):
        status = association.send_c_store(dcmread(mine[nth].path))
        assert status and status.Status == 0, status


def test_the_keeper_renews_by_itself_while_the_server_is_bad_and_then_good(site: Site) -> None:
    """The real keeper, by the real clock: what is due is tried at once; the alarm names the step; it heals by itself."""
    site.est.mode, site.est.only = "html_disguised", "simplereenroll"
    old = site.ca.leaf("box", dns=["localhost"], addresses=["127.0.0.1"], start=-80 * pki.DAY, end=4 * pki.DAY)
    pki.place(site.folder / "gateway" / "state", "box", old)
    site.gateway.restart("keeper")

    def alarms() -> dict[str, str]:
        return {one["key"]: one["text"] for one in site.gateway.json("status", status=None)["alarms"]}

    found = wait_until(lambda: alarms().get("certificate-renewal:box"), 30, "the alarm has risen", every=0.5)
    assert "at step enroll" in found and "no certificates" in found
    assert site.shown() == old.certificate.serial_number, "the old one stays"
    assert "html" not in found and site.gateway.json("cert", "check", status=1)["findings"]
    site.est.mode = "good"
    site.gateway.command("cert", "enroll", "box")
    assert site.shown() == site.est.issued[-1].serial_number
