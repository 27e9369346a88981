"""Implicit LE ↔ Explicit LE: as pydicom converts, streaming, and FormatError at most."""

from __future__ import annotations

import contextlib
import io
import warnings

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dicom.elements import reader
from appliance.dicom.recode import CHUNK, can_recode, recode
from appliance.errors import FormatError
from appliance.sandbox.dictionary import vr_of
from tests.support import corpus
from tests.support.corpus import EXPLICIT_LE, IMPLICIT_LE, pieces

SAMPLES = [s for s in corpus.samples() if s.syntax in (IMPLICIT_LE, EXPLICIT_LE)]


def other(syntax: str) -> str:
    return IMPLICIT_LE if syntax == EXPLICIT_LE else EXPLICIT_LE


def run(data: bytes, source: str) -> bytes:
    return b"".join(recode(reader(data), len(data), source, other(source), vr_of))


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.name)
@pytest.mark.requirement("PS3.5 A.1, A.2")
def test_the_same_elements_as_pydicom_converts(sample: corpus.Sample) -> None:
    if "truncated" in sample.name:
        with pytest.raises(FormatError):
            run(sample.data, sample.syntax)
        return
    ours = corpus.decode(run(sample.data, sample.syntax), other(sample.syntax))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = pydicom.dcmread(sample.path)
        ds.file_meta.TransferSyntaxUID = pydicom.uid.UID(other(sample.syntax))
        file = io.BytesIO()
        ds.save_as(file)
        file.seek(0)
        theirs = corpus.without_group_lengths(pydicom.dcmread(file))
        assert list(ours) == list(theirs)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.name)
def test_there_and_back_changes_nothing_more(sample: corpus.Sample) -> None:
    if "truncated" not in sample.name:
        once = run(sample.data, sample.syntax)
        assert run(run(once, other(sample.syntax)), sample.syntax) == once


def test_group_lengths_go_and_sequences_become_undefined() -> None:
    item = pieces([(0x00080000, b"UL", b"\x0c\0\0\0"), (0x00081150, b"UI", b"1.2\0")], implicit=True)
    data = pieces([(0x00080000, b"UL", b"\1\2\3\4"),
                   (0x00081140, b"SQ", b"\xfe\xff\x00\xe0" + len(item).to_bytes(4, "little") + item),
                   (0x00082112, b"SQ", b""),
                   (0x00082218, b"SQ", b"\xfe\xff\x00\xe0\0\0\0\0")], implicit=True)
    assert run(data, IMPLICIT_LE) == (
        b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" b"\xfe\xff\x00\xe0\xff\xff\xff\xff" b"\x08\x00\x50\x11UI\4\x001.2\0"
        b"\xfe\xff\x0d\xe0\0\0\0\0" b"\xfe\xff\xdd\xe0\0\0\0\0"
        b"\x08\x00\x12\x21SQ\0\0\0\0\0\0"
        b"\x08\x00\x18\x22SQ\0\0\xff\xff\xff\xff" b"\xfe\xff\x00\xe0\0\0\0\0" b"\xfe\xff\xdd\xe0\0\0\0\0")


def vrs(data: bytes) -> dict[int, str]:
    return {int(e.tag): e.VR for e in corpus.decode(run(data, IMPLICIT_LE), EXPLICIT_LE)}


@pytest.mark.parametrize(("representation", "vr"), [(b"\0\0", "US"), (b"\1\0", "SS"), (None, "US")])
def test_us_or_ss_by_pixel_representation_wherever_it_stands(representation: bytes | None, vr: str) -> None:
    values = [(0x00189810, b"", b"\1\0"), (0x00280106, b"", b"\1\0"), (0x00281101, b"", b"\1\0\0\0\1\0")]
    if representation is not None:
        values.insert(1, (0x00280103, b"", representation))
    found = vrs(pieces(values, implicit=True))
    assert {found[0x00189810], found[0x00280106], found[0x00281101]} == {vr}


def test_the_nearest_pixel_representation_counts() -> None:
    def item(*values: tuple[int, bytes, bytes]) -> bytes:
        inner = pieces(list(values), implicit=True)
        return b"\xfe\xff\x00\xe0" + len(inner).to_bytes(4, "little") + inner

    data = pieces([(0x00082112, b"", item((0x00189810, b"", b"\1\0"), (0x00280103, b"", b"\0\0"))
                    + item((0x00189810, b"", b"\1\0"))), (0x00280103, b"", b"\1\0")], implicit=True)
    ds = corpus.decode(run(data, IMPLICIT_LE), EXPLICIT_LE)
    assert [i[0x00189810].VR for i in ds.SourceImageSequence] == ["US", "SS"]


@pytest.mark.parametrize(("entries", "vr"), [(b"\1\0", "US"), (b"\2\0", "OW")])
def test_lut_data_by_its_descriptor(entries: bytes, vr: str) -> None:
    found = vrs(pieces([(0x00283002, b"", entries + b"\0\0\x10\0"), (0x00283006, b"", b"\1\0")], implicit=True))
    assert found[0x00283006] == vr


def test_the_rest_of_the_ambiguous_ones_are_words() -> None:
    found = vrs(pieces([(0x54001010, b"", b"ab"), (0x60003000, b"", b"ab"), (0x7FE00010, b"", b"ab")], implicit=True))
    assert set(found.values()) == {"OW"}


def test_private_elements_are_as_known_or_un() -> None:
    found = vrs(pieces([(0x00090010, b"", b"GEMS_IDEN_01"), (0x00091027, b"", b"\7\0\0\0"), (0x00110010, b"", b"NOBODY"),
                        (0x00111001, b"", b"ab"), (0x00131001, b"", b"ab"), (0x00089999, b"", b"ab")], implicit=True))
    assert found == {0x00090010: "LO", 0x00091027: "SL", 0x00110010: "LO", 0x00111001: "UN", 0x00131001: "UN", 0x00089999: "UN"}


def test_too_long_for_its_vr_becomes_un() -> None:
    assert vrs(pieces([(0x00209157, b"", bytes(70000))], implicit=True))[0x00209157] == "UN"


def test_what_says_sequence_and_is_none_is_kept_byte_for_byte() -> None:
    data = pieces([(0x00081140, b"", b"no items")], implicit=True)
    assert run(data, IMPLICIT_LE) == b"\x08\x00\x40\x11UN\0\0\x08\0\0\0no items"


def test_un_of_undefined_length_holds_implicit_elements() -> None:
    inner = pieces([(0x00081150, b"UI", b"1.2\0")], implicit=True)
    value = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + inner + b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    data = b"\x09\x00\x01\x10UN\0\0\xff\xff\xff\xff" + value
    assert run(data, EXPLICIT_LE) == b"\x09\x00\x01\x10\xff\xff\xff\xff" + value


def test_memory_is_bounded_by_the_chunk() -> None:
    pixels = bytes(range(256)) * 16384
    data = pieces([(0x00100020, b"LO", b"P1"), (0x7FE00010, b"OW", pixels)], implicit=True)
    sizes, asked, whole = [], [], bytearray()
    source = reader(data)

    def read(offset: int, n: int) -> bytes:
        asked.append(n)
        return source(offset, n)

    for piece in recode(read, len(data), IMPLICIT_LE, EXPLICIT_LE, vr_of):
        sizes.append(len(piece))
        whole += piece
    assert whole.endswith(pixels)
    assert max(sizes) <= 2 * CHUNK
    assert max(asked) <= CHUNK


@pytest.mark.requirement("encapsulated is never recoded")
def test_encapsulated_is_refused() -> None:
    data = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    with pytest.raises(FormatError, match="encapsulated"):
        run(data, EXPLICIT_LE)
    assert not can_recode("1.2.840.10008.1.2.4.50", EXPLICIT_LE)
    assert not can_recode(EXPLICIT_LE, EXPLICIT_LE)
    with pytest.raises(FormatError):
        list(recode(reader(data), len(data), "1.2.840.10008.1.2.4.50", IMPLICIT_LE, vr_of))


@pytest.mark.requirement("hazard: 2,000-deep sequence")
def test_deep_nesting_is_refused() -> None:
    assert run(corpus.nested(64), IMPLICIT_LE) == corpus.nested(64, implicit=False)
    with pytest.raises(FormatError, match="deeper"):
        run(corpus.nested(2000), IMPLICIT_LE)


def test_inner_lengths_stay_within_outer_ones() -> None:
    data = pieces([(0x00081140, b"", b"\xfe\xff\x00\xe0\x0a\0\0\0" + b"\x08\x00\x50\x11\x20\0\0\0ab")], implicit=True)
    with pytest.raises(FormatError, match="beyond"):
        run(data + pieces([(0x00100020, b"", bytes(100))], implicit=True), IMPLICIT_LE)


@given(st.binary(max_size=300), st.sampled_from([IMPLICIT_LE, EXPLICIT_LE]))
def test_any_bytes_are_recoded_or_format_error(data: bytes, syntax: str) -> None:
    with contextlib.suppress(FormatError):
        run(data, syntax)


@settings(max_examples=150)
@given(st.sampled_from([s for s in SAMPLES if len(s.data) < 30000]), st.data())
def test_any_damage_is_recoded_or_format_error(sample: corpus.Sample, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, min(len(sample.data), 3000)))
    junk = data.draw(st.binary(max_size=12))
    with contextlib.suppress(FormatError):
        run(sample.data[:at] + junk + sample.data[at + len(junk):], sample.syntax)
