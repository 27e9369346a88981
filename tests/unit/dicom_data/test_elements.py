"""Reading tags: as pydicom does for files that exist, FormatError at most for bytes that should not."""

from __future__ import annotations

import contextlib
import zlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom.datadict import tag_for_keyword
from pydicom.multival import MultiValue

from appliance.dicom import charset, elements
from appliance.dicom.elements import read_tags
from appliance.errors import FormatError
from appliance.sandbox.dictionary import vr_of
from tests.support import corpus

SAMPLES = corpus.samples()
KEYWORDS = """SpecificCharacterSet ImageType SOPClassUID SOPInstanceUID StudyDate Modality AccessionNumber StationName
    StudyDescription SeriesDescription PatientName PatientID PatientBirthDate BodyPartExamined SliceThickness KVP
    StudyInstanceUID SeriesInstanceUID InstanceNumber Rows Columns BitsAllocated PixelSpacing
    SmallestImagePixelValue WindowCenter LossyImageCompression PixelRepresentation"""
WANTED = frozenset(int(tag_for_keyword(k) or 0) for k in KEYWORDS.split())
BROKEN = {"MR_truncated.dcm", "rtplan_truncated.dcm"}


def as_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, MultiValue):
        return "\\".join(as_text(v) for v in value)
    original = getattr(value, "original_string", None)
    return (original if isinstance(original, str) else str(value)).strip("\0 ")


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s.name)
def test_tags_are_those_that_pydicom_reads(sample: corpus.Sample) -> None:
    data = sample.data
    if sample.syntax == "1.2.840.10008.1.2.1.99":
        data = zlib.decompress(data, -zlib.MAX_WBITS)
    if sample.name in BROKEN:
        pytest.skip("broken on purpose: see the other tests")
    found = read_tags(data, sample.syntax, WANTED, vr_of)
    expected = corpus.decode(data, sample.syntax)
    theirs = {int(e.tag): as_text(e.value)[:elements.MAX_VALUE] for e in expected if int(e.tag) in WANTED}
    assert found.keys() == theirs.keys()
    for tag, text in theirs.items():
        if tag == 0x00100010:
            assert found[tag].rstrip("^=") == text.rstrip("^="), "pydicom drops empty trailing components"
        elif found[tag] != text:                  # the same number may be spelled in two ways
            assert [float(x) for x in found[tag].split("\\")] == [float(x) for x in text.split("\\")], f"{tag:08x}"


def test_the_corpus_is_there() -> None:
    assert len(SAMPLES) > 60
    assert len({s.syntax for s in SAMPLES}) > 5


@given(st.binary(max_size=400), st.sampled_from(["1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "9.9"]))
@example(b"", "1.2.840.10008.1.2")
@example(b"\x08\x00", "1.2.840.10008.1.2.1")
def test_any_bytes_are_values_or_format_error(data: bytes, syntax: str) -> None:
    try:
        found = read_tags(data, syntax, WANTED, vr_of)
    except FormatError:
        return
    assert all(type(v) is str and len(v) <= elements.MAX_VALUE for v in found.values())


@settings(max_examples=150)
@given(st.sampled_from([s for s in SAMPLES if len(s.data) < 60000]), st.data())
def test_any_damage_is_values_or_format_error(sample: corpus.Sample, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, min(len(sample.data), 3000)))
    junk = data.draw(st.binary(max_size=12))
    cut = data.draw(st.integers(0, len(sample.data)))
    damaged = (sample.data[:at] + junk + sample.data[at + len(junk):])[:cut]
    with contextlib.suppress(FormatError):
        read_tags(damaged, sample.syntax, WANTED, vr_of)


@pytest.mark.requirement("hazard: 2,000-deep sequence")
@pytest.mark.parametrize("implicit", [True, False])
def test_deep_nesting_is_refused_and_moderate_nesting_passed_over(implicit: bool) -> None:
    syntax = corpus.IMPLICIT_LE if implicit else corpus.EXPLICIT_LE
    tail = corpus.pieces([(0x00100020, b"LO", b"P1")], implicit=implicit)
    assert read_tags(corpus.nested(64, implicit=implicit) + tail, syntax, {0x00100020}, vr_of) == {0x00100020: "P1"}
    for depth in (65, 2000):
        with pytest.raises(FormatError, match="deeper"):
            read_tags(corpus.nested(depth, implicit=implicit) + tail, syntax, {0x00100020}, vr_of)


def test_lengths_are_not_believed() -> None:
    big = corpus.pieces([(0x00080050, b"SH", b"A1")]) + b"\x10\x00\x20\x00UT\0\0\xf0\xff\xff\xff" + b"P1"
    with pytest.raises(FormatError):
        read_tags(big, corpus.EXPLICIT_LE, {0x00100020})
    with pytest.raises(FormatError, match="beyond"):
        read_tags(big, corpus.EXPLICIT_LE, {0x00200010})


@pytest.mark.requirement("hazard: truncated data set")
def test_a_cut_header_is_noticed_and_a_cut_image_is_still_read() -> None:
    whole = corpus.ct_header(100, pixels=2000)
    assert read_tags(whole[:-500], corpus.EXPLICIT_LE, {0x00100020, 0x0020000D})[0x00100020] == "P-1"
    unnoticed = 0
    for cut in range(whole.index(b"P-1 ") + 4):
        with contextlib.suppress(FormatError):
            read_tags(whole[:cut], corpus.EXPLICIT_LE, {0x00100020, 0x00200010})
            unnoticed += 1
    assert unnoticed == 8, "only a cut between two of the nine elements looks whole"


@pytest.mark.requirement("hazard: garbage data set")
def test_noise_is_not_taken_for_a_data_set_without_the_wanted_tags() -> None:
    for seed in range(50):
        noise = b"\xaa" + bytes((seed * 37 + i * 101) % 251 for i in range(5000))
        for syntax in (corpus.IMPLICIT_LE, corpus.EXPLICIT_LE):
            with pytest.raises(FormatError):
                read_tags(noise, syntax, {0x00100020}, vr_of)


def test_nothing_behind_the_wanted_tags_is_read() -> None:
    data = corpus.ct_header(100, pixels=10)
    asked: list[tuple[int, int]] = []
    head = elements.reader(data)

    def read(offset: int, n: int) -> bytes:
        asked.append((offset, n))
        assert not asked[:-1] or offset >= asked[-2][0], "offsets never decrease"
        return head(offset, n)

    far = corpus.pieces([(0x00080005, b"CS", b"ISO_IR 192"), (0x00091001, b"OB", bytes(300000)), (0x00100020, b"LO", b"P1")])
    head = elements.reader(far)
    assert read_tags(read, corpus.EXPLICIT_LE, {0x00100020}) == {0x00100020: "P1"}
    assert sum(n for _, n in asked) < 200000, "a large value in front is not read"


def test_a_sender_that_lies_about_the_syntax_is_understood() -> None:
    values = [(0x00080060, b"CS", b"CT"), (0x00100020, b"LO", b"P1"), (0x00280010, b"US", b"\1\2")]
    wanted = {0x00080060, 0x00100020, 0x00280010}
    expected = {0x00080060: "CT", 0x00100020: "P1", 0x00280010: "513"}
    assert read_tags(corpus.pieces(values), corpus.IMPLICIT_LE, wanted, vr_of) == expected
    assert read_tags(corpus.pieces(values, implicit=True), corpus.EXPLICIT_LE, wanted, vr_of) == expected


def test_big_endian() -> None:
    data = corpus.pieces([(0x00080060, b"CS", b"CT"), (0x00280010, b"US", b"\1\2")], order="big")
    assert read_tags(data, "1.2.840.10008.1.2.2", {0x00080060, 0x00280010}) == {0x00080060: "CT", 0x00280010: "258"}


@pytest.mark.parametrize(("representation", "text"), [(b"\0\0", "65535"), (b"\1\0", "-1"), (None, "65535")])
def test_ambiguous_numbers_are_signed_as_the_pixels_are(representation: bytes | None, text: str) -> None:
    """In Implicit VR the smallest pixel value of a CT was read as 64512 instead of -1024 (found by fuzzing against pydicom)."""
    data = corpus.pieces([(0x00280103, b"US", representation)] if representation else [], implicit=True)
    data += corpus.pieces([(0x00280106, b"SS", b"\xff\xff")], implicit=True)
    assert read_tags(data, corpus.IMPLICIT_LE, {0x00280106}, vr_of) == {0x00280106: text}


def test_private_tags_by_their_creator() -> None:
    data = corpus.pieces([(0x00090010, b"LO", b"GEMS_IDEN_01"), (0x00091027, b"SL", b"\7\0\0\0")], implicit=True)
    assert read_tags(data, corpus.IMPLICIT_LE, {0x00091027}, vr_of) == {0x00091027: "7"}


def test_sequences_and_bulk_have_no_text_and_long_text_is_cut() -> None:
    data = corpus.pieces([(0x00081140, b"SQ", b""), (0x0008114A, b"OB", b"ab"), (0x00204000, b"LT", b"x" * 5000),
                          (0x00209056, b"SH", b"")])
    assert read_tags(data, corpus.EXPLICIT_LE, {0x00081140, 0x0008114A, 0x00204000, 0x00209056}) == {
        0x00204000: "x" * 1024, 0x00209056: ""}


@pytest.mark.requirement("conformance: character sets")
@pytest.mark.parametrize(("charset_value", "raw", "text"), [
    (b"", b"M\xfcller", "Müller"),
    (b"ISO_IR 100", b"M\xfcller", "Müller"),
    (b"ISO-IR_100", b"M\xfcller", "Müller"),
    (b"ISO_IR 192", "Wang^小东".encode(), "Wang^小东"),
    (b"ISO_IR 192", b"a\xffb", "a\ufffdb"),
    (b"GB18030", "王^小东".encode("gb18030"), "王^小东"),
    (b"ISO_IR 144", "Люкс".encode("iso8859_5"), "Люкс"),
    (b"\\ISO 2022 IR 87", b"Yamada=\x1b$B;3ED\x1b(B", "Yamada=山田"),
    (b"ISO 2022 IR 13\\ISO 2022 IR 87", b"\xd4\xcf\xc0\xde=\x1b$B;3ED\x1b(J", "ﾔﾏﾀﾞ=山田"),
    (b"\\ISO 2022 IR 149", b"Hong=\x1b$)C\xfb\xf3", "Hong=洪"),
    (b"no such set", b"M\xfcller", "Müller"),
    (b"\xff\xfe", b"abc", "abc"),
    (b"ISO_IR 192", b"\x1b\x1b[A\x1b", "\x1b\x1b[A\x1b"),
])
def test_character_sets(charset_value: bytes, raw: bytes, text: str) -> None:
    assert charset.decode(raw, charset.codec(charset_value)) == text


@pytest.mark.requirement("conformance: character sets")
@given(st.binary(max_size=40), st.binary(max_size=20))
def test_character_sets_never_raise(raw: bytes, name: bytes) -> None:
    charset.decode(raw, charset.codec(name))


@given(st.binary(max_size=40), st.sampled_from(sorted(charset._CODECS)))
def test_every_codec_exists_and_replaces(raw: bytes, name: str) -> None:
    charset.decode(b"\x1b$)C" + raw, charset.codec(b"ISO_IR " + name.encode()))
    charset.decode(raw, charset.codec(b"ISO_IR " + name.encode()))
