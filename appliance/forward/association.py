"""One association with a destination, as its requestor: blocking, for one thread, bounded by lack of progress both ways.

The time-outs count from the last progress, never from the beginning, so a large
object on a slow line gets through. Progress is a byte that the socket takes,
and while an answer is awaited, a byte that the peer's system acknowledges. An
answer itself has to be whole within the limit: dripping bytes are none.

On failure every method raises `AssociationLost`, whose `answer` says how; the
connection is closed by then and of no further use.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from appliance.dicom import dimse, pdu, uids
from appliance.dicom.indications import (
    Aborted,
    Accepted,
    AcceptedContext,
    CommandReceived,
    Event,
    Rejected,
    Released,
    ReleaseRequested,
)
from appliance.dicom.states import State
from appliance.dicom.upper import UpperLayer
from appliance.errors import DeliveryError, ProtocolError
from appliance.model import Fault
from appliance.net import sockets
from appliance.net.proxy import Proxy
from appliance.net.secure import Secure
from appliance.net.tls import Client
from appliance.net.tlserrors import TlsError
from appliance.policy import Aborted as AbortedByPeer
from appliance.policy import Answer, Failure, FailureKind, Party, classify, failure_of
from appliance.policy import Rejected as RejectedByPeer

RECEIVE_PDU = 16384
"""Largest PDU that we take as a requestor: only responses come."""

RELEASE_SECONDS = 5.0
"""Time for the answer to a release; then the association is aborted."""

LAST_READS = 16
"""Reads of what a peer said before it broke the connection: one that never stops talking is not listened to for ever."""

GATHER = 131072
"""Bytes of data set in one write, about."""

_RESET = struct.pack("@ii", 1, 0)


class AssociationLost(DeliveryError):
    """The association could not be had, or is gone. `answer` is what `policy.classify` wants to know."""

    def __init__(self, answer: Answer, party: Party) -> None:
        finding = classify(answer, party)
        super().__init__(finding.text, fault=finding.fault or Fault.DESTINATION)
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in seconds, sizes in bytes; see `[[destination]]`."""

    connect: float = 10.0
    progress: float = 60.0
    max_pdu: int = 131072


class Association:
    """Connects when made; `associate` comes first, `release` or `abort` last. `tls`: what TLS is spoken by, if any; `proxy`:
    what it goes through."""

    def __init__(self, party: Party, limits: Limits, cancel: int = -1, tls: Client | None = None,
                 proxy: Proxy | None = None) -> None:
        self.party = party
        self._limits = limits
        self._tls = tls
        self._layer = UpperLayer.requestor(RECEIVE_PDU)
        self._message_id = 0
        self._storing = False
        self.moves = 0
        """Grows with whatever counts as progress: bytes that the peer or its system took, bytes that it sent."""
        self._events: Iterator[Event] = iter(())
        self._by_syntax: dict[tuple[str, str], AcceptedContext] = {}
        self._closing = threading.Lock()  # against `interrupt`: a closed descriptor may belong to somebody else at once
        self._deadline = time.monotonic() + limits.connect
        try:
            connect = sockets.connect if proxy is None else proxy.connect
            self._sock: sockets.Stream = connect(party.host, party.port, limits.connect, cancel)
        except OSError as e:
            raise AssociationLost(failure_of(e), party) from None

    # --- life ---------------------------------------------------------------------------------------------------------

    @property
    def contexts(self) -> dict[int, AcceptedContext]:
        """What the destination accepted."""
        return self._layer.contexts

    @property
    def is_open(self) -> bool:
        return self._layer.state is State.STA6

    def associate(self, contexts: Sequence[pdu.ProposedContext]) -> None:
        """Propose these, and nothing else, after the TLS handshake if there is one; in what is left of the time to connect."""
        request = pdu.AssociateRequest(pdu.title_bytes(self.party.called), pdu.title_bytes(self.party.calling),
                                       tuple(contexts), RECEIVE_PDU)
        self._secure()
        left = max(0.05, self._deadline - time.monotonic())
        sockets.set_timeouts(self._sock, receive=left, send=left)
        self._send([self._layer.request(request)])
        event = self._next(self._deadline, "no answer to our association request in time")
        if isinstance(event, Rejected):
            self._close()
            raise AssociationLost(RejectedByPeer(event.reject.result, event.reject.source, event.reject.reason), self.party)
        if not isinstance(event, Accepted):
            raise self._nonsense(f"{type(event).__name__} instead of an answer to our association")
        sockets.set_timeouts(self._sock, receive=self._limits.progress, send=self._limits.progress)
        self._by_syntax = {(context.abstract, context.syntax): context for context in self.contexts.values()}

    def _secure(self) -> None:
        """The TLS handshake. Here and not when made, so that `interrupt` ends it."""
        if self._tls is None or not isinstance(self._sock, socket.socket):
            return
        try:
            self._sock = self._tls.wrap(self._sock, self._deadline,
                                        f"the certificate of {self.party.destination} ({self.party.place})")
        except OSError as e:
            with self._closing, suppress(OSError):
                self._sock.close()
            raise AssociationLost(failure_of(e), self.party) from None

    def is_usable(self) -> bool:
        """Whether it may be used again after a pause. If the peer has said or done anything meanwhile, it is closed here."""
        if self.is_open and not self._layer.mid_pdu and sockets.is_quiet(self._sock):
            return True
        reply = b""
        with suppress(OSError, ProtocolError, AssociationLost):
            self._sock.setblocking(False)
            if not self._layer.mid_pdu:
                self._take(self._sock.recv_into(self._layer.buffers()[0]))
            for event in self._events:
                reply = self._layer.release_reply() if isinstance(event, ReleaseRequested) else b""
        self._close(reply or self._layer.abort())
        return False

    def release(self) -> None:
        """End it in order, within RELEASE_SECONDS; abort it where the peer does not answer. Never raises."""
        if not self.is_open:
            self._close()
            return
        seconds = min(RELEASE_SECONDS, self._limits.progress)
        try:
            sockets.set_timeouts(self._sock, receive=seconds, send=seconds)
            self._send([self._layer.release()])
            deadline = time.monotonic() + seconds
            while not isinstance(event := self._next(deadline), Released):  # P-DATA may still cross it (AR-6)
                if isinstance(event, ReleaseRequested):  # collision (AR-8, AR-9)
                    self._send([self._layer.release_reply()])
            self._close()
        except (AssociationLost, OSError, ProtocolError):
            self._close()

    def abort(self) -> None:
        """A-ABORT, and close. What the peer has not taken yet may be thrown away with a reset. Never raises, never waits."""
        self._close(self._layer.abort(pdu.BY_USER, 0))

    def interrupt(self) -> None:
        """From any thread: a blocked call fails at once."""
        with suppress(OSError), self._closing:
            self._sock.shutdown(socket.SHUT_RDWR)

    # --- services -----------------------------------------------------------------------------------------------------

    @property
    def fragment(self) -> int:
        """Most bytes of data set in one PDV."""
        return self._layer.fragment_limit(self._limits.max_pdu)

    def context_for(self, abstract: str, syntax: str) -> AcceptedContext | None:
        """The accepted context of that abstract syntax in that transfer syntax."""
        return self._by_syntax.get((abstract, syntax))

    def echo(self) -> int | None:
        """C-ECHO: the status; None where Verification was not accepted."""
        context = next((context for context in self.contexts.values() if context.abstract == uids.VERIFICATION), None)
        if context is None:
            return None
        self._send([self._layer.send_command(context.id, dimse.echo_request(self._number()))])
        return self._response(dimse.C_ECHO_RSP).status

    def store(self, context: AcceptedContext, sop_class: bytes, sop_instance: bytes,
              pieces: Iterable[tuple[bytes | memoryview, bool]], priority: int = dimse.MEDIUM) -> dimse.Command:
        """C-STORE of one data set; the response.

        `pieces` are (bytes, whether they are the last), each taken only when the
        one before has been written; what it raises goes through, after the
        association was aborted: the data set did not become whole.
        """
        limit = self.fragment
        waiting: list[bytes | memoryview] = [self._layer.send_command(
            context.id, dimse.store_request(self._number(), sop_class, sop_instance, priority))]
        whole, self._storing = False, True
        try:
            for piece, last in pieces:
                for buffers in _pdus(context.id, memoryview(piece), last, limit):
                    self._send(waiting + buffers)
                    waiting = []
                whole = last
        finally:
            if not whole:
                self.abort()
        response = self._response(dimse.C_STORE_RSP)
        self._storing = False
        return response

    def _number(self) -> int:
        self._message_id = self._message_id % 65535 + 1
        return self._message_id

    def _response(self, field: int) -> dimse.Command:
        event = self._next()
        if not isinstance(event, CommandReceived):
            raise self._nonsense(f"{type(event).__name__} instead of a response")
        command = event.command
        if command.field != field or command.responded_id != self._message_id:
            raise self._nonsense(f"command {command.field:04X}H to message {command.responded_id} instead of a response "
                                 f"to {self._message_id}")
        if command.has_data_set:
            raise self._nonsense("a response with a data set")
        return command

    # --- bytes --------------------------------------------------------------------------------------------------------

    def _send(self, buffers: Sequence[bytes | memoryview]) -> None:
        """Write all of it; header and payload leave in one call. A call that takes no byte for `progress` is the end."""
        try:
            done = self._sock.sendmsg(buffers)
            self.moves += 1
            if done == sum(map(len, buffers)):
                return
            left = [memoryview(buffer) for buffer in buffers]
            while left:
                while left and done >= len(left[0]):
                    done -= len(left.pop(0))
                if left:
                    left[0] = left[0][done:]
                    done = self._sock.sendmsg(left)
                    self.moves += 1
        except BlockingIOError:
            raise self._last_words(Failure(FailureKind.TIMEOUT, f"took no byte for {self._limits.progress:.3g} s")) from None
        except TlsError as e:
            self._close()
            raise AssociationLost(failure_of(e), self.party) from None
        except OSError as e:
            raise self._last_words(failure_of(e)) from None

    def _last_words(self, failure: Failure) -> AssociationLost:
        """Writing failed: what the peer said before it went (A-ABORT) tells more than the broken connection does."""
        answer: Answer = failure
        with suppress(OSError, ProtocolError):
            self._sock.setblocking(False)
            for _ in range(LAST_READS):
                count = self._sock.recv_into(self._layer.buffers()[0])
                if not count:
                    break
                for event in self._layer.received(count):
                    if isinstance(event, Aborted):
                        answer = AbortedByPeer(event.source, event.reason, self._storing)
                    elif isinstance(event, CommandReceived) and event.command.status:
                        answer = Failure(failure.kind, f"answered {event.command.status:04X} {event.command.comment} and "
                                                       "took no more")
        self.abort()
        return AssociationLost(answer, self.party)

    def _next(self, deadline: float | None = None, late: str = "no answer in time") -> Event:
        """The next thing that the peer says, whole by `deadline` or within `progress` of the last progress.

        What it says behind that waits: an answer counts, whatever comes after it.
        """
        limit = deadline if deadline is not None else time.monotonic() + self._limits.progress
        try:
            on_their_way = 0 if deadline is not None else sockets.unacknowledged(self._sock)
            while True:
                event = self._parsed()
                if event is not None:
                    return event
                if time.monotonic() > limit:
                    raise self._late(late)
                sockets.quick_ack(self._sock)  # a peer with Nagle on holds the rest of its answer until we acknowledge
                try:
                    self._take(self._sock.recv_into(self._layer.buffers()[0]))
                except BlockingIOError:
                    before, on_their_way = on_their_way, sockets.unacknowledged(self._sock)
                    if on_their_way >= before:
                        raise self._late(late) from None
                    self.moves += 1
                    limit = time.monotonic() + self._limits.progress
        except OSError as e:
            self._close()
            raise AssociationLost(failure_of(e), self.party) from None

    def _take(self, count: int) -> None:
        self.moves += 1
        if not count:
            self._layer.closed()
            self._close()
            raise AssociationLost(Failure(FailureKind.CLOSED, "end of file"), self.party)
        self._events = iter(self._layer.received(count))

    def _parsed(self) -> Event | None:
        """The next event in what was received, if one is whole."""
        try:
            event = next(self._events, None)
        except ProtocolError as e:
            self._close(self._layer.abort(pdu.BY_PROVIDER, e.reason))
            raise AssociationLost(Failure(FailureKind.PROTOCOL, e.message), self.party) from None
        if isinstance(event, Aborted):
            self._close()
            raise AssociationLost(AbortedByPeer(event.source, event.reason, self._storing), self.party)
        return event

    def _late(self, what: str) -> AssociationLost:
        self.abort()
        return AssociationLost(Failure(FailureKind.TIMEOUT, what), self.party)

    def _nonsense(self, what: str) -> AssociationLost:
        self._close(self._layer.abort(pdu.BY_PROVIDER, pdu.UNEXPECTED_PDU))
        return AssociationLost(Failure(FailureKind.PROTOCOL, what), self.party)

    def _close(self, last_words: bytes = b"") -> None:
        """Close, after an A-ABORT where there is one. Where that cannot be sent at once, the connection is reset instead."""
        self._layer.abort()
        with self._closing:
            if self._tls is not None and isinstance(self._sock, Secure):
                self._tls.keep(self._sock)
            try:
                if last_words:
                    self._sock.setblocking(False)
                    if self._sock.send(last_words) < len(last_words):
                        raise BlockingIOError
            except OSError:
                with suppress(OSError):
                    self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            with suppress(OSError):
                self._sock.close()


def _pdus(context_id: int, piece: memoryview, last: bool, limit: int) -> Iterator[list[bytes | memoryview]]:
    """The piece as P-DATA-TF PDUs, gathered up to about 128 KiB a write: header, bytes, header, bytes, …"""
    gathered: list[bytes | memoryview] = []
    size = 0
    start, end = 0, len(piece)
    while start < end or (last and not end):
        part = piece[start:start + limit]
        start += limit
        gathered += [pdu.data_header(context_id, len(part), command=False, last=last and start >= end), part]
        size += len(part)
        if start >= end or size + limit > GATHER or len(gathered) >= 512:
            yield gathered
            gathered, size = [], 0
            if not end:
                return
