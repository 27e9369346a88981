"""Implicit VR Little Endian ↔ Explicit VR Little Endian (PS3.5 A.1, A.2), streaming and lossless.

Values are copied byte for byte; only their headers change. What has to change
with them: sequences and items of defined length become undefined ones (their
new length is not known when their header goes out; empty ones stay as they
are), and the retired group lengths are left out, which would be wrong.
Memory is bounded by the chunk, whatever the size of a value.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from struct import Struct

from appliance.dicom.elements import (
    EXPLICIT,
    IMPLICIT,
    ITEM,
    ITEM_END,
    LONG,
    MAX_DEPTH,
    PIXEL_REPRESENTATION,
    SEQUENCE_END,
    SHORT,
    UNDEFINED,
    Layout,
    Read,
    VrOf,
    collect,
    creator_of,
    header,
    note_creator,
)
from appliance.dicom.uids import EXPLICIT_LE, IMPLICIT_LE
from appliance.errors import FormatError

CHUNK = 131072
"""Bytes of one piece of output, about, and of one read."""

PIXEL_DATA = 0x7FE00010
LUT_DESCRIPTOR = 0x00283002

_SHORT_HEAD = Struct("<HH2sH")
_LONG_HEAD = Struct("<HH2sHI")
_WIDE_HEAD = Struct("<HHI")
_ITEM_TAG = struct.pack("<HH", 0xFFFE, 0xE000)


class _Level:
    """A data set, a sequence or an item that is open. `end` is its absolute end, None for undefined length."""

    __slots__ = ("creators", "end", "kind", "layout", "lut_of_one", "signed")

    def __init__(self, kind: int, end: int | None, layout: Layout) -> None:
        self.kind = kind                         # ROOT, ITEM or SEQUENCE_END
        self.end = end
        self.layout = layout
        self.signed: bool | None = None          # what Pixel Representation says at this level
        self.lut_of_one = False
        self.creators: dict[int, str] = {}


_ROOT = 0


def can_recode(source: str, target: str) -> bool:
    """Whether `recode` goes from one transfer syntax to the other."""
    return {source, target} == {IMPLICIT_LE, EXPLICIT_LE}


def recode(read: Read, size: int, source: str, target: str, vr_of: VrOf) -> Iterator[bytes]:
    """The data set of `size` bytes in the other syntax, piece by piece.

    `read` may be asked for any offset. VRs come from `vr_of`; ambiguous ones are
    decided as pydicom does: US or SS by the nearest Pixel Representation, LUT
    Data by its descriptor, everything else OW. FormatError, possibly after the
    first pieces, where the bytes are no such data set or are encapsulated.
    """
    if not can_recode(source, target):
        raise FormatError(f"no recoding from {source[:64]} to {target[:64]}")
    try:
        yield from _Recoder(read, size, source == IMPLICIT_LE, vr_of).run()
    except struct.error:
        raise FormatError("the data set ends within an element") from None


class _Recoder:
    def __init__(self, read: Read, size: int, from_implicit: bool, vr_of: VrOf) -> None:
        self._read = read
        self._to_implicit = not from_implicit
        self._vr_of = vr_of
        self._stack = [_Level(_ROOT, size, IMPLICIT if from_implicit else EXPLICIT)]
        self._out = bytearray()
        self._data = b""
        self._base = 0
        self._at = 0

    def run(self) -> Iterator[bytes]:
        while True:
            if len(self._out) >= CHUNK:
                yield bytes(self._out)
                self._out.clear()
            level = self._stack[-1]
            place = self._base + self._at
            if level.end is not None and place >= level.end:
                if place > level.end:
                    raise FormatError("a value runs beyond the end of what holds it")
                if level.kind == _ROOT:
                    break
                self._close(level)
                continue
            if self._at + 12 > len(self._data):
                self._data, self._base, self._at = self._read(place, CHUNK), place, 0
            tag, vr, length, width = header(self._data, self._at, level.layout)
            self._at += width
            if level.kind == SEQUENCE_END:
                self._in_sequence(level, tag, length)
            elif tag == ITEM_END and level.kind == ITEM and level.end is None:
                self._close(level)
            elif tag >> 16 == 0xFFFE:
                raise FormatError("a delimiter where an element belongs")
            else:
                yield from self._element(level, tag, vr, length)
        if self._out:
            yield bytes(self._out)

    def _close(self, level: _Level) -> None:
        self._stack.pop()
        self._wide(ITEM_END if level.kind == ITEM else SEQUENCE_END, 0)

    def _open(self, kind: int, length: int, layout: Layout) -> None:
        end = None if length == UNDEFINED else self._base + self._at + length
        if len(self._stack) > 2 * MAX_DEPTH:
            raise FormatError(f"sequences nested deeper than {MAX_DEPTH}")
        self._fits(length)
        self._stack.append(_Level(kind, end, layout))

    def _fits(self, length: int) -> None:
        """Refuse a length that leaves the innermost thing of known end."""
        if length != UNDEFINED:
            end = next(level.end for level in reversed(self._stack) if level.end is not None)
            if self._base + self._at + length > end:
                raise FormatError("a value runs beyond the end of what holds it")

    def _in_sequence(self, level: _Level, tag: int, length: int) -> None:
        if tag == ITEM:
            self._wide(ITEM, length and UNDEFINED)
            if length:
                self._open(ITEM, length, level.layout)
        elif tag == SEQUENCE_END and level.end is None:
            self._close(level)
        else:
            raise FormatError("a sequence holds something that is no item")

    def _element(self, level: _Level, tag: int, vr: bytes, length: int) -> Iterator[bytes]:
        if tag & 0xFFFF == 0 and length != UNDEFINED:
            self._fits(length)
            self._at += length
            return
        inner = level.layout if vr not in (b"UN", b"") else IMPLICIT
        if length == UNDEFINED:
            if vr not in (b"SQ", b"UN", b"") or tag == PIXEL_DATA:
                raise FormatError("encapsulated data are not recoded")
            self._head(tag, b"SQ", UNDEFINED)
            self._open(SEQUENCE_END, UNDEFINED, inner)
            return
        self._fits(length)
        if vr == b"" and not self._to_implicit:
            vr = self._decide(level, tag, length)
        if vr == b"SQ" and length:
            if self._peek(4) == _ITEM_TAG:
                self._head(tag, b"SQ", UNDEFINED)
                self._open(SEQUENCE_END, length, inner)
                return
            vr = b"UN"                           # says it is a sequence, and is not: kept as it is
        self._note(level, tag, length)
        self._head(tag, vr, length)
        yield from self._copy(length)

    def _head(self, tag: int, vr: bytes, length: int) -> None:
        group, element = tag >> 16, tag & 0xFFFF
        if self._to_implicit:
            self._out += _WIDE_HEAD.pack(group, element, length)
        elif vr in SHORT and length <= 0xFFFF:
            self._out += _SHORT_HEAD.pack(group, element, vr, length)
        else:                                    # too long for its VR: UN (PS3.5 6.2.2)
            self._out += _LONG_HEAD.pack(group, element, vr if vr in LONG else b"UN", 0, length)

    def _wide(self, tag: int, length: int) -> None:
        self._out += _WIDE_HEAD.pack(tag >> 16, tag & 0xFFFF, length)

    def _peek(self, n: int) -> bytes:
        """The next bytes, which stay unread."""
        if self._at + n > len(self._data):
            self._data, self._base, self._at = self._read(self._base + self._at, CHUNK), self._base + self._at, 0
        return self._data[self._at:self._at + n]

    def _copy(self, length: int) -> Iterator[bytes]:
        there = min(length, len(self._data) - self._at)
        self._out += self._data[self._at:self._at + there]
        self._at += there
        length -= there
        while length:
            yield bytes(self._out)
            self._out.clear()
            piece = self._read(self._base + self._at, min(length, CHUNK))
            if not piece:
                raise FormatError("the data set ends within a value")
            self._out += piece
            self._at += len(piece)
            length -= len(piece)

    def _note(self, level: _Level, tag: int, length: int) -> None:
        """Keep what later decisions at this level depend on."""
        if tag == PIXEL_REPRESENTATION and length >= 2:
            level.signed = self._peek(2) != b"\0\0"
        elif tag == LUT_DESCRIPTOR and length >= 2:
            level.lut_of_one = self._peek(2) == b"\1\0"
        elif tag >> 16 & 1 and 0x10 <= tag & 0xFFFF <= 0xFF:
            note_creator(level.creators, tag, self._peek(min(length, 64)))

    def _decide(self, level: _Level, tag: int, length: int) -> bytes:
        vr = self._vr_of(tag, creator_of(level.creators, tag))
        if " or " not in vr:
            return vr.encode()
        if vr == "US or SS":
            return b"SS" if self._signed(level, tag) else b"US"
        if vr == "US or OW" and level.lut_of_one:
            return b"US"
        return b"OW"

    def _signed(self, level: _Level, tag: int) -> bool:
        """Pixel Representation of the nearest level that has one, also where it comes only later."""
        if level.signed is None and tag < PIXEL_REPRESENTATION and level.kind == ITEM:
            level.signed = self._look_ahead(self._base + self._at - 8, level.layout)
        for each in reversed(self._stack):
            if each.signed is not None:
                return each.signed
        root = self._stack[0]
        root.signed = bool(self._look_ahead(0, root.layout))
        return root.signed

    def _look_ahead(self, start: int, layout: Layout) -> bool | None:
        found = collect(self._read, start, layout, {PIXEL_REPRESENTATION}, PIXEL_REPRESENTATION, self._vr_of)
        value = found.get(PIXEL_REPRESENTATION, (b"", ""))[0]
        return value[:2] != b"\0\0" if len(value) >= 2 else None
