"""Revocation lists as those who talk TLS need them: whether a certificate is revoked, read out of DER (RFC 5280) by ourselves.

OpenSSL would refuse everybody whose authority has no list here, and everybody
once a list is out of date (hazards, Python's ssl). So it is not asked: after each
handshake every certificate of the proven chain is looked up in the lists of its
issuer, where there are any, however old they are. That a list is signed by its
issuer was checked when it was put into the store. A library of 18 MB in every
process that talks TLS would cost more than this reader.
"""

from __future__ import annotations

import binascii
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

LARGEST = 64 << 20
"""Bytes of a file of lists that is looked at."""

_PEM = re.compile(rb"-----BEGIN X509 CRL-----(.*?)-----END X509 CRL-----", re.DOTALL)
_SEQUENCE, _SET, _INTEGER, _UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x30, 0x31, 0x02, 0x17, 0x18, 0xA0
_TEXTS = {0x0C: "utf-8", 0x13: "latin-1", 0x14: "latin-1", 0x16: "latin-1", 0x1A: "latin-1", 0x1C: "utf-32-be",
          0x1E: "utf-16-be"}
"""Kinds of text that names are written in: one authority may write its own name in two of them."""


class Lists:
    """What a file of lists revokes. Eight bytes for each entry: lists have hundreds of thousands."""

    def __init__(self, lists: Iterable[bytes] = ()) -> None:
        """`lists` in DER. ValueError, IndexError where one is none."""
        found = array("q")
        self.issuers: set[bytes] = set()
        for der in lists:
            issuer, serials = _list(der)
            self.issuers.add(issuer)
            found.extend(hash((issuer, serial)) for serial in serials)
        self._revoked = array("q", sorted(found))

    def __len__(self) -> int:
        return len(self._revoked)

    def revoked(self, chain: Iterable[bytes]) -> int:
        """Place of the first certificate (DER) of a chain that its issuer has revoked, 0 is the leaf; -1: none is.
        ValueError where one cannot be read."""
        for place, der in enumerate(chain):
            try:
                issuer, serial = _certificate(der)
            except IndexError as e:
                raise ValueError("a certificate that ends too early") from e
            if issuer not in self.issuers:
                continue
            key = hash((issuer, serial))
            at = bisect_left(self._revoked, key)
            if at < len(self._revoked) and self._revoked[at] == key:
                return place
        return -1


def load(path: Path) -> Lists:
    """The lists of a PEM file. OSError; ValueError where it holds none, or one that cannot be read."""
    stat = path.stat()
    return _load(path, (stat.st_ino, stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=8)
def _load(path: Path, mark: tuple[int, int, int]) -> Lists:
    with path.open("rb") as file:
        text = file.read(LARGEST)
    ders = [binascii.a2b_base64(found[1]) for found in _PEM.finditer(text)]
    del text                                         # as large as all the rest
    if not ders:
        raise ValueError("there is no revocation list in it")
    try:
        return Lists(ders)
    except IndexError as e:
        raise ValueError("a revocation list that ends too early") from e


def _list(der: bytes) -> tuple[bytes, Iterator[bytes]]:
    """Issuer and serial numbers of a CertificateList."""
    start, end = _inside(der, 0, len(der))           # CertificateList
    start, end = _inside(der, start, end)            # tbsCertList
    if der[start] == _INTEGER:                       # version
        start = _value(der, start, end)[1]
    start = _value(der, start, end)[1]               # signature
    issuer, start = _name(der, start, end)
    dates = 0
    while start < end and der[start] in (_UTC_TIME, _GENERALIZED_TIME):
        start = _value(der, start, end)[1]
        dates += 1
    if not dates:
        raise ValueError("a revocation list without a date")
    if start >= end or der[start] != _SEQUENCE:      # nobody is revoked
        return issuer, iter(())
    return issuer, _serials(der, *_value(der, start, end))


def _serials(der: bytes, start: int, end: int) -> Iterator[bytes]:
    while start < end:
        first, after = _inside(der, start, end)
        if der[first] != _INTEGER:
            raise ValueError("an entry without a serial number")
        at, stop = _value(der, first, after)
        yield der[at:stop].lstrip(b"\0")
        start = after


def _certificate(der: bytes) -> tuple[bytes, bytes]:
    """Issuer and serial number of a Certificate."""
    start, end = _inside(der, 0, len(der))
    start, end = _inside(der, start, end)            # tbsCertificate
    if der[start] == _VERSION:
        start = _value(der, start, end)[1]
    if der[start] != _INTEGER:
        raise ValueError("a certificate without a serial number")
    at, after = _value(der, start, end)
    issuer, _ = _name(der, _value(der, after, end)[1], end)
    return issuer, der[at:after].lstrip(b"\0")


def _name(der: bytes, start: int, end: int) -> tuple[bytes, int]:
    """A Name to compare by (RFC 5280, 7.1): in one encoding, small letters, single blanks; and where it ends."""
    first, after = _inside(der, start, end)
    parts: list[object] = []
    at = first
    while at < after:
        if der[at] != _SET:
            raise ValueError("a name that is none")
        within, stop = _value(der, at, after)
        several: list[tuple[bytes, bytes]] = []
        while within < stop:
            kind_at, pair_end = _inside(der, within, stop)
            kind, kind_end = _value(der, kind_at, pair_end)
            text, text_end = _value(der, kind_end, pair_end)
            several.append((der[kind:kind_end], _text(der[kind_end], der[text:text_end])))
            within = pair_end
        parts.append(sorted(several))
        at = stop
    return repr(parts).encode(), after


def _text(kind: int, value: bytes) -> bytes:
    try:
        return " ".join(value.decode(_TEXTS[kind]).lower().split()).encode()
    except (KeyError, UnicodeDecodeError):
        return bytes((kind,)) + value


def _inside(der: bytes, start: int, end: int) -> tuple[int, int]:
    if der[start] != _SEQUENCE:
        raise ValueError("not a sequence")
    return _value(der, start, end)


def _value(der: bytes, start: int, end: int) -> tuple[int, int]:
    """From and to which the value of the element at `start` reaches."""
    length = der[start + 1]
    start += 2
    if length & 0x80:
        count = length & 0x7F
        if not 1 <= count <= 4:
            raise ValueError("a length that is none")
        length = int.from_bytes(der[start:start + count])
        start += count
    if start + length > end:
        raise ValueError("longer than what it is in")
    return start, start + length
