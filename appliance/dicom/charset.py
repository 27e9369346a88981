"""Specific Character Set (0008,0005): bytes of a data set to text (PS3.5 6.1, PS3.3 C.12.1.1.2).

Nothing here raises: an unknown set reads as Latin-1, undecodable bytes become U+FFFD.
"""

from __future__ import annotations

import re

DEFAULT = "iso8859_1"
"""The default repertoire is ASCII; scanners that leave (0008,0005) out send Latin-1 far more often than anything else."""

_CODECS = {
    "": DEFAULT, "6": DEFAULT, "13": "shift_jis", "100": "iso8859_1", "101": "iso8859_2", "109": "iso8859_3",
    "110": "iso8859_4", "126": "iso8859_7", "127": "iso8859_6", "138": "iso8859_8", "144": "iso8859_5", "148": "iso8859_9",
    "166": "iso8859_11", "203": "iso8859_15", "87": "iso2022_jp", "149": "euc_kr", "159": "iso2022_jp_2", "58": "gb2312",
    "192": "utf_8", "GB18030": "gb18030", "GBK": "gbk",
}
_NAME = re.compile(r"(?:ISO 2022 |ISO )?(?:IR )?(\w*)")

_KEPT = ("iso2022_jp", "iso2022_jp_2")       # Python's codec wants to see the escape sequence itself
_ESCAPES = {
    b"(B": DEFAULT, b"-A": "iso8859_1", b")I": "shift_jis", b"(J": "shift_jis", b"$B": "iso2022_jp", b"-B": "iso8859_2",
    b"-C": "iso8859_3", b"-D": "iso8859_4", b"-F": "iso8859_7", b"-G": "iso8859_6", b"-H": "iso8859_8", b"-L": "iso8859_5",
    b"-M": "iso8859_9", b"-T": "iso8859_11", b"$)C": "euc_kr", b"$(D": "iso2022_jp_2", b"$)A": "gb2312", b"-b": "iso8859_15",
}
_FRAGMENT = re.compile(rb"(?=\x1b)")


def codec(charset: bytes) -> str:
    """Python's name for the first of the sets that a value of (0008,0005) names; tolerates `ISO-IR_100` and the like."""
    first = charset.split(b"\\", 1)[0].decode("ascii", "replace").strip("\0 ").upper()
    found = _NAME.fullmatch(re.sub("[-_ ]+", " ", first))
    return _CODECS.get(found[1], DEFAULT) if found else DEFAULT


def decode(raw: bytes, first: str) -> str:
    """Text of a value whose data set names `first` (see `codec`), with code extensions by escape sequences (PS3.5 6.1.2.5)."""
    if b"\x1b" not in raw:
        return raw.decode(DEFAULT if first in _KEPT else first, "replace")
    return "".join(_fragment(part, first) for part in _FRAGMENT.split(raw))


def _fragment(part: bytes, first: str) -> str:
    if not part.startswith(b"\x1b"):
        return part.decode(DEFAULT if first in _KEPT else first, "replace")
    for length in (4, 3):
        name = _ESCAPES.get(part[1:length])
        if name is not None:
            return (part if name in _KEPT else part[length:]).decode(name, "replace")
    return part.decode(DEFAULT, "replace")
