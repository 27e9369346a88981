"""One association's upper layer, sans-IO (PS3.8 chapter 9): bytes in, events and bytes out.

The caller reads into `buffers()`, says how much arrived with `received()`, and
handles the events one by one: each is parsed only when it is asked for, so an
answer given to one (`accept`, a response) is in force for the bytes behind it,
and what a peer sends ahead waits in the staging buffer. Data-set bytes go
straight into the caller's buffer or are shown as views; the layer copies and
keeps none. Every length is checked before anything is collected or allocated.

A violation raises ProtocolError out of the iteration over `received()`; the
caller sends `abort(BY_PROVIDER, error.reason)` and closes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct

from appliance.dicom import dimse, pdu
from appliance.dicom.indications import (
    Aborted,
    Accepted,
    AcceptedContext,
    CommandReceived,
    Event,
    Fragment,
    Rejected,
    Released,
    ReleaseRequested,
    Requested,
)
from appliance.dicom.pdu import AssociateAccept, AssociateReject, AssociateRequest
from appliance.dicom.states import ACTIONS, TABLE, Evt, State, action
from appliance.errors import PduError, ProtocolError, StateError

__all__ = ["Aborted", "Accepted", "AcceptedContext", "CommandReceived", "Event", "Fragment", "Rejected", "ReleaseRequested",
           "Released", "Requested", "State", "UpperLayer"]

STAGING = 135168
"""Bytes of the staging buffer: the longest association PDU with its header fits, and a read of 128 KiB."""

_DIRECT_ONLY = 32768
_HEADERS = 12
_POOL_SIZE = 64
_HEADER = Struct(">BxI")
_PDV = Struct(">IBB")
_DATA_HEADER = Struct(">BxIIBB")
_KINDS = {
    pdu.ASSOCIATE_RQ: Evt.ASSOCIATE_RQ, pdu.ASSOCIATE_AC: Evt.ASSOCIATE_AC, pdu.ASSOCIATE_RJ: Evt.ASSOCIATE_RJ,
    pdu.P_DATA: Evt.P_DATA, pdu.RELEASE_RQ: Evt.RELEASE_RQ, pdu.RELEASE_RP: Evt.RELEASE_RP, pdu.ABORT: Evt.ABORT,
}

_pool: list[memoryview] = []  # append and pop are atomic, so threads share it without a lock


class UpperLayer:
    """One association's state machine. Made by `acceptor` or `requestor`; not for two threads at once."""

    def __init__(self, *, is_requestor: bool, max_pdu: int) -> None:
        self._requestor = is_requestor
        self._bound = max_pdu
        self._state = State.STA1
        self._takes_data = False   # whether table 9-10 lets P-DATA-TF in now (Evt10 gives DT-2 or AR-6)
        self._artim = False
        self._abort_due = False
        self._dead = False         # after a violation nothing that arrives has a meaning any more
        self._proposal: AssociateRequest | None = None
        self.contexts: dict[int, AcceptedContext] = {}
        self.peer_max_length = 0
        self.begun = 0             # PDUs whose header has come in: what a deadline for each whole PDU goes by
        self._staging: memoryview | None = None
        self._start = 0            # of what is not yet parsed in the staging buffer
        self._end = 0
        self._direct = 0           # bytes that `buffers` offered of the caller's buffer
        self._pdu_left = 0         # of the current P-DATA-TF PDU; of a PDU to skip in Sta13
        self._pdv_left = 0         # of the current PDV's value
        self._skipping = False
        self._context = 0          # of the message in progress; 0: none
        self._is_command = False   # what the current PDV carries
        self._last = False
        self._awaits_data = False  # the command announced a data set which is not whole yet
        self._collected = bytearray()
        self._deferred: ProtocolError | None = None

    @classmethod
    def acceptor(cls, max_pdu: int = 131072) -> UpperLayer:
        """The layer behind a connection that a peer opened. `max_pdu`: bound of P-DATA-TF until `accept` says another."""
        layer = cls(is_requestor=False, max_pdu=max_pdu)
        layer._step(Evt.CONNECTION_INDICATION)
        return layer

    @classmethod
    def requestor(cls, max_pdu: int = 131072) -> UpperLayer:
        """The layer in front of a connection that we open; `request` is the first thing to send."""
        return cls(is_requestor=True, max_pdu=max_pdu)

    # --- state ----------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self._state

    @property
    def artim(self) -> bool:
        """Whether table 9-10 has the ARTIM timer running: the caller gives the peer a limited time, then calls `expired`."""
        return self._artim

    @property
    def mid_pdu(self) -> bool:
        """Whether a PDU has begun and is not complete."""
        return self._pdu_left > 0 or self._end > self._start

    @property
    def idle(self) -> bool:
        """Whether no message is in progress: no command set and no data set is half received."""
        return not self._context

    def fragment_limit(self, ours: int = 131072) -> int:
        """Most bytes of data set in one PDV, so that the PDU is within the peer's maximum length and within `ours`."""
        limit = min(ours, self.peer_max_length or ours)
        return max((limit - 6) & ~1, 2)  # fragments have an even length (PS3.8 annex E)

    def _step(self, event: Evt) -> str:
        name = action(self._state, event)
        cell = ACTIONS[name]
        self._state = cell.requestor if self._requestor else cell.acceptor
        if cell.artim is not None:
            self._artim = cell.artim
        self._takes_data = TABLE.get((self._state, Evt.P_DATA)) in ("DT-2", "AR-6")
        return name

    def _violated(self, error: ProtocolError, event: Evt = Evt.INVALID_PDU) -> ProtocolError:
        if (self._state, event) in TABLE:
            self._step(event)
            self._abort_due = True
        self._dead = True
        self._context = 0
        return error

    # --- bytes in -------------------------------------------------------------------------------------------------------

    def buffers(self, direct: memoryview | None = None) -> list[memoryview]:
        """Where the next bytes from the peer go (`recvmsg_into`). Earlier views end here.

        `direct` is free space of the object's buffer: used while a data-set
        fragment is under way, before the staging buffer.
        """
        staging = self._staging
        if staging is None:
            try:
                staging = _pool.pop()
            except IndexError:
                staging = memoryview(bytearray(STAGING))
            self._staging = staging
        start, end = self._start, self._end
        if start:
            if end > start:
                staging[:end - start] = staging[start:end]
            self._start, self._end = 0, end - start
            end -= start
        left = self._pdv_left
        self._direct = 0
        if direct is None or not left or self._is_command or end or self._dead:
            return [staging[end:]]
        offered = min(left, len(direct))
        if not offered:
            return [staging]
        self._direct = offered
        # Of a long fragment only the header behind it is staged: the bytes of the next one then go straight to the object.
        # Short ones are read many at a time, at the price of one copy.
        return [direct[:offered], staging[:_HEADERS] if offered >= _DIRECT_ONLY else staging]

    def received(self, count: int) -> Iterable[Event]:
        """The events of `count` bytes that were put into `buffers()`. To be iterated once, to its end, before the next read.

        Raises ProtocolError while it is iterated, after the events before the violation.
        """
        placed = 0
        if self._direct:
            placed = min(count, self._direct)
            self._direct = 0
            self._pdv_left -= placed
            self._pdu_left -= placed
            count -= placed
        self._end += count
        if placed:
            last = self._last and not self._pdv_left
            fragment = Fragment(self._context, None, placed, last)
            if last:
                self._context = 0
                self._awaits_data = False
            if not count:
                return (fragment,)
            return self._behind(fragment)
        return self._events()

    def feed(self, data: bytes | memoryview) -> list[Event]:
        """For tests: all events of `data` at once, with copies of their bytes.

        A violation behind other events is raised by the next call.
        """
        if self._deferred is not None:
            raise self._deferred
        events: list[Event] = []
        data = memoryview(data)
        while True:
            space = self.buffers()[0]
            count = min(len(space), len(data))
            space[:count] = data[:count]
            data = data[count:]
            try:
                for event in self.received(count):
                    if isinstance(event, Fragment) and event.view is not None:
                        event.view = memoryview(bytes(event.view))
                    events.append(event)
            except ProtocolError as error:
                if not events:
                    raise
                self._deferred = error
                return events
            if not data:
                return events

    def closed(self) -> list[Event]:
        """The peer closed the connection (end of file or reset): at most one Aborted event."""
        if self._state is State.STA1:
            return []
        self._context = 0
        return [Aborted(pdu.BY_PROVIDER, 0, False)] if self._step(Evt.CLOSED) == "AA-4" else []

    def expired(self) -> None:
        """The ARTIM timer ran out: the caller closes the connection."""
        self._step(Evt.ARTIM_EXPIRED)

    def rest(self) -> None:
        """Give the staging buffer back while nothing is in it; called before a long wait. Earlier views end here."""
        if self._staging is not None and self._start == self._end:
            self._start = self._end = 0
            if len(_pool) < _POOL_SIZE:
                _pool.append(self._staging)
            self._staging = None

    # --- parsing --------------------------------------------------------------------------------------------------------

    def _behind(self, fragment: Fragment) -> Iterator[Event]:
        yield fragment
        yield from self._events()

    def _events(self) -> Iterator[Event]:
        staging = self._staging
        if staging is None:
            return
        while not self._dead:
            available = self._end - self._start
            if self._pdv_left:
                if not available:
                    return
                event = self._value(staging, min(available, self._pdv_left))
            elif self._pdu_left:
                if available < (1 if self._skipping else 6):
                    return
                if self._skipping:
                    self._skip(available)
                    continue
                event = self._pdv_header(staging)
            elif available >= _HEADERS and self._awaits_data and self._takes_data and self._plain_header(staging):
                continue
            elif available >= 6:
                before = self._start
                event = self._pdu(staging, available)
                if event is None and self._start == before:
                    return
            else:
                if available and staging[self._start] not in _KINDS:
                    raise self._unknown(staging[self._start])
                return
            if event is not None:
                yield event

    def _plain_header(self, staging: memoryview) -> bool:
        """The hot path: a P-DATA-TF PDU with one PDV that goes on with the data set. Anything else is left to `_pdu`."""
        kind, length, value, context, control = _DATA_HEADER.unpack_from(staging, self._start)
        if kind != pdu.P_DATA or length != value + 4 or length > self._bound or value < 3 \
                or context != self._context or control & 1:
            return False
        self.begun += 1
        self._start += _HEADERS
        self._pdu_left = self._pdv_left = value - 2
        self._is_command = False
        self._last = bool(control & 2)
        return True

    def _value(self, staging: memoryview, count: int) -> Event | None:
        start = self._start
        self._start = start + count
        self._pdv_left -= count
        self._pdu_left -= count
        if self._is_command:
            self._collected += staging[start:start + count]
            return self._command() if self._last and not self._pdv_left else None
        last = self._last and not self._pdv_left
        context = self._context
        if last:
            self._context = 0
            self._awaits_data = False
        return Fragment(context, staging[start:start + count], count, last)

    def _skip(self, available: int) -> None:
        count = min(available, self._pdu_left)
        self._start += count
        self._pdu_left -= count
        self._skipping = self._pdu_left > 0

    def _pdv_header(self, staging: memoryview) -> Event | None:
        length, context, control = _PDV.unpack_from(staging, self._start)
        self._start += 6
        self._pdu_left -= 6
        if length < 2 or length - 2 > self._pdu_left:
            raise self._violated(PduError(f"PDV of {length} bytes, {self._pdu_left + 2} left in its PDU",
                                          reason=pdu.INVALID_PARAMETER))
        left = self._pdu_left - (length - 2)
        if 0 < left < 6:
            raise self._violated(PduError(f"{left} bytes behind a PDV", reason=pdu.INVALID_PARAMETER))
        if context not in self.contexts:
            raise self._violated(PduError(f"presentation context {context} was not accepted", reason=pdu.INVALID_PARAMETER))
        if self._context and context != self._context:
            raise self._violated(PduError(f"presentation context {context} in the middle of a message on {self._context}",
                                          reason=pdu.UNEXPECTED_PARAMETER))
        self._is_command = bool(control & 1)
        self._last = bool(control & 2)
        if self._is_command:
            if self._awaits_data:
                raise self._violated(PduError("a command in the middle of a data set", reason=pdu.UNEXPECTED_PARAMETER))
            if len(self._collected) + length - 2 > dimse.MAX_COMMAND_SET:
                raise self._violated(PduError("command set without end", reason=pdu.INVALID_PARAMETER))
        elif not self._awaits_data:
            raise self._violated(PduError("a data set that no command announced", reason=pdu.UNEXPECTED_PARAMETER))
        self._context = context
        self._pdv_left = length - 2
        if self._pdv_left or not self._last:
            return None
        return self._value(staging, 0)

    def _command(self) -> Event:
        raw = bytes(self._collected)
        self._collected.clear()
        try:
            command = dimse.decode(raw)
        except ProtocolError as error:
            raise self._violated(error) from None
        context = self._context
        if command.has_data_set:
            self._awaits_data = True
        else:
            self._context = 0
        return CommandReceived(context, command)

    def _pdu(self, staging: memoryview, available: int) -> Event | None:
        """Look at a PDU header; take the whole PDU where it is there. None with nothing consumed: more bytes are needed."""
        kind, length = _HEADER.unpack_from(staging, self._start)
        event = _KINDS.get(kind)
        if event is None:
            raise self._unknown(kind)
        name = action(self._state, event)
        if ACTIONS[name].violation:
            raise self._violated(StateError(f"{event.name} came in {self._state.name}", reason=pdu.UNEXPECTED_PDU), event)
        self._check_length(kind, length)
        if kind == pdu.P_DATA or name == "AA-6":
            self.begun += 1
            self._start += 6
            self._pdu_left = length
            self._skipping = name == "AA-6"
            return None
        if available < 6 + length:
            return None
        begin = self._start + 6
        try:
            body = pdu.decode(kind, staging[begin:begin + length])
            indication = self._indication(body)
        except PduError as error:
            raise self._violated(error) from None
        self._start = begin + length
        self._step(event)
        return None if name == "AA-2" else indication

    def _check_length(self, kind: int, length: int) -> None:
        if kind == pdu.P_DATA:
            fits = 6 <= length <= self._bound
        elif kind in (pdu.ASSOCIATE_RQ, pdu.ASSOCIATE_AC):
            fits = 68 <= length <= pdu.MAX_ASSOCIATION_PDU
        else:
            fits = length == 4
        if not fits:
            raise self._violated(PduError(f"PDU type {kind:02X}H announces {length} bytes", reason=pdu.INVALID_PARAMETER))

    def _unknown(self, kind: int) -> ProtocolError:
        hint = ""
        if self._state is State.STA2:
            hint = ": TLS on a plain port" if kind == 0x16 else (": not DICOM, perhaps HTTP" if 0x41 <= kind <= 0x5A else "")
        return self._violated(PduError(f"unknown PDU type {kind:02X}H{hint}", reason=pdu.UNRECOGNIZED_PDU))

    def _indication(self, body: pdu.Pdu) -> Event:
        match body:
            case pdu.AssociateRequest():
                self._proposal = body
                self.peer_max_length = body.max_length
                return Requested(body)
            case pdu.AssociateAccept():
                self._set_contexts(body)
                self.peer_max_length = body.max_length
                return Accepted(body)
            case pdu.AssociateReject():
                return Rejected(body)
            case pdu.ReleaseRequest():
                return ReleaseRequested()
            case pdu.ReleaseReply():
                return Released()
            case pdu.Abort():
                self._context = 0
                return Aborted(body.source, body.reason, True)

    def _set_contexts(self, accept: AssociateAccept) -> None:
        """Take over what was accepted. An answer to what was not proposed: PduError."""
        assert self._proposal is not None
        proposed = {context.id: context for context in self._proposal.contexts}
        contexts: dict[int, AcceptedContext] = {}
        for result in accept.contexts:
            context = proposed.get(result.id)
            if context is None or (result.result == pdu.ACCEPTANCE and result.syntax not in context.syntaxes):
                raise PduError(f"answer to presentation context {result.id} is not one of what was proposed",
                               reason=pdu.INVALID_PARAMETER)
            if result.result == pdu.ACCEPTANCE:
                contexts[result.id] = AcceptedContext(result.id, context.abstract, result.syntax)
        self.contexts = contexts

    # --- bytes out ------------------------------------------------------------------------------------------------------

    def request(self, request: AssociateRequest) -> bytes:
        """A-ASSOCIATE-RQ; `request.max_length` is the bound of the P-DATA-TF PDUs that come."""
        self._step(Evt.ASSOCIATE_REQUEST)
        self._step(Evt.CONNECTED)
        self._proposal = request
        self._bound = request.max_length or self._bound
        return pdu.encode(request)

    def accept(self, accept: AssociateAccept) -> bytes:
        """A-ASSOCIATE-AC; `accept.max_length` is the bound of the P-DATA-TF PDUs that come."""
        action(self._state, Evt.ACCEPT)
        self._set_contexts(accept)
        self._step(Evt.ACCEPT)
        self._bound = accept.max_length or self._bound
        return pdu.encode(accept)

    def reject(self, result: int, source: int, reason: int) -> bytes:
        """A-ASSOCIATE-RJ (PS3.8 9.3.4); then the peer closes, or the ARTIM timer runs out."""
        self._step(Evt.REJECT)
        return pdu.encode(AssociateReject(result, source, reason))

    def release(self) -> bytes:
        """A-RELEASE-RQ; a Released event answers it."""
        self._step(Evt.RELEASE_REQUEST)
        return pdu.encode(pdu.ReleaseRequest())

    def release_reply(self) -> bytes:
        """A-RELEASE-RP to ReleaseRequested."""
        self._step(Evt.RELEASE_RESPONSE)
        return pdu.encode(pdu.ReleaseReply())

    def abort(self, source: int = pdu.BY_USER, reason: int = 0) -> bytes:
        """A-ABORT, after which the caller closes. Never raises: empty where the standard has nothing to send."""
        if self._abort_due:
            self._abort_due = False
            return pdu.encode(pdu.Abort(source, reason))
        if TABLE.get((self._state, Evt.ABORT_REQUEST)) != "AA-1":
            return b""
        self._step(Evt.ABORT_REQUEST)
        self._dead = True
        self._context = 0
        return pdu.encode(pdu.Abort(source, reason))

    def send_command(self, context_id: int, command: bytes) -> bytes:
        """A whole command set as P-DATA-TF PDUs, each within the peer's maximum length."""
        self._step(Evt.P_DATA_REQUEST)
        limit = self.fragment_limit()
        if len(command) <= limit:
            return pdu.data_header(context_id, len(command), command=True, last=True) + command
        parts: list[bytes] = []
        for start in range(0, len(command), limit):
            part = command[start:start + limit]
            parts.append(pdu.data_header(context_id, len(part), command=True, last=start + limit >= len(command)))
            parts.append(part)
        return b"".join(parts)
