"""The upper layer on bytes: the same events however they are cut, and every length checked before anything is allocated."""

from __future__ import annotations

import tracemalloc

import pytest

from appliance.dicom import dimse, pdu, upper
from appliance.dicom import indications as ind
from appliance.dicom.states import State
from appliance.dicom.upper import STAGING, UpperLayer
from appliance.errors import DimseError, PduError, ProtocolError, StateError
from tests.support import dicom_bytes as raw
from tests.support.upper_drive import Drive, associated

LONG = bytes(range(256)) * 160  # 40,960 bytes: longer than what is offered in one piece with staging
LONG_MESSAGE = raw.STORE_PDU + raw.data_pdu((3, 0, LONG)) + raw.data_pdu((3, 0, b"")) + raw.data_pdu((3, 2, b"end."))
CONVERSATION = raw.ASSOCIATE_RQ + raw.ECHO_PDU + raw.STORE_MESSAGE + raw.STORE_MESSAGE + raw.ECHO_PDU + raw.RELEASE_RQ


def _whole(direct: int = 0) -> list[tuple[object, ...]]:
    return Drive(UpperLayer.acceptor(), direct=direct).run([CONVERSATION])


def test_a_conversation():
    told = _whole()
    assert [entry[0] for entry in told] == ["requested", "CommandReceived", "CommandReceived", "data", "CommandReceived",
                                            "data", "CommandReceived", "release"]
    assert told[3] == told[5] == ("data", 3, raw.STORE_DATA)
    assert told[-1] == ("release", True)


@pytest.mark.requirement("PS3.8 9.3: any cutting of the stream")
@pytest.mark.parametrize("direct", [0, 7, 4096])
def test_one_byte_at_a_time(direct: int):
    drive = Drive(UpperLayer.acceptor(), direct=direct)
    assert drive.run(bytes((byte,)) for byte in CONVERSATION) == _whole()
    assert drive.layer.state is State.STA13
    assert not drive.layer.mid_pdu


@pytest.mark.requirement("PS3.8 9.3: any cutting of the stream")
@pytest.mark.parametrize("direct", [0, 5, 4096])
def test_split_at_every_offset(direct: int):
    expected = _whole()
    for offset in range(1, len(CONVERSATION)):
        drive = Drive(UpperLayer.acceptor(), direct=direct)
        assert drive.run([CONVERSATION[:offset], CONVERSATION[offset:]]) == expected, offset


@pytest.mark.parametrize("direct", [0, 1000, 32768, 1 << 20])
@pytest.mark.parametrize("piece", [11, 997, 16384, 65536])
def test_long_fragments(direct: int, piece: int):
    drive = associated(raw.ASSOCIATE_RQ, direct=direct)
    drive.run(LONG_MESSAGE[start:start + piece] for start in range(0, len(LONG_MESSAGE), piece))
    assert drive.told[1:] == [("data", 3, LONG + b"end.")]
    assert drive.layer.idle


def test_the_objects_buffer_is_filled_in_place_and_only_while_a_fragment_is_under_way():
    layer = associated(raw.ASSOCIATE_RQ).layer
    direct = memoryview(bytearray(1 << 20))
    assert len(layer.buffers(direct)) == 1, "no data set is under way"
    layer.feed(raw.STORE_PDU + raw.data_pdu((3, 2, LONG))[:12 + 10])
    first, behind = layer.buffers(direct)
    assert len(first) == len(LONG) - 10
    assert len(behind) == 12, "so that the next long fragment goes straight to the object"
    first[:4] = b"abcd"
    assert list(layer.received(4)) == [ind.Fragment(3, None, 4, False)]
    assert bytes(direct[:4]) == b"abcd"
    short = memoryview(bytearray(8))
    first, behind = layer.buffers(short)
    assert (len(first), len(behind)) == (8, STAGING), "short of the fragment: the rest is staged"
    first[:] = b"01234567"
    behind[:2] = b"89"
    fragments = list(layer.received(10))
    assert [f.length for f in fragments] == [8, 2]
    assert bytes(fragments[1].view) == b"89"
    assert layer.mid_pdu
    assert not layer.idle


def test_an_empty_data_set_has_a_last_fragment():
    layer = associated(raw.ASSOCIATE_RQ).layer
    _, fragment = layer.feed(raw.STORE_PDU + raw.data_pdu((3, 2, b"")))
    assert (fragment.length, fragment.last) == (0, True)
    assert layer.idle


@pytest.mark.requirement("hazard: pipelined requests")
def test_what_is_sent_ahead_waits_until_the_message_before_it_was_handled():
    layer = associated(raw.ASSOCIATE_RQ).layer
    staging = layer.buffers()[0]
    data = raw.STORE_MESSAGE * 2
    staging[:len(data)] = data
    events = iter(layer.received(len(data)))
    while not (isinstance(event := next(events), ind.Fragment) and event.last):
        pass
    assert layer.idle
    assert layer.mid_pdu, "the second message is still in the staging buffer, not parsed"
    assert isinstance(next(events), ind.CommandReceived)
    assert not layer.idle


def test_the_answer_to_an_event_is_in_force_for_the_bytes_behind_it():
    told = Drive(UpperLayer.acceptor()).run([raw.ASSOCIATE_RQ + raw.ECHO_PDU])
    assert [entry[0] for entry in told] == ["requested", "CommandReceived"]


@pytest.mark.requirement("hazard: PDU length 0xFFFFFFFF before associating")
@pytest.mark.parametrize("header", ["01 00 FFFFFFFF", "02 00 FFFFFFFF", "01 00 00020001", "01 00 00000043", "03 00 00000005",
                                    "05 00 00000003", "07 00 FFFFFFFF"])
@pytest.mark.parametrize("role", ["acceptor", "requestor"])
def test_a_length_is_checked_as_soon_as_the_header_is_there(header: str, role: str):
    layer = UpperLayer.acceptor()
    if role == "requestor":
        layer = UpperLayer.requestor()
        layer.request(pdu.decode(1, raw.ASSOCIATE_RQ[6:]))
    data = bytes.fromhex(header)
    layer.feed(b"")
    tracemalloc.start()
    try:
        layer.feed(data[:5])
        with pytest.raises(ProtocolError):
            layer.feed(data[5:])
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()
    assert layer.abort(2, 6)[0] == pdu.ABORT
    assert list(layer.received(0)) == []


@pytest.mark.requirement("hazard: P-DATA larger than negotiated")
def test_p_data_is_bounded_by_what_was_advertised():
    def layer(bound: int) -> UpperLayer:
        made = UpperLayer.acceptor()
        request = made.feed(raw.ASSOCIATE_RQ)[0].request
        accepted = (pdu.ContextResult(3, 0, "1.2.840.10008.1.2.1"),)
        made.accept(pdu.AssociateAccept(request.called, request.calling, accepted, bound))
        made.feed(raw.STORE_PDU)
        return made
    assert layer(16384).feed(raw.data_pdu((3, 0, bytes(16378)))[:12]) == []
    for bound in (16384, 4096):
        with pytest.raises(PduError):
            layer(bound).feed(raw.data_pdu((3, 0, bytes(16380)))[:6])
    plain = layer(16384)
    with pytest.raises(PduError):  # also where header and PDV come in one piece
        plain.feed(raw.data_pdu((3, 0, bytes(16380)))[:40])


@pytest.mark.requirement("hazard: command set without end")
def test_a_command_set_without_end_is_cut_off():
    layer = associated(raw.ASSOCIATE_RQ).layer
    part = raw.data_pdu((1, 1, bytes(1000)))
    for _ in range(16):
        layer.feed(part)
    with pytest.raises(PduError, match="without end"):
        layer.feed(part[:12])
    one = associated(raw.ASSOCIATE_RQ).layer
    with pytest.raises(PduError, match="without end"):
        one.feed(raw.data_pdu((1, 1, bytes(dimse.MAX_COMMAND_SET + 1)))[:12])


BAD_MESSAGES = {
    "context that was not proposed": raw.data_pdu((5, 3, raw.ECHO_COMMAND)),
    "context 0": raw.data_pdu((0, 3, raw.ECHO_COMMAND)),
    "data set without a command": raw.data_pdu((3, 2, b"abcd")),
    "data set behind a command that has none": raw.ECHO_PDU + raw.data_pdu((1, 2, b"abcd")),
    "data set before the command is whole": raw.data_pdu((3, 1, raw.STORE_COMMAND[:20])) + raw.data_pdu((3, 2, b"abcd")),
    "command in the middle of a data set": raw.STORE_PDU + raw.data_pdu((3, 0, b"ab")) + raw.STORE_PDU,
    "another context in the middle of a data set": raw.STORE_PDU + raw.data_pdu((3, 0, b"ab")) + raw.data_pdu((1, 2, b"ab")),
    "another context in the middle of a command": raw.data_pdu((3, 1, raw.STORE_COMMAND[:20])) + raw.data_pdu((1, 1, b"ab")),
    "third fragment after the last": raw.STORE_MESSAGE + raw.data_pdu((3, 2, b"ab")),
    "PDV longer than its PDU": bytes.fromhex("04000000000A 0000000903 03 00000000"),
    "PDV of no length": bytes.fromhex("04000000000A 00000000 03 03 00000000"),
    "PDV of length 1": bytes.fromhex("04000000000A 00000001 03 03 00000000"),
    "P-DATA without a PDV": bytes.fromhex("040000000000"),
    "P-DATA of 5 bytes": bytes.fromhex("040000000005 0000000203"),
    "bytes behind a PDV": b"\x04\0\0\0\0\x0b\0\0\0\x04\3\1ab\0\0\0",
    "empty command set": raw.data_pdu((1, 3, b"")),
    "command set that is none": raw.data_pdu((1, 3, b"\0" * 9)),
}


@pytest.mark.requirement("PS3.7 6.3, PS3.8 annex E")
@pytest.mark.parametrize("name", BAD_MESSAGES)
@pytest.mark.parametrize("piece", [1, 100000])
def test_a_message_that_breaks_the_rules(name: str, piece: int):
    drive = associated(raw.ASSOCIATE_RQ)
    data = BAD_MESSAGES[name]
    drive.run(data[start:start + piece] for start in range(0, len(data), piece))
    assert isinstance(drive.error, PduError | DimseError), drive.told
    assert drive.layer.state is State.STA13
    assert drive.layer.idle
    assert drive.sent[-1][:1] == b"\x07"
    assert drive.layer.feed(raw.ECHO_PDU) == []


@pytest.mark.requirement("hazard: TLS on a plain port")
def test_what_is_not_dicom_is_known_by_its_first_byte():
    for first, words in ((b"\x16", "TLS"), (b"G", "HTTP"), (b"\0", "unknown"), (b"\xff", "unknown")):
        with pytest.raises(PduError, match=words) as caught:
            UpperLayer.acceptor().feed(first)
        assert caught.value.reason == pdu.UNRECOGNIZED_PDU


@pytest.mark.requirement("threat: hostile answers")
@pytest.mark.parametrize("old, new", [
    (b"\x21\0\0\x1b\x03", b"\x21\0\0\x1b\x05"),                    # a context that we did not propose
    (b"\x40\0\0\x131.2.840.10008.1.2.1", b"\x40\0\0\x131.2.840.10008.1.2.2"),  # a syntax that we did not propose
])
def test_an_answer_to_what_we_did_not_propose_is_refused(old: bytes, new: bytes):
    layer = UpperLayer.requestor()
    layer.request(pdu.decode(1, raw.ASSOCIATE_RQ[6:]))
    assert old in raw.ASSOCIATE_AC
    with pytest.raises(PduError):
        layer.feed(raw.ASSOCIATE_AC.replace(old, new))
    assert layer.contexts == {}


def test_contexts_in_force():
    layer = UpperLayer.requestor()
    layer.request(pdu.decode(1, raw.ASSOCIATE_RQ[6:]))
    layer.feed(raw.ASSOCIATE_AC)
    assert layer.contexts[3] == ind.AcceptedContext(3, "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1")
    assert layer.peer_max_length == 4096
    assert layer.fragment_limit() == 4090
    assert layer.fragment_limit(1000) == 994


@pytest.mark.parametrize(("peer", "limit"), [(0, 131066), (16384, 16378), (16383, 16376), (7, 2), (1, 2), (2**32 - 1, 131066)])
def test_fragments_fit_the_peers_maximum_and_have_an_even_length(peer: int, limit: int):
    layer = UpperLayer.acceptor()
    layer.peer_max_length = peer
    assert layer.fragment_limit() == limit


def test_a_command_is_split_at_the_peers_maximum():
    layer = associated(raw.ASSOCIATE_RQ).layer
    assert layer.send_command(1, raw.ECHO_COMMAND) == raw.ECHO_PDU
    layer.peer_max_length = 36
    sent = layer.send_command(1, raw.ECHO_COMMAND)
    assert sent == (raw.data_pdu((1, 1, raw.ECHO_COMMAND[:30])) + raw.data_pdu((1, 1, raw.ECHO_COMMAND[30:60]))
                    + raw.data_pdu((1, 3, raw.ECHO_COMMAND[60:])))
    assert layer.feed(sent)[0].command.message_id == 7


def test_a_release_in_the_middle_of_a_message_says_so():
    told = Drive(UpperLayer.acceptor()).run([raw.ASSOCIATE_RQ + raw.STORE_PDU + raw.data_pdu((3, 0, b"ab")) + raw.RELEASE_RQ])
    assert told[-1] == ("release", False)


def test_the_peer_aborts():
    layer = associated(raw.ASSOCIATE_RQ).layer
    layer.feed(raw.STORE_PDU)
    assert layer.feed(raw.ABORT) == [ind.Aborted(2, 6, True)]
    assert (layer.state, layer.idle, layer.closed()) == (State.STA1, True, [])


def test_the_connection_ends_in_the_middle_of_an_object():
    layer = associated(raw.ASSOCIATE_RQ).layer
    layer.feed(raw.STORE_PDU)
    assert layer.closed() == [ind.Aborted(2, 0, False)]


def test_p_data_that_crosses_our_release_request_is_still_told():
    layer = UpperLayer.requestor()
    layer.request(pdu.decode(1, raw.ASSOCIATE_RQ[6:]))
    layer.feed(raw.ASSOCIATE_AC)
    layer.release()
    assert isinstance(layer.feed(raw.ECHO_PDU)[0], ind.CommandReceived)
    assert layer.feed(raw.RELEASE_RP) == [ind.Released()]


def test_after_a_refusal_what_the_peer_sends_is_skipped():
    layer = UpperLayer.acceptor()
    layer.feed(raw.ASSOCIATE_RQ)
    assert layer.reject(1, 1, 7) == bytes.fromhex("03000000000400010107")
    for offset in (3, 9, 60):
        assert layer.feed(raw.ECHO_PDU[:offset]) == []
        assert layer.feed(raw.ECHO_PDU[offset:]) == []
    assert not layer.mid_pdu
    assert layer.feed(raw.ABORT) == []
    assert layer.state is State.STA1


def test_nothing_is_sent_before_it_is_possible():
    layer = UpperLayer.acceptor()
    for call in (layer.release, layer.release_reply, lambda: layer.reject(1, 1, 1), lambda: layer.send_command(1, b"")):
        with pytest.raises(StateError):
            call()


def test_an_idle_association_holds_no_staging_buffer():
    layer = associated(raw.ASSOCIATE_RQ).layer
    layer.feed(raw.ECHO_PDU)
    upper._pool.clear()
    layer.rest()
    assert len(upper._pool) == 1
    layer.rest()
    assert len(upper._pool) == 1
    layer.feed(raw.ECHO_PDU[:4])
    layer.rest()
    assert upper._pool == [], "it holds the first bytes of a PDU"
    assert len(layer.feed(raw.ECHO_PDU[4:])) == 1


def test_feed_tells_what_came_before_a_violation_first():
    layer = associated(raw.ASSOCIATE_RQ).layer
    assert len(layer.feed(raw.ECHO_PDU + b"\x99")) == 1
    with pytest.raises(PduError):
        layer.feed(b"")
