"""Structured fuzzing: hypothesis builds what is well made but odd, and damages some of it; libFuzzer chooses what it builds.

Each is an ordinary property test as well (`STRUCTURED[name]()`), and a target of
bytes by `hypothesis.fuzz_one_input`.
"""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.dicom import part10, pdu
from appliance.dicom.elements import LONG, SHORT
from appliance.errors import HeadError
from appliance.model import Custody, Source
from tests.proof import fuzz_meaning, fuzz_targets
from tests.proof.fuzz_targets import same
from tests.support import dicom_bytes, objects
from tests.support.dicom_mutations import ACCEPTS, REQUESTS, mutate

EXAMPLES = settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))

seeds = st.none() | st.integers(0, 2 ** 32)
"""How a well-made input is damaged; None: not at all."""


def damaged(data: bytes, seed: int | None) -> bytes:
    return mutate(seed, data) if seed is not None and data else data


# --- messages ---------------------------------------------------------------------------------------------------------

_numbers = st.sampled_from((b"\1\0", b"\x30\0", b"\x20\0", b"\xff\x0f", b"\1\x80", b"\1\1", b"\0\0", b"\0\xa7", b"",
                            b"\1\0\1\0"))
_uids = st.sampled_from((b"1.2.840.10008.1.1\0", b"1.2.840.10008.5.1.4.1.1.2\0", b"1.2.3", b"", b"../../x\0", b"1" * 65))
_elements = st.lists(st.one_of(
    st.tuples(st.sampled_from((0x0100, 0x0110, 0x0120, 0x0700, 0x0800, 0x0900)), _numbers),
    st.tuples(st.sampled_from((0x0002, 0x0003, 0x1000, 0x1001)), _uids),
    st.tuples(st.integers(0, 0xFFFF), st.binary(max_size=12))), max_size=9)
command_sets = st.sampled_from((dicom_bytes.ECHO_COMMAND, dicom_bytes.STORE_COMMAND)) | st.builds(
    lambda made, ascending: b"".join(dicom_bytes.element(*one) for one in (sorted(made) if ascending else made)),
    _elements, st.booleans())


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Whole messages in fragments of any size, several in a PDU, now and then in the wrong context or order."""
    values: list[tuple[int, int, bytes]] = []
    for _ in range(draw(st.integers(1, 4))):
        context = draw(st.sampled_from((1, 3, 3, 5)))
        parts = [(1, draw(command_sets))]
        if draw(st.booleans()):
            parts.append((0, draw(st.binary(max_size=200))))
        for kind, body in parts:
            size = draw(st.sampled_from((1, 2, 16, 4096)))
            pieces = [body[at:at + size] for at in range(0, len(body), size)][:60] or [b""]
            values += [(context, kind | (2 if n == len(pieces) - 1 else 0), piece) for n, piece in enumerate(pieces)]
    stream = b""
    while values:
        count = draw(st.sampled_from((1, 1, 2, 7)))
        stream += dicom_bytes.data_pdu(*values[:count])
        del values[:count]
    return stream


@EXAMPLES
@given(streams(), seeds, st.integers(0, 255), st.sampled_from((b"", dicom_bytes.RELEASE_RQ, dicom_bytes.ABORT)))
def structured_messages(stream: bytes, seed: int | None, cut: int, end: bytes) -> None:
    """Any messages on an association, whole and in pieces, and against pynetdicom."""
    fuzz_targets.messages(bytes((cut,)) + damaged(stream + end, seed))
    fuzz_targets.acceptor(bytes((cut,)) + dicom_bytes.ASSOCIATE_RQ + damaged(stream + end, seed))


@EXAMPLES
@given(REQUESTS | ACCEPTS, seeds)
def structured_pdus(value: pdu.AssociateRequest | pdu.AssociateAccept, seed: int | None) -> None:
    """Association PDUs as we make them, and damaged ones, against pynetdicom."""
    made = damaged(pdu.encode(value), seed)
    if len(made) > 6:
        body = made[:1] + made[6:]
        fuzz_targets.pdus(body)
        fuzz_targets.pdu_meaning(body)


# --- data sets --------------------------------------------------------------------------------------------------------

_ODD = (0x00080000, 0x00090010, 0x00280103, 0x00283002, 0x00283006, 0x0040A730, 0x50003000, 0x60003000, 0x7FE00010, 0xFFFCFFFC)
_tags = st.sampled_from(sorted(fuzz_targets.WANTED)) | st.sampled_from(_ODD) | st.integers(0x00080000, 0xFFFBFFFF)
_vrs = st.sampled_from([*sorted(vr.decode() for vr in SHORT | LONG), "QQ"])
_values = st.binary(max_size=30) | st.sampled_from((
    b"ISO_IR 192", b"\\ISO 2022 IR 87", b"GEMS_IDEN_01", "Wang^小东".encode(), b"\x1b$B;3ED\x1b(B", b"0.5\\0.5", b"\1\0",
    b"\0\1"))
_lengths = st.sampled_from((None, None, None, None, 0xFFFFFFFF, 0xFFFFFFFE, 0, 7))
Node = tuple[int, str, Any, int | None]


def _nodes(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Node]]:
    plain = st.tuples(_tags, _vrs, _values, _lengths)
    sequence = st.tuples(_tags, st.just("SQ"), st.lists(inner, max_size=3), st.sampled_from((None, 0xFFFFFFFF)))
    return st.lists(plain | sequence, max_size=5)


data_sets = st.recursive(st.lists(st.tuples(_tags, _vrs, _values, _lengths), max_size=6), _nodes, max_leaves=12)


def encoded(nodes: list[Node], implicit: bool, ascending: bool) -> bytes:
    """The data set, sequences and items with the lengths that they say."""
    syntax = objects.IMPLICIT if implicit else objects.EXPLICIT
    out = b""
    for tag, vr, value, length in sorted(nodes, key=lambda node: node[0]) if ascending else nodes:
        if vr == "SQ" and isinstance(value, list):
            body = b""
            for item in value:
                inner = encoded(item, implicit, ascending)
                open_end = length == 0xFFFFFFFF
                body += struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF if open_end else len(inner)) + inner
                body += struct.pack("<HHL", 0xFFFE, 0xE00D, 0) if open_end else b""
            body += struct.pack("<HHL", 0xFFFE, 0xE0DD, 0) if length == 0xFFFFFFFF else b""
            out += objects.element(tag, "SQ", body, syntax, length=length)
        elif not isinstance(value, list):
            short = not implicit and vr not in objects.LONG
            out += objects.element(tag, vr, value, syntax, length=length and length & 0xFFFF if short else length)
    return out


@EXAMPLES
@given(data_sets, st.booleans(), st.booleans(), seeds)
def structured_data_sets(nodes: list[Node], implicit: bool, ascending: bool, seed: int | None) -> None:
    """Any data set: its tags, its recoding, and both against pydicom."""
    data = damaged(encoded(nodes, implicit, ascending), seed)
    for number in (int(implicit), 1 - int(implicit)):        # as it is, and by a sender that lies about its syntax
        told = bytes((number,)) + data
        fuzz_targets.elements(told)
        fuzz_targets.recoding(told)
        fuzz_meaning.element_meaning(told)
        fuzz_meaning.recoding_meaning(told)


# --- heads ------------------------------------------------------------------------------------------------------------

_text = st.text(max_size=24)
_raw = st.binary(max_size=80) | st.just(b"1.2.3") | st.binary(min_size=500, max_size=600)
custodies = st.builds(
    Custody, number=st.integers(1, 2 ** 63 - 1), boot=st.integers(0, 2 ** 40), since_boot=st.integers(0, 2 ** 63 - 1),
    wall=st.integers(-2 ** 62, 2 ** 63 - 1), sop_class=_raw, sop_instance=_raw,
    transfer_syntax=st.from_regex(r"[0-9.]{0,64}", fullmatch=True), length=st.integers(0, 2 ** 63 - 1),
    digest=st.binary(min_size=32, max_size=32),
    source=st.builds(Source, listener=_text, calling=st.text(max_size=16), called=st.text(max_size=16),
                     raw_calling=st.binary(max_size=16), raw_called=st.binary(max_size=16), address=_text,
                     port=st.integers(0, 65535), peer=_text, certificate=_text, implementation=st.text(max_size=16)))


@EXAMPLES
@given(custodies, seeds)
def structured_heads(custody: Custody, seed: int | None) -> None:
    """Any custody record comes back whole; a damaged one is refused, or with a right CRC read as what it says."""
    try:
        head = part10.build_head(custody)
    except HeadError:
        return
    same(part10.parse_head(head), custody, "written and read")
    fuzz_targets.heads(damaged(head[132:], seed))


STRUCTURED: dict[str, Any] = {
    "structured_pdus": structured_pdus, "structured_messages": structured_messages,
    "structured_data_sets": structured_data_sets, "structured_heads": structured_heads,
}
