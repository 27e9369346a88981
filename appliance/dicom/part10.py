"""The head of a spooled object: 4096 bytes that make a data set a Part 10 file (PS3.10 7.1) and carry its custody record.

    offset 0      128 zero bytes: never a peer's, never executable (CVE-2019-11687)
    offset 128    `DICM`
    offset 132    file meta group, Explicit VR Little Endian, group length 3952
                  (0002,0001) … (0002,0028)   the standard elements, cleaned so that any reader takes them
                  (0002,0100)                 our Private Information Creator UID
                  (0002,0102)                 JSON custody record, NUL padding, CRC-32
    offset 4092   CRC-32 (IEEE, little endian) of all 4096 bytes with these four at zero
    offset 4096   the data set, as received

The record is the truth; the standard elements are a courtesy to other readers.
Bytes of a peer stand in the record as text where they are printable ASCII, else
as `{"hex": "…"}`. Unknown keys are ignored, so that a later release may add some.
"""

from __future__ import annotations

import json
import re
from binascii import crc32
from functools import lru_cache
from struct import Struct, error
from typing import Any

from appliance.dicom.uids import IMPLEMENTATION_UID, IMPLEMENTATION_VERSION, PRIVATE_INFORMATION_CREATOR, ROOT
from appliance.errors import HeadError
from appliance.model import Custody, Source

HEAD = 4096
"""Bytes before the data set."""

VERSION = 1
"""Version of the custody record: a reader refuses any other."""

MAX_RAW_UID = 512
"""SOP class and instance of any content fit in a head up to this length each, as long as the listener's and peer's
ids stay below 128 characters together. PS3.5 9.1 allows 64."""

PRIVATE_CREATOR = PRIVATE_INFORMATION_CREATOR
"""Private Information Creator UID (0002,0100): part of the format, never changes."""
UNKNOWN_CLASS = ROOT + ".8"
"""Stands in (0002,0002) for a SOP class that is not a valid UID."""
UNKNOWN_SYNTAX = ROOT + ".9"
"""Stands in (0002,0010) for a transfer syntax that is not a valid UID."""

digest_name = "blake3"
"""Digest of the data set: `tail -c +4097 file | b3sum` checks it without us."""

_PREFIX = bytes(128) + b"DICM"
_BODY = HEAD - len(_PREFIX) - 12
_BLANK = bytes(HEAD)
_SHORT = Struct("<HH2sH")
_LONG = Struct("<HH2sHI")
_CRC = Struct("<I")
_UID = re.compile(rb"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))*")
_PLAIN = re.compile(rb"[ -~]*")
_START = _PREFIX + _SHORT.pack(2, 0, b"UL", 4) + _CRC.pack(_BODY) + _LONG.pack(2, 1, b"OB", 0, 2) + b"\x00\x01"
_HIGHEST = 2 ** 63 - 1

_encode_json = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def is_uid(raw: bytes) -> bool:
    """Whether the bytes are a UID by the rules of PS3.5 9.1: digits and dots, no leading zeros, at most 64."""
    return len(raw) <= 64 and _UID.fullmatch(raw) is not None


def placeholder_uid(digest: bytes) -> str:
    """A UID under 2.25 (PS3.5 B.2) made from the digest of the data set: the same object gets the same one anywhere."""
    value = int.from_bytes(digest[:16].ljust(16, b"\0"), "big")
    value = value & ~(0xF << 76) | 8 << 76       # UUID version 8, RFC 9562
    value = value & ~(0x3 << 62) | 2 << 62
    return f"2.25.{value}"


def is_blank(head: bytes | bytearray | memoryview) -> bool:
    """Whether nothing was ever written here: no bytes, or zeros only."""
    return bytes(head) == _BLANK[:len(head)] if len(head) <= HEAD else not any(head)


def build_head(custody: Custody) -> bytes:
    """The 4096 bytes that belong before this object's data set. HeadError where the record does not fit or makes no sense."""
    raw_syntax = custody.transfer_syntax.encode("utf-8", "surrogateescape")
    instance = custody.sop_instance
    uid = instance if is_uid(instance) else placeholder_uid(custody.digest).encode()
    meta, source = _source_parts(custody.source)
    record = _encode_json({
        "v": VERSION, "number": custody.number, "boot": custody.boot, "since_boot": custody.since_boot, "wall": custody.wall,
        "class": _printable(custody.sop_class), "instance": _printable(instance), "syntax": _printable(raw_syntax),
        "length": custody.length, digest_name: custody.digest.hex(),
    })
    front = b"".join((_START, _class_element(custody.sop_class), _short(3, b"UI", uid), _syntax_element(raw_syntax), meta))
    body = record[:-1].encode() + source
    used = len(front) + 12 + len(body)
    if used > HEAD - 4:
        raise HeadError(f"custody record of {len(body)} bytes does not fit in the head")
    head = b"".join((front, _LONG.pack(2, 0x102, b"OB", 0, HEAD - len(front) - 12), body, _BLANK[:HEAD - 4 - used]))
    return head + _CRC.pack(crc32(b"\0\0\0\0", crc32(head)))


def parse_head(head: bytes | bytearray | memoryview) -> Custody:
    """What a head says. HeadError, and nothing else, for any bytes that are not exactly one whole head of ours."""
    if len(head) != HEAD:
        raise HeadError(f"head of {len(head)} bytes, not {HEAD}")
    data = bytes(head)
    if not data.startswith(_PREFIX):
        raise HeadError("no DICM prefix after 128 zero bytes")
    if crc32(b"\0\0\0\0", crc32(memoryview(data)[:-4])) != _CRC.unpack_from(data, HEAD - 4)[0]:
        raise HeadError("CRC of the head is wrong")
    try:
        record = json.loads(_private_information(data).rstrip(b"\0"))
        return _custody(record)
    except (ValueError, TypeError, KeyError, RecursionError, error) as e:
        raise HeadError(f"custody record cannot be read: {type(e).__name__} {e}"[:200]) from None


def _private_information(data: bytes) -> bytes:
    """The value of (0002,0102) without its CRC."""
    at = len(_PREFIX)
    while at < HEAD:
        group, element, vr, length = _SHORT.unpack_from(data, at)
        at += 8
        if vr in (b"OB", b"UR"):
            length = _CRC.unpack_from(data, at)[0]
            at += 4
        if (group, element) == (2, 0x102):
            return data[at:HEAD - 4]
        at += length
    raise HeadError("no private information in the head")


def _custody(record: Any) -> Custody:
    version = record["v"]
    if version != VERSION:
        raise HeadError(f"custody record of version {version!r:.20}, this release reads {VERSION}")
    digest = bytes.fromhex(_text(record, digest_name))
    if len(digest) != 32:
        raise HeadError("digest is not 32 bytes")
    return Custody(
        number=_integer(record, "number", 1), boot=_integer(record, "boot"), since_boot=_integer(record, "since_boot"),
        wall=_integer(record, "wall", -_HIGHEST), sop_class=_raw(record, "class"), sop_instance=_raw(record, "instance"),
        transfer_syntax=_raw(record, "syntax").decode("utf-8", "surrogateescape"), length=_integer(record, "length"),
        digest=digest,
        source=Source(
            listener=_text(record, "listener"), calling=_text(record, "calling"), called=_text(record, "called"),
            raw_calling=_raw(record, "raw_calling"), raw_called=_raw(record, "raw_called"), address=_text(record, "address"),
            port=_integer(record, "port"), peer=_text(record, "peer"), certificate=_text(record, "certificate"),
            implementation=_text(record, "implementation")))


def _integer(record: Any, key: str, low: int = 0) -> int:
    value = record[key]
    if type(value) is not int or not low <= value <= _HIGHEST:
        raise HeadError(f"{key} is not a number in range")
    return value


def _text(record: Any, key: str) -> str:
    value = record[key]
    if type(value) is not str:
        raise HeadError(f"{key} is not text")
    return value


def _raw(record: Any, key: str) -> bytes:
    value = record[key]
    if type(value) is dict:
        return bytes.fromhex(_text(value, "hex"))
    return _text(record, key).encode("ascii")


def _printable(raw: bytes) -> str | dict[str, str]:
    return raw.decode("ascii") if _PLAIN.fullmatch(raw) else {"hex": raw.hex()}


def _short(element: int, vr: bytes, value: bytes) -> bytes:
    """An element of group 2 with a 16-bit length, padded to even as its VR asks (PS3.5 6.2)."""
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    return _SHORT.pack(2, element, vr, len(value)) + value


@lru_cache(maxsize=256)
def _class_element(sop_class: bytes) -> bytes:
    return _short(2, b"UI", sop_class if is_uid(sop_class) else UNKNOWN_CLASS.encode())


@lru_cache(maxsize=256)
def _syntax_element(syntax: bytes) -> bytes:
    return _short(0x10, b"UI", syntax if is_uid(syntax) else UNKNOWN_SYNTAX.encode())


@lru_cache(maxsize=1024)
def _source_parts(source: Source) -> tuple[bytes, bytes]:
    """The file meta elements after the transfer syntax, and the rest of the record: the same for a whole association."""
    calling, called = _title(source.calling), _title(source.called)
    parts = [_short(0x12, b"UI", IMPLEMENTATION_UID.encode()), _short(0x13, b"SH", IMPLEMENTATION_VERSION.encode()),
             _short(0x16, b"AE", calling), _short(0x17, b"AE", calling), _short(0x18, b"AE", called)]
    sender = _address(source.address)
    if sender:
        parts += [_address_element(0x26, sender), _address_element(0x27, sender)]
    if source.port:
        parts.append(_address_element(0x28, b"dicom://localhost:%d" % source.port))
    parts.append(_short(0x100, b"UI", PRIVATE_CREATOR.encode()))
    record = _encode_json({
        "listener": source.listener, "calling": source.calling, "called": source.called,
        "raw_calling": _printable(source.raw_calling), "raw_called": _printable(source.raw_called),
        "address": source.address, "port": source.port, "peer": source.peer, "certificate": source.certificate,
        "implementation": source.implementation})
    return b"".join(parts), b"," + record[1:].encode()


def _title(text: str) -> bytes:
    """An AE title that any reader takes: 16 characters of the default repertoire, no backslash (PS3.5 6.2)."""
    return "".join(c if " " <= c <= "~" and c != "\\" else "?" for c in text.strip()[:16]).encode()


def _address(text: str) -> bytes:
    """Presentation address as a URI (PS3.10 7.1.1.1); the peer's port is of no use after the association."""
    clean = "".join(c for c in text if c.isascii() and (c.isalnum() or c in ".:-_%"))[:64]
    return (f"dicom://[{clean}]" if ":" in clean else f"dicom://{clean}").encode() if clean else b""


def _address_element(element: int, value: bytes) -> bytes:
    value += b" " * (len(value) % 2)
    return _LONG.pack(2, element, b"UR", 0, len(value)) + value

