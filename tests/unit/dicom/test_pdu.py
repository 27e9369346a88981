"""Association PDUs: what the bytes mean, and that bad ones are refused with our own error."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dicom import pdu
from appliance.errors import PduError
from tests.support import dicom_bytes as raw
from tests.support.dicom_bytes import hexed
from tests.support.dicom_mutations import ACCEPTS, REQUESTS


def test_associate_request():
    request = pdu.decode(1, raw.ASSOCIATE_RQ[6:])
    assert isinstance(request, pdu.AssociateRequest)
    assert request.called == raw.CALLED
    assert request.calling == raw.CALLING
    assert request.contexts == (
        pdu.ProposedContext(1, "1.2.840.10008.1.1", ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")),
        pdu.ProposedContext(3, "1.2.840.10008.5.1.4.1.1.2", ("1.2.840.10008.1.2.1",)))
    assert (request.max_length, request.implementation_uid, request.implementation_version) == (16384, "1.2.3", "ABC")
    assert request.application_context == "1.2.840.10008.3.1.1.1"
    assert pdu.encode(request) == raw.ASSOCIATE_RQ


@pytest.mark.requirement("PS3.7 D.3.3")
def test_associate_request_with_every_sub_item():
    request = pdu.decode(1, memoryview(raw.RICH_ASSOCIATE_RQ)[6:])
    assert isinstance(request, pdu.AssociateRequest)
    assert request.contexts == (pdu.ProposedContext(255, "1.2.4", ("1.2.840.10008.1.2",)),)
    assert request.max_length == 0
    assert request.asynchronous == (5, 2)
    assert request.roles == (pdu.RoleSelection("1.2.840.10008.1.1", False, True), pdu.RoleSelection("1.2.4", True, True))
    assert request.extended == (pdu.ExtendedNegotiation("1.2.4", b"\2\0\3\0\1"),)
    assert request.common_extended == (pdu.CommonExtendedNegotiation("1.2.4", "1.2.4.5.6", ("1.2.7", "1.2.8")),)
    assert request.user_identity == pdu.UserIdentity(2, True, b"anna", b"key")
    assert "key" not in repr(request)
    assert pdu.decode(1, pdu.encode(request)[6:]) == request


def test_associate_accept():
    accept = pdu.decode(2, raw.ASSOCIATE_AC[6:])
    assert isinstance(accept, pdu.AssociateAccept)
    assert accept.contexts == (pdu.ContextResult(1, 0, "1.2.840.10008.1.2"), pdu.ContextResult(3, 0, "1.2.840.10008.1.2.1"))
    assert (accept.max_length, accept.implementation_uid, accept.implementation_version) == (4096, "1.2.9", "XYZ")
    assert pdu.encode(accept) == raw.ASSOCIATE_AC


def test_the_short_ones():
    for kind, data, value in ((3, raw.ASSOCIATE_RJ, pdu.AssociateReject(2, 3, 2)), (5, raw.RELEASE_RQ, pdu.ReleaseRequest()),
                              (6, raw.RELEASE_RP, pdu.ReleaseReply()), (7, raw.ABORT, pdu.Abort(2, 6))):
        assert pdu.decode(kind, data[6:]) == value
        assert pdu.encode(value) == data
        for wrong in (data[6:-1], data[6:] + b"\0", b""):
            with pytest.raises(PduError):
                pdu.decode(kind, wrong)


def test_data_header():
    assert pdu.data_header(3, 90 + 12, command=True, last=True) == hexed("04 00 0000006C 00000068 03 03")
    assert pdu.data_header(255, 0, command=False, last=False) == hexed("04 00 00000006 00000002 FF 00")
    assert pdu.data_header(1, 16378, command=False, last=True) == hexed("04 00 00004000 00003FFC 01 02")


def test_titles():
    assert pdu.title_bytes("PACS") == b"PACS            "
    assert pdu.title_bytes("A" * 20) == b"A" * 16
    assert pdu.title_text(b"  PACS          ") == "PACS"
    assert pdu.title_text(b"PACS" + bytes(12)) == "PACS"
    assert pdu.title_text(bytes(range(240, 256))) == bytes(range(240, 256)).decode("latin-1")


def _body(*items: bytes, head: bytes = raw.ASSOCIATE_RQ[6:74]) -> bytes:
    return head + b"".join(items)


CONTEXT = hexed("20 00 0012  01 00 00 00") + hexed("30 00 0003") + b"1.2" + hexed("40 00 0003") + b"1.3"


@pytest.mark.requirement("CVE class: malformed or repeated A-ASSOCIATE-RQ")
@pytest.mark.parametrize("body", [
    b"",
    raw.ASSOCIATE_RQ[6:73],
    _body(b"\x10\0\0"),
    _body(b"\x10\0\0\x05abcd"),
    _body(b"\x10\0\0\x01a", b"\x10\0\0\x01a"),
    _body(CONTEXT, CONTEXT),
    _body(CONTEXT[:4] + b"\x02" + CONTEXT[5:]),
    _body(CONTEXT[:4] + b"\x00" + CONTEXT[5:]),
    _body(b"\x20\0\0\x03\1\0\0"),
    _body(b"\x20\0\0\x04\1\0\0\0"),
    _body(b"\x20\0\0\x0e\1\0\0\0\x30\0\0\1a\x30\0\0\1b"),
    _body(b"\x20\0\0\x08\1\0\0\0\x30\0\0\1"),
    _body(b"\x50\0\0\0", b"\x50\0\0\0"),
    _body(b"\x50\0\0\x07\x51\0\0\x03\0\0\0"),
    _body(b"\x50\0\0\x10\x51\0\0\x04\0\0\x40\0\x51\0\0\x04\0\0\x40\0"),
    _body(b"\x50\0\0\x06\x53\0\0\x02\0\0"),
    _body(b"\x50\0\0\x05\x54\0\0\x01\0"),
    _body(b"\x50\0\0\x07\x54\0\0\x03\0\x05a"),
    _body(b"\x50\0\0\x07\x54\0\0\x03\0\x01a"),
    _body(b"\x50\0\0\x05\x58\0\0\x01\x01"),
    _body(b"\x50\0\0\x08\x58\0\0\x04\x01\0\0\x09"),
    _body(b"\x50\0\0\x05\x56\0\0\x01\x01"),
    _body(b"\x50\0\0\x05\x57\0\0\x01\x01"),
])
def test_a_malformed_request_is_refused(body: bytes):
    with pytest.raises(PduError) as caught:
        pdu.decode(1, body)
    assert caught.value.reason == pdu.INVALID_PARAMETER


def test_an_accepted_context_names_one_syntax():
    with pytest.raises(PduError):
        pdu.decode(2, raw.ASSOCIATE_AC[6:74] + hexed("21 00 0004 01 00 00 00"))
    refused = pdu.decode(2, raw.ASSOCIATE_AC[6:74] + hexed("21 00 0004 01 00 03 00"))
    assert isinstance(refused, pdu.AssociateAccept)
    assert refused.contexts == (pdu.ContextResult(1, 3, ""),)


def test_absent_items_have_defaults():
    bare = pdu.decode(1, raw.ASSOCIATE_RQ[6:74])
    assert isinstance(bare, pdu.AssociateRequest)
    assert (bare.contexts, bare.max_length, bare.application_context) == ((), 0, "")


@pytest.mark.parametrize("kind", [0, 4, 8, 255])
def test_an_unknown_type(kind: int):
    with pytest.raises(PduError) as caught:
        pdu.decode(kind, bytes(4))
    assert caught.value.reason == pdu.UNRECOGNIZED_PDU


def test_an_association_pdu_has_a_largest_length():
    with pytest.raises(PduError):
        pdu.decode(1, raw.ASSOCIATE_RQ[6:] + bytes(pdu.MAX_ASSOCIATION_PDU))


@settings(max_examples=150, deadline=None)
@given(REQUESTS | ACCEPTS)
def test_round_trip(value: pdu.AssociateRequest | pdu.AssociateAccept):
    data = pdu.encode(value)
    assert int.from_bytes(data[2:6], "big") == len(data) - 6
    assert pdu.decode(data[0], data[6:]) == value


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 255), st.binary(max_size=300) | st.binary(max_size=200).map(lambda b: raw.ASSOCIATE_RQ[6:74] + b))
def test_any_bytes_are_parsed_or_refused(kind: int, body: bytes):
    with contextlib.suppress(PduError):
        pdu.decode(kind, body)
