"""Protocol data units of the upper layer, except P-DATA-TF bodies (PS3.8 9.3, PS3.7 annex D.3).

`decode` takes a whole body whose length the caller has bounded; it raises
`PduError` and nothing else. Unknown items are skipped, as PS3.8 9.3.1 wants.
UIDs and names become `str` by Latin-1, so that any byte survives being echoed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct

from appliance.dicom.uids import APPLICATION_CONTEXT, IMPLEMENTATION_UID, IMPLEMENTATION_VERSION
from appliance.errors import PduError

MAX_ASSOCIATION_PDU = 131072
"""Longest body of an A-ASSOCIATE-RQ or -AC that is looked at, in bytes."""

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
"""PDU types (PS3.8 9.3.2 to 9.3.8)."""

# A-ABORT reasons of the service provider (PS3.8 9.3.8)
NOT_SPECIFIED, UNRECOGNIZED_PDU, UNEXPECTED_PDU = 0, 1, 2
UNRECOGNIZED_PARAMETER, UNEXPECTED_PARAMETER, INVALID_PARAMETER = 4, 5, 6

# A-ABORT sources
BY_USER, BY_PROVIDER = 0, 2

# A-ASSOCIATE-RJ (PS3.8 9.3.4): result, source, reason
REJECTED_PERMANENT, REJECTED_TRANSIENT = 1, 2
SOURCE_USER, SOURCE_ACSE, SOURCE_PRESENTATION = 1, 2, 3

# Results of a presentation context (PS3.8 9.3.3.2)
ACCEPTANCE, USER_REJECTION, NO_REASON, NO_ABSTRACT_SYNTAX, NO_TRANSFER_SYNTAX = range(5)

_APPLICATION, _CONTEXT_RQ, _CONTEXT_AC, _USER_INFORMATION = 0x10, 0x20, 0x21, 0x50
_ABSTRACT, _TRANSFER = 0x30, 0x40
_MAXIMUM_LENGTH, _IMPLEMENTATION_UID, _ASYNCHRONOUS, _ROLE, _VERSION = 0x51, 0x52, 0x53, 0x54, 0x55
_EXTENDED, _COMMON_EXTENDED, _IDENTITY_RQ, _IDENTITY_AC = 0x56, 0x57, 0x58, 0x59

_HEADER = Struct(">BxI")
_ITEM = Struct(">BxH")
_FIXED = Struct(">HH16s16s32x")
_DATA_HEADER = Struct(">BxIIBB")
_U16 = Struct(">H")
_U32 = Struct(">I")


@dataclass(frozen=True, slots=True)
class ProposedContext:
    """One presentation context of an A-ASSOCIATE-RQ: odd `id` 1 to 255, abstract syntax, transfer syntaxes as proposed."""

    id: int
    abstract: str
    syntaxes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ContextResult:
    """The answer to one proposed context. `syntax` means something only where `result` is 0."""

    id: int
    result: int
    syntax: str


@dataclass(frozen=True, slots=True)
class RoleSelection:
    """SCP/SCU role selection of one SOP class (PS3.7 D.3.3.4)."""

    uid: str
    scu: bool
    scp: bool


@dataclass(frozen=True, slots=True)
class ExtendedNegotiation:
    """SOP class extended negotiation (PS3.7 D.3.3.5): application information as raw bytes."""

    uid: str
    information: bytes


@dataclass(frozen=True, slots=True)
class CommonExtendedNegotiation:
    """SOP class common extended negotiation (PS3.7 D.3.3.6)."""

    uid: str
    service_class: str
    related: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UserIdentity:
    """User identity of a requestor (PS3.7 D.3.3.7). `primary` and `secondary` are secrets: never logged."""

    type: int
    response_requested: bool
    primary: bytes
    secondary: bytes = b""

    def __repr__(self) -> str:
        return f"UserIdentity(type={self.type}, response_requested={self.response_requested})"


@dataclass(frozen=True, slots=True)
class AssociateRequest:
    """A-ASSOCIATE-RQ (PS3.8 9.3.2). Titles are the 16 bytes as received; `max_length` 0 means no limit."""

    called: bytes
    calling: bytes
    contexts: tuple[ProposedContext, ...]
    max_length: int = 131072
    implementation_uid: str = IMPLEMENTATION_UID
    implementation_version: str = IMPLEMENTATION_VERSION
    roles: tuple[RoleSelection, ...] = ()
    asynchronous: tuple[int, int] | None = None
    user_identity: UserIdentity | None = None
    extended: tuple[ExtendedNegotiation, ...] = ()
    common_extended: tuple[CommonExtendedNegotiation, ...] = ()
    application_context: str = APPLICATION_CONTEXT
    protocol_version: int = 1


@dataclass(frozen=True, slots=True)
class AssociateAccept:
    """A-ASSOCIATE-AC (PS3.8 9.3.3). The titles are an echo of the request's and are never tested."""

    called: bytes
    calling: bytes
    contexts: tuple[ContextResult, ...]
    max_length: int = 131072
    implementation_uid: str = IMPLEMENTATION_UID
    implementation_version: str = IMPLEMENTATION_VERSION
    roles: tuple[RoleSelection, ...] = ()
    asynchronous: tuple[int, int] | None = None
    identity_response: bytes | None = None
    extended: tuple[ExtendedNegotiation, ...] = ()
    application_context: str = APPLICATION_CONTEXT
    protocol_version: int = 1


@dataclass(frozen=True, slots=True)
class AssociateReject:
    """A-ASSOCIATE-RJ (PS3.8 9.3.4). `result` 1 permanent, 2 transient."""

    result: int
    source: int
    reason: int


@dataclass(frozen=True, slots=True)
class Abort:
    """A-ABORT (PS3.8 9.3.8). `source` 0 user, 2 provider."""

    source: int
    reason: int


@dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """A-RELEASE-RQ (PS3.8 9.3.6)."""


@dataclass(frozen=True, slots=True)
class ReleaseReply:
    """A-RELEASE-RP (PS3.8 9.3.7)."""


Pdu = AssociateRequest | AssociateAccept | AssociateReject | Abort | ReleaseRequest | ReleaseReply


def title_bytes(text: str) -> bytes:
    """An AE title as the 16 bytes of an association PDU. Longer ones are cut: the configuration refuses them."""
    return text.encode("latin-1", "replace")[:16].ljust(16)


def title_text(raw16: bytes) -> str:
    """An AE title for comparison and people: decoded by Latin-1, leading and trailing spaces and trailing NUL taken off."""
    return raw16.decode("latin-1").rstrip("\0 ").lstrip(" ")


def data_header(context_id: int, length: int, *, command: bool, last: bool) -> bytes:
    """The 12 bytes before `length` bytes of a fragment: header of a P-DATA-TF PDU and of its only PDV (PS3.8 9.3.5, E.2)."""
    return _DATA_HEADER.pack(P_DATA, length + 6, length + 2, context_id, (1 if command else 0) | (2 if last else 0))


# --- encoding -----------------------------------------------------------------------------------------------------------


def _item(kind: int, body: bytes) -> bytes:
    return _ITEM.pack(kind, len(body)) + body


def _counted(raw: bytes) -> bytes:
    return _U16.pack(len(raw)) + raw


def _text(value: str) -> bytes:
    return value.encode("latin-1")


def _user_information(pdu: AssociateRequest | AssociateAccept) -> bytes:
    parts = [_item(_MAXIMUM_LENGTH, _U32.pack(pdu.max_length))]
    if pdu.implementation_uid:
        parts.append(_item(_IMPLEMENTATION_UID, _text(pdu.implementation_uid)))
    if pdu.asynchronous is not None:
        parts.append(_item(_ASYNCHRONOUS, _U16.pack(pdu.asynchronous[0]) + _U16.pack(pdu.asynchronous[1])))
    parts += [_item(_ROLE, _counted(_text(r.uid)) + bytes((r.scu, r.scp))) for r in pdu.roles]
    if pdu.implementation_version:
        parts.append(_item(_VERSION, _text(pdu.implementation_version)))
    parts += [_item(_EXTENDED, _counted(_text(e.uid)) + e.information) for e in pdu.extended]
    if isinstance(pdu, AssociateRequest):
        for common in pdu.common_extended:
            related = b"".join(_counted(_text(uid)) for uid in common.related)
            parts.append(_item(_COMMON_EXTENDED, _counted(_text(common.uid)) + _counted(_text(common.service_class))
                               + _counted(related)))
        identity = pdu.user_identity
        if identity is not None:
            parts.append(_item(_IDENTITY_RQ, bytes((identity.type, identity.response_requested)) + _counted(identity.primary)
                               + _counted(identity.secondary)))
    elif pdu.identity_response is not None:
        parts.append(_item(_IDENTITY_AC, _counted(pdu.identity_response)))
    return _item(_USER_INFORMATION, b"".join(parts))


def _association(kind: int, pdu: AssociateRequest | AssociateAccept, contexts: list[bytes]) -> bytes:
    body = b"".join([_FIXED.pack(pdu.protocol_version, 0, pdu.called.ljust(16), pdu.calling.ljust(16)),
                     _item(_APPLICATION, _text(pdu.application_context)), *contexts, _user_information(pdu)])
    return _HEADER.pack(kind, len(body)) + body


def encode(pdu: Pdu) -> bytes:
    """The whole PDU with its header. What does not fit its length fields is a programming error (`struct.error`)."""
    match pdu:
        case AssociateRequest():
            return _association(ASSOCIATE_RQ, pdu, [
                _item(_CONTEXT_RQ, bytes((context.id, 0, 0, 0)) + _item(_ABSTRACT, _text(context.abstract))
                      + b"".join(_item(_TRANSFER, _text(syntax)) for syntax in context.syntaxes))
                for context in pdu.contexts])
        case AssociateAccept():
            return _association(ASSOCIATE_AC, pdu, [
                _item(_CONTEXT_AC, bytes((context.id, 0, context.result, 0)) + _item(_TRANSFER, _text(context.syntax)))
                for context in pdu.contexts])
        case AssociateReject():
            return _HEADER.pack(ASSOCIATE_RJ, 4) + bytes((0, pdu.result, pdu.source, pdu.reason))
        case Abort():
            return _HEADER.pack(ABORT, 4) + bytes((0, 0, pdu.source, pdu.reason))
        case ReleaseRequest():
            return _HEADER.pack(RELEASE_RQ, 4) + bytes(4)
        case ReleaseReply():
            return _HEADER.pack(RELEASE_RP, 4) + bytes(4)


# --- decoding -----------------------------------------------------------------------------------------------------------


def _invalid(message: str) -> PduError:
    return PduError(message, reason=INVALID_PARAMETER)


def _items(body: bytes, where: str) -> Iterator[tuple[int, bytes]]:
    position, end = 0, len(body)
    while position < end:
        if end - position < 4:
            raise _invalid(f"{where}: {end - position} bytes where an item begins")
        kind, length = _ITEM.unpack_from(body, position)
        position += 4
        if length > end - position:
            raise _invalid(f"{where}: item {kind:02X}H of {length} bytes, only {end - position} left")
        yield kind, body[position:position + length]
        position += length


def _uid(raw: bytes) -> str:
    """Padding is not allowed in association PDUs (PS3.8 annex F), yet senders add it."""
    return raw.rstrip(b"\0 ").decode("latin-1")


def _take(body: bytes, position: int, where: str) -> tuple[bytes, int]:
    """A field with a 16-bit length before it; and where it ends."""
    if len(body) - position < 2:
        raise _invalid(f"{where}: no room for a length")
    end = position + 2 + int(_U16.unpack_from(body, position)[0])
    if end > len(body):
        raise _invalid(f"{where}: field of {end - position - 2} bytes, only {len(body) - position - 2} left")
    return body[position + 2:end], end


def _context_id(body: bytes) -> int:
    if len(body) < 4:
        raise _invalid("presentation context item too short")
    if not body[0] & 1:
        raise _invalid(f"presentation context ID {body[0]} is not odd")
    return body[0]


def _proposed(body: bytes) -> ProposedContext:
    number = _context_id(body)
    abstract: str | None = None
    syntaxes: list[str] = []
    for kind, value in _items(body[4:], "presentation context"):
        if kind == _ABSTRACT:
            if abstract is not None:
                raise _invalid(f"presentation context {number} has two abstract syntaxes")
            abstract = _uid(value)
        elif kind == _TRANSFER:
            syntaxes.append(_uid(value))
    if abstract is None:
        raise _invalid(f"presentation context {number} has no abstract syntax")
    return ProposedContext(number, abstract, tuple(syntaxes))


def _answered(body: bytes) -> ContextResult:
    number = _context_id(body)
    syntaxes = [_uid(value) for kind, value in _items(body[4:], "presentation context") if kind == _TRANSFER]
    if body[2] == ACCEPTANCE and len(syntaxes) != 1:
        raise _invalid(f"accepted presentation context {number} names {len(syntaxes)} transfer syntaxes")
    return ContextResult(number, body[2], syntaxes[0] if syntaxes else "")


class _UserInformation:
    """What the sub-items of a user information item say. A repeated single sub-item is refused."""

    def __init__(self, body: bytes, *, request: bool) -> None:
        self.max_length = 0
        self.implementation_uid = ""
        self.implementation_version = ""
        self.roles: list[RoleSelection] = []
        self.asynchronous: tuple[int, int] | None = None
        self.extended: list[ExtendedNegotiation] = []
        self.common_extended: list[CommonExtendedNegotiation] = []
        self.user_identity: UserIdentity | None = None
        self.identity_response: bytes | None = None
        seen: set[int] = set()
        for kind, value in _items(body, "user information"):
            if kind in seen and kind not in (_ROLE, _EXTENDED, _COMMON_EXTENDED):
                raise _invalid(f"sub-item {kind:02X}H twice")
            seen.add(kind)
            self._add(kind, value, request)

    def _add(self, kind: int, value: bytes, request: bool) -> None:
        match kind:
            case 0x51:
                self.max_length = int(_U32.unpack(_exactly(value, 4, "maximum length"))[0])
            case 0x52:
                self.implementation_uid = _uid(value)
            case 0x53:
                raw = _exactly(value, 4, "asynchronous operations window")
                self.asynchronous = (int(_U16.unpack_from(raw, 0)[0]), int(_U16.unpack_from(raw, 2)[0]))
            case 0x54:
                uid, end = _take(value, 0, "role selection")
                scu, scp = _exactly(value[end:], 2, "role selection")
                self.roles.append(RoleSelection(_uid(uid), bool(scu), bool(scp)))
            case 0x55:
                self.implementation_version = value.decode("latin-1").strip("\0 ")
            case 0x56:
                uid, end = _take(value, 0, "extended negotiation")
                self.extended.append(ExtendedNegotiation(_uid(uid), value[end:]))
            case 0x57 if request:
                self.common_extended.append(_common_extended(value))
            case 0x58 if request:
                self.user_identity = _user_identity(value)
            case 0x59 if not request:
                self.identity_response, _ = _take(value, 0, "user identity")


def _exactly(raw: bytes, length: int, where: str) -> bytes:
    if len(raw) != length:
        raise _invalid(f"{where}: {len(raw)} bytes instead of {length}")
    return raw


def _common_extended(value: bytes) -> CommonExtendedNegotiation:
    where = "common extended negotiation"
    uid, end = _take(value, 0, where)
    service, end = _take(value, end, where)
    related: list[str] = []
    if end < len(value):
        block, _ = _take(value, end, where)
        position = 0
        while position < len(block):
            raw, position = _take(block, position, where)
            related.append(_uid(raw))
    return CommonExtendedNegotiation(_uid(uid), _uid(service), tuple(related))


def _user_identity(value: bytes) -> UserIdentity:
    if len(value) < 2:
        raise _invalid("user identity: no type")
    primary, end = _take(value, 2, "user identity")
    secondary = b""
    if end < len(value):
        secondary, _ = _take(value, end, "user identity")
    return UserIdentity(value[0], bool(value[1]), primary, secondary)


def _decode_association(kind: int, body: bytes) -> AssociateRequest | AssociateAccept:
    if len(body) < 68:
        raise _invalid(f"association PDU of {len(body)} bytes: shorter than its fixed part")
    version, _, called, calling = _FIXED.unpack_from(body, 0)
    request = kind == ASSOCIATE_RQ
    context_kind = _CONTEXT_RQ if request else _CONTEXT_AC
    application: str | None = None
    user: _UserInformation | None = None
    proposed: dict[int, ProposedContext] = {}
    answered: dict[int, ContextResult] = {}
    for item, value in _items(body[68:], "association PDU"):
        if item == _APPLICATION:
            if application is not None:
                raise _invalid("two application contexts")
            application = _uid(value)
        elif item == context_kind:
            context = _proposed(value) if request else _answered(value)
            if context.id in proposed or context.id in answered:
                raise _invalid(f"presentation context {context.id} twice")
            if isinstance(context, ProposedContext):
                proposed[context.id] = context
            else:
                answered[context.id] = context
        elif item == _USER_INFORMATION:
            if user is not None:
                raise _invalid("two user information items")
            user = _UserInformation(value, request=request)
    user = user or _UserInformation(b"", request=request)
    if request:
        return AssociateRequest(called, calling, tuple(proposed.values()), user.max_length, user.implementation_uid,
                                user.implementation_version, tuple(user.roles), user.asynchronous, user.user_identity,
                                tuple(user.extended), tuple(user.common_extended), application or "", version)
    return AssociateAccept(called, calling, tuple(answered.values()), user.max_length, user.implementation_uid,
                           user.implementation_version, tuple(user.roles), user.asynchronous, user.identity_response,
                           tuple(user.extended), application or "", version)


def decode(kind: int, body: bytes | memoryview) -> Pdu:
    """The PDU of type `kind` with that body (the bytes after the 6 of its header). P-DATA-TF is `upper`'s.

    Raises PduError only.
    """
    raw = bytes(body)
    if kind in (ASSOCIATE_RQ, ASSOCIATE_AC):
        if len(raw) > MAX_ASSOCIATION_PDU:
            raise _invalid(f"association PDU of {len(raw)} bytes")
        return _decode_association(kind, raw)
    if kind not in (ASSOCIATE_RJ, RELEASE_RQ, RELEASE_RP, ABORT):
        raise PduError(f"unknown PDU type {kind:02X}H", reason=UNRECOGNIZED_PDU)
    if len(raw) != 4:
        raise _invalid(f"PDU type {kind:02X}H of {len(raw)} bytes instead of 4")
    if kind == ASSOCIATE_RJ:
        return AssociateReject(raw[1], raw[2], raw[3])
    if kind == ABORT:
        return Abort(raw[2], raw[3])
    return ReleaseRequest() if kind == RELEASE_RQ else ReleaseReply()
