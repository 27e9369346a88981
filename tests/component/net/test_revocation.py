"""Who is revoked stays out, whoever else has no list comes in, and an old list stops nobody: real handshakes, both sides."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from appliance.net import crl
from appliance.net.certificates import UNREADABLE
from appliance.net.certstore import Store
from appliance.net.secure import Context, Secure
from appliance.net.tls import PROFILES, client_context, server_context
from appliance.net.tlserrors import THEIRS, TlsError
from tests.support.pki import DAY, Authority, Pair, place

BCP = PROFILES["bcp195"]


def der(pair: Pair) -> bytes:
    return pair.certificate.public_bytes(serialization.Encoding.DER)


class Sides:
    """A server and a client; the lists are `server`'s or `client`'s."""

    def __init__(self, folder: Path, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> None:
        self.folder = folder
        self.version = version
        self.store = Store(folder)

    def context(self, name: str, pair: Pair, trust: Iterable[Pair], lists: bytes = b"") -> Context:
        place(self.folder, name, pair, trust=trust, crl=lists)
        material = self.store.material(name)
        context = server_context(BCP, material) if name == "server" else client_context(BCP, material, material)
        context.minimum_version = context.maximum_version = self.version
        return context

    def shake(self, server: Context, client: Context, session: ssl.SSLSession | None = None
              ) -> tuple[OSError | None, OSError | None, Secure]:
        """What each side says of the handshake, and the client's end."""
        ours, theirs = socket.socketpair()
        said: list[OSError | None] = []

        def serve() -> None:
            end = Secure(theirs, server, server_side=True)
            try:
                end.handshake(time.monotonic() + 10)
                end.sendall(b"in")
                said.append(None)
            except OSError as e:
                said.append(e)
                end.close()

        thread = threading.Thread(target=serve)
        thread.start()
        end = Secure(ours, client, server_name="localhost", session=session)
        try:
            end.handshake(time.monotonic() + 10)
            mine = None if end.recv_into(bytearray(2)) else ConnectionError("the other end is gone")
        except OSError as e:
            mine = e
            ours.close()
        thread.join(20)
        return said[0], mine, end


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def sides(tmp_path: Path, request: pytest.FixtureRequest) -> Sides:
    return Sides(tmp_path, request.param)


@pytest.fixture
def ca() -> Authority:
    return Authority("Hospital CA")


def revoked(error: OSError | None) -> bool:
    return isinstance(error, TlsError) and (error.check, error.certificate) == ("revoked", THEIRS)


@pytest.mark.requirement("hazard: ssl revocation")
@pytest.mark.requirement("hazard: ssl")
def test_only_issuers_of_which_there_is_a_list_are_looked_up(sides: Sides, ca: Authority) -> None:
    """OpenSSL's own flag refuses whoever comes from the other authority."""
    other = Authority("Another CA")
    gone, good, foreign = ca.leaf("gone"), ca.leaf("good"), other.leaf("foreign")
    server = sides.context("server", ca.leaf("server", dns=["localhost"]), [ca, other], ca.revoke(gone).crl())
    for pair, comes_in in ((gone, False), (good, True), (foreign, True)):
        theirs, ours, _ = sides.shake(server, sides.context("client", pair, [ca]))
        assert (theirs is None and ours is None) == comes_in, (pair.certificate.subject, theirs, ours)
        assert revoked(theirs) != comes_in


@pytest.mark.requirement("hazard: ssl revocation")
@pytest.mark.requirement("hazard: ssl")
@pytest.mark.parametrize(("start", "end"), [(-9 * DAY, -DAY), (DAY, 9 * DAY)], ids=["out of date", "not in force yet"])
def test_an_old_list_still_refuses_what_it_revoked_and_nobody_else(sides: Sides, ca: Authority, start: timedelta,
                                                                   end: timedelta) -> None:
    gone, good = ca.leaf("gone"), ca.leaf("good")
    server = sides.context("server", ca.leaf("server", dns=["localhost"]), [ca], ca.revoke(gone).crl(start=start, end=end))
    assert revoked(sides.shake(server, sides.context("client", gone, [ca]))[0])
    assert sides.shake(server, sides.context("client", good, [ca]))[:2] == (None, None)


def test_a_server_that_is_revoked(sides: Sides, ca: Authority) -> None:
    pair = ca.leaf("server", dns=["localhost"])
    server = sides.context("server", pair, [ca])
    assert revoked(sides.shake(server, sides.context("client", ca.leaf("client"), [ca], ca.revoke(pair).crl()))[1])


def test_an_authority_in_the_middle_that_is_revoked(sides: Sides, ca: Authority) -> None:
    """Its own certificates are in no list: that above it is what counts."""
    between = ca.intermediate()
    server = sides.context("server", ca.leaf("server", dns=["localhost"]), [ca], ca.revoke(between).crl())
    theirs = sides.shake(server, sides.context("client", between.leaf("client"), [ca]))[0]
    assert revoked(theirs)
    assert "above it" in str(theirs)


def test_a_session_that_is_resumed_is_looked_up_again(sides: Sides, ca: Authority) -> None:
    """Towards a server that gives tickets, as those of the cloud do."""
    pair = ca.leaf("server", dns=["localhost"])
    server = sides.context("server", pair, [ca])
    server.options &= ~ssl.OP_NO_TICKET
    server.num_tickets = 2
    client = sides.context("client", ca.leaf("client"), [ca], ca.crl())
    theirs, ours, end = sides.shake(server, client)
    assert (theirs, ours) == (None, None)
    again = sides.shake(server, client, end.session)
    assert again[:2] == (None, None)
    assert again[2].resumed
    client.lists = crl.Lists([x509.load_pem_x509_crl(ca.revoke(pair).crl()).public_bytes(serialization.Encoding.DER)])
    assert revoked(sides.shake(server, client, end.session)[1])


# --- reading lists ------------------------------------------------------------------------------------------------------


def list_of(issuer: x509.Name, ca: Authority, *serials: int) -> bytes:
    now = datetime.now(UTC)
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer).last_update(now).next_update(now + DAY)
    for serial in serials:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build())
    return builder.sign(ca.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)  # type: ignore[arg-type]


def test_an_authority_may_write_its_name_in_another_way(ca: Authority) -> None:
    """RFC 5280, 7.1: kind of text, capitals and blanks make no other name."""
    kind = x509.name._ASN1Type
    pair = ca.leaf("x")
    for text, tag in (("Hospital CA", kind.PrintableString), ("HOSPITAL  ca ", kind.UTF8String),
                      ("Hospital CA", kind.BMPString)):
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text, _type=tag)])
        assert crl.Lists([list_of(issuer, ca, pair.certificate.serial_number)]).revoked([der(pair)]) == 0
    other = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Hospital CA")])
    assert crl.Lists([list_of(other, ca, pair.certificate.serial_number)]).revoked([der(pair)]) == -1


@pytest.mark.parametrize("serial", [1, 127, 128, 255, 256, (1 << 159) - 2, 1 << 158])
def test_serial_numbers_of_every_length(ca: Authority, serial: int) -> None:
    now = datetime.now(UTC)
    certificate = (x509.CertificateBuilder().subject_name(ca.certificate.subject).issuer_name(ca.certificate.subject)
                   .public_key(ca.key.public_key()).serial_number(serial).not_valid_before(now).not_valid_after(now + DAY)
                   .sign(ca.key, hashes.SHA256())).public_bytes(serialization.Encoding.DER)
    for listed, place_ in (((serial,), 0), ((serial + 1, 5), -1), ((), -1), ((7, serial, 9), 0)):
        assert crl.Lists([list_of(ca.certificate.subject, ca, *listed)]).revoked([certificate]) == place_


def test_a_long_list_costs_eight_bytes_an_entry(ca: Authority) -> None:
    lists = crl.Lists([list_of(ca.certificate.subject, ca, *range(1000, 4000))])
    assert len(lists) == 3000
    assert lists._revoked.itemsize * len(lists) == 24000


@pytest.mark.parametrize("bit", [0x01, 0x10, 0x80, 0xFF])
def test_what_the_library_reads_as_revoked_is_revoked_here_too(ca: Authority, bit: int) -> None:
    """Every byte of a list changed: never does ours let in what the library's reading of the same bytes keeps out."""
    pair, name = ca.leaf("x"), ca.certificate.subject
    good = list_of(name, ca, 5, pair.certificate.serial_number, 1 << 100)
    read = kept = 0
    for at in range(len(good)):
        bad = good[:at] + bytes((good[at] ^ bit,)) + good[at + 1:]
        try:
            theirs = x509.load_der_x509_crl(bad)
            revoked = theirs.issuer == name and any(one.serial_number == pair.certificate.serial_number for one in theirs)
        except UNREADABLE:
            continue
        read += 1
        try:
            ours = crl.Lists([bad]).revoked([der(pair)]) == 0
        except (ValueError, IndexError):
            continue                     # such a file is an alarm, and never gets into the store: both have to read it
        kept += ours
        assert ours or not revoked, f"byte {at}"
    assert read > 50 and kept > 20, "else nothing was compared"


def test_whatever_the_bytes_are_it_is_a_list_or_a_value_error(ca: Authority, tmp_path: Path) -> None:
    good = list_of(ca.certificate.subject, ca, 5, 6)
    for at in range(len(good)):
        for bad in (good[:at], good[:at] + bytes((good[at] ^ 0xFF,)) + good[at + 1:]):
            with suppress(ValueError, IndexError):
                crl.Lists([bad])
    empty = tmp_path / "crl.pem"
    empty.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no revocation list"):
        crl.load(empty)
