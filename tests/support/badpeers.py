"""Destinations that fail, each in its own way, on a port of 127.0.0.1."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from tests.support.waiting import free_port


@contextmanager
def refusing() -> Iterator[int]:
    """Nobody listens: connection refused at once."""
    yield free_port()


@contextmanager
def black_hole() -> Iterator[int]:
    """SYNs are dropped without an answer, as a firewall does: the queue of a listener that never accepts is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", free_port()))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(16):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.3)
            try:
                filler.connect(("127.0.0.1", port))
            except TimeoutError:
                break
        else:
            raise AssertionError("the queue does not fill")
        yield port


Behaviour = Callable[[socket.socket, threading.Event], None]


@contextmanager
def _serving(behaviour: Behaviour) -> Iterator[int]:
    """A listener with a thread for each connection, until the end of the block."""
    stop = threading.Event()
    sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", free_port()))
    listener.listen(16)

    def serve(sock: socket.socket) -> None:
        try:
            behaviour(sock, stop)
        except OSError:
            pass   # the other side went away, or the block ended
        finally:
            sock.close()

    def accept() -> None:
        while not stop.is_set():
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sockets.append(sock)
            thread = threading.Thread(target=serve, args=(sock,), daemon=True)
            threads.append(thread)
            thread.start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield listener.getsockname()[1]
    finally:
        stop.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for sock in sockets:
            sock.close()
        acceptor.join(5)
        for thread in threads:
            thread.join(5)


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        got = sock.recv(count - len(data))
        if not got:
            raise ConnectionResetError("closed")
        data += got
    return data


def _pdu(sock: socket.socket) -> tuple[int, bytes]:
    kind, size = struct.unpack(">BxL", _exactly(sock, 6))
    return kind, _exactly(sock, size)


def accept_association(sock: socket.socket) -> None:
    """Read an A-ASSOCIATE-RQ and accept all that it proposes, each context in its first transfer syntax."""
    _, body = _pdu(sock)
    reply = body[:68] + struct.pack(">BxH", 0x10, 21) + b"1.2.840.10008.3.1.1.1"
    at = 68
    while at + 4 <= len(body):
        kind, size = struct.unpack_from(">BxH", body, at)
        if kind == 0x20:
            inner = at + 8
            while inner + 4 <= at + 4 + size:
                sub, length = struct.unpack_from(">BxH", body, inner)
                if sub == 0x40:
                    syntax = body[inner:inner + 4 + length]
                    item = struct.pack(">BxBx", body[at + 4], 0) + syntax
                    reply += struct.pack(">BxH", 0x21, len(item)) + item
                    break
                inner += 4 + length
        at += 4 + size
    user = struct.pack(">BxHL", 0x51, 4, 16384) + struct.pack(">BxH", 0x52, 6) + b"2.25.1"
    reply += struct.pack(">BxH", 0x50, len(user)) + user
    sock.sendall(struct.pack(">BxL", 2, len(reply)) + reply)


@contextmanager
def silent_after_connect() -> Iterator[int]:
    """Takes the connection and says nothing."""
    with _serving(lambda sock, stop: (stop.wait(), None)[1]) as port:
        yield port


@contextmanager
def hung_after_accept() -> Iterator[int]:
    """Accepts the association and never reads again."""

    def behave(sock: socket.socket, stop: threading.Event) -> None:
        accept_association(sock)
        stop.wait()

    with _serving(behave) as port:
        yield port


@contextmanager
def resetting() -> Iterator[int]:
    """Accepts the association and resets the connection in the middle of the first object."""

    def behave(sock: socket.socket, stop: threading.Event) -> None:
        accept_association(sock)
        _exactly(sock, 1000)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with _serving(behave) as port:
        yield port


@contextmanager
def lying() -> Iterator[int]:
    """Reads everything and answers each object with an association that ends without a status."""

    def behave(sock: socket.socket, stop: threading.Event) -> None:
        accept_association(sock)
        while True:
            kind, body = _pdu(sock)
            if kind == 4 and body[5] & 1 == 0 and body[5] & 2:   # the last fragment of a data set
                return

    with _serving(behave) as port:
        yield port


FAILING = {"refusing": refusing, "black-holed": black_hole, "silent": silent_after_connect, "hung": hung_after_accept,
           "resetting": resetting, "lying": lying}
