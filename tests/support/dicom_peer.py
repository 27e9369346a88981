"""A destination that does as it is told: a listening socket whose connections run through scripts of the test."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from appliance.dicom import dimse, pdu
from appliance.dicom.indications import CommandReceived, Event, Fragment, ReleaseRequested, Requested
from appliance.dicom.upper import UpperLayer


@dataclass
class Stored:
    """One C-STORE as it arrived."""

    command: dimse.Command
    syntax: str
    data: bytes
    connection: int


class Connection:
    """One accepted connection, for a script."""

    def __init__(self, peer: DicomPeer, sock: socket.socket, number: int) -> None:
        self.peer = peer
        self.sock = sock
        self.number = number
        self.layer = UpperLayer.acceptor()
        self.request: pdu.AssociateRequest | None = None
        self._events: list[Event] = []

    def event(self) -> Event:
        """The next thing the requestor says; EOFError when it is gone."""
        while not self._events:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self._events = self.layer.feed(data)
        return self._events.pop(0)

    def requested(self) -> pdu.AssociateRequest:
        event = self.event()
        assert isinstance(event, Requested)
        self.request = event.request
        self.peer.requests.append(event.request)
        return event.request

    def associate(self, takes: Callable[[str, str], bool] = lambda abstract, syntax: True, max_length: int = 16384) -> None:
        request = self.requested()
        results = []
        for context in request.contexts:
            syntax = next((s for s in context.syntaxes if takes(context.abstract, s)), "")
            results.append(pdu.ContextResult(context.id, 0 if syntax else 3, syntax or context.syntaxes[0]))
        self.sock.sendall(self.layer.accept(pdu.AssociateAccept(request.called, request.calling, tuple(results), max_length)))

    def command(self) -> tuple[int, dimse.Command]:
        event = self.event()
        if isinstance(event, ReleaseRequested):
            self.sock.sendall(self.layer.release_reply())
            raise EOFError
        assert isinstance(event, CommandReceived)
        return event.context_id, event.command

    def store(self, status: int | None = 0, comment: str = "") -> Stored:
        """Take one C-STORE and answer it, unless `status` is None."""
        context_id, command = self.command()
        data = bytearray()
        while command.has_data_set:
            event = self.event()
            assert isinstance(event, Fragment)
            data += event.view or b""
            if event.last:
                break
        stored = Stored(command, self.layer.contexts[context_id].syntax, bytes(data), self.number)
        if command.field == dimse.C_STORE_RQ:
            self.peer.stored.append(stored)
        if status is not None:
            self.sock.sendall(self.layer.send_command(context_id, dimse.response(command, status, comment)))
        return stored

    def serve(self, statuses: Sequence[int] = ()) -> None:
        """Answer everything until the requestor goes: these statuses first, then success."""
        left = list(statuses)
        with contextlib.suppress(EOFError, ConnectionResetError):
            while True:
                self.store(left.pop(0) if left else 0)

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
        self.sock.close()


Script = Callable[[Connection], None]


@dataclass
class DicomPeer:
    port: int
    requests: list[pdu.AssociateRequest] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)
    connections: int = 0
    errors: list[BaseException] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def dicom_peer(*scripts: Script, receive_buffer: int = 0) -> Iterator[DicomPeer]:
    """The n-th connection runs the n-th script, further ones the last; `peer.stop` is set at the end, for scripts that hang."""
    listener = socket.create_server(("127.0.0.1", 0))
    if receive_buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    peer = DicomPeer(listener.getsockname()[1])
    threads: list[threading.Thread] = []

    def run(connection: Connection, script: Script) -> None:
        try:
            script(connection)
        except (OSError, EOFError):
            pass
        except BaseException as e:  # noqa: BLE001 - shown by the test at its end
            peer.errors.append(e)
        finally:
            connection.sock.close()

    def accept() -> None:
        while not peer.stop.is_set():
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            number = peer.connections
            peer.connections += 1
            script = scripts[min(number, len(scripts) - 1)]
            thread = threading.Thread(target=run, args=(Connection(peer, sock, number), script), daemon=True)
            threads.append(thread)
            thread.start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield peer
    finally:
        peer.stop.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join(5)
        for thread in threads:
            thread.join(5)
    assert peer.errors == []


def hang(connection: Connection) -> None:
    """Says and reads nothing more."""
    connection.peer.stop.wait(60)
