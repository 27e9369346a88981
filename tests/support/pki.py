"""A certification authority for tests: root, intermediate, leaves good and bad, revocation lists; made when needed, EC keys.

    ca = Authority("Test CA")
    scanner = ca.leaf("ct1", dns=["ct1.example.org"])
    place(state, "box", ca.leaf("box", addresses=["127.0.0.1"]), trust=[ca])
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from itertools import count
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
DAY = timedelta(days=1)
_serials = count(int.from_bytes(os.urandom(6)))
_generations = count(1)


def new_key(kind: str = "ec-p256") -> Key:
    """`ec-p256`, `ec-p384`, `rsa-1024` and so on."""
    if kind.startswith("rsa-"):
        return rsa.generate_private_key(65537, int(kind[4:]))
    return ec.generate_private_key(ec.SECP384R1() if kind == "ec-p384" else ec.SECP256R1())


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


@dataclass
class Pair:
    """A key and its certificate; `chain` are the intermediates above it."""

    key: Key
    certificate: x509.Certificate
    chain: list[x509.Certificate] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate, 64 hex digits."""
        return self.certificate.fingerprint(hashes.SHA256()).hex()

    def key_pem(self) -> bytes:
        return self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                      serialization.NoEncryption())

    def chain_pem(self) -> bytes:
        return pem(self.certificate, *self.chain)

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """`name.key` and `name.pem` (leaf first), as other programs want them."""
        folder.mkdir(parents=True, exist_ok=True)
        key, chain = folder / f"{name}.key", folder / f"{name}.pem"
        key.write_bytes(self.key_pem())
        key.chmod(0o600)
        chain.write_bytes(self.chain_pem())
        return key, chain


class Authority(Pair):
    """A CA; `parent` None: a root."""

    parent: Authority | None

    def __init__(self, name: str = "Test CA", parent: Authority | None = None, *, key: str = "ec-p256") -> None:
        own = new_key(key)
        subject = _name(name)
        now = datetime.now(UTC)
        issuer, signer = (parent.certificate.subject, parent.key) if parent else (subject, own)
        certificate = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(own.public_key())
            .serial_number(next(_serials)).not_valid_before(now - 3650 * DAY).not_valid_after(now + 3650 * DAY)
            .add_extension(x509.BasicConstraints(True, None), critical=True)
            .add_extension(_ca_usage(), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
            .sign(signer, hashes.SHA256()))
        super().__init__(own, certificate, [*([parent.certificate] if parent and parent.parent else []),
                                            *(parent.chain if parent else [])])
        self.parent = parent
        self.name = name
        self._revoked: list[x509.RevokedCertificate] = []

    def intermediate(self, name: str = "Test Intermediate") -> Authority:
        return Authority(name, self)

    def leaf(self, name: str, *, dns: Sequence[str] = (), addresses: Sequence[str] = (), uris: Sequence[str] = (),
             emails: Sequence[str] = (), start: timedelta = -DAY, end: timedelta = 90 * DAY, key: str = "ec-p256",
             usage: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
             ) -> Pair:
        """A certificate of this authority; `start` and `end` count from now."""
        own = new_key(key)
        return Pair(own, _certificate(own, name, self.certificate.subject, self.key, dns, addresses, uris, emails, start, end,
                                      usage), [self.certificate, *self.chain] if self.parent else [])

    def sign(self, request: x509.CertificateSigningRequest, *, start: timedelta = -DAY, end: timedelta = 90 * DAY,
             names: bool = True, lists: Sequence[str] = ()) -> x509.Certificate:
        """A certificate for a request, with the names that it asks for; `lists`: where the revocation lists are."""
        now = datetime.now(UTC)
        builder = (x509.CertificateBuilder().subject_name(request.subject).issuer_name(self.certificate.subject)
                   .public_key(request.public_key()).serial_number(next(_serials))
                   .not_valid_before(now + start).not_valid_after(now + end))
        for extension in request.extensions:
            if names or not isinstance(extension.value, x509.SubjectAlternativeName):
                builder = builder.add_extension(extension.value, critical=extension.critical)
        if lists:
            builder = builder.add_extension(distribution(lists), critical=False)
        return builder.sign(self._signer, hashes.SHA256())

    def vouch(self, other: Authority) -> x509.Certificate:
        """Another authority's key, certified by this one (RFC 4210, 4.4: the new root with the old one's signature)."""
        now = datetime.now(UTC)
        return (x509.CertificateBuilder().subject_name(other.certificate.subject).issuer_name(self.certificate.subject)
                .public_key(other.certificate.public_key()).serial_number(next(_serials)).not_valid_before(now - DAY)
                .not_valid_after(now + 3650 * DAY).add_extension(x509.BasicConstraints(True, None), critical=True)
                .add_extension(_ca_usage(), critical=True).sign(self._signer, hashes.SHA256()))

    @property
    def _signer(self) -> CertificateIssuerPrivateKeyTypes:
        return self.key

    def expired(self, name: str, **names: Sequence[str]) -> Pair:
        return self.leaf(name, start=-30 * DAY, end=-DAY, **names)  # type: ignore[arg-type]

    def not_yet_valid(self, name: str, **names: Sequence[str]) -> Pair:
        return self.leaf(name, start=DAY, end=30 * DAY, **names)  # type: ignore[arg-type]

    def revoke(self, *pairs: Pair) -> Self:
        """Put them on the list that `crl` makes from now on."""
        for pair in pairs:
            self._revoked.append(x509.RevokedCertificateBuilder().serial_number(pair.certificate.serial_number)
                                 .revocation_date(datetime.now(UTC) - timedelta(hours=1)).build())
        return self

    def crl(self, *, start: timedelta = -DAY, end: timedelta = 7 * DAY) -> bytes:
        """The revocation list in PEM; `start` and `end` (next update) count from now."""
        now = datetime.now(UTC)
        builder = (x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject)
                   .last_update(now + start).next_update(now + end))
        for revoked in self._revoked:
            builder = builder.add_revoked_certificate(revoked)
        return builder.sign(self._signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def distribution(urls: Iterable[str]) -> x509.CRLDistributionPoints:
    return x509.CRLDistributionPoints(
        x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None) for url in urls)


def self_signed(name: str, *, dns: Sequence[str] = (), addresses: Sequence[str] = (), start: timedelta = -DAY,
                end: timedelta = 90 * DAY, key: str = "ec-p256") -> Pair:
    """A leaf that nobody but itself has signed."""
    own = new_key(key)
    return Pair(own, _certificate(own, name, _name(name), own, dns, addresses, (), (), start, end,
                                  (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)))


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _ca_usage() -> x509.KeyUsage:
    return x509.KeyUsage(digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
                         key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False)


def _certificate(own: Key, name: str, issuer: x509.Name, signer: Key, dns: Iterable[str], addresses: Iterable[str],
                 uris: Iterable[str], emails: Iterable[str], start: timedelta, end: timedelta,
                 usage: Iterable[x509.ObjectIdentifier]) -> x509.Certificate:
    names: list[x509.GeneralName] = [x509.DNSName(text) for text in dns]
    names += [x509.IPAddress(ip_address(text)) for text in addresses]
    names += [x509.UniformResourceIdentifier(text) for text in uris] + [x509.RFC822Name(text) for text in emails]
    now = datetime.now(UTC)
    builder = (x509.CertificateBuilder().subject_name(_name(name)).issuer_name(issuer).public_key(own.public_key())
               .serial_number(next(_serials)).not_valid_before(now + start).not_valid_after(now + end)
               .add_extension(x509.BasicConstraints(False, None), critical=True)
               .add_extension(x509.ExtendedKeyUsage(list(usage)), critical=False)
               .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
               .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signer, hashes.SHA256())


def replace(path: Path, data: bytes) -> None:
    """In one step, as the store does it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{next(_generations)}")
    temporary.write_bytes(data)
    temporary.chmod(0o600)
    os.replace(temporary, path)


def place(state: Path, id: str, pair: Pair | None = None, *, trust: Iterable[Pair] = (), crl: bytes = b"") -> Path:
    """Put files into the certificate store below a state folder, or replace them; returns the folder of that id."""
    folder = state / "certificates" / id
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if pair is not None:
        generation = folder / f"test-{next(_generations):04}"
        replace(generation / "key.pem", pair.key_pem())
        replace(generation / "chain.pem", pair.chain_pem())
        link = folder / ".current"
        link.unlink(missing_ok=True)
        link.symlink_to(generation.name)
        os.replace(link, folder / "current")
    if anchors := pem(*(anchor.certificate for anchor in trust)):
        replace(folder / "trust.pem", anchors)
    if crl:
        replace(folder / "crl.pem", crl)
    return folder
