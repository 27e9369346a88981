"""Requestor: a small association over a connection that is there already: asked, echoed, stored one thing, released.

For looking, not for delivering: everything has one deadline, nothing is sent
twice, and what the other end said is kept, so that it can be told what it is.
On failure `NoAnswer`; the connection is of no further use then.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

from appliance.dicom import dimse, pdu, uids
from appliance.dicom.indications import Aborted, Accepted, AcceptedContext, CommandReceived, Event, Rejected, Released
from appliance.dicom.upper import UpperLayer
from appliance.errors import ProtocolError
from appliance.net import sockets
from appliance.policy import Aborted as AbortedByPeer
from appliance.policy import Answer, Failure, FailureKind, failure_of
from appliance.policy import Rejected as RejectedByPeer

HEARD = 64
"""Bytes kept of what the other end said first."""

RECEIVE_PDU = 16384


class NoAnswer(Exception):
    """`answer` is what `policy.classify` wants to know; `error` what the connection failed with, if it did; `heard` what the
    other end said first; `taken`: whether its system acknowledged all that we sent."""

    def __init__(self, answer: Answer, heard: bytes, *, error: OSError | None = None, taken: bool = True) -> None:
        super().__init__(str(answer))
        self.answer = answer
        self.error = error
        self.heard = heard
        self.taken = taken


class Requestor:
    """For one thread. `stream` stays the caller's to close."""

    def __init__(self, stream: sockets.Stream) -> None:
        self._stream = stream
        self._layer = UpperLayer.requestor(RECEIVE_PDU)
        self._events: list[Event] = []
        self._number = 0
        self.heard = b""

    @property
    def stream(self) -> sockets.Stream:
        return self._stream

    @property
    def contexts(self) -> dict[int, AcceptedContext]:
        return self._layer.contexts

    def associate(self, called: str, calling: str, contexts: Sequence[pdu.ProposedContext], deadline: float,
                  identity: pdu.UserIdentity | None = None) -> Accepted:
        """`deadline` in monotonic seconds, as everywhere here."""
        request = pdu.AssociateRequest(pdu.title_bytes(called), pdu.title_bytes(calling), tuple(contexts), RECEIVE_PDU,
                                       user_identity=identity)
        self._send(self._layer.request(request), deadline)
        event = self._next(deadline)
        if isinstance(event, Rejected):
            raise NoAnswer(RejectedByPeer(event.reject.result, event.reject.source, event.reject.reason), self.heard)
        if not isinstance(event, Accepted):
            raise self._nonsense(event)
        return event

    def echo(self, deadline: float) -> int | None:
        """C-ECHO: the status; None where Verification was not accepted."""
        context = next((c for c in self.contexts.values() if c.abstract == uids.VERIFICATION), None)
        if context is None:
            return None
        self._number += 1
        self._send(self._layer.send_command(context.id, dimse.echo_request(self._number)), deadline)
        return self._status(dimse.C_ECHO_RSP, deadline)

    def store(self, context: AcceptedContext, sop_instance: str, data: bytes, deadline: float) -> int | None:
        """C-STORE of a small data set of that context's class: the status."""
        self._number += 1
        self._send(self._layer.send_command(context.id, dimse.store_request(
            self._number, context.abstract.encode("ascii"), sop_instance.encode("ascii"))), deadline)
        limit = self._layer.fragment_limit()
        for start in range(0, len(data), limit):
            part = data[start:start + limit]
            self._send(pdu.data_header(context.id, len(part), command=False, last=start + limit >= len(data)) + part, deadline)
        return self._status(dimse.C_STORE_RSP, deadline)

    def release(self, deadline: float) -> None:
        """In order where the other end goes along; never raises."""
        with suppress(NoAnswer, OSError, ProtocolError):
            self._send(self._layer.release(), deadline)
            while not isinstance(self._next(deadline), Released):
                pass
            return
        self.abort()

    def abort(self) -> None:
        """Never raises, never waits."""
        last = self._layer.abort()
        with suppress(OSError):
            self._stream.setblocking(False)
            if last:
                self._stream.send(last)

    # --- bytes --------------------------------------------------------------------------------------------------------

    def _status(self, field: int, deadline: float) -> int | None:
        event = self._next(deadline)
        if not isinstance(event, CommandReceived) or event.command.field != field:
            raise self._nonsense(event)
        return event.command.status

    def _send(self, data: bytes, deadline: float) -> None:
        left = max(0.05, deadline - time.monotonic())
        try:
            sockets.set_timeouts(self._stream, send=left)
            self._stream.sendall(data)
        except BlockingIOError:
            raise self._late() from None
        except OSError as e:
            raise self._lost(e) from None

    def _next(self, deadline: float) -> Event:
        while not self._events:
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._late()
            try:
                sockets.set_timeouts(self._stream, receive=left)
                view = self._layer.buffers()[0]
                count = self._stream.recv_into(view)
            except BlockingIOError:
                raise self._late() from None
            except OSError as e:
                raise self._lost(e) from None
            if not count:
                raise NoAnswer(Failure(FailureKind.CLOSED, "end of file"), self.heard)
            if len(self.heard) < HEARD:
                self.heard += bytes(view[:min(count, HEARD - len(self.heard))])
            try:
                self._events += self._layer.received(count)
            except ProtocolError as e:
                self.abort()
                raise NoAnswer(Failure(FailureKind.PROTOCOL, e.message), self.heard) from None
        event = self._events.pop(0)
        if isinstance(event, Aborted):
            raise NoAnswer(AbortedByPeer(event.source, event.reason), self.heard)
        return event

    def _late(self) -> NoAnswer:
        with suppress(OSError):
            taken = not sockets.unacknowledged(self._stream)
            self.abort()
            return NoAnswer(Failure(FailureKind.TIMEOUT, "no answer in time"), self.heard, taken=taken)
        return NoAnswer(Failure(FailureKind.TIMEOUT, "no answer in time"), self.heard)

    def _lost(self, error: OSError) -> NoAnswer:
        return NoAnswer(failure_of(error), self.heard, error=error)

    def _nonsense(self, event: Event) -> NoAnswer:
        self.abort()
        return NoAnswer(Failure(FailureKind.PROTOCOL, f"{type(event).__name__} at the wrong moment"), self.heard)
