"""Deflated data sets (PS3.5 A.5), inflated as far as they are read, within a bound."""

from __future__ import annotations

import zlib

from appliance.dicom.elements import Read
from appliance.errors import FormatError

DEFLATED = frozenset(["1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"])

MOST = 256 << 20
"""Bytes that are inflated to find a tag; deflate can make 1,032 bytes out of one."""

_PIECE = 65536


def inflating(source: Read) -> Read:
    """A `Read` over the inflated bytes; offsets must not decrease. FormatError for a broken stream or behind the bound."""
    start = source(0, 2)
    zlib_header = len(start) == 2 and start[0] & 0x0F == 8 and int.from_bytes(start, "big") % 31 == 0
    machine = zlib.decompressobj(zlib.MAX_WBITS if zlib_header else -zlib.MAX_WBITS)
    window, base, taken = b"", 0, 0

    def more() -> bytes:
        nonlocal taken
        if machine.eof:
            return b""
        try:
            while True:
                packed = machine.unconsumed_tail
                if not packed:
                    packed = source(taken, _PIECE)
                    taken += len(packed)
                piece = machine.decompress(packed, _PIECE)
                if piece or machine.eof:
                    return piece
                if not packed:
                    raise FormatError("the deflated data set ends early")
        except zlib.error as e:
            raise FormatError(f"the data set cannot be inflated: {e}") from None

    def read(offset: int, n: int) -> bytes:
        nonlocal window, base
        while base + len(window) < offset + n:
            if base + len(window) > MOST:
                raise FormatError(f"more than {MOST} bytes inflated")
            piece = more()
            if not piece:
                break
            if offset >= base + len(window):     # all of this lies in front of what is wanted
                window, base = piece, base + len(window)
            else:
                window, base = window[max(0, offset - base):] + piece, max(base, offset)
        if offset > base + len(window):
            raise FormatError("a value runs beyond the end of the data set")
        return window[offset - base:offset - base + n]

    return read
