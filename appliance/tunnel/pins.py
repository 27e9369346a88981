"""Pins: certificates of the other end that a tunnel is bound to, because stunnel compares certificates and not fingerprints.

    <state>/pins/<fingerprint>.pem

The fingerprint in the configuration is what is trusted: a certificate comes here
only if it has one. Where the other end is a server it is fetched from it, at the
start and whenever its way is walked; a client's is given by a person.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from appliance.errors import TunnelError
from appliance.net.certstore import Writer

FOLDER = "pins"

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def of(state: Path, wanted: Iterable[str]) -> list[bytes]:
    """The certificates that are known of these fingerprints (64 hex digits), PEM; a file that was changed counts as missing."""
    found = []
    for pin in wanted:
        try:
            text = (state / FOLDER / f"{pin}.pem").read_bytes()
        except OSError:
            continue
        if any(sha256(der).hexdigest() == pin for der in ders(text)):
            found.append(text.rstrip(b"\n") + b"\n")
    return found


def keep(state: Path, der: bytes, wanted: Iterable[str]) -> bool:
    """Keep a certificate that has one of these fingerprints; whether it is new here. CertificateError."""
    pin = sha256(der).hexdigest()
    if pin not in wanted or of(state, [pin]):
        return False
    Writer(state).keep(state / FOLDER / f"{pin}.pem", ssl.DER_cert_to_PEM_cert(der).encode("ascii"))
    return True


def from_file(path: Path, wanted: Iterable[str]) -> bytes:
    """The certificate (DER) in a file, PEM or DER, that has one of these fingerprints. TunnelError."""
    wanted = list(wanted)
    text = path.read_bytes()
    found = {sha256(der).hexdigest(): der for der in ders(text) or [text]}
    for pin, der in found.items():
        if pin in wanted:
            return der
    raise TunnelError(f"{path} has no certificate with one of the pins; it has sha256:" + ", sha256:".join(found),
                      mend="Compare the fingerprint with the other end's administrator, then write it as a pin.")


def ders(text: bytes) -> list[bytes]:
    """The certificates of a PEM file, DER."""
    found = []
    for match in _PEM.finditer(text):
        try:
            found.append(ssl.PEM_cert_to_DER_cert(match[0].decode("ascii")))
        except ValueError:
            continue
    return found
