"""A pure walker over data sets (PS3.5 chapter 7): finds a few top-level elements without building anything.

Works on bytes of any origin: whatever they are, the answer is values or
FormatError. Nothing recurses, no length is allocated before it is bounded, and
undefined-length sequences are passed over with an explicit, bounded stack.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Set
from dataclasses import dataclass
from struct import Struct

from appliance.dicom import charset
from appliance.dicom.uids import EXPLICIT_BE, IMPLICIT_LE
from appliance.errors import FormatError

Read = Callable[[int, int], bytes]
"""`read(offset, n)`: exactly n bytes of the data set from there, fewer only at its end; FormatError where the offset lies
beyond the end. Offsets never decrease, so that a stream can serve too."""

VrOf = Callable[[int, str], str]
"""`vr_of(tag, private_creator)`: the dictionary's VR, `UN` where it does not know; ambiguous ones as "US or SS"."""

MAX_DEPTH = 64
MAX_ELEMENTS = 1_000_000
MAX_VALUE = 1024
"""Characters kept of one value."""

UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
SPECIFIC_CHARACTER_SET = 0x00080005
PIXEL_REPRESENTATION = 0x00280103

_IMPLICIT_PRIVATE = "1.2.840.113619.5.2"     # GE: only its pixel data are big-endian

SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
"""VRs whose length has 16 bits in Explicit VR (PS3.5 table 7.1-2)."""
LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
"""VRs with two reserved bytes and a length of 32 bits (PS3.5 table 7.1-1)."""

_KNOWN = SHORT | LONG
_CHUNK = 65536
_FIRST = 16384
_MOST_BYTES = 4 * MAX_VALUE                  # UTF-8 and GB18030 take at most 4 bytes a character
_NUMBERS = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "UV": "Q", "SV": "q", "FL": "f", "FD": "d"}
_BINARY = frozenset(["OB", "OD", "OF", "OL", "OV", "OW", "SQ"])
_LEADING = frozenset(["LT", "ST", "UT", "UR"])  # leading spaces are significant, a backslash is a character (PS3.5 6.2)
_LOCALIZED = frozenset(["LO", "LT", "PN", "SH", "ST", "UC", "UT", "UN"])


@dataclass(frozen=True, slots=True)
class Layout:
    """How elements are laid out: whether VRs are implicit, and the structs of their headers."""

    implicit: bool
    order: str
    head: Struct
    wide: Struct
    length: Struct


def _layout(implicit: bool, order: str) -> Layout:
    return Layout(implicit, order, Struct(order + "HH2sH"), Struct(order + "HHI"), Struct(order + "I"))


IMPLICIT = _layout(True, "<")
EXPLICIT = _layout(False, "<")
BIG = _layout(False, ">")


def layout_of(syntax: str) -> Layout:
    """The layout of a transfer syntax; unknown and encapsulated ones are Explicit VR Little Endian (PS3.5 A.4)."""
    if syntax in (IMPLICIT_LE, _IMPLICIT_PRIVATE):
        return IMPLICIT
    return BIG if syntax == EXPLICIT_BE else EXPLICIT


def header(data: bytes, at: int, layout: Layout) -> tuple[int, bytes, int, int]:
    """(tag, VR or b"", length, size of the header) of the element at `at`. Needs 12 bytes there, struct.error else.

    As in the field, a VR that is not two capitals means that this one element
    is written without VR. A VR of a later edition has the long form (PS3.5 7.1.2).
    """
    if layout.implicit:
        group, element, length = layout.wide.unpack_from(data, at)
        return group << 16 | element, b"", length, 8
    group, element, vr, length = layout.head.unpack_from(data, at)
    if vr in SHORT:
        return group << 16 | element, vr, length, 8
    if vr in LONG or (group != 0xFFFE and 65 <= vr[0] <= 90 and 65 <= vr[1] <= 90):
        return group << 16 | element, vr, layout.length.unpack_from(data, at + 8)[0], 12
    return group << 16 | element, b"", layout.wide.unpack_from(data, at)[2], 8


def reader(data: bytes | bytearray | memoryview) -> Read:
    """`Read` over bytes in memory."""
    size = len(data)

    def read(offset: int, n: int) -> bytes:
        if offset > size:
            raise FormatError("a value runs beyond the end of the data set")
        return bytes(data[offset:offset + n])

    return read


def no_dictionary(tag: int, creator: str) -> str:
    """A `VrOf` that knows group lengths only."""
    return "UL" if tag & 0xFFFF == 0 else "UN"


def read_tags(source: bytes | bytearray | memoryview | Read, syntax: str, wanted: Set[int],
              vr_of: VrOf = no_dictionary) -> dict[int, str]:
    """Values of the wanted top-level elements as text, as far as they are there; stops behind the largest of them.

    Multiple values are joined by a backslash, numbers are decimal, at most
    `MAX_VALUE` characters are kept; bulk data and sequences have no text and are
    left out. FormatError, and nothing else, for bytes that are no data set.
    """
    read = source if callable(source) else reader(source)
    try:
        layout = _found_layout(read(0, 8), layout_of(syntax))
        found = collect(read, 0, layout, wanted | {SPECIFIC_CHARACTER_SET, PIXEL_REPRESENTATION}, max(wanted, default=0), vr_of)
    except struct.error:
        raise FormatError("the data set ends within an element") from None
    codec = charset.codec(found.get(SPECIFIC_CHARACTER_SET, (b"", ""))[0])
    signed = found.get(PIXEL_REPRESENTATION, (b"", ""))[0][:2] not in (b"", b"\0\0")
    values = {}
    for tag, (raw, vr) in found.items():
        text = _text(raw, vr, codec, layout.order, signed) if tag in wanted else None
        if text is not None:
            values[tag] = text[:MAX_VALUE]
    return values


def collect(read: Read, start: int, layout: Layout, wanted: Set[int], last: int,
            vr_of: VrOf) -> dict[int, tuple[bytes, str]]:
    """Raw values (their first 4096 bytes) and VRs of wanted elements of one level from `start` on; stops behind tag `last`.

    Raises struct.error where the bytes end within an element.
    """
    found: dict[int, tuple[bytes, str]] = {}
    creators: dict[int, str] = {}
    data, base, at, count = read(start, _FIRST), start, 0, 0
    while True:
        if at + 12 > len(data):
            data, base, at = read(base + at, _CHUNK), base + at, 0
            if len(data) < 8 and not any(data):
                return found                     # the end, or a few zeros of padding behind it
        tag, vr, length, size = header(data, at, layout)
        if tag > last:
            if vr not in _KNOWN:
                _plausible(read, base + at + size, tag, length, vr_of)
            return found
        count += 1
        if count > MAX_ELEMENTS or tag == 0:     # (0000,0000) belongs to commands: these are zeros
            raise FormatError("too many elements" if tag else "zeros where an element belongs")
        at += size
        if length == UNDEFINED:
            inner = IMPLICIT if vr in (b"UN", b"") else layout
            data, base, at, count = _skip(read, data, base, at, inner, count)
            continue
        if tag in wanted or (tag >> 16 & 1 and 0x10 <= tag & 0xFFFF <= 0xFF):
            need = min(length, _MOST_BYTES)
            if at + need > len(data):
                data, base, at = read(base + at, _CHUNK), base + at, 0
            value = data[at:at + need]
            if len(value) < need:
                raise FormatError("the data set ends within a value")
            note_creator(creators, tag, value)
            if tag in wanted:
                found[tag] = value, vr.decode() if vr not in (b"", b"UN") else vr_of(tag, creator_of(creators, tag))
        at += length


def note_creator(creators: dict[int, str], tag: int, value: bytes) -> None:
    """Remember the reservation of a private block, (gggg,0010-00FF) (PS3.5 7.8.1)."""
    if tag >> 16 & 1 and 0x10 <= tag & 0xFFFF <= 0xFF:
        creators[tag] = value[:64].decode("ascii", "replace").strip("\0 ")


def creator_of(creators: dict[int, str], tag: int) -> str:
    """Who reserved the block of a private element; empty for public ones and where nobody did."""
    return creators.get(tag & 0xFFFF0000 | tag >> 8 & 0xFF, "") if tag >> 16 & 1 else ""


def _found_layout(data: bytes, layout: Layout) -> Layout:
    """Senders exist that negotiate one syntax and send another: the first VR tells (it can only be two capitals)."""
    explicit = len(data) >= 8 and data[4:6] in _KNOWN
    if not data:
        raise FormatError("the data set is empty")
    if layout.implicit == explicit and layout.order == "<" and len(data) >= 8:
        return EXPLICIT if explicit else IMPLICIT
    return layout


def _plausible(read: Read, at: int, tag: int, length: int, vr_of: VrOf) -> None:
    """Noise that happens to look like a tag behind the wanted ones is not the end of a search: the element must fit.

    A known bulk element that was cut short is let through; its header told what it had to.
    """
    if length != UNDEFINED and vr_of(tag, "") == "UN" and tag != 0x7FE00010:
        read(at + length, 0)


def _skip(read: Read, data: bytes, base: int, at: int, layout: Layout, count: int) -> tuple[bytes, int, int, int]:
    """Pass over the items of a value of undefined length; returns the window, its base, the place in it, the count."""
    stack = [(False, layout)]                    # (inside an item, layout of what is in it)
    while stack:
        if at + 12 > len(data):
            data, base, at = read(base + at, _CHUNK), base + at, 0
        count += 1
        if count > MAX_ELEMENTS:
            raise FormatError("too many elements")
        in_item, layout = stack[-1]
        tag, vr, length, size = header(data, at, layout)
        at += size
        if in_item:
            if tag == ITEM_END:
                stack.pop()
            elif length != UNDEFINED:
                at += length
            elif len(stack) >= 2 * MAX_DEPTH:
                raise FormatError(f"sequences nested deeper than {MAX_DEPTH}")
            else:
                stack.append((False, IMPLICIT if vr in (b"UN", b"") else layout))
        elif tag == ITEM:
            if length == UNDEFINED:
                stack.append((True, layout))
            else:
                at += length
        elif tag == SEQUENCE_END:
            stack.pop()
        else:
            raise FormatError("a sequence holds something that is no item")
    return data, base, at, count


def _text(raw: bytes, vr: str, codec: str, order: str, signed: bool) -> str | None:
    """A value as text; None for bulk data and sequences. `signed`: what Pixel Representation says of ambiguous numbers."""
    if vr in _BINARY:
        return None
    if " or " in vr:
        vr = "SS" if signed and "SS" in vr else vr[:2]
        if vr not in _NUMBERS:
            return None
    code = _NUMBERS.get(vr)
    if code is not None:
        width = struct.calcsize(order + code)
        numbers = struct.unpack(f"{order}{len(raw) // width}{code}", raw[:len(raw) // width * width])
        return "\\".join(f"{n:.7g}" if code == "f" else str(n) for n in numbers)
    if vr == "AT":
        words = struct.unpack(f"{order}{len(raw) // 4 * 2}H", raw[:len(raw) // 4 * 4])
        return "\\".join(f"{g:04X},{e:04X}" for g, e in zip(words[::2], words[1::2], strict=True))
    text = charset.decode(raw, codec) if vr in _LOCALIZED else raw.decode("iso8859_1")
    if vr in _LEADING:
        return text.rstrip("\0 ")
    return "\\".join(part.strip("\0 ") for part in text.split("\\")) if "\\" in text else text.strip("\0 ")
