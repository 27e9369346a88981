"""The test object that a canary is: a Secondary Capture of 8 by 8 pixels, of a patient whose name says that he is none.

In Explicit VR Little Endian, written by hand: no data set is parsed or built by a
library in this process (I8). All test objects of a box for one destination are
one series, so that a person can delete them there in one go.
"""

from __future__ import annotations

import secrets
import struct
import time
from hashlib import blake2b

from appliance.dicom import uids
from appliance.policy.canary import PATIENT, PATIENT_ID, SOP_CLASS

SIDE = 8
COMMENT = "Test object of a Dcmgate gateway: proves that images get through. No image of a patient. May be deleted."


def new_uid() -> str:
    """A SOP Instance UID of our own range: 18 random digits, because boxes do not know of one another."""
    return f"{uids.CANARY_INSTANCE}.{10 ** 17 + secrets.randbelow(9 * 10 ** 17)}"


def _digits(box: str, destination: str) -> str:
    found = int.from_bytes(blake2b(f"{box}\n{destination}".encode(), digest_size=8).digest())
    return str(10 ** 17 + found % (9 * 10 ** 17))


def data_set(uid: str, box: str, destination: str, wall_ns: int) -> bytes:
    """`box`: the spool's uuid. `wall_ns` 0: the time is not known, and no date is written."""
    digits = _digits(box, destination)
    moment = time.gmtime(wall_ns // 1_000_000_000)
    date, clock = (time.strftime("%Y%m%d", moment), time.strftime("%H%M%S", moment)) if wall_ns else ("", "")
    pixels = bytes(255 if (x + y) % 2 else 0 for y in range(SIDE) for x in range(SIDE))
    return b"".join((
        _text(0x0008, 0x0008, "CS", "DERIVED\\SECONDARY"), _text(0x0008, 0x0016, "UI", SOP_CLASS),
        _text(0x0008, 0x0018, "UI", uid), _text(0x0008, 0x0020, "DA", date), _text(0x0008, 0x0030, "TM", clock),
        _text(0x0008, 0x0050, "SH", ""), _text(0x0008, 0x0060, "CS", "OT"), _text(0x0008, 0x0064, "CS", "SYN"),
        _text(0x0008, 0x0070, "LO", "Dcmgate"), _text(0x0008, 0x0090, "PN", ""),
        _text(0x0008, 0x1030, "LO", "Dcmgate canary"), _text(0x0008, 0x103E, "LO", "Dcmgate canary: no patient"),
        _text(0x0010, 0x0010, "PN", PATIENT), _text(0x0010, 0x0020, "LO", PATIENT_ID), _text(0x0010, 0x0030, "DA", ""),
        _text(0x0010, 0x0040, "CS", "O"), _text(0x0020, 0x000D, "UI", f"{uids.CANARY_STUDY}.{digits}"),
        _text(0x0020, 0x000E, "UI", f"{uids.CANARY_SERIES}.{digits}"), _text(0x0020, 0x0010, "SH", "CANARY"),
        _text(0x0020, 0x0011, "IS", "1"), _text(0x0020, 0x0013, "IS", "1"), _text(0x0020, 0x0020, "CS", ""),
        _text(0x0020, 0x4000, "LT", COMMENT), _number(0x0028, 0x0002, 1), _text(0x0028, 0x0004, "CS", "MONOCHROME2"),
        _number(0x0028, 0x0010, SIDE), _number(0x0028, 0x0011, SIDE), _number(0x0028, 0x0100, 8), _number(0x0028, 0x0101, 8),
        _number(0x0028, 0x0102, 7), _number(0x0028, 0x0103, 0), _text(0x0028, 0x0301, "CS", "NO"),
        struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, len(pixels)), pixels))


def _text(group: int, element: int, vr: str, value: str) -> bytes:
    """An element with a short length (PS3.5 7.1.2), padded to an even one."""
    raw = value.encode("ascii")
    if len(raw) & 1:
        raw += b"\0" if vr == "UI" else b" "
    return struct.pack("<HH2sH", group, element, vr.encode("ascii"), len(raw)) + raw


def _number(group: int, element: int, value: int) -> bytes:
    return struct.pack("<HH2sHH", group, element, b"US", 2, value)
