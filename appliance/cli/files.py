"""Part 10 files of others: what their file meta group says, and where the data set begins (PS3.10 7.1).

Pure reading with bounds; FormatError for whatever is not such a file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from appliance.errors import FormatError

_LONG = frozenset({b"OB", b"OW", b"OD", b"OF", b"OL", b"OV", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_LARGEST_GROUP = 1 << 20
_MEDIA_DIRECTORY = b"1.2.840.10008.1.3.10"
"""A DICOMDIR describes a medium; it is no object to be sent (PS3.3 F)."""

_SOP_CLASS, _SOP_INSTANCE, _SYNTAX = 0x0002, 0x0003, 0x0010


@dataclass(frozen=True, slots=True)
class DicomFile:
    """One file: UIDs as bytes without padding, transfer syntax, and offset and length of the data set in bytes."""

    path: Path
    sop_class: bytes
    sop_instance: bytes
    syntax: str
    offset: int
    length: int


def look(path: Path) -> DicomFile:
    """What the file is. FormatError where it is no Part 10 file or does not name its object; OSError."""
    with path.open("rb") as file:
        elements, offset = _meta(file, path)
        size = file.seek(0, 2)
    texts = {number: elements.get(number, b"").rstrip(b"\0 ") for number in (_SOP_CLASS, _SOP_INSTANCE, _SYNTAX)}
    if not all(texts.values()):
        raise FormatError(f"{path} does not name its SOP class, instance and transfer syntax")
    syntax = texts[_SYNTAX].decode("ascii", "replace")
    return DicomFile(path, texts[_SOP_CLASS], texts[_SOP_INSTANCE], syntax, offset, size - offset)


def _meta(file: BinaryIO, path: Path) -> tuple[dict[int, bytes], int]:
    """The elements of group 0002 (Explicit VR Little Endian) by element number, and the offset behind them."""
    start = file.read(132)
    if len(start) < 132 or start[128:] != b"DICM":
        raise FormatError(f"{path} is no DICOM Part 10 file")
    elements: dict[int, bytes] = {}
    offset = 132
    while len(header := file.read(8)) == 8:
        group, number, vr, length = struct.unpack("<HH2sH", header)
        if group != 2:
            break
        extra = 0
        if vr in _LONG:
            more = file.read(4)
            if len(more) < 4:
                raise FormatError(f"{path} ends within its file meta group")
            length, extra = struct.unpack("<L", more)[0], 4
        if offset + length > _LARGEST_GROUP:
            raise FormatError(f"{path} has a file meta group that makes no sense")
        value = file.read(length)
        if len(value) < length:
            raise FormatError(f"{path} ends within its file meta group")
        elements[number] = value
        offset += 8 + extra + length
    return elements, offset


def find(places: Iterable[str]) -> Iterator[tuple[Path, DicomFile | None]]:
    """Every file under the given files and folders, in order of name; None for those that are no DICOM objects."""
    for place in places:
        path = Path(place)
        if not path.exists():
            raise FileNotFoundError(2, "no such file or folder", str(path))
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            try:
                found: DicomFile | None = look(file)
            except FormatError:
                found = None
            yield file, None if found is None or found.sop_class == _MEDIA_DIRECTORY else found
