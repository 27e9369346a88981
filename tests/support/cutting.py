"""A TCP proxy that knows DICOM's upper layer well enough to break a connection at any kind of byte.

It names every byte of both directions (PS3.8 9.3, annex E) without the product's
code: `request.header`, `command.body`, `last.body` … A `Cut` says at which byte,
and how: reset, orderly end, silence, a window that closes, or a mere pause.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType

RESET = struct.pack("ii", 1, 0)
CHUNK = 65536

UP, DOWN = "up", "down"
"""From requestor to acceptor, and back."""

RESETTING, CLOSING, SILENT, STALLED, PAUSED = "reset", "close", "silence", "zero window", "pause"
HOW = (RESETTING, CLOSING, SILENT, STALLED, PAUSED)

_NAMES = {1: "request", 2: "acceptance", 3: "rejection", 5: "release", 6: "released", 7: "abort"}


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes `start` to `end` of one named segment that is `total` long; `at` is where they begin in what was fed."""

    name: str
    start: int
    end: int
    total: int
    at: int


class Tracker:
    """Names the bytes of one direction. Segments: a PDU's header, an association PDU's body, and of each PDV head and body.

    A PDV's body is `command.body`, `data.body`, or `last.body` for the last
    fragment of a data set; PDU header and PDV head (`command.header`,
    `command.pdv`, `data.header`, `data.pdv`) go by what is expected next.
    """

    def __init__(self) -> None:
        self._name, self._total, self._seen = "", 0, b""
        self._done = 0
        self._body = 0          # bytes of the P-DATA-TF that are still to come
        self._expected = "command"
        self._flags = 0
        self._command = b""
        self._begin("header", 6)
        self.statuses: list[int] = []
        """Status of each whole C-STORE response."""
        self.wholes = 0
        """Data sets that passed to the last byte."""

    def _begin(self, name: str, total: int) -> None:
        self._name, self._total, self._done, self._seen = name, total, 0, b""

    @property
    def name(self) -> str:
        return f"{self._expected}.header" if self._name == "header" else self._name

    def feed(self, data: bytes) -> Iterator[Piece]:
        """The pieces of `data` in order. A header belongs to what is expected: for a release that is known too late."""
        at = 0
        while at < len(data):
            if self._name == "header" and self._done == 0 and data[at] in _NAMES:
                self._name = f"{_NAMES[data[at]]}.header"
            count = min(len(data) - at, self._total - self._done)
            piece = Piece(self.name, self._done, self._done + count, self._total, at)
            self._done += count
            if self._total == 6 or self._name == "command.body":
                self._seen += data[at:at + count]
            at += count
            if self._done == self._total:
                self._end()
            yield piece

    def _end(self) -> None:
        """The segment is whole: what comes next?"""
        name = self._name
        if name == "header":
            self._body = struct.unpack(">L", self._seen[2:6])[0]
            self._begin(f"{self._expected}.pdv", 6)
        elif name.endswith(".header"):
            self._begin(name.replace("header", "body"), struct.unpack(">L", self._seen[2:6])[0])
        elif name.endswith(".pdv"):
            length, _, self._flags = struct.unpack(">LBB", self._seen)
            self._body -= length + 4
            kind = "command" if self._flags & 1 else "last" if self._flags & 2 else "data"
            self._begin(f"{kind}.body", length - 2)
            if length == 2:
                self._end()
        elif name in ("command.body", "data.body", "last.body"):
            self._value(name)
            if self._body:
                self._begin(f"{self._expected}.pdv", 6)
            else:
                self._begin("header", 6)
        else:
            self._begin("header", 6)

    def _value(self, name: str) -> None:
        if name == "command.body":
            self._command += self._seen
            if self._flags & 2:
                self._expected = self._after(self._command)
                self._command = b""
        elif name == "last.body":
            self.wholes += 1
            self._expected = "command"

    def _after(self, command: bytes) -> str:
        found = {}
        at = 0
        while at + 8 <= len(command):
            number, size = struct.unpack_from("<xxHL", command, at)
            found[number] = command[at + 8:at + 8 + size]
            at += 8 + size
        if found.get(0x0100) == b"\x01\x80":
            self.statuses.append(int(struct.unpack("<H", found[0x0900])[0]))
        return "command" if found.get(0x0800) == b"\x01\x01" else "data"


@dataclass(frozen=True, slots=True)
class Place:
    """A kind of byte: so many bytes of a segment still pass. `at`: start, middle, last (all but one byte) or end.

    `before`: the cut comes before the acceptor can have a whole data set;
    `after`: once the requestor has its status. Between the two the acceptor has
    taken the object and the requestor cannot know; `torn`: nor can anybody else.
    """

    name: str
    direction: str
    segment: str
    at: str = "middle"
    before: bool = False
    after: bool = False
    torn: bool = False

    def offset(self, total: int) -> int:
        return {"start": 0, "middle": total // 2, "last": total - 1, "end": total}[self.at]


PLACES = (
    Place("connection", UP, "request.header", "start", before=True),
    Place("request header", UP, "request.header", before=True),
    Place("request", UP, "request.body", before=True),
    Place("request whole", UP, "request.body", "end", before=True),
    Place("acceptance header", DOWN, "acceptance.header", before=True),
    Place("acceptance", DOWN, "acceptance.body", before=True),
    Place("acceptance but one byte", DOWN, "acceptance.body", "last", before=True),
    Place("acceptance whole", DOWN, "acceptance.body", "end", before=True),
    Place("command header", UP, "command.header", before=True),
    Place("command PDV", UP, "command.pdv", before=True),
    Place("command", UP, "command.body", before=True),
    Place("command whole", UP, "command.body", "end", before=True),
    Place("data header", UP, "data.header", before=True),
    Place("data PDV", UP, "data.pdv", before=True),
    Place("data", UP, "data.body", before=True),
    Place("between fragments", UP, "data.body", "end", before=True),
    Place("last fragment", UP, "last.body", before=True),
    Place("data but one byte", UP, "last.body", "last", before=True),
    Place("data whole", UP, "last.body", "end"),
    Place("data whole, at once", UP, "last.body", "end", torn=True),
    Place("status header", DOWN, "command.header"),
    Place("status PDV", DOWN, "command.pdv"),
    Place("status", DOWN, "command.body"),
    Place("status but one byte", DOWN, "command.body", "last"),
    Place("status whole", DOWN, "command.body", "end", after=True),
    Place("release header", UP, "release.header", after=True),
    Place("release whole", UP, "release.body", "end", after=True),
    Place("released header", DOWN, "released.header", after=True),
    Place("released but one byte", DOWN, "released.body", "last", after=True),
)


@dataclass(slots=True)
class Cut:
    """One break. `times`: on so many associations in a row. `seconds`: of a pause. `fired` is set at the first."""

    place: Place
    how: str
    times: int = 1
    seconds: float = 0.5
    fired: threading.Event = field(default_factory=threading.Event)
    left: int = 0

    def __post_init__(self) -> None:
        self.left = self.times

    @property
    def copies(self) -> tuple[int, int]:
        """How many times the acceptor has the object in the end, at least and at most, if the requestor never gives up."""
        if self.how == PAUSED or self.place.before or self.place.after:
            return 1, 1
        if self.how in (RESETTING, CLOSING) and (self.place.torn or self.place.direction == DOWN):
            # An acceptor that cannot write its answer, in two pieces, may take the object back (storescp does).
            return 1, 1 + self.times
        # Of several in a row, some may hit a C-ECHO by which the requestor feels its way back.
        return (1 + self.times if self.times == 1 else 2), 1 + self.times

    def __str__(self) -> str:
        return f"{self.how} at {self.place.name}" + (f" x{self.times}" if self.times > 1 else "")


class Proxy:
    """`port` of this machine to another one. `cut` is the next break, if any; `down`: every connection is reset."""

    def __init__(self, target: int, port: int = 0, address: str = "127.0.0.1") -> None:
        self._target = ("127.0.0.1", target)
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)   # so that a window closes soon
        self._listener.bind((address, port))
        self._listener.listen(32)
        self.port = int(self._listener.getsockname()[1])
        self.cut: Cut | None = None
        self.down = False
        self.stored = 0
        """Whole C-STORE responses with status 0000 that requestors were given."""
        self.wholes = 0
        """Data sets of which the acceptor was given the last byte."""
        self.connections: list[_Connection] = []
        self.on_connect: Callable[[], None] = lambda: None
        self.lock = threading.Lock()
        self.over = threading.Event()
        self._thread = threading.Thread(target=self._accept, name=f"proxy {self.port}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.over.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset_all()
        self._thread.join(5)

    def _accept(self) -> None:
        while not self.over.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.on_connect()
            if self.down:
                reset(sock)
                continue
            connection = _Connection(self, sock, self._target)
            with self.lock:
                self.connections = [one for one in self.connections if one.alive] + [connection]
            connection.start()

    def set_down(self, down: bool) -> None:
        """From now on nobody gets through, and who is through is thrown out; or everybody again."""
        self.down = down
        if down:
            self.reset_all()

    def reset_all(self) -> None:
        with self.lock:
            connections = list(self.connections)
        for connection in connections:
            connection.reset()

    @property
    def open(self) -> int:
        """Connections that somebody still holds."""
        with self.lock:
            return sum(connection.alive for connection in self.connections)

    def claim(self, cut: Cut) -> bool:
        """Whether this connection is one that the cut is for."""
        with self.lock:
            if cut is not self.cut or not cut.left:
                return False
            cut.left -= 1
            return True

    def count(self, statuses: Sequence[int], wholes: int) -> None:
        with self.lock:
            self.stored += sum(not status for status in statuses)
            self.wholes += wholes


class _Connection:
    """One thread for both directions: only then is a reset one, because no other thread still waits on the socket."""

    def __init__(self, proxy: Proxy, requestor: socket.socket, target: tuple[str, int]) -> None:
        self._proxy = proxy
        self._requestor = requestor
        self._acceptor = socket.socket()
        self._target = target
        self._trackers = {UP: Tracker(), DOWN: Tracker()}
        self._reading = {UP: True, DOWN: True}
        self._how = ""          # of the cut, once it was made
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._waking = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def reset(self) -> None:
        """Throw both sides out. From any thread."""
        with self._waking:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)
        self._thread.join(5)

    def _run(self) -> None:
        try:
            self._acceptor.settimeout(10)
            self._acceptor.connect(self._target)
            for sock in (self._requestor, self._acceptor):
                sock.settimeout(30)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while any(self._reading.values()):
                self._turn()
        except OSError:
            pass   # one side has gone in disorder: so does the other
        else:
            if self._how == STALLED:
                self._until_gone()
            end(self._requestor)
            end(self._acceptor)
        finally:
            reset(self._requestor)
            reset(self._acceptor)
            with self._waking:
                os.close(self._wake)
                self._wake = -1

    def _turn(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        for direction, source in ((UP, self._requestor), (DOWN, self._acceptor)):
            if self._reading[direction]:
                poll.register(source, select.POLLIN)
        ready = {fd for fd, _ in poll.poll()}
        if self._wake in ready:
            raise ConnectionResetError("thrown out")
        for direction, source, sink in ((UP, self._requestor, self._acceptor), (DOWN, self._acceptor, self._requestor)):
            if self._reading[direction] and source.fileno() in ready:
                self._take(direction, source.recv(CHUNK), sink)

    def _take(self, direction: str, data: bytes, sink: socket.socket) -> None:
        if not data:
            self._reading[direction] = False
            if not self._how:
                end(sink)
            elif self._how == SILENT:    # the side that was deceived has given up
                self._reading = dict.fromkeys(self._reading, False)
        elif not self._how:
            self._pass(direction, data, sink)
        elif direction == DOWN:
            self._answered_in_vain(data)

    def _pass(self, direction: str, data: bytes, sink: socket.socket) -> None:
        """Forward `data`, up to the byte of the cut if it is there."""
        cut, tracker = self._proxy.cut, self._trackers[direction]
        statuses, wholes = len(tracker.statuses), tracker.wholes
        for piece in tracker.feed(data):
            if cut is None or not cut.left or cut.place.direction != direction or cut.place.segment != piece.name:
                continue
            offset = cut.place.offset(piece.total)
            if (piece.start < offset <= piece.end or piece.start == offset == 0) and self._proxy.claim(cut):
                passed = piece.at + offset - piece.start
                sink.sendall(data[:passed])
                if cut.how == PAUSED:
                    cut.fired.set()
                    self._proxy.over.wait(cut.seconds)
                    data = data[passed:]
                    continue
                if offset == piece.total:
                    self._proxy.count(tracker.statuses[statuses:], tracker.wholes - wholes)
                self._break(cut, direction)
                return
        sink.sendall(data)
        self._proxy.count(tracker.statuses[statuses:], tracker.wholes - wholes)

    def _break(self, cut: Cut, direction: str) -> None:
        self._how = cut.how
        # Where it comes just after the data set, the acceptor may go on to its answer, which nobody hears.
        both = direction == DOWN or cut.place.before or cut.place.torn
        for sock, breaks in ((self._requestor, True), (self._acceptor, both)):
            if breaks and cut.how == RESETTING:
                reset(sock)
            elif breaks and cut.how == CLOSING:
                end(sock)
        if cut.how == STALLED:
            self._reading[UP] = False       # nobody reads any more: the window closes
        elif cut.how == RESETTING:
            self._reading = {UP: False, DOWN: not both}
        cut.fired.set()

    def _answered_in_vain(self, data: bytes) -> None:
        """The acceptor has answered into the void; then it hears that its peer is gone, where that can be heard."""
        whole = [piece for piece in self._trackers[DOWN].feed(data) if piece.end == piece.total]
        if self._how in (RESETTING, CLOSING) and any(piece.name in ("command.body", "released.body") for piece in whole):
            end(self._acceptor)

    def _until_gone(self) -> None:
        """Keep a closed window closed until somebody ends it all."""
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(self._requestor, select.POLLHUP)
        poll.poll()


def reset(sock: socket.socket) -> None:
    """RST, at once."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()


def end(sock: socket.socket) -> None:
    """FIN."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
