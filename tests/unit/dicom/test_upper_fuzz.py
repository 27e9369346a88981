"""Any bytes are parsed or refused with a ProtocolError; never another exception, and never without bound."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dicom import dimse, pdu
from appliance.dicom.states import State
from appliance.dicom.upper import UpperLayer
from appliance.errors import DimseError
from tests.support import dicom_bytes as raw
from tests.support.dicom_mutations import mutate
from tests.support.upper_drive import Drive, associated

CONVERSATION = raw.ASSOCIATE_RQ + raw.ECHO_PDU + raw.STORE_MESSAGE + raw.RELEASE_RQ
RICH = raw.RICH_ASSOCIATE_RQ + raw.data_pdu((255, 3, raw.STORE_COMMAND)) + raw.data_pdu((255, 2, b"abcd")) + raw.RELEASE_RQ


@pytest.mark.requirement("hazard: 1,500 mutated inputs")
@pytest.mark.parametrize("name", ["plain", "rich"])
def test_mutated_conversations(name: str):
    data = CONVERSATION if name == "plain" else RICH
    refused = 0
    for seed in range(1500):
        mutated = mutate(seed, data)
        dice = random.Random(-seed)
        drive = Drive(UpperLayer.acceptor(), direct=dice.choice((0, 6, 4096)))
        cut = dice.randrange(len(mutated))
        drive.run([mutated[:cut], mutated[cut:]])
        refused += drive.error is not None
        whole = Drive(UpperLayer.acceptor())
        assert whole.run([mutated]) == drive.told, f"seed {seed}: how the bytes are cut changes what they mean"
    assert 300 < refused < 1450, "the mutations must neither all be harmless nor all be refused"


@pytest.mark.requirement("hazard: 1,500 mutated inputs")
def test_mutated_answers():
    request = pdu.decode(1, raw.ASSOCIATE_RQ[6:])
    assert isinstance(request, pdu.AssociateRequest)
    response = dimse.store_response(dimse.decode(raw.STORE_COMMAND), 0, "all is well")
    for seed in range(1500):
        layer = UpperLayer.requestor()
        layer.request(request)
        Drive(layer).run([mutate(seed, raw.ASSOCIATE_AC + raw.data_pdu((3, 3, response)) + raw.RELEASE_RP)])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200) | st.tuples(st.integers(1, 7), st.binary(max_size=200)).map(
    lambda p: bytes((p[0], 0)) + len(p[1]).to_bytes(4, "big") + p[1]))
def test_any_bytes_before_an_association(data: bytes):
    drive = Drive(UpperLayer.acceptor())
    drive.run([data])
    assert drive.layer.state in (State.STA1, State.STA2, State.STA6, State.STA13)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from((1, 3, 5)), st.integers(0, 7), st.binary(max_size=40)
                          | st.sampled_from((raw.STORE_COMMAND, raw.ECHO_COMMAND))), max_size=6), st.binary(max_size=20))
def test_any_messages_on_an_association(values: list[tuple[int, int, bytes]], rest: bytes):
    data = b"".join(raw.data_pdu(value) for value in values) + rest
    whole, bytewise = associated(raw.ASSOCIATE_RQ), associated(raw.ASSOCIATE_RQ, direct=3)
    whole.run([data])
    bytewise.run(bytes((byte,)) for byte in data)
    assert whole.told == bytewise.told


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120) | st.lists(st.tuples(st.sampled_from((0x0002, 0x0100, 0x0110, 0x0120, 0x0800, 0x0900, 0x1000)),
                                                    st.binary(max_size=6)), max_size=8).map(
    lambda parts: b"".join(raw.element(number, value) for number, value in parts)))
def test_any_command_set(data: bytes):
    with contextlib.suppress(DimseError):
        dimse.decode(data)
