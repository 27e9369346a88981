"""Command sets: what the bytes mean, what we send, and that pydicom reads it alike."""

from __future__ import annotations

from io import BytesIO

import pytest
from pydicom.filereader import read_dataset

from appliance.dicom import dimse
from appliance.errors import DimseError
from tests.support import dicom_bytes as raw
from tests.support.dicom_bytes import element


def test_store_request():
    command = dimse.decode(raw.STORE_COMMAND)
    assert command == dimse.Command(0x0001, 9, None, b"1.2.840.10008.5.1.4.1.1.2", b"1.2.3.4", 0, True)
    assert dimse.store_request(9, b"1.2.840.10008.5.1.4.1.1.2", b"1.2.3.4") == raw.STORE_COMMAND


def test_echo_request():
    assert dimse.decode(raw.ECHO_COMMAND) == dimse.Command(0x0030, 7, None, b"1.2.840.10008.1.1")
    assert dimse.echo_request(7) == raw.ECHO_COMMAND


@pytest.mark.requirement("PS3.7 9.3.1.2")
def test_store_response_as_pydicom_reads_it():
    request = dimse.decode(raw.STORE_COMMAND)
    data = dimse.store_response(request, dimse.OUT_OF_RESOURCES, "no room left")
    theirs = read_dataset(BytesIO(data), is_implicit_VR=True, is_little_endian=True)
    assert theirs.CommandGroupLength == len(data) - 12
    assert (theirs.CommandField, theirs.MessageIDBeingRespondedTo, theirs.Status) == (0x8001, 9, 0xA700)
    assert (theirs.AffectedSOPClassUID, theirs.AffectedSOPInstanceUID) == ("1.2.840.10008.5.1.4.1.1.2", "1.2.3.4")
    assert (theirs.ErrorComment, theirs.CommandDataSetType) == ("no room left", 0x0101)
    assert [e.tag for e in theirs] == sorted(e.tag for e in theirs)
    ours = dimse.decode(data)
    assert (ours.is_response, ours.status, ours.comment, ours.responded_id) == (True, 0xA700, "no room left", 9)


@pytest.mark.requirement("hazard: UID ../../x, NUL, 65 characters")
@pytest.mark.parametrize("uid", [b"../../x", b"$(id)", b"1.2\0.3", b"1" * 65, bytes(range(1, 32)), b"\xff\xfe", b""])
def test_the_uids_of_a_request_come_back_as_they_were(uid: bytes):
    request = dimse.decode(dimse.store_request(1, b"1.2.3 ", uid))
    assert request.sop_instance == uid
    echoed = dimse.decode(dimse.store_response(request, 0))
    assert (echoed.sop_class, echoed.sop_instance) == (b"1.2.3", uid)


def test_a_comment_is_cut_at_64_characters():
    response = dimse.store_response(dimse.Command(1, 1), 0xC000, "ä" * 100)
    assert dimse.decode(response).comment == "?" * 64


def test_any_request_has_a_response():
    move = dimse.Command(0x0021, 3, sop_class=b"1.2", has_data_set=True)
    answered = dimse.decode(dimse.response(move, dimse.UNRECOGNISED_OPERATION))
    assert (answered.field, answered.responded_id, answered.status, answered.has_data_set) == (0x8021, 3, 0x0211, False)
    assert dimse.decode(dimse.echo_response(dimse.decode(raw.ECHO_COMMAND))).status == 0


def test_requested_uids_stand_in_for_affected_ones():
    action = dimse.decode(element(0x0003, b"1.2\0") + element(0x0100, b"\x30\x01") + element(0x0110, b"\1\0")
                          + element(0x0800, b"\1\0") + element(0x1001, b"1.3\0") + element(0x1008, b"\1\0"))
    assert (action.field, action.sop_class, action.sop_instance) == (dimse.N_ACTION_RQ, b"1.2", b"1.3")
    assert action.others[0x1008] == b"\1\0"


GOOD = {0x0100: b"\x30\0", 0x0110: b"\1\0", 0x0800: b"\1\1"}


def _set(**changes: bytes | None) -> bytes:
    elements = GOOD | {int(key[1:], 16): value for key, value in changes.items()}
    return b"".join(element(number, value) for number, value in sorted(elements.items()) if value is not None)


@pytest.mark.parametrize("data", [
    b"", b"\0", raw.ECHO_COMMAND[:-1], raw.ECHO_COMMAND + b"\0",
    _set(x0100=None), _set(x0110=None), _set(x0800=None), _set(x0100=b"\x30"), _set(x0110=b"\1\0\0\0"), _set(x0800=b""),
    _set(x0700=b"\0"), _set() + element(0x0110, b"\2\0"), _set() + b"\x08\0\x18\0\0\0\0\0",
    element(0x0900, b"\0") + _set(),
    _set(x0100=b"\x01\x80"), _set(x0100=b"\x01\x80", x0120=b"\1\0"), _set(x0100=b"\x01\x80", x0900=b"\0\0"),
    _set(x0100=b"\xff\x0f"),
    element(0x0002, b"1.2")[:4] + b"\xff\xff\xff\xff" + _set(),
])
def test_a_bad_command_set_is_refused(data: bytes):
    with pytest.raises(DimseError):
        dimse.decode(data)


def test_a_cancel_names_what_it_cancels():
    cancel = dimse.decode(element(0x0100, b"\xff\x0f") + element(0x0120, b"\5\0") + element(0x0800, b"\1\1"))
    assert (cancel.field, cancel.responded_id, cancel.message_id) == (dimse.C_CANCEL_RQ, 5, None)
