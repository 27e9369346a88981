"""`dcmgate cert`: from a request to a certificate in force, what is refused and why, and what a destination shows."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12

from appliance.net.certstore import Store
from tests.support.pki import DAY, Authority, Pair, pem, self_signed
from tests.support.sites import CliSite

ENTRY = '\n[[certificate]]\nid = "box"\nnames = ["box.example.org", "10.0.0.7"]\n'


@pytest.fixture
def box(bare: CliSite) -> CliSite:
    """A site with a `[[certificate]]`, and a state folder as `spool init` makes it."""
    bare.config.write_text(bare.config.read_text() + ENTRY)
    bare("spool", "init")
    return bare


@pytest.fixture
def ca() -> Authority:
    return Authority("Hospital CA")


def files(folder: Path, **contents: bytes) -> dict[str, str]:
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return {name: str(folder / name) for name in contents}


def state_of(site: CliSite) -> Path:
    return site.folder / "state"


def signed(site: CliSite, ca: Authority, **dates: timedelta) -> x509.Certificate:
    return ca.sign(x509.load_pem_x509_csr(site("cert", "request", "box").encode()), **dates)


def test_from_request_to_certificate_in_force(box: CliSite, ca: Authority, tmp_path: Path) -> None:
    between = ca.intermediate()
    asked = x509.load_pem_x509_csr(box("cert", "request", "box").encode())
    assert asked.is_signature_valid
    names = asked.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["box.example.org"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7"]
    paths = files(tmp_path, leaf=pem(between.sign(asked)), between=pem(between.certificate), root=pem(ca.certificate))
    box("cert", "install", "box", paths["leaf"], paths["between"], paths["root"])
    box("cert", "install", "box", "--trust", paths["root"])
    material = Store(state_of(box)).material("box")
    assert material.chain is not None
    assert material.key is not None
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(material.chain, material.key)
    assert material.chain.read_bytes().count(b"BEGIN CERTIFICATE") == 2, "leaf and intermediate, and no root"
    shown = box.json("cert", "show", "box")["certificates"][0]
    assert (len(shown["chain"]), len(shown["trust"]), shown["request_waits"]) == (2, 1, False)
    assert "box.example.org" in box("cert", "show")
    assert box.json("cert", "check")["good"] is True


def test_a_request_that_waits_is_shown_again_until_something_changes(box: CliSite) -> None:
    first = box.json("cert", "request", "box")
    assert first["new"] is True
    again = box.json("cert", "request", "box")
    assert (again["new"], again["request"]) == (False, first["request"])
    assert box.json("cert", "request", "box", "--new")["request"] != first["request"]
    box.config.write_text(box.config.read_text().replace('"10.0.0.7"', '"10.0.0.8"'))
    assert box.json("cert", "request", "box")["new"] is True


@pytest.mark.parametrize(("kind", "bits"), [("ec-p256", 256), ("ec-p384", 384), ("rsa-3072", 3072)])
def test_the_kind_of_the_key(box: CliSite, kind: str, bits: int) -> None:
    box.config.write_text(box.config.read_text() + f'key_type = "{kind}"\n')
    asked = x509.load_pem_x509_csr(box("cert", "request", "box").encode())
    assert asked.public_key().key_size == bits    # type: ignore[union-attr]
    assert box.json("cert", "request", "box")["new"] is False


def test_the_key_never_leaves_the_box(box: CliSite) -> None:
    said = box("cert", "request", "box") + box.err + box("--json", "cert", "request", "box") + box("cert", "show") + box.err
    assert "PRIVATE" not in said
    secret = (state_of(box) / "certificates" / "box" / "next-key.pem").read_text().split("\n")[1]
    assert secret not in said


def test_a_certificate_for_another_key_is_refused(box: CliSite, ca: Authority, tmp_path: Path) -> None:
    first = signed(box, ca)
    box("cert", "request", "box", "--new")
    paths = files(tmp_path, leaf=pem(first))
    box("cert", "install", "box", paths["leaf"], status=1)
    assert "belongs to a key of box" in box.err
    assert "dcmgate cert request box" in box.err
    assert Store(state_of(box)).material("box").chain is None


@pytest.mark.parametrize(("dates", "why"), [
    ({"start": -30 * DAY, "end": -DAY}, "has expired"),
    ({"start": DAY, "end": 30 * DAY}, "is not valid before"),
])
def test_what_is_out_of_date_does_not_replace_what_works(box: CliSite, ca: Authority, tmp_path: Path,
                                                         dates: dict[str, timedelta], why: str) -> None:
    box("cert", "install", "box", files(tmp_path, leaf=pem(signed(box, ca)))["leaf"])
    before = Store(state_of(box)).material("box").generation
    box("cert", "install", "box", files(tmp_path, leaf=pem(signed(box, ca, **dates)))["leaf"], status=1)
    assert why in box.err
    assert Store(state_of(box)).material("box").generation == before


def test_one_that_expires_soon_is_taken_and_said(box: CliSite, ca: Authority, tmp_path: Path) -> None:
    path = files(tmp_path, leaf=pem(signed(box, ca, start=-99 * DAY, end=5 * DAY)))["leaf"]
    found = box.json("cert", "install", "box", path, status=1)["findings"]
    assert [f["check"] for f in found] == ["expires"]
    assert Store(state_of(box)).material("box").chain is not None


@pytest.mark.parametrize("password", [None, b"geheim"])
def test_pkcs12(box: CliSite, ca: Authority, tmp_path: Path, password: bytes | None) -> None:
    from cryptography.hazmat.primitives.serialization import NoEncryption
    pair = ca.intermediate().leaf("box", dns=["box.example.org"], addresses=["10.0.0.7"])
    data = pkcs12.serialize_key_and_certificates(b"box", pair.key, pair.certificate, [*pair.chain, ca.certificate],
                                                 BestAvailableEncryption(password) if password else NoEncryption())
    paths = files(tmp_path, p12=data, good=(password or b"") + b"\n", bad=b"wrong\n")
    if password:
        box("cert", "install", "box", paths["p12"], "--password-file", paths["bad"], status=1)
        assert "password" in box.err
        box("cert", "install", "box", paths["p12"], "--password-file", paths["good"])
    else:
        box("cert", "install", "box", paths["p12"])
    assert "delete that file" in box.err
    shown = box.json("cert", "show")["certificates"][0]
    assert shown["chain"][0]["fingerprint"] == pair.fingerprint
    assert (len(shown["chain"]), shown["trust"]) == (2, []), "a root that came along is not trusted without --trust"


def test_trust_anchors_are_replaced_or_added(box: CliSite, ca: Authority, tmp_path: Path) -> None:
    other = Authority("Other CA")
    paths = files(tmp_path, one=pem(ca.certificate), two=pem(other.certificate))
    box("cert", "install", "box", paths["one"], status=1)
    assert "--trust" in box.err, "an authority is trusted only where a person says so"
    box("cert", "install", "box", "--trust", paths["one"])
    box("cert", "install", "box", "--trust", "--add", paths["two"])
    assert len(box.json("cert", "show")["certificates"][0]["trust"]) == 2
    box("cert", "install", "box", "--trust", paths["two"])
    assert [t["subject"] for t in box.json("cert", "show")["certificates"][0]["trust"]] == ["CN=Other CA"]


def test_revocation_lists_are_verified_and_never_go_back(box: CliSite, ca: Authority, tmp_path: Path) -> None:
    paths = files(tmp_path, root=pem(ca.certificate), old=ca.crl(start=-2 * DAY), new=ca.revoke(ca.leaf("x")).crl(),
                  foreign=Authority("Hospital CA").crl())
    box("cert", "install", "box", paths["new"], status=1)
    assert "signed by no authority" in box.err
    box("cert", "install", "box", "--trust", paths["root"])
    box("cert", "install", "box", paths["foreign"], status=1)
    assert "signed by no authority" in box.err, "the same name is not the same key"
    box("cert", "install", "box", paths["new"])
    box("cert", "install", "box", paths["old"], status=1)
    assert "older than the one there is" in box.err
    assert box.json("cert", "show")["certificates"][0]["lists"][0]["entries"] == 1


def test_our_own_certificate_is_revoked(box: CliSite, ca: Authority, tmp_path: Path) -> None:
    leaf = signed(box, ca)
    key = ca.leaf("key only").key
    paths = files(tmp_path, leaf=pem(leaf), root=pem(ca.certificate), crl=ca.revoke(Pair(key, leaf)).crl())
    box("cert", "install", "box", paths["leaf"])
    box("cert", "install", "box", "--trust", paths["root"])
    box("cert", "install", "box", paths["crl"], status=1)
    assert "has revoked it" in box("cert", "check", status=1)


@pytest.mark.parametrize(("content", "why"), [
    (b"", "holds no certificate"), (b"\x30\x80\x02\x01\x03garbage", "PKCS#12"), (b"hello", "holds no certificate"),
    (b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", "cannot be read"),
    (b"-----BEGIN CERTIFICATE REQUEST-----\nMIIB\n-----END CERTIFICATE REQUEST-----\n", "nothing to install"),
])
def test_garbage_is_refused_in_one_line(box: CliSite, tmp_path: Path, content: bytes, why: str) -> None:
    box("cert", "install", "box", files(tmp_path, file=content)["file"], status=1)
    assert why in box.err
    assert box.err.count("\n") == 1


def test_unknown_ids_are_named_with_what_is_near(box: CliSite) -> None:
    box("cert", "request", "bix", status=2)
    assert 'there is no [[certificate]] "bix"' in box.err
    assert '"box"' in box.err
    box("cert", "pin", "pax", status=2)
    assert "there is no [[destination]]" in box.err


# --- pin ----------------------------------------------------------------------------------------------------------------

@contextmanager
def server(pair: Pair, folder: Path) -> Iterator[int]:
    """A TLS server on 127.0.0.1 that shows this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    key, chain = pair.write(folder, "server")
    context.load_cert_chain(chain, key)
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                plain, _ = listening.accept()
            except OSError:
                return
            try:
                with plain, context.wrap_socket(plain, server_side=True) as secure:
                    secure.settimeout(5)
                    secure.recv(1)
            except OSError:
                continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(10)


def test_pin_shows_what_a_destination_shows(box: CliSite, tmp_path: Path) -> None:
    pair = self_signed("pacs", dns=["pacs.example.org"])
    text = box.config.read_text()
    with server(pair, tmp_path / "server") as port:
        entry = (f'\n[[destination]]\nid = "far"\naddress = "127.0.0.1"\nport = {port}\ntls = "bcp195"\n'
                 'certificate = "box"\n')
        box.config.write_text(text + entry)
        shown = box.json("cert", "pin", "far")
        assert (shown["fingerprint"], shown["pinned"]) == (pair.fingerprint, False)
        box.config.write_text(text + entry + shown["setting"] + "\n")
        assert "one of the pins" in box("cert", "pin", "far")
        box.config.write_text(text + entry + f'pins = ["{"ab" * 32}"]\n')
        assert "none of the pins" in box("cert", "pin", "far", status=1)
    box("cert", "pin", "far", status=1)
    assert "shows no certificate" in box.err
