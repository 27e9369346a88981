"""A scanner of the tests' own: bytes on a socket, written without the product's code and cheap enough to measure others with.

Every object is one `sendmsg` of views, nothing is copied or encoded while the
time runs; the answer is read from the same socket. One presentation context is
proposed for each (SOP class, transfer syntax).
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType

from tests.support.objects import Buffer, Instance

VERIFICATION = "1.2.840.10008.1.1"
IMPLICIT = "1.2.840.10008.1.2"
IMPLEMENTATION = "2.25.137731752600317795446120660167595746868"
OUR_PDU = 16384


class Lost(Exception):
    """The peer refused, aborted, closed or was silent: nothing is known of what was not answered."""


def _item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(body)) + body


def _title(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return raw[:16].ljust(16)


def associate_request(called: str | bytes, calling: str | bytes, contexts: Sequence[tuple[str, str]],
                      max_pdu: int = OUR_PDU) -> bytes:
    """A-ASSOCIATE-RQ (PS3.8 9.3.2) proposing one context for each (abstract syntax, transfer syntax)."""
    body = struct.pack(">HH", 1, 0) + _title(called) + _title(calling) + bytes(32) + _item(0x10, b"1.2.840.10008.3.1.1.1")
    for number, (abstract, syntax) in enumerate(contexts):
        names = _item(0x30, abstract.encode()) + _item(0x40, syntax.encode())
        body += _item(0x20, struct.pack(">Bxxx", 2 * number + 1) + names)
    user = (_item(0x51, struct.pack(">L", max_pdu)) + _item(0x52, IMPLEMENTATION.encode()) + _item(0x55, b"DCMGATE_TESTS"))
    body += _item(0x50, user)
    return struct.pack(">BxL", 1, len(body)) + body


def _command(elements: Iterable[tuple[int, bytes]]) -> bytes:
    """A command set (PS3.7 6.3.1): Implicit VR Little Endian, group length first."""
    body = b"".join(struct.pack("<HHL", 0, number, len(value)) + value for number, value in elements)
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def _even(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return raw + b"\0" * (len(raw) % 2)


def store_command(message: int, sop_class: str | bytes, sop_instance: str | bytes) -> bytes:
    """C-STORE-RQ (PS3.7 9.3.1.1)."""
    return _command([(0x0002, _even(sop_class)), (0x0100, b"\x01\x00"), (0x0110, struct.pack("<H", message)),
                     (0x0700, b"\x00\x00"), (0x0800, b"\x01\x00"), (0x1000, _even(sop_instance))])


def echo_command(message: int) -> bytes:
    """C-ECHO-RQ (PS3.7 9.3.5.1)."""
    return _command([(0x0002, _even(VERIFICATION)), (0x0100, b"\x30\x00"), (0x0110, struct.pack("<H", message)),
                     (0x0800, b"\x01\x01")])


def pdata(context: int, control: int, body: bytes) -> bytes:
    """One P-DATA-TF PDU with one PDV (PS3.8 9.3.5)."""
    return struct.pack(">BxLLBB", 4, len(body) + 6, len(body) + 2, context, control) + body


def fragments(parts: Iterable[Buffer], length: int, context: int, limit: int) -> Iterator[Buffer]:
    """P-DATA-TF PDUs of one data set: a header and views for each, at most `limit` bytes of PDV value in each."""
    room = limit - 6
    left = length
    full = struct.pack(">BxLLBB", 4, room + 6, room + 2, context, 0)
    need = 0
    for part in parts:
        view = memoryview(part)
        while view:
            if need == 0:
                need = min(room, left)
                left -= need
                yield full if left else struct.pack(">BxLLBB", 4, need + 6, need + 2, context, 2)
            piece = view[:need]
            need -= len(piece)
            view = view[len(piece):]
            yield piece


def wire(instance: Instance, context: int, message: int, limit: int) -> list[Buffer]:
    """All the bytes of one C-STORE-RQ, ready for `sendmsg`."""
    command = store_command(message, instance.sop_class, instance.sop_instance)
    head = struct.pack(">BxLLBB", 4, len(command) + 6, len(command) + 2, context, 3)
    return [head + command, *fragments(instance.parts, instance.length, context, limit)]


def send_views(sock: socket.socket, views: Sequence[Buffer]) -> None:
    """All of it, with as few system calls as the kernel allows."""
    at = 0
    while at < len(views):
        batch = views[at:at + 1024]
        sent = sock.sendmsg(batch)
        for view in batch:
            if sent < len(view):
                break
            sent -= len(view)
            at += 1
        else:
            continue
        if sent:
            sock.sendall(memoryview(views[at])[sent:])
            at += 1


@dataclass
class Scanner:
    """One association as requestor. Not thread-safe; every wait is bounded by `timeout` seconds without progress."""

    port: int
    contexts: Sequence[tuple[str, str]]
    called: str | bytes = "DCMGATE"
    calling: str | bytes = "SCANNER"
    address: str = "127.0.0.1"
    timeout: float = 30.0
    max_send: int = 131072
    nodelay: bool = True
    source: str = ""
    accepted: dict[tuple[str, str], int] = field(default_factory=dict)
    peer_max: int = 0
    _sock: socket.socket | None = None
    _message: int = 0
    _rest: bytes = b""

    def __enter__(self) -> Scanner:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.release()
        else:
            self.close()

    @property
    def sock(self) -> socket.socket:
        if self._sock is None:
            raise Lost("not connected")
        return self._sock

    @property
    def limit(self) -> int:
        """Largest PDU body that is sent: what the peer allows, and never more than `max_send`."""
        return min(self.peer_max or self.max_send, self.max_send)

    def open(self) -> Scanner:
        """Connect and associate; Lost names the rejection."""
        try:
            self._sock = socket.create_connection((self.address, self.port), self.timeout,
                                                  source_address=(self.source, 0) if self.source else None)
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(self.nodelay))
            self._sock.sendall(associate_request(self.called, self.calling, self.contexts))
            kind, body = self._pdu()
        except OSError as error:
            self.close()
            raise Lost(f"{type(error).__name__}: {error}") from error
        except Lost:
            self.close()
            raise
        if kind == 3:
            self.close()
            raise Lost(f"rejected: result {body[1]} source {body[2]} reason {body[3]}")
        if kind != 2:
            self.close()
            raise Lost(f"PDU {kind} instead of an acceptance")
        self._read_acceptance(body)
        return self

    def _read_acceptance(self, body: bytes) -> None:
        at = 68
        self.accepted = {}
        self.peer_max = 0
        while at + 4 <= len(body):
            kind, size = struct.unpack_from(">BxH", body, at)
            if kind == 0x21 and body[at + 6] == 0:
                self.accepted[self.contexts[(body[at + 4] - 1) // 2]] = body[at + 4]
            if kind == 0x50:
                inner = at + 4
                while inner + 4 <= at + 4 + size:
                    sub, length = struct.unpack_from(">BxH", body, inner)
                    if sub == 0x51:
                        self.peer_max = struct.unpack_from(">L", body, inner + 4)[0]
                    inner += 4 + length
            at += 4 + size

    def context(self, instance: Instance) -> int:
        try:
            return self.accepted[instance.sop_class, instance.syntax]
        except KeyError:
            raise LookupError(f"the peer did not accept {instance.sop_class} in {instance.syntax}") from None

    def prepare(self, instance: Instance) -> list[Buffer]:
        """The bytes of one C-STORE-RQ on this association."""
        self._message = self._message % 65535 + 1
        return wire(instance, self.context(instance), self._message, self.limit)

    def exchange(self, views: Sequence[Buffer]) -> int:
        """Send what `prepare` made and return the status of the answer."""
        try:
            send_views(self.sock, views)
            return self._status()
        except OSError as error:
            self.close()
            raise Lost(f"{type(error).__name__}: {error}") from error
        except Lost:
            self.close()
            raise

    def store(self, instance: Instance) -> int:
        return self.exchange(self.prepare(instance))

    def echo(self) -> int:
        self._message = self._message % 65535 + 1
        command = echo_command(self._message)
        context = self.accepted[VERIFICATION, IMPLICIT]
        return self.exchange([struct.pack(">BxLLBB", 4, len(command) + 6, len(command) + 2, context, 3) + command])

    def release(self) -> None:
        """A-RELEASE; the peer's answer is awaited, for a while."""
        if self._sock is None:
            return
        try:
            self._sock.sendall(struct.pack(">BxLL", 5, 4, 0))
            self._pdu()
        except (OSError, Lost):
            pass
        finally:
            self.close()

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        self._rest = b""

    def _exactly(self, count: int) -> bytes:
        while len(self._rest) < count:
            got = self.sock.recv(65536)
            if not got:
                raise Lost("closed by the peer")
            self._rest += got
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def _pdu(self) -> tuple[int, bytes]:
        kind, size = struct.unpack(">BxL", self._exactly(6))
        if size > 1 << 20:
            raise Lost(f"PDU of {size} bytes")
        return kind, self._exactly(size)

    def _status(self) -> int:
        command = b""
        while True:
            kind, body = self._pdu()
            if kind == 7:
                raise Lost(f"aborted: source {body[2]} reason {body[3]}")
            if kind != 4:
                raise Lost(f"PDU {kind} instead of an answer")
            at = 0
            while at < len(body):
                size = struct.unpack_from(">L", body, at)[0]
                command += body[at + 6:at + 4 + size]
                last = body[at + 5] & 2
                at += 4 + size
                if last:
                    return _status_of(command)


def _status_of(command: bytes) -> int:
    at = 0
    while at + 8 <= len(command):
        number, size = struct.unpack_from("<xxHL", command, at)
        if number == 0x0900:
            return int(struct.unpack_from("<H", command, at + 8)[0])
        at += 8 + size
    raise Lost("an answer without a status")


def contexts_of(instances: Iterable[Instance]) -> list[tuple[str, str]]:
    """One context for each (SOP class, transfer syntax), in order of appearance."""
    return list(dict.fromkeys((i.sop_class, i.syntax) for i in instances))


def send_all(port: int, instances: Sequence[Instance], **settings: object) -> dict[str, int]:
    """Status of each object, sent on one association; what is not accepted has no entry."""
    statuses = {}
    with Scanner(port, contexts_of(instances), **settings) as scanner:  # type: ignore[arg-type]
        for instance in instances:
            if (instance.sop_class, instance.syntax) in scanner.accepted:
                statuses[instance.sop_instance] = scanner.store(instance)
    return statuses


class Patient:
    """A scanner that gives up on nothing: each object is sent again until it was acknowledged, as a technologist would.

    `journal` holds what was acknowledged: (UID, transfer syntax, digest). The
    thread ends when `more` returns None or `stop` is called.
    """

    def __init__(self, port: int, more: Callable[[], Instance | None], *, contexts: Sequence[tuple[str, str]],
                 called: str = "DCMGATE", calling: str = "SCANNER", timeout: float = 30.0) -> None:
        self.journal: list[tuple[str, str, str]] = []
        self.failures: list[str] = []
        self._more = more
        self._stop = threading.Event()
        self._make: Callable[[], Scanner] = partial(Scanner, port, contexts, called=called, calling=calling, timeout=timeout)
        self._thread = threading.Thread(target=self._run, name=calling)

    def start(self) -> Patient:
        self._thread.start()
        return self

    def stop(self, seconds: float = 60.0) -> None:
        """No further object; what is under way is finished."""
        self._stop.set()
        self.join(seconds)

    def join(self, seconds: float = 60.0) -> None:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"a scanner did not come to an end; its last failures: {self.failures[-3:]}"

    def _run(self) -> None:
        scanner: Scanner | None = None
        while not self._stop.is_set() and (instance := self._more()) is not None:
            key = instance.key
            while not self._stop.is_set():
                try:
                    if scanner is None:
                        scanner = self._make().open()
                    status = scanner.store(instance)
                except Lost as error:
                    self.failures.append(str(error))
                    scanner = None
                    self._stop.wait(0.05)   # as long as the connection is refused
                    continue
                if status == 0:
                    self.journal.append(key)
                    break
                self.failures.append(f"status {status:04X}")
                self._stop.wait(0.05)
        if scanner is not None:
            scanner.release()


def silent_for(sock: socket.socket, seconds: float) -> bool:
    """Whether the peer neither sends nor closes for that long."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    begin = time.monotonic()
    return not poller.poll(seconds * 1000) and time.monotonic() - begin >= seconds * 0.99
