"""Certificates, keys and requests as `cryptography` sees them: read from files, made, put together, told as facts.

In the commands and the keeper only: who talks TLS needs none of it. Everything
that cannot be used is a CertificateError that names the file and the mend.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes, PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.config.settings import Certificate, Config, Destination, Tunnel
from appliance.errors import CertificateError
from appliance.net.certstore import Material, Store
from appliance.policy.certificates import Facts, Held, List, Wanted, typed

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey

LARGEST = 64 << 20
"""Bytes of a file that is read: revocation lists can be large, nothing else is."""

UNREADABLE = (ValueError, TypeError, OverflowError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension,
              x509.UnsupportedGeneralNameType)
"""What `cryptography` raises of bytes that it cannot make sense of: not all of it is a ValueError."""

_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


@dataclass(slots=True)
class Bundle:
    """What files hold, in their order."""

    keys: list[Key] = field(default_factory=list)
    certificates: list[x509.Certificate] = field(default_factory=list)
    lists: list[x509.CertificateRevocationList] = field(default_factory=list)


class PasswordNeeded(CertificateError):
    """A file is encrypted, and there is no password or a wrong one."""


# --- reading ------------------------------------------------------------------------------------------------------------

def read(path: Path, into: Bundle, password: bytes | None = None) -> None:
    """Add what a file holds: PEM with anything in it, a certificate or list in DER, or PKCS#12. CertificateError, OSError."""
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise CertificateError(f"{path} is too large to be a certificate or a revocation list", mend="Give the right file.")
    parse(data, str(path), into, password)


def parse(data: bytes, name: str, into: Bundle, password: bytes | None = None) -> None:
    """The same of bytes; `name` is for messages."""
    blocks = list(_PEM.finditer(data))
    if not blocks:
        _binary(data, name, into, password)
        return
    for block in blocks:
        kind, text = block[1].decode(), block[0]
        try:
            if kind in ("CERTIFICATE", "X509 CERTIFICATE"):
                into.certificates.append(x509.load_pem_x509_certificate(text))
            elif kind == "X509 CRL":
                into.lists.append(x509.load_pem_x509_crl(text))
            elif kind.endswith("PRIVATE KEY"):
                into.keys.append(_key(text, name, password))
        except UNREADABLE as e:
            raise CertificateError(f"{name}: a part {kind} of it cannot be read: {e}", mend="Have the file made again.") from e


def _key(text: bytes, name: str, password: bytes | None) -> Key:
    encrypted = b"ENCRYPTED" in text
    if encrypted and password is None:
        raise PasswordNeeded(f"{name}: the key in it is encrypted", mend="Give its password with --password-file.")
    try:
        key = serialization.load_pem_private_key(text, password if encrypted else None)
    except (ValueError, TypeError) as e:
        if encrypted:
            raise PasswordNeeded(f"{name}: the password does not open the key in it", mend="Give the right password.") from e
        raise
    return _usable(key, name)


def _usable(key: PrivateKeyTypes, name: str) -> Key:
    if isinstance(key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey, ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey)):
        return key
    raise CertificateError(f"{name}: the key in it is of a kind that TLS does not use", mend="Use EC or RSA.")


def _binary(data: bytes, name: str, into: Bundle, password: bytes | None) -> None:
    try:
        into.certificates.append(x509.load_der_x509_certificate(data))
        return
    except UNREADABLE:
        pass
    try:
        into.lists.append(x509.load_der_x509_crl(data))
        return
    except UNREADABLE:
        pass
    # What PKCS#12 begins with: a sequence that begins with version 3 (RFC 7292, 4)
    if data[:1] != b"\x30" or b"\x02\x01\x03" not in data[:12]:
        raise CertificateError(f"{name} holds no certificate, key or revocation list in PEM, DER or PKCS#12",
                               mend="Give the files that the authority has sent.")
    for attempt in (password,) if password is not None else (None, b""):
        try:
            store = pkcs12.load_pkcs12(data, attempt)
        except UNREADABLE:
            continue
        if store.key is not None:
            into.keys.append(_usable(store.key, name))
        into.certificates += [entry.certificate for entry in (store.cert, *store.additional_certs) if entry is not None]
        return
    if password is None:
        raise PasswordNeeded(f"{name} is PKCS#12 and encrypted", mend="Give its password with --password-file.")
    raise PasswordNeeded(f"{name}: the password does not open it", mend="Give the right password.")


# --- keys and requests --------------------------------------------------------------------------------------------------

def new_key(kind: str) -> Key:
    """A key of the kind that `key_type` names."""
    if kind.startswith("rsa-"):
        return rsa.generate_private_key(65537, int(kind[4:]))
    return ec.generate_private_key(ec.SECP384R1() if kind == "ec-p384" else ec.SECP256R1())


def request_for(entry: Certificate, key: Key, like: x509.Certificate | None = None) -> bytes:
    """A certificate signing request (PKCS#10) in PEM: for both sides of TLS, with the names of the entry, or with subject and
    names as they are in another certificate (a renewal, RFC 7030, 4.2.2)."""
    subject, names = _asked(entry, like)
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    builder = builder.add_extension(x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=isinstance(key, rsa.RSAPrivateKey),
        data_encipherment=False, key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False,
        decipher_only=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                                    critical=False)
    signing = None if isinstance(key, (ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey)) else hashes.SHA256()
    return builder.sign(key, signing).public_bytes(serialization.Encoding.PEM)


def _asked(entry: Certificate, like: x509.Certificate | None) -> tuple[x509.Name, x509.SubjectAlternativeName | None]:
    if like is not None:
        return like.subject, alternatives(like)
    common = next((name for name in entry.names if typed(name).startswith("dns:")), entry.id)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])
    return subject, x509.SubjectAlternativeName([_general(name) for name in entry.names]) if entry.names else None


def is_for(request: bytes, entry: Certificate, key: bytes, like: x509.Certificate | None = None) -> bool:
    """Whether a request that waits, with its key, still asks for what the entry says, or another certificate."""
    bundle = Bundle()
    try:
        asked = x509.load_pem_x509_csr(request)
        parse(key, "the key that waits", bundle)
        subject, wanted_names = _asked(entry, like)
        found = alternatives(asked)
        names, expected = (() if one is None else sorted(_names(one)) for one in (found, wanted_names))
    except (CertificateError, *UNREADABLE):
        return False
    kind, bits = key_of(asked.public_key())
    wanted = (entry.key_type[:2], int(entry.key_type.rpartition("-p" if entry.key_type.startswith("ec") else "-")[2]))
    return bool(bundle.keys) and public(bundle.keys[0].public_key()) == public(asked.public_key()) \
        and (kind[:2], bits) == wanted and names == expected and (like is None or asked.subject == subject)


def alternatives(holder: x509.Certificate | x509.CertificateSigningRequest) -> x509.SubjectAlternativeName | None:
    """Its subject alternative names. UNREADABLE where the extensions cannot be read."""
    return next((e.value for e in holder.extensions if isinstance(e.value, x509.SubjectAlternativeName)), None)


def purposes(certificate: x509.Certificate) -> frozenset[str]:
    """What it is for (extended key usage, as dotted OIDs); empty: for anything. UNREADABLE."""
    return frozenset(oid.dotted_string for e in certificate.extensions if isinstance(e.value, x509.ExtendedKeyUsage)
                     for oid in e.value)


def list_places(certificate: x509.Certificate) -> list[str]:
    """Where it says that its issuer's revocation list is: URLs of http and https. UNREADABLE."""
    points = next((e.value for e in certificate.extensions if isinstance(e.value, x509.CRLDistributionPoints)), ())
    return [name.value for point in points for name in point.full_name or ()
            if isinstance(name, x509.UniformResourceIdentifier) and name.value.partition(":")[0].lower() in ("http", "https")]


def _general(name: str) -> x509.GeneralName:
    kind, _, value = typed(name).partition(":")
    try:
        if kind == "ip":
            return x509.IPAddress(ip_address(value))
        if kind == "uri":
            return x509.UniformResourceIdentifier(value)
        return x509.RFC822Name(value) if kind == "email" else x509.DNSName(value)
    except ValueError as e:
        raise CertificateError(f'the name "{name}" cannot stand in a certificate: {e}', mend="Write it in ASCII.") from e


def key_pem(key: Key) -> bytes:
    """PKCS#8, not encrypted: the service has to start without a person."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def pem(things: Iterable[x509.Certificate | x509.CertificateRevocationList]) -> bytes:
    return b"".join(thing.public_bytes(serialization.Encoding.PEM) for thing in things)


def public(key: object) -> bytes:
    """A public key to compare by."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined,no-any-return]


# --- chains -------------------------------------------------------------------------------------------------------------

def issued(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    """Whether the one signed the other."""
    try:
        certificate.verify_directly_issued_by(by)
    except (InvalidSignature, *UNREADABLE):
        return False
    return True


def is_self_signed(certificate: x509.Certificate) -> bool:
    return certificate.subject == certificate.issuer and issued(certificate, certificate)


def chain_of(leaf: x509.Certificate, others: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """The leaf and what is above it as far as it is there, without a root: the other end has that, or does not trust it."""
    chain = [leaf]
    while not is_self_signed(chain[-1]):
        above = next((c for c in others if c not in chain and issued(chain[-1], c)), None)
        if above is None or is_self_signed(above):
            break
        chain.append(above)
    return chain


def list_signer(entry: x509.CertificateRevocationList, authorities: Iterable[x509.Certificate]) -> x509.Certificate | None:
    """The authority that signed a revocation list, None where it is none of these."""
    for authority in authorities:
        if authority.subject != entry.issuer:
            continue
        key = authority.public_key()
        if isinstance(key, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey, dsa.DSAPublicKey, ed25519.Ed25519PublicKey,
                            ed448.Ed448PublicKey)) and entry.is_signature_valid(key):
            return authority
    return None


# --- facts --------------------------------------------------------------------------------------------------------------

def held(material: Material) -> Held:
    """What the store holds for one id, as facts. What cannot be read is its `problem`. Never raises."""
    chain, trust, lists = Bundle(), Bundle(), Bundle()
    open_ = ""
    try:
        for path, bundle in ((material.chain, chain), (material.trust, trust), (material.crl, lists)):
            if path is not None:
                read(path, bundle)
        if material.key is not None:
            read(material.key, keys := Bundle())
            own = chain.certificates[0].public_key() if chain.certificates else None
            if own is None or not keys.keys or public(keys.keys[0].public_key()) != public(own):
                raise CertificateError("its key is not that of its certificate")
            if material.key.stat().st_mode & 0o007:
                open_ = str(material.key)
        leaf = chain.certificates[:1]
        revoked = {entry.issuer for entry in lists.lists for one in leaf if entry.issuer == one.issuer
                   and entry.get_revoked_certificate_by_serial_number(one.serial_number) is not None}
        return Held(material.id, tuple(facts(c, c in leaf and c.issuer in revoked) for c in chain.certificates),
                    tuple(map(facts, trust.certificates)), tuple(map(list_facts, lists.lists)), open=open_)
    except (CertificateError, OSError, *UNREADABLE) as e:
        text = e.message if isinstance(e, CertificateError) else f"{getattr(e, 'filename', '') or ''} {e}".strip()
        return Held(material.id, problem=text)


def facts(certificate: x509.Certificate, revoked: bool = False) -> Facts:
    """UNREADABLE where its extensions cannot be read."""
    names: tuple[str, ...] = ()
    authority = False
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            names = _names(extension.value)
        elif isinstance(extension.value, x509.BasicConstraints):
            authority = extension.value.ca
    kind, bits = key_of(certificate.public_key())
    try:
        algorithm = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        algorithm = None
    return Facts(certificate.subject.rfc4514_string(), certificate.issuer.rfc4514_string(), f"{certificate.serial_number:x}",
                 certificate.fingerprint(hashes.SHA256()).hex(), _ns(certificate.not_valid_before_utc),
                 _ns(certificate.not_valid_after_utc), names, kind, bits, algorithm.name if algorithm else "", authority,
                 revoked)


def list_facts(entry: x509.CertificateRevocationList) -> List:
    after = entry.next_update_utc
    return List(entry.issuer.rfc4514_string(), _ns(entry.last_update_utc), _ns(after) if after else 0, len(entry))


def key_of(key: CertificatePublicKeyTypes) -> tuple[str, int]:
    """Kind and bits."""
    if isinstance(key, rsa.RSAPublicKey):
        return "rsa", key.key_size
    if isinstance(key, ec.EllipticCurvePublicKey):
        return "ec", key.key_size
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "ed25519", 256
    return ("ed448", 456) if isinstance(key, ed448.Ed448PublicKey) else (type(key).__name__.lower().strip("_"), 0)


def _names(names: x509.SubjectAlternativeName) -> tuple[str, ...]:
    found = []
    for name in names:
        if isinstance(name, x509.DNSName):
            found.append(f"dns:{name.value.lower()}")
        elif isinstance(name, x509.IPAddress):
            found.append(f"ip:{name.value}")
        elif isinstance(name, x509.UniformResourceIdentifier):
            found.append(f"uri:{name.value}")
        elif isinstance(name, x509.RFC822Name):
            found.append(f"email:{name.value}")
    return tuple(found)


def _ns(at: datetime) -> int:
    return int(at.timestamp()) * 1_000_000_000


def wanted(config: Config) -> dict[str, Wanted]:
    """What the configuration wants of each `[[certificate]]`, by id. One that nothing uses is wanted by nobody."""
    pairs = {x.certificate for x in config.listeners if x.tls != "off"}
    trust = {x.certificate for x in config.listeners if x.tls != "off" and x.client_certificates != "off"}
    outward: list[Destination | Tunnel] = [x for x in config.destinations if x.tls != "off"]
    for entry in [*outward, *config.tunnels]:
        pairs.add(entry.certificate)
        trust.add(entry.trust or entry.certificate)
    trust |= {c.est_trust or c.id for c in config.certificates if c.est_url}
    pairs |= {c.id for c in config.certificates if c.est_url}
    return {c.id: Wanted(c.names, c.id in pairs, c.id in trust, bool(c.est_url), c.renew_days) for c in config.certificates}


def shown_by(destination: Destination, store: Store, deadline: float) -> Facts:
    """The certificate that a destination shows now, not verified; `deadline` is in monotonic seconds. CertificateError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    place = f"{destination.address}:{destination.port}"
    try:
        ours = store.material(destination.certificate) if destination.certificate else None
        if ours is not None and ours.chain is not None and ours.key is not None:
            context.load_cert_chain(ours.chain, ours.key, password="")
        left = max(0.1, deadline - time.monotonic())
        with socket.create_connection((destination.address, destination.port), left) as plain:
            plain.settimeout(left)
            with context.wrap_socket(plain, server_hostname=destination.server_name or destination.address) as secure:
                der = secure.getpeercert(True)
    except (OSError, ValueError) as e:
        why = getattr(e, "reason", None) or getattr(e, "strerror", None) or str(e)
        raise CertificateError(f"{place} shows no certificate: {why}",
                               mend="See whether it runs and speaks TLS at that port.") from e
    if not der:
        raise CertificateError(f"{place} shows no certificate", mend="See how TLS is set up there.")
    try:
        return facts(x509.load_der_x509_certificate(der))
    except UNREADABLE as e:
        raise CertificateError(f"the certificate of {place} cannot be read: {e}", mend="Have it issued again.") from e
