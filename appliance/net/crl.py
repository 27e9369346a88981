"""From when to when revocation lists are in force: enough of their DER (RFC 5280, 5.1) to know, and nothing of what is revoked.

OpenSSL refuses every certificate while its list is out of date, so whether lists
are looked at has to be decided before (hazards, Python's ssl). A reader of two
dates costs less than a library of 18 MB in every process that talks TLS.
"""

from __future__ import annotations

import binascii
import re
from datetime import UTC, datetime
from pathlib import Path

LARGEST = 64 << 20
"""Bytes of a file of lists that is looked at."""

_PEM = re.compile(rb"-----BEGIN X509 CRL-----(.*?)-----END X509 CRL-----", re.DOTALL)
_SEQUENCE, _INTEGER, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0x02, 0x17, 0x18


def in_force(path: Path) -> tuple[float, float]:
    """Seconds since 1970 from and to which all lists in a PEM file are in force; (0, 0) where one has no such dates."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST)
        spans = [_span(binascii.a2b_base64(found[1])) for found in _PEM.finditer(text)]
    except (OSError, ValueError, IndexError):
        return 0.0, 0.0
    if not spans:
        return 0.0, 0.0
    return max(start for start, _ in spans), min(end for _, end in spans)


def _span(der: bytes) -> tuple[float, float]:
    """thisUpdate and nextUpdate. ValueError, IndexError where they are not there."""
    start, end = _inside(der, 0, len(der))           # CertificateList
    start, end = _inside(der, start, end)            # tbsCertList
    times: list[float] = []
    while start < end and len(times) < 2:
        kind = der[start]
        first, after = _value(der, start, end)
        if kind in (_UTC_TIME, _GENERALIZED_TIME):
            times.append(_time(kind, der[first:after]))
        elif times or kind not in (_INTEGER, _SEQUENCE):
            break
        start = after
    if len(times) != 2:
        raise ValueError("a revocation list without both of its dates")
    return times[0], times[1]


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


def _time(kind: int, text: bytes) -> float:
    digits = text.decode("ascii")
    if kind == _UTC_TIME:                             # two digits of the year: 1950 to 2049 (RFC 5280, 4.1.2.5.1)
        digits = ("19" if digits[:2] >= "50" else "20") + digits
    return datetime.strptime(digits, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
