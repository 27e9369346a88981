"""Association: one peer's connection from its A-ASSOCIATE-RQ to its end, in a thread of its own.

Blocking reads go straight into the slot's buffer where a data-set fragment is
under way. There is no time-out on the socket: `phase` and `moves` tell the guard
what is waited for, and its `overdue` ends the wait. So the hot path is one
system call a read, one an answer, and what the disk needs.

On failure: a violation by the peer is answered by A-ABORT; a storage error by
A700 after the rest of the data set was read (`services`); anything nobody
expected by 0110 where a status is owed, and A-ABORT. In each case slot, buffer,
descriptor and thread are given back.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from appliance.dicom import dimse, pdu
from appliance.dicom.indications import Aborted, CommandReceived, Event, Fragment, ReleaseRequested, Requested
from appliance.dicom.negotiation import negotiate
from appliance.dicom.upper import UpperLayer
from appliance.errors import LedgerError, ProtocolError, SpoolError, StateError
from appliance.model import Source, escape
from appliance.net.secure import Identity, Secure
from appliance.net.sockets import no_delay, quick_ack
from appliance.net.tlserrors import TlsError
from appliance.receive.door import Answer
from appliance.receive.front import Arrival
from appliance.receive.guard import CLOSING, FIRST, IDLE, MESSAGE, ON_DISK, PDU, PHASES, SEND, STORE, WRITE, Guard
from appliance.receive.limits import Limits
from appliance.receive.services import SCRATCH, Call, Refusal, Registry, Response, Service, Task, out_of_resources
from appliance.telemetry.log import Log

SHORT = 1 << 16
"""A read of fewer bytes has emptied the socket: acknowledge at once, or Nagle on the other side waits for us (hazards.md)."""

ABORT_BY_PROVIDER = pdu.encode(pdu.Abort(pdu.BY_PROVIDER, pdu.NOT_SPECIFIED))
_RESET = struct.pack("ii", 1, 0)
"""struct linger: what is not sent is dropped, and the peer hears a reset."""

STORAGE_ERRORS = (SpoolError, LedgerError, OSError)

log = Log("receive")


class Host(Protocol):
    """What an association needs of the process that it runs in."""

    limits: Limits
    guard: Guard
    registry: Registry

    def secure(self, arrival: Arrival) -> ssl.SSLContext | None:
        """What TLS is spoken by there; None: none. TlsError where it should be and cannot."""

    def refused(self, arrival: Arrival, error: TlsError) -> None:
        """There was no TLS with this one."""

    def secured(self, arrival: Arrival, calling: str, version: str, suite: str) -> None:
        """An association was accepted over TLS."""

    def answer(self, arrival: Arrival, request: pdu.AssociateRequest, identity: Identity | None) -> Answer:
        """Whether it may come in. `identity`: what it has proven by its certificate, if it showed one."""

    def max_pdu(self, listener: str) -> int:
        """Largest PDU that is advertised there, in bytes."""

    def ended(self, association: Association) -> None:
        """Its place is free again; called before the socket is closed."""


class _Over(Exception):
    """The association is at its end, and the peer has been told."""


class Association:
    """One association. `run` is the thread; everything else may be called from any thread."""

    __slots__ = ("_accepted", "_arrival", "_at_once", "_call", "_closed", "_context", "_host", "_identity", "_layer", "_lock",
                 "_own", "_services", "_sock", "_steps", "_task", "_token", "_verdict", "bytes", "deadline", "idle_seconds",
                 "objects", "phase", "source", "ticket")

    def __init__(self, host: Host, sock: socket.socket, arrival: Arrival, ticket: int) -> None:
        self.ticket = ticket
        self.phase = FIRST
        self.deadline = arrival.deadline
        self.idle_seconds = 3600.0
        self.objects = 0
        self.bytes = 0
        self.source = Source(listener=arrival.listener, address=arrival.address, port=arrival.port)
        self._host = host
        self._sock: socket.socket | Secure = sock
        self._identity: Identity | None = None
        self._arrival = arrival
        self._layer = UpperLayer.acceptor(host.max_pdu(arrival.listener))
        self._steps = 0
        self._accepted = False
        self._own = False
        self._services: dict[int, Service] = {}
        self._task: Task | None = None
        self._call: Call | None = None
        self._context = 0
        self._token: list[None] = []     # who takes it out gives the answer: this thread, or the guard
        self._verdict = ""               # why this association has to end
        self._at_once = False            # …not only when it is idle
        self._lock = threading.Lock()    # closing against the guard's shutdown
        self._closed = False

    # -- for the guard and for stopping ------------------------------------------------------------------------------

    @property
    def moves(self) -> int:
        """Grows with every PDU and every step: what the guard takes for progress."""
        return self._steps + self._layer.begun

    def overdue(self, phase: int) -> None:
        """A limit has passed (guard's thread): end the wait, and where the disk keeps us waiting answer in its place."""
        if not self._verdict or phase not in (IDLE, CLOSING):
            log.warning("association overdue", waits_for=PHASES[phase], address=self._arrival.address,
                        calling=self.source.calling)
        self._verdict = self._verdict or f"waited too long for the {PHASES[phase]}"
        self._at_once = True
        if phase == STORE:
            self._answer_for_the_disk()
        elif phase == WRITE:
            self._send_now(ABORT_BY_PROVIDER)
        self._shutdown(socket.SHUT_RDWR if phase in (SEND, CLOSING, *ON_DISK) else socket.SHUT_RD)

    def cut(self) -> None:
        """Reset the connection (guard's thread): a peer that is blocked in sending reads no A-ABORT, and would wait for ever.

        A dead socket takes the place of the descriptor, so that this thread, which
        the disk still keeps, never reads from somebody else's.
        """
        with self._lock, suppress(OSError):
            if not self._closed:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                dead, other = socket.socketpair()
                with dead:
                    other.close()
                    os.dup2(dead.fileno(), self._sock.fileno(), inheritable=False)

    def stop(self, *, at_once: bool) -> None:
        """End it as soon as it is idle, or at once."""
        self._verdict = self._verdict or "the receiver stops"
        self._at_once = self._at_once or at_once
        if at_once or self.phase == IDLE:
            self._shutdown(socket.SHUT_RD)

    def _answer_for_the_disk(self) -> None:
        """A status is owed and the disk does not come back: A700 and A-ABORT, within 25 s of the last byte (I1)."""
        try:
            self._token.pop()
        except IndexError:
            return
        call = self._call
        if call is not None:
            answer = dimse.response(call.request, dimse.OUT_OF_RESOURCES, "the disk does not answer")
            self._send_now(self._layer.send_command(self._context, answer) + ABORT_BY_PROVIDER)

    def _send_now(self, data: bytes) -> None:
        with self._lock, suppress(OSError):
            if not self._closed:
                self._sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def _shutdown(self, how: int) -> None:
        with self._lock, suppress(OSError):
            if not self._closed:
                self._sock.shutdown(how)

    # -- the association's thread ------------------------------------------------------------------------------------

    def run(self) -> None:
        """From the first byte to the closed socket. Raises nothing."""
        why = ""
        try:
            no_delay(self._sock)
            self._secure()
            self._talk()
        except _Over as e:
            why = str(e)
        except ProtocolError as e:
            why = f"protocol: {e.message}"
            self._abort(e.reason)
        except OSError as e:
            why = f"connection: {e.strerror or e}"
        except Exception as e:  # noqa: BLE001 top of an association's thread: the peer is told, the others go on
            why = f"{type(e).__name__}: {e}"
            log.crash("an association died", address=self._arrival.address, calling=self.source.calling)
            self._fail()
        finally:
            self._end(why)

    def _secure(self) -> None:
        """Where TLS is wanted: the handshake, in what is left of the time for the first PDU (the guard ends it)."""
        arrival, sock = self._arrival, self._sock
        assert isinstance(sock, socket.socket)
        try:
            context = self._host.secure(arrival)
            if context is None:
                return
            secure = self._sock = Secure(sock, context, server_side=True, whose=f"the certificate of {arrival.address}")
            secure.handshake()
        except TlsError as e:
            late = e.check == "closed" and self._verdict
            self._host.refused(arrival, TlsError("timeout", "its TLS handshake took too long") if late else e)
            self._hang_up()
            raise
        self._identity = secure.identity

    def _hang_up(self) -> None:
        """After a handshake that failed: leave the peer time to read the alert, which a reset would take away from it."""
        self._steps += 1
        self.phase = CLOSING
        self._host.guard.arm()
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
            left = self._host.limits.discard
            read = self._sock.discard if isinstance(self._sock, Secure) else self._sock.recv_into
            while left > 0 and (count := read(SCRATCH)):
                left -= count

    def _talk(self) -> None:
        layer, guard, task = self._layer, self._host.guard, self._task
        receive = self._sock.recvmsg_into
        while True:
            if self._verdict and (self._at_once or (task is None and layer.idle)):
                self._told(self._verdict)
            direct = None
            if task is not None:
                self.phase = WRITE
                try:
                    direct = task.room()
                except STORAGE_ERRORS as e:
                    task = self._refuse(e)
                    direct = task.room()
            views = layer.buffers(direct)
            if layer.mid_pdu:
                phase = PDU
            elif task is not None or not layer.idle:
                phase = MESSAGE
            else:
                phase = IDLE
            if not self._accepted:
                phase = FIRST
            self.phase = phase
            if phase != IDLE and not guard.armed:
                guard.arm()
            count = receive(views)[0]
            if not count:
                self._eof()
            if phase != PDU:
                self._steps += 1
            self.phase = WRITE if task is not None else phase
            for event in layer.received(count):
                if type(event) is Fragment:
                    assert task is not None
                    try:
                        if event.view is None:
                            task.advance(event.length)
                        else:
                            task.write(event.view)
                    except STORAGE_ERRORS as e:
                        task = self._refuse(e)
                    self.bytes += event.length
                    if event.last:
                        self._complete(task)
                        task = None
                else:
                    task = self._handle(event)
            if count < SHORT and (layer.mid_pdu or not layer.idle):
                quick_ack(self._sock)

    def _handle(self, event: Event) -> Task | None:
        """Everything but fragments; returns the task that fragments belong to from now on."""
        match event:
            case CommandReceived():
                return self._command(event)
            case Requested():
                self._requested(event.request)
            case ReleaseRequested():
                self._give_up("released in the middle of a message")
                self._last_words(self._layer.release_reply(), half=False)
                raise _Over("released")
            case Aborted():
                raise _Over(f"aborted by the peer (source {event.source}, reason {event.reason})")
            case _:
                raise StateError(f"{type(event).__name__} at an acceptor", reason=pdu.UNEXPECTED_PDU)
        return self._task

    def _requested(self, request: pdu.AssociateRequest) -> None:
        """A-ASSOCIATE indication: accept, or reject with the reason (PS3.8 7.1)."""
        arrival = self._arrival
        self.source = Source(
            listener=arrival.listener, calling=pdu.title_text(request.calling), called=pdu.title_text(request.called),
            raw_calling=request.calling, raw_called=request.called, address=arrival.address, port=arrival.port,
            certificate=f"sha256:{self._identity.fingerprint}" if self._identity is not None else "",
            implementation=escape(request.implementation_version or request.implementation_uid)[:64])
        answer = self._host.answer(arrival, request, self._identity)
        if answer.code is not None:
            self._last_words(self._layer.reject(*answer.code))
            raise _Over(f"rejected: {answer.text}")
        self.idle_seconds, self._own = answer.idle_seconds, answer.own
        self.source = replace(self.source, peer=answer.peer)
        accept = pdu.AssociateAccept(
            called=request.called, calling=request.calling, contexts=negotiate(request, self._host.registry.preference),
            max_length=self._host.max_pdu(arrival.listener))
        self._send(self._layer.accept(accept))
        if isinstance(self._sock, Secure):
            self._host.secured(arrival, self.source.calling, self._sock.version, self._sock.suite)
        for number, context in self._layer.contexts.items():
            service = self._host.registry.service(context.abstract)
            assert service is not None      # negotiation accepted it because a service is behind it
            self._services[number] = service
        self._accepted = True

    def _command(self, event: CommandReceived) -> Task | None:
        """A request begins: its service takes it. What is not a request of ours to serve is refused or ends the association."""
        request = event.command
        if request.field == dimse.C_CANCEL_RQ and not request.has_data_set:
            call = self._call
            if call is not None and call.request.message_id == request.responded_id:
                call.cancelled = True
            return None          # nothing that answers at once can be cancelled any more (PS3.7 9.3.2.3)
        if request.is_response or request.field == dimse.C_CANCEL_RQ:     # to nothing that was asked, or with a data set
            raise StateError(f"{request.field:04X}H is no request", reason=pdu.UNEXPECTED_PARAMETER)
        context = self._layer.contexts[event.context_id]
        service = self._services[event.context_id]
        self._call = call = Call(request, context.abstract, context.syntax, self.source)
        self._context = event.context_id
        self.phase = WRITE           # a slot may have to be waited for
        self._task = task = service.begin(call)
        if request.has_data_set:
            return task
        self._complete(task)
        return None

    def _refuse(self, error: Exception) -> Task:
        """Storage failed in the middle of an object: drop the rest of it, so that A700 can be heard."""
        assert self._call is not None
        self._give_up("storage failed")
        self._task = task = out_of_resources(self._call, error, self._host.limits.drain)
        return task

    def _complete(self, task: Task) -> None:
        """The request is whole: have it done, and answer."""
        call, guard = self._call, self._host.guard
        assert call is not None
        self._token = token = [None]
        self._steps += 1
        self.phase = STORE
        if not guard.armed:
            guard.arm()
        responses = task.end()
        self._task = None
        try:
            token.pop()
        except IndexError:
            raise _Over("the disk came back after the status was given") from None
        self._respond(call, responses)
        self.objects += 1

    def _respond(self, call: Call, responses: Iterable[Response]) -> None:
        self._steps += 1
        self.phase = SEND
        for response in responses:
            self._sock.sendall(self._layer.send_command(
                self._context, dimse.response(call.request, response.status, response.comment)))
        self._steps += 1

    # -- the end -----------------------------------------------------------------------------------------------------

    def _eof(self) -> None:
        """No more bytes: the peer closed, or the guard ended the wait."""
        if self._verdict:
            self._told(self._verdict)
        self._layer.closed()
        raise _Over("closed by the peer without release")

    def _told(self, why: str) -> None:
        self._abort(pdu.NOT_SPECIFIED)
        raise _Over(why)

    def _abort(self, reason: int) -> None:
        self._give_up("aborted")
        with suppress(OSError):
            self._last_words(self._layer.abort(pdu.BY_PROVIDER, reason))

    def _fail(self) -> None:
        """Something nobody expected: 0110 where the request is whole and its status owed, and A-ABORT."""
        with suppress(OSError, ProtocolError):
            if self.phase == STORE and self._token and self._call is not None:
                self._token.clear()
                self._respond(self._call, (Response(dimse.PROCESSING_FAILURE, "internal error"),))
        self._abort(pdu.NOT_SPECIFIED)

    def _send(self, data: bytes) -> None:
        phase, self.phase = self.phase, SEND
        self._steps += 1
        self._sock.sendall(data)
        self._steps += 1
        self.phase = phase

    def _last_words(self, data: bytes, *, half: bool = True) -> None:
        """Say the last thing, and wait for the peer to close, for a limited time and a limited number of bytes (ARTIM)."""
        self._steps += 1
        self.phase = CLOSING
        self._host.guard.arm()
        if data:
            self._sock.sendall(data)
        if half:
            self._sock.shutdown(socket.SHUT_WR)
        left = self._host.limits.discard
        while left > 0:
            count = self._sock.recv_into(SCRATCH)
            if not count:
                return
            left -= count

    def _give_up(self, reason: str) -> None:
        task, self._task = self._task, None
        if task is not None:
            phase, self.phase = self.phase, WRITE       # what is still being written is waited for
            task.abandon(reason)
            self.phase = phase

    def _end(self, why: str) -> None:
        self.phase = CLOSING
        self._give_up(why)
        say = log.info if (self.objects and not self._own) or why != "released" else log.debug
        say("association ended", calling=self.source.calling, called=self.source.called, address=self._arrival.address,
            messages=self.objects, bytes=self.bytes, why=why)
        self._layer.rest()
        self._host.ended(self)
        with self._lock:
            self._closed = True
            self._sock.close()


__all__ = ["Association", "Host", "Refusal"]
