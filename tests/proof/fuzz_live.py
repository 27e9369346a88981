"""A live acceptor under the fuzzer: real associations of a real worker on a real spool, each fed with one input over TCP.

The association runs in the fuzzer's own thread, so that libFuzzer sees what an
input reaches. Whatever was sent, the acceptor ends by itself, says only whole
PDUs, answers nothing that was not asked, and leaves nothing under way; and what
it acknowledged is, a thousand inputs later, in the spool byte for byte by the
judge of the proof, whose reading of the input is none of the product's.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from appliance.clock import SystemClock
from appliance.config.settings import Config, Listener
from appliance.receive.association import Association
from appliance.receive.front import Arrival
from appliance.receive.guard import now_ns
from appliance.receive.limits import Limits
from appliance.receive.worker import Worker
from appliance.spool.layout import Spool
from appliance.telemetry.log import ROOT, _LineFormatter
from tests.proof.fuzz_targets import Wrong, same
from tests.proof.oracle import Entry, balance_of, judge
from tests.support.waiting import wait_until

ROUND = 1000
"""Inputs between two looks at the spool, which is then made anew."""


class Listening(logging.Handler):
    """Formats every line as the product does; keeps exceptions that nobody expected, and lines that a peer could break."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._format = _LineFormatter()

    def emit(self, record: logging.LogRecord) -> None:
        line = self._format.format(record)
        if record.exc_info or not line.isprintable():
            self.found.append(line)

_SECOND = 1_000_000_000
_LINGER = struct.pack("ii", 1, 0)
_STORE, _CANCEL = 0x0001, 0x0FFF


class Acceptor:
    """One worker and its spool in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "run").mkdir(parents=True)
        self.folder = folder
        clock = SystemClock()
        self.spool = Spool.init(folder / "spool", clock=clock)
        config = Config(listeners=(Listener(id="lan", address="127.0.0.1", ports=(0,), unknown="admit"),), generation=1)
        self.over: list[int] = []
        self.worker = Worker(self.spool, clock, folder / "run", Limits(), config, on_ended=self.over.append)
        self.worker.start()
        self.journal: list[Entry] = []
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(4)
        self.threads, self.files = threading.active_count(), len(os.listdir("/proc/self/fd"))

    def converse(self, data: bytes) -> bytes:
        """Everything that the acceptor says to these bytes and an end of file."""
        with socket.create_connection(self.listener.getsockname(), 5) as peer:
            ours, address = self.listener.accept()
            peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)
            arrival = Arrival("lan", 104, "127.0.0.1", address[1], now_ns() + 10 * _SECOND)
            association = Association(self.worker, ours, arrival, len(self.over))
            with self.worker._lock:
                self.worker._associations.add(association)
            self.worker.guard.watch(association)
            association.run()
            said = _read(peer)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)   # lest the ports all end in TIME_WAIT
        return said

    def close(self) -> None:
        """Look at what is left, and end."""
        wait_until(lambda: self.worker.intake.outstanding == 0, 10, "rows")
        same((self.worker.out_of_intake, self.worker.intake.in_flight, len(self.worker._associations)), ("", 0, 0),
             "something is left under way")
        if threading.active_count() > self.threads:
            raise Wrong(f"{threading.active_count()} threads, {self.threads} at the beginning")
        if len(os.listdir("/proc/self/fd")) > self.files + 64:            # slots that were made ahead keep theirs
            raise Wrong(f"{len(os.listdir('/proc/self/fd'))} descriptors, {self.files} at the beginning")
        self.listener.close()
        if not self.worker.stop(1.0):
            raise Wrong("it does not stop")
        verdict = judge(self.journal, {}, spool=self.spool.path, balance=balance_of(self.spool.path, self.folder))
        if not verdict.holds:
            raise Wrong(verdict.as_text())
        shutil.rmtree(self.folder)


def _read(peer: socket.socket) -> bytes:
    said = b""
    try:
        while piece := peer.recv(1 << 20):
            said += piece
    except ConnectionResetError:
        pass                                      # it closed with bytes of ours unread, as it may when it has aborted
    return said


def live(folder: Path) -> Callable[[bytes], None]:
    """The target. `folder` is its own."""
    acceptor: Acceptor | None = None
    count = 0
    log = Listening()
    logging.getLogger(ROOT).addHandler(log)
    logging.getLogger(ROOT).setLevel(logging.INFO)
    logging.getLogger(ROOT).propagate = False

    def run(data: bytes) -> None:
        nonlocal acceptor, count
        if acceptor is None or count % ROUND == 0:
            if acceptor is not None:
                acceptor.close()
            acceptor = Acceptor(folder)
        count += 1
        said = acceptor.converse(data)
        if log.found:
            raise Wrong(log.found.pop()[-3000:])
        if acceptor.worker.intake.in_flight or not acceptor.over or acceptor.worker._associations:
            raise Wrong("an association ended and something is still under way")
        acceptor.journal += acknowledged(data, said)

    return run


# --- what was asked and answered, by a reading of our own ---------------------------------------------------------------


def acknowledged(data: bytes, said: bytes) -> list[Entry]:
    """What the peer may now believe to be safe. Wrong where the acceptor says what nobody asked for."""
    syntaxes = _accepted(said)
    asked = [request for request in _requests(data) if request[1] != _CANCEL]
    found = []
    for number, (context, field, message, status) in enumerate(_answers(said)):
        if number >= len(asked):
            raise Wrong(f"answer {number + 1} to {len(asked)} requests: {field:04X} {status:04X}")
        asked_context, asked_field, asked_message, uid, digest, length = asked[number]
        same((context, field, message), (asked_context, asked_field | 0x8000, asked_message), "an answer to something else")
        if field == _STORE | 0x8000 and status == 0:
            found.append(Entry(uid, syntaxes[context], digest, length))
    return found


def _pdus(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each whole PDU."""
    at = 0
    while at + 6 <= len(stream):
        kind, length = struct.unpack_from(">BxL", stream, at)
        if at + 6 + length > len(stream):
            return
        yield kind, stream[at + 6:at + 6 + length]
        at += 6 + length


def _accepted(said: bytes) -> dict[int, str]:
    """Transfer syntax of each accepted context; empty where there was no association."""
    found: dict[int, str] = {}
    for kind, body in _pdus(said):
        at = 68
        while kind == 2 and at + 4 <= len(body):
            item, size = struct.unpack_from(">BxH", body, at)
            if item == 0x21 and body[at + 6] == 0:
                found[body[at + 4]] = body[at + 12:at + 4 + size].decode("latin-1")
            at += 4 + size
        break
    return found


def _values(stream: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Context, control header and value of each PDV; those of a P-DATA-TF that is cut off as far as they are there."""
    at = 0
    while at + 6 <= len(stream):
        kind, length = struct.unpack_from(">BxL", stream, at)
        end = at + 6 + length
        if kind == 4:
            inner = at + 6
            while inner + 6 <= min(end, len(stream)):
                size, context, control = struct.unpack_from(">LBB", stream, inner)
                if size < 2 or inner + 4 + size > min(end, len(stream)):
                    return
                yield context, control, stream[inner + 6:inner + 4 + size]
                inner += 4 + size
        at = end


def _requests(data: bytes) -> Iterator[tuple[int, int, int, str, str, int]]:
    """Context, command field, message id, SOP Instance UID, SHA-256 and length of the data set of each whole message."""
    command, body, pending = b"", b"", None
    for context, control, value in _values(data):
        if control & 1:
            command += value
            if control & 2:
                elements, command = _elements(command), b""
                uid = (elements.get(0x1000) or elements.get(0x1001, b"")).rstrip(b"\0 ").decode("latin-1")
                pending = (context, _number(elements, 0x0100), _number(elements, 0x0110), uid)
                if _number(elements, 0x0800) == 0x0101:
                    yield (*pending, "", 0)
                    pending = None
        else:
            body += value
            if control & 2 and pending is not None:
                yield (*pending, hashlib.sha256(body).hexdigest(), len(body))
                body, pending = b"", None


def _answers(said: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Context, command field, message id being responded to, and status of each answer."""
    command = b""
    for context, control, value in _values(said):
        command += value
        if control & 2:
            elements, command = _elements(command), b""
            yield context, _number(elements, 0x0100), _number(elements, 0x0120), _number(elements, 0x0900)


def _elements(command: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while at + 8 <= len(command):
        number, size = struct.unpack_from("<xxHL", command, at)
        found[number] = command[at + 8:at + 8 + size]
        at += 8 + size
    return found


def _number(elements: dict[int, bytes], number: int) -> int:
    return int.from_bytes(elements.get(number, b""), "little")
