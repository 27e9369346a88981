"""PDUs and command sets as bytes, written by hand from PS3.8 9.3 and PS3.7 annex E: not made by the code under test."""

from __future__ import annotations


def hexed(text: str) -> bytes:
    """Hex digits with comments after `#`, as bytes."""
    return bytes.fromhex("".join(line.split("#")[0] for line in text.splitlines()))


CALLED = b"DCMGATE         "
CALLING = b"CT_ROOM_1       "

# Verification with Implicit and Explicit LE; CT Image Storage with Explicit LE.
ASSOCIATE_RQ = hexed("01 00 00000000  0001 0000") + CALLED + CALLING + bytes(32) + (
    hexed("10 00 0015") + b"1.2.840.10008.3.1.1.1"
    + hexed("20 00 0045  01 00 00 00")
    + hexed("30 00 0011") + b"1.2.840.10008.1.1"
    + hexed("40 00 0011") + b"1.2.840.10008.1.2"
    + hexed("40 00 0013") + b"1.2.840.10008.1.2.1"
    + hexed("20 00 0038  03 00 00 00")
    + hexed("30 00 0019") + b"1.2.840.10008.5.1.4.1.1.2"
    + hexed("40 00 0013") + b"1.2.840.10008.1.2.1"
)
_USER = hexed("51 00 0004 00004000  52 00 0005") + b"1.2.3" + hexed("55 00 0003") + b"ABC"
ASSOCIATE_RQ += hexed("50 00 0018") + _USER
ASSOCIATE_RQ = ASSOCIATE_RQ[:2] + (len(ASSOCIATE_RQ) - 6).to_bytes(4, "big") + ASSOCIATE_RQ[6:]

# Every kind of sub-item: asynchronous operations, two roles, extended and common extended negotiation, user and passcode.
_RICH_USER = (
    hexed("51 00 0004 00000000  52 00 0005") + b"1.2.3"
    + hexed("53 00 0004 0005 0002")
    + hexed("54 00 0015 0011") + b"1.2.840.10008.1.1" + hexed("00 01")
    + hexed("54 00 0009 0005") + b"1.2.4" + hexed("01 01")
    + hexed("56 00 000C 0005") + b"1.2.4" + hexed("02 00 03 00 01")
    + hexed("57 00 0022 0005") + b"1.2.4" + hexed("0009") + b"1.2.4.5.6"
    + hexed("000E 0005") + b"1.2.7" + hexed("0005") + b"1.2.8"
    + hexed("58 00 000D 02 01 0004") + b"anna" + hexed("0003") + b"key"
    + hexed("77 00 0003 010203")  # unknown: skipped
)
_RICH_BODY = (
    hexed("0001 0000") + CALLED + CALLING + bytes(32)
    + hexed("10 00 0015") + b"1.2.840.10008.3.1.1.1"
    + hexed("20 00 0023  FF 00 00 00") + hexed("30 00 0005") + b"1.2.4" + hexed("40 00 0012") + b"1.2.840.10008.1.2\0"
    + hexed("99 00 0002 AABB")    # unknown: skipped
    + hexed("50 00") + len(_RICH_USER).to_bytes(2, "big") + _RICH_USER
)
RICH_ASSOCIATE_RQ = hexed("01 00") + len(_RICH_BODY).to_bytes(4, "big") + _RICH_BODY

_AC_BODY = (
    hexed("0001 0000") + CALLED + CALLING + bytes(32)
    + hexed("10 00 0015") + b"1.2.840.10008.3.1.1.1"
    + hexed("21 00 0019  01 00 00 00  40 00 0011") + b"1.2.840.10008.1.2"
    + hexed("21 00 001B  03 00 00 00  40 00 0013") + b"1.2.840.10008.1.2.1"
    + hexed("50 00 0018") + hexed("51 00 0004 00001000  52 00 0005") + b"1.2.9" + hexed("55 00 0003") + b"XYZ"
)
ASSOCIATE_AC = hexed("02 00") + len(_AC_BODY).to_bytes(4, "big") + _AC_BODY

ASSOCIATE_RJ = hexed("03 00 00000004  00 02 03 02")
RELEASE_RQ = hexed("05 00 00000004  00000000")
RELEASE_RP = hexed("06 00 00000004  00000000")
ABORT = hexed("07 00 00000004  00 00 02 06")

# C-ECHO-RQ, message 7
ECHO_COMMAND = (
    hexed("0000 0000 04000000 38000000")
    + hexed("0000 0200 12000000") + b"1.2.840.10008.1.1\0"
    + hexed("0000 0001 02000000 3000")
    + hexed("0000 1001 02000000 0700")
    + hexed("0000 0008 02000000 0101")
)
ECHO_PDU = hexed("04 00 0000004A  00000046 01 03") + ECHO_COMMAND

# C-STORE-RQ, message 9, CT Image Storage, instance 1.2.3.4
STORE_COMMAND = (
    hexed("0000 0000 04000000 5A000000")
    + hexed("0000 0200 1A000000") + b"1.2.840.10008.5.1.4.1.1.2\0"
    + hexed("0000 0001 02000000 0100")
    + hexed("0000 1001 02000000 0900")
    + hexed("0000 0007 02000000 0000")
    + hexed("0000 0008 02000000 0100")
    + hexed("0000 0010 08000000") + b"1.2.3.4\0"
)


def data_pdu(*values: tuple[int, int, bytes]) -> bytes:
    """A P-DATA-TF PDU with these PDVs: (context, control header, value)."""
    body = b"".join((len(value) + 2).to_bytes(4, "big") + bytes((context, control)) + value
                    for context, control, value in values)
    return b"\x04\0" + len(body).to_bytes(4, "big") + body


STORE_PDU = data_pdu((3, 3, STORE_COMMAND))
STORE_MESSAGE = STORE_PDU + data_pdu((3, 0, b"\x08\0\x18\0UI")) + data_pdu((3, 0, b"0123"), (3, 2, b"456789"))
"""A C-STORE-RQ with 16 bytes of data set in three fragments, two of them in one PDU."""

STORE_DATA = b"\x08\0\x18\0UI0123456789"


def element(number: int, value: bytes) -> bytes:
    """One element of a command set."""
    return b"\0\0" + number.to_bytes(2, "little") + len(value).to_bytes(4, "little") + value
