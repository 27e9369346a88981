"""What the scanners of the tests send: seeded objects of every kind, and the digests by which they are known again.

Data sets are encoded here and nowhere else, without the product's code and
without pydicom, so that a mistake of either cannot hide itself. The digest is
BLAKE3 over the data set, the file meta group left out.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import pydicom.data
from blake3 import blake3

IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
BIG = "1.2.840.10008.1.2.2"
RLE = "1.2.840.10008.1.2.5"

CT = "1.2.840.10008.5.1.4.1.1.2"
MULTIFRAME = "1.2.840.10008.5.1.4.1.1.7.3"   # Multi-frame Grayscale Word Secondary Capture
DX = "1.2.840.10008.5.1.4.1.1.1.1"
SR = "1.2.840.10008.5.1.4.1.1.88.22"
RAW = "1.2.840.10008.5.1.4.1.1.66"
PRIVATE = "1.3.12.2.1107.5.9.1"              # a private storage class that really exists in the field
DICOMDIR = "1.2.840.10008.1.3.10"            # Media Storage Directory: no object that anybody sends

META_UID = "2.25.137731752600317795446120660167595746868"

Buffer = bytes | memoryview
Key = tuple[str, str, str]
"""What must arrive: SOP Instance UID, transfer syntax, digest of the data set in hex."""


@dataclass(frozen=True)
class Instance:
    """One object: its data set in pieces (large ones share their pixels), and what a sender says of it."""

    sop_class: str
    sop_instance: str
    syntax: str
    parts: tuple[Buffer, ...]

    @property
    def length(self) -> int:
        return sum(len(part) for part in self.parts)

    def digest(self) -> bytes:
        digest = blake3()
        for part in self.parts:
            digest.update(part)
        return digest.digest()

    @property
    def key(self) -> Key:
        return self.sop_instance, self.syntax, self.digest().hex()

    def write(self, path: Path) -> Path:
        """As a Part 10 file."""
        with path.open("wb") as file:
            file.write(file_meta(self.sop_class, self.sop_instance, self.syntax))
            for part in self.parts:
                file.write(part)
        return path


# --- encoding ---------------------------------------------------------------------------------------------------------

LONG = {"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"}


def element(tag: int, vr: str, value: bytes | str | int, syntax: str = EXPLICIT, *, length: int | None = None) -> bytes:
    """One element; `length` announces more bytes than `value` has (the rest follows, or 0xFFFFFFFF)."""
    order = ">" if syntax == BIG else "<"
    if isinstance(value, int):
        raw = struct.pack(order + {"US": "H", "UL": "L", "SS": "h"}[vr], value)
    else:
        raw = value.encode() if isinstance(value, str) else value
        if len(raw) % 2:
            raw += b"\0" if vr in ("UI", "OB", "UN") else b" "
    size = len(raw) if length is None else length
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    if syntax == IMPLICIT:
        return head + struct.pack("<L", size) + raw
    if vr in LONG:
        return head + vr.encode() + b"\0\0" + struct.pack(order + "L", size) + raw
    return head + vr.encode() + struct.pack(order + "H", size) + raw


Elements = list[tuple[int, str, bytes | str | int]]


def data_set(elements: Iterable[tuple[int, str, bytes | str | int]], syntax: str = EXPLICIT) -> bytes:
    return b"".join(element(tag, vr, value, syntax) for tag, vr, value in sorted(elements, key=lambda e: e[0]))


def file_meta(sop_class: str, sop_instance: str, syntax: str) -> bytes:
    """Preamble and file meta group (PS3.10 7.1)."""
    group = (element(0x00020001, "OB", b"\0\1") + element(0x00020002, "UI", sop_class)
             + element(0x00020003, "UI", sop_instance) + element(0x00020010, "UI", syntax)
             + element(0x00020012, "UI", META_UID) + element(0x00020013, "SH", "TESTS"))
    return bytes(128) + b"DICM" + element(0x00020000, "UL", len(group)) + group


# --- recipes ----------------------------------------------------------------------------------------------------------


def uid(*seed: object) -> str:
    """A UID that is the same for the same seed (PS3.5 B.2)."""
    raw = blake3(repr(seed).encode()).digest()[:16]
    return f"2.25.{int.from_bytes(raw, 'big')}"


@cache
def noise(size: int, seed: int = 0) -> bytes:
    """Seeded bytes that no compression makes smaller."""
    return random.Random(seed).randbytes(size)


def _common(sop_class: str, sop_instance: str, seed: object, series: object, modality: str, number: int,
            patient: int) -> Elements:
    return [
        (0x00080008, "CS", "ORIGINAL\\PRIMARY"), (0x00080016, "UI", sop_class), (0x00080018, "UI", sop_instance),
        (0x00080020, "DA", "20260102"), (0x00080030, "TM", "101112"), (0x00080050, "SH", f"A{patient:07d}"),
        (0x00080060, "CS", modality), (0x00080070, "LO", "Dcmgate tests"), (0x00081010, "SH", f"STATION{patient % 4}"),
        (0x00081030, "LO", "Synthetic study"), (0x0008103E, "LO", f"Series {series}"),
        (0x00100010, "PN", f"Test^Patient{patient}"), (0x00100020, "LO", f"P{patient:07d}"), (0x00100030, "DA", "19700101"),
        (0x00100040, "CS", "O"), (0x00180015, "CS", "CHEST"),
        (0x0020000D, "UI", uid("study", seed, patient)), (0x0020000E, "UI", uid("series", seed, patient, series)),
        (0x00200010, "SH", "1"), (0x00200011, "IS", "1"), (0x00200013, "IS", str(number)),
    ]


def _image(rows: int, columns: int, frames: int = 0) -> Elements:
    image: Elements = [
        (0x00280002, "US", 1), (0x00280004, "CS", "MONOCHROME2"), (0x00280010, "US", rows), (0x00280011, "US", columns),
        (0x00280100, "US", 16), (0x00280101, "US", 16), (0x00280102, "US", 15), (0x00280103, "US", 0)]
    if frames:
        image += [(0x00280008, "IS", str(frames)), (0x00280009, "AT", struct.pack("<HH", 0x0018, 0x1063)),
                  (0x00181063, "DS", "40")]
    return image


def ct(number: int, seed: object = 0, *, series: object = 1, patient: int = 1, syntax: str = EXPLICIT,
       side: int = 512) -> Instance:
    """A CT slice, 0.5 MB of pixels unless `side` says otherwise. Slices of eight kinds share their pixels."""
    sop_instance = uid("ct", seed, patient, series, number)
    head = data_set([*_common(CT, sop_instance, seed, series, "CT", number, patient), *_image(side, side),
                     (0x00200032, "DS", f"-250\\-250\\{number}"), (0x00281052, "DS", "-1024"), (0x00281053, "DS", "1")],
                    syntax)
    pixels = memoryview(noise(side * side * 2, number % 8))
    return Instance(CT, sop_instance, syntax, (head + element(0x7FE00010, "OW", b"", syntax, length=len(pixels)), pixels))


def sr(number: int, seed: object = 0, *, patient: int = 1, size: int = 20_000) -> Instance:
    """A structured report of about 20 kB: a container with text items."""
    sop_instance = uid("sr", seed, patient, number)
    code = data_set([(0x00080100, "SH", "121070"), (0x00080102, "SH", "DCM"), (0x00080104, "LO", "Findings")])
    text = "".join(random.Random(number).choices("abcdefghij klmnopqrstuvwxyz", k=400))
    named = element(0x0040A043, "SQ", struct.pack("<HHL", 0xFFFE, 0xE000, len(code)) + code)
    item = (element(0x0040A010, "CS", "CONTAINS") + element(0x0040A040, "CS", "TEXT") + named
            + element(0x0040A160, "UT", text))
    item = struct.pack("<HHL", 0xFFFE, 0xE000, len(item)) + item
    items = item * max(1, (size - 700) // len(item))
    body = data_set([*_common(SR, sop_instance, seed, "report", "SR", number, patient), (0x0040A040, "CS", "CONTAINER"),
                     (0x0040A050, "CS", "SEPARATE"), (0x0040A491, "CS", "COMPLETE"), (0x0040A493, "CS", "UNVERIFIED"),
                     (0x0040A730, "SQ", items)])
    return Instance(SR, sop_instance, EXPLICIT, (body,))


def dx(number: int, seed: object = 0, *, patient: int = 1, size: int = 30_000_000) -> Instance:
    """A digital X-ray of about 30 MB."""
    sop_instance = uid("dx", seed, patient, number)
    columns = 4096
    rows = size // (2 * columns)
    pixels = rows * columns * 2
    head = data_set([*_common(DX, sop_instance, seed, 1, "DX", number, patient), *_image(rows, columns)])
    return Instance(DX, sop_instance, EXPLICIT,
                    (head + element(0x7FE00010, "OW", b"", length=pixels), *_blocks(pixels, number)))


def multiframe(number: int = 1, seed: object = 0, *, patient: int = 1, size: int = 400_000_000) -> Instance:
    """A multi-frame object of at least `size` bytes, made of a few megabytes repeated in an order of their own."""
    sop_instance = uid("multiframe", seed, patient, number)
    frames = -(-size // (1024 * 1024 * 2))
    pixels = frames * 1024 * 1024 * 2
    head = data_set([*_common(MULTIFRAME, sop_instance, seed, 1, "OT", number, patient), *_image(1024, 1024, frames)])
    return Instance(MULTIFRAME, sop_instance, EXPLICIT,
                    (head + element(0x7FE00010, "OW", b"", length=pixels), *_blocks(pixels, number)))


def _blocks(total: int, seed: int) -> Iterator[memoryview]:
    """`total` bytes as views of seven blocks, in a seeded order: an exchanged or lost block changes the digest."""
    size = 1 << 20
    order = random.Random(seed)
    while total > 0:
        part = memoryview(noise(size, 100 + order.randrange(7)))[:min(size, total)]
        total -= len(part)
        yield part


def private(number: int = 1, seed: object = 0, *, patient: int = 1) -> Instance:
    """An object of a private SOP class, with private elements and an unknown VR."""
    sop_instance = uid("private", seed, patient, number)
    body = data_set([*_common(PRIVATE, sop_instance, seed, "private", "CT", number, patient),
                     (0x00290010, "LO", "DCMGATE TESTS"), (0x00291001, "UN", noise(3000, number)),
                     (0x00291002, "OB", b"\1\2\3")])
    return Instance(PRIVATE, sop_instance, EXPLICIT, (body,))


def deflated(number: int = 1, seed: object = 0, *, patient: int = 1) -> Instance:
    """A report in Deflated Explicit VR Little Endian (PS3.5 A.5), padded to even length."""
    plain = sr(number, ("deflated", seed), patient=patient)
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    raw = packer.compress(b"".join(plain.parts)) + packer.flush()
    return Instance(SR, plain.sop_instance, DEFLATED, (raw + b"\0" * (len(raw) % 2),))


def big_endian(number: int = 1, seed: object = 0, *, patient: int = 1) -> Instance:
    """A small CT slice in (retired) Explicit VR Big Endian."""
    return ct(number, ("big", seed), patient=patient, syntax=BIG, side=64)


def implicit(number: int = 1, seed: object = 0, *, patient: int = 1) -> Instance:
    """A small CT slice in Implicit VR Little Endian."""
    return ct(number, ("implicit", seed), patient=patient, syntax=IMPLICIT, side=64)


def encapsulated(number: int = 1, seed: object = 0, *, patient: int = 1, frames: int = 3) -> Instance:
    """Encapsulated pixels (PS3.5 A.4) of undefined length, RLE."""
    sop_instance = uid("encapsulated", seed, patient, number)
    head = data_set([*_common(MULTIFRAME, sop_instance, seed, 1, "OT", number, patient), *_image(64, 64, frames)])
    body = struct.pack("<HHL", 0xFFFE, 0xE000, 0)
    for n in range(frames):
        # Literal runs of 128 bytes (PS3.5 annex G): two segments, the high and the low bytes of 64 x 64 pixels.
        segment = b"".join(b"\x7f" + noise(128, 31 * number + n) for _ in range(32))
        frame = struct.pack("<16L", 2, 64, 64 + len(segment), *([0] * 13)) + segment + segment
        body += struct.pack("<HHL", 0xFFFE, 0xE000, len(frame)) + frame
    body += struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    return Instance(MULTIFRAME, sop_instance, RLE,
                    (head + element(0x7FE00010, "OB", b"", length=0xFFFFFFFF) + body,))


def ct_study(count: int, seed: object = 0, *, patient: int = 1, side: int = 512) -> list[Instance]:
    return [ct(number, seed, patient=patient, side=side) for number in range(1, count + 1)]


def specials(seed: object = 0) -> Sequence[Instance]:
    """One object for each thing that routers get wrong."""
    return (private(seed=seed), deflated(seed=seed), big_endian(seed=seed), implicit(seed=seed), encapsulated(seed=seed),
            sr(1, seed), ct(1, seed))


# --- files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part10:
    """A Part 10 file as found: what its meta group says, and where the data set begins."""

    path: Path
    sop_class: str
    sop_instance: str
    syntax: str
    offset: int

    @property
    def key(self) -> Key:
        return self.sop_instance, self.syntax, data_set_digest(self.path, self.offset).hex()

    def instance(self) -> Instance:
        """The file's data set as it stands, to be sent byte for byte."""
        return Instance(self.sop_class, self.sop_instance, self.syntax, (self.path.read_bytes()[self.offset:],))


def part10(path: Path) -> Part10 | None:
    """What the file meta group says; None for what is no Part 10 file or does not name its object."""
    with path.open("rb") as file:
        return part10_from(file, path)


def part10_from(file: BinaryIO, path: Path) -> Part10 | None:
    """The same from an open file."""
    start = file.read(132)
    if start[128:] != b"DICM":
        return None
    found: dict[int, bytes] = {}
    offset = 132
    while len(head := file.read(8)) == 8:
        group, number, vr, size = struct.unpack("<HH2sH", head)
        if group != 2:
            break
        extra = 0
        if vr.decode("latin-1") in LONG:
            size, extra = struct.unpack("<L", file.read(4))[0], 4
        found[number] = file.read(size)
        offset += 8 + extra + size
    text = {number: found[number].rstrip(b"\0 ").decode("ascii", "replace") for number in (2, 3, 0x10) if number in found}
    if not all(text.get(number) for number in (2, 3, 0x10)):
        return None
    return Part10(path, text[2], text[3], text[0x10], offset)


def data_set_digest(path: Path, offset: int | None = None) -> bytes:
    """BLAKE3 of a file's data set, the meta group left out."""
    if offset is None:
        found = part10(path)
        if found is None:
            raise ValueError(f"{path} is no Part 10 file")
        offset = found.offset
    digest = blake3()
    with path.open("rb") as file:
        file.seek(offset)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.digest()


@cache
def bundled() -> tuple[Part10, ...]:
    """Every file of pydicom's own test set that names the object it holds (nothing is fetched)."""
    root = Path(pydicom.data.__file__).parent / "test_files"
    found = (part10(path) for path in sorted(root.rglob("*")) if path.is_file())
    return tuple(entry for entry in found if entry is not None)


def sendable() -> list[Part10]:
    """The bundled files that are objects: directories of media are not sent."""
    return [entry for entry in bundled() if entry.sop_class != DICOMDIR]
