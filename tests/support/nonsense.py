"""Destinations that talk nonsense or lie, on a port of 127.0.0.1; `badpeers` has those that merely fail."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support import badpeers, objects
from tests.support.faults import MIB
from tests.support.scu import IMPLICIT, VERIFICATION
from tests.support.waiting import free_port


def _received(sock: socket.socket) -> Iterator[tuple[int, bytes, bytes]]:
    """Every C-STORE request of an association, once its data set has come whole: context, message id, SOP instance UID."""
    command = b""
    while True:
        kind, body = badpeers._pdu(sock)
        if kind != 4:
            return
        at = 0
        while at + 6 <= len(body):
            size, context, flags = struct.unpack_from(">LBB", body, at)
            if flags & 1:
                command += body[at + 6:at + 4 + size]
            elif flags & 2:
                found = dict(_elements(command))
                yield context, found[0x0110], found[0x1000]   # type: ignore[misc]
                command = b""
            at += 4 + size


def _elements(command: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 8 <= len(command):
        number, size = struct.unpack_from("<xxHL", command, at)
        yield number, command[at + 8:at + 8 + size]
        at += 8 + size


def _answer(context: int, message: bytes, instance: bytes, status: int | None) -> bytes:
    """A C-STORE response (PS3.7 9.3.1.2) in one P-DATA-TF."""
    elements = [(0x0002, objects.CT.encode() + b"\0"), (0x0100, b"\x01\x80"), (0x0120, message), (0x0800, b"\x01\x01"),
                (0x1000, instance)]
    if status is not None:
        elements.append((0x0900, struct.pack("<H", status)))
    body = b"".join(struct.pack("<HHL", 0, number, len(value)) + value for number, value in sorted(elements))
    body = struct.pack("<HHLL", 0, 0, 4, len(body)) + body
    return struct.pack(">BxLLBB", 4, len(body) + 6, len(body) + 2, context, 3) + body


def _says_http(sock: socket.socket, stop: threading.Event) -> None:
    badpeers._pdu(sock)
    sock.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def _says_noise(sock: socket.socket, stop: threading.Event) -> None:
    badpeers._pdu(sock)
    sock.sendall(objects.noise(100_000, 7))
    stop.wait()


def _says_a_gigabyte(sock: socket.socket, stop: threading.Event) -> None:
    badpeers._pdu(sock)
    sock.sendall(struct.pack(">BxL", 2, 0xFFFFFFF0))
    while not stop.is_set():
        sock.sendall(bytes(MIB))


def _answers_another_message(sock: socket.socket, stop: threading.Event) -> None:
    badpeers.accept_association(sock)
    for context, message, _ in _received(sock):
        other = struct.pack("<H", (struct.unpack("<H", message)[0] + 7) % 65536)
        sock.sendall(_answer(context, other, b"1.2.3.4\0", 0))


def _answers_without_status(sock: socket.socket, stop: threading.Event) -> None:
    badpeers.accept_association(sock)
    for context, message, instance in _received(sock):
        sock.sendall(_answer(context, message, instance, None))


def _answers_half(sock: socket.socket, stop: threading.Event) -> None:
    """A reset in the middle of the very PDU that says 0000."""
    badpeers.accept_association(sock)
    for context, message, instance in _received(sock):
        answer = _answer(context, message, instance, 0)
        sock.sendall(answer[:len(answer) - 5])
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return


def _rejects(sock: socket.socket, stop: threading.Event) -> None:
    """Rejected permanent: calling title not recognised (PS3.8 9.3.4)."""
    badpeers._pdu(sock)
    sock.sendall(struct.pack(">BxLxBBB", 3, 4, 1, 1, 3))
    sock.settimeout(2)
    sock.recv(1)


NONSENSE: dict[str, badpeers.Behaviour] = {
    "http": _says_http, "noise": _says_noise, "gigabyte": _says_a_gigabyte, "other-message": _answers_another_message,
    "no-status": _answers_without_status, "half-answer": _answers_half, "rejecting": _rejects}


@contextmanager
def bad_destination(kind: str) -> Iterator[int]:
    """The port of a destination that is no good in that way: one of NONSENSE, or of `badpeers.FAILING`."""
    made = badpeers._serving(NONSENSE[kind]) if kind in NONSENSE else badpeers.FAILING[kind]()
    with made as port:
        yield port


@dataclass
class Forgetful:
    """An archive that says 0000 and forgets the first copy of everything; what it has, it lists when it is queried."""

    port: int
    received: list[str] = field(default_factory=list)
    stored: set[str] = field(default_factory=set)


@contextmanager
def forgetful_archive() -> Iterator[Forgetful]:
    from pydicom.dataset import Dataset
    from pynetdicom import AE, evt

    archive = Forgetful(free_port())

    def on_store(event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        if uid in archive.received:
            archive.stored.add(uid)
        archive.received.append(uid)
        return 0

    def on_find(event: Any) -> Iterator[tuple[int, Dataset | None]]:
        for uid in sorted(archive.stored):
            found = Dataset()
            found.QueryRetrieveLevel = "IMAGE"
            found.StudyInstanceUID = event.identifier.StudyInstanceUID
            found.SeriesInstanceUID = event.identifier.SeriesInstanceUID
            found.SOPInstanceUID = uid
            yield 0xFF00, found

    ae = AE(ae_title="FORGETFUL")
    for abstract in (objects.CT, VERIFICATION, "1.2.840.10008.5.1.4.1.2.2.1"):
        ae.add_supported_context(abstract, [objects.EXPLICIT, IMPLICIT])
    server = ae.start_server(("127.0.0.1", archive.port), block=False,
                             evt_handlers=[(evt.EVT_C_STORE, on_store), (evt.EVT_C_FIND, on_find)])
    try:
        yield archive
    finally:
        if server is not None:
            server.shutdown()
