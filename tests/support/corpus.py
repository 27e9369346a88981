"""The data sets of pydicom's bundled files, and what pydicom reads in them: the oracle of the differential tests."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.filereader import read_dataset

IMPLICIT_LE, EXPLICIT_LE = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"


@dataclass(frozen=True)
class Sample:
    """One bundled file: the bytes behind its file meta group, in its transfer syntax."""

    name: str
    path: Path
    syntax: str
    data: bytes


def samples() -> list[Sample]:
    """Every bundled file that has file meta with a group length, but no DICOMDIRs."""
    found = []
    root = Path(pydicom.__file__).parent / "data"
    for path in sorted(root.rglob("*")):
        if not path.is_file() or path.name.startswith("DICOMDIR"):
            continue
        raw = path.read_bytes()
        if raw[128:132] != b"DICM" or raw[132:136] != b"\2\0\0\0":
            continue
        try:
            meta = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[]).file_meta
        except Exception:  # noqa: BLE001 - files that pydicom bundles because they are broken
            continue
        end = 144 + int.from_bytes(raw[140:144], "little")
        found.append(Sample(path.name, path, str(meta.get("TransferSyntaxUID", "")), raw[end:]))
    return found


def decode(data: bytes, syntax: str) -> pydicom.Dataset:
    """What pydicom reads in a data set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = read_dataset(io.BytesIO(data), syntax == IMPLICIT_LE, syntax != "1.2.840.10008.1.2.2")
        return without_group_lengths(ds)


def without_group_lengths(ds: pydicom.Dataset) -> pydicom.Dataset:
    for element in list(ds):
        if element.tag.element == 0:
            del ds[element.tag]
        elif element.VR == "SQ":
            for item in element.value:
                without_group_lengths(item)
    return ds


def pieces(elements: list[tuple[int, bytes, bytes]], *, implicit: bool = False, order: str = "little") -> bytes:
    """A data set from (tag, VR, value); values go out as given."""
    out = bytearray()
    for tag, vr, value in elements:
        out += (tag >> 16).to_bytes(2, order) + (tag & 0xFFFF).to_bytes(2, order)  # type: ignore[arg-type]
        if implicit:
            out += len(value).to_bytes(4, order)  # type: ignore[arg-type]
        elif vr in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"UC", b"UR", b"OF", b"OD", b"OL", b"OV", b"SV", b"UV"):
            out += vr + bytes(2) + len(value).to_bytes(4, order)  # type: ignore[arg-type]
        else:
            out += vr + len(value).to_bytes(2, order)  # type: ignore[arg-type]
        out += value
    return bytes(out)


def nested(depth: int, *, implicit: bool = True) -> bytes:
    """Sequences of undefined length, one in the other."""
    head = b"\x08\x00\x40\x11" + (b"" if implicit else b"SQ\0\0") + b"\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    return head * depth + (b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0") * depth


def ct_header(count: int = 100, *, pixels: int = 0) -> bytes:
    """An Explicit LE data set of about `count` elements in front of its pixels, as of a CT."""
    elements = [(0x00080005, b"CS", b"ISO_IR 100"), (0x00080008, b"CS", b"ORIGINAL\\PRIMARY\\AXIAL "),
                (0x00080016, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0"), (0x00080018, b"UI", b"1.2.826.0.1.3680043.2.1\0"),
                (0x00080020, b"DA", b"20260102"), (0x00080050, b"SH", b"ACC-1 "), (0x00080060, b"CS", b"CT"),
                (0x00100010, b"PN", "Müller^Jörg ".encode("latin-1")), (0x00100020, b"LO", b"P-1 ")]
    elements += [(0x00180000 + 0x50 + i, b"DS", b"1.234567") for i in range(count - 14)]
    elements += [(0x0020000D, b"UI", b"1.2.826.0.1.3680043.3.1\0"), (0x0020000E, b"UI", b"1.2.826.0.1.3680043.4.1\0"),
                 (0x00280010, b"US", b"\0\2"), (0x00280011, b"US", b"\0\2"), (0x00280103, b"US", b"\0\0")]
    return pieces(elements + ([(0x7FE00010, b"OW", bytes(pixels))] if pixels else []))
