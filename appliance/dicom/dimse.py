"""DIMSE command sets (PS3.7 chapters 6 and 9, annexes C and E): always Implicit VR Little Endian, always group 0000.

`decode` raises `DimseError` only. UIDs stay bytes, without their padding: they
come from a peer and need not be valid.
"""

from __future__ import annotations

import dataclasses
from struct import Struct

from appliance.dicom.pdu import INVALID_PARAMETER
from appliance.errors import DimseError

MAX_COMMAND_SET = 16384
"""Longest command set that is collected, in bytes."""

# Command fields (PS3.7 E.1); a response is its request with the high bit set
C_STORE_RQ, C_GET_RQ, C_FIND_RQ, C_MOVE_RQ, C_ECHO_RQ = 0x0001, 0x0010, 0x0020, 0x0021, 0x0030
N_EVENT_REPORT_RQ, N_GET_RQ, N_SET_RQ, N_ACTION_RQ, N_CREATE_RQ, N_DELETE_RQ = 0x0100, 0x0110, 0x0120, 0x0130, 0x0140, 0x0150
C_CANCEL_RQ = 0x0FFF
RESPONSE = 0x8000
C_STORE_RSP, C_ECHO_RSP = C_STORE_RQ | RESPONSE, C_ECHO_RQ | RESPONSE

NO_DATA_SET = 0x0101
"""Command Data Set Type (0000,0800) that says that no data set follows."""

# Statuses (PS3.7 annex C; PS3.4 B.2.3 for storage)
SUCCESS = 0x0000
CANCEL = 0xFE00
PENDING = 0xFF00
PROCESSING_FAILURE = 0x0110
NO_SUCH_INSTANCE = 0x0112
INVALID_INSTANCE = 0x0117
NO_SUCH_SOP_CLASS = 0x0118
SOP_CLASS_NOT_SUPPORTED = 0x0122
NOT_AUTHORISED = 0x0124
DUPLICATE_INVOCATION = 0x0210
UNRECOGNISED_OPERATION = 0x0211
MISTYPED_ARGUMENT = 0x0212
RESOURCE_LIMITATION = 0x0213
OUT_OF_RESOURCES = 0xA700
DOES_NOT_MATCH_CLASS = 0xA900
CANNOT_UNDERSTAND = 0xC000
COERCED = 0xB000
ELEMENTS_DISCARDED = 0xB006
DOES_NOT_MATCH_CLASS_WARNING = 0xB007

# Priorities (0000,0700)
MEDIUM, HIGH, LOW = 0x0000, 0x0001, 0x0002

_ELEMENT = Struct("<HHI")
_U16 = Struct("<H")
_US = Struct("<HHIH")
_UL = Struct("<HHII")


@dataclasses.dataclass(slots=True)
class Command:
    """One command set. `others` holds every element that has no attribute here, by element number of group 0000.

    `sop_class` and `sop_instance` are the Affected or else the Requested ones.
    `message_id` is None in responses and C-CANCEL, `responded_id` in requests,
    `status` in requests.
    """

    field: int
    message_id: int | None = None
    responded_id: int | None = None
    sop_class: bytes = b""
    sop_instance: bytes = b""
    priority: int = MEDIUM
    has_data_set: bool = False
    status: int | None = None
    others: dict[int, bytes] = dataclasses.field(default_factory=dict)

    @property
    def is_response(self) -> bool:
        return bool(self.field & RESPONSE)

    @property
    def comment(self) -> str:
        """Error Comment (0000,0902): the peer's words, at most 64 characters; escape before showing."""
        return self.others.get(0x0902, b"").decode("latin-1").strip("\0 ")[:64]


def _unsigned(value: bytes, element: int) -> int:
    if len(value) != 2:
        raise DimseError(f"(0000,{element:04X}) of {len(value)} bytes instead of 2", reason=INVALID_PARAMETER)
    return value[0] | value[1] << 8


def decode(raw: bytes) -> Command:
    """The command set in those bytes.

    Raises DimseError where an element is cut off, repeated or of another group,
    a number has another length, or an element is missing that the command needs.
    """
    elements: dict[int, bytes] = {}
    position, end = 0, len(raw)
    while position < end:
        if end - position < 8:
            raise DimseError(f"command set: {end - position} bytes where an element begins", reason=INVALID_PARAMETER)
        group, element, length = _ELEMENT.unpack_from(raw, position)
        position += 8
        if group or length > end - position or element in elements:
            raise DimseError(f"command set: bad element ({group:04X},{element:04X}) of {length} bytes, {end - position} left",
                             reason=INVALID_PARAMETER)
        elements[element] = raw[position:position + length]
        position += length
    return _command(elements)


def _command(elements: dict[int, bytes]) -> Command:
    elements.pop(0x0000, None)
    number = elements.pop(0x0100, None)
    kind = elements.pop(0x0800, None)
    if number is None or kind is None:
        raise DimseError("command set without command field or data set type", reason=INVALID_PARAMETER)
    message_id = elements.pop(0x0110, None)
    responded_id = elements.pop(0x0120, None)
    status = elements.pop(0x0900, None)
    priority = elements.pop(0x0700, None)
    command = Command(
        field=_unsigned(number, 0x0100),
        message_id=None if message_id is None else _unsigned(message_id, 0x0110),
        responded_id=None if responded_id is None else _unsigned(responded_id, 0x0120),
        sop_class=(elements.pop(0x0002, None) or elements.get(0x0003, b"")).rstrip(b"\0 "),
        sop_instance=(elements.pop(0x1000, None) or elements.get(0x1001, b"")).rstrip(b"\0 "),
        priority=MEDIUM if priority is None else _unsigned(priority, 0x0700),
        has_data_set=_unsigned(kind, 0x0800) != NO_DATA_SET,
        status=None if status is None else _unsigned(status, 0x0900),
        others=elements,
    )
    if command.is_response:
        if command.responded_id is None or command.status is None:
            raise DimseError(f"response {command.field:04X}H without message ID or status", reason=INVALID_PARAMETER)
    elif command.field == C_CANCEL_RQ:
        if command.responded_id is None:
            raise DimseError("C-CANCEL without the message ID that it cancels", reason=INVALID_PARAMETER)
    elif command.message_id is None:
        raise DimseError(f"request {command.field:04X}H without message ID", reason=INVALID_PARAMETER)
    return command


def _us(element: int, value: int) -> bytes:
    return _US.pack(0, element, 2, value)


def _ui(element: int, value: bytes) -> bytes:
    if len(value) & 1:
        value += b"\0"
    return _ELEMENT.pack(0, element, len(value)) + value


def _set(*parts: bytes) -> bytes:
    body = b"".join(parts)
    return _UL.pack(0, 0, 4, len(body)) + body


def _class(sop_class: bytes) -> bytes:
    return _ui(0x0002, sop_class) if sop_class else b""


def echo_request(message_id: int) -> bytes:
    """C-ECHO-RQ (PS3.7 9.3.5.1)."""
    return _set(_ui(0x0002, b"1.2.840.10008.1.1"), _us(0x0100, C_ECHO_RQ), _us(0x0110, message_id), _us(0x0800, NO_DATA_SET))


def echo_response(request: Command, status: int = SUCCESS) -> bytes:
    """C-ECHO-RSP to that request (PS3.7 9.3.5.2)."""
    return response(request, status)


def store_request(message_id: int, sop_class: bytes, sop_instance: bytes, priority: int = MEDIUM) -> bytes:
    """C-STORE-RQ (PS3.7 9.3.1.1); the data set follows."""
    return _set(_ui(0x0002, sop_class), _us(0x0100, C_STORE_RQ), _us(0x0110, message_id), _us(0x0700, priority),
                _us(0x0800, 0x0001), _ui(0x1000, sop_instance))


def store_response(request: Command, status: int, comment: str = "") -> bytes:
    """C-STORE-RSP to that request (PS3.7 9.3.1.2), with its UIDs as raw bytes. `comment`: 64 characters at most are sent."""
    return response(request, status, comment)


def response(request: Command, status: int, comment: str = "") -> bytes:
    """The response without a data set to any request; the SOP Instance UID only where the request had one."""
    comment_raw = comment.encode("ascii", "replace")[:64]
    if len(comment_raw) & 1:
        comment_raw += b" "
    return _set(
        _class(request.sop_class),
        _us(0x0100, request.field | RESPONSE),
        _us(0x0120, request.message_id or 0),
        _us(0x0800, NO_DATA_SET),
        _us(0x0900, status),
        _ELEMENT.pack(0, 0x0902, len(comment_raw)) + comment_raw if comment_raw else b"",
        _ui(0x1000, request.sop_instance) if request.sop_instance else b"",
    )
