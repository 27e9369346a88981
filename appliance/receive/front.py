"""Front: one thread that accepts, and keeps what has not spoken yet.

A connection costs a descriptor here and nothing else until the six bytes of a
valid A-ASSOCIATE-RQ header have arrived; then it is handed on, to a thread or to
a worker process. What stays silent, speaks something else, or comes too often is
closed here, under counters of its own, so that a port scan or a silent device
takes no scanner's place.

On failure: EMFILE closes the newcomer (a reserve descriptor makes that possible)
and the oldest silent connection; an error on a listening socket is logged and
leaves the others alone.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from appliance.clock import SECOND
from appliance.receive.guard import now_ns
from appliance.receive.limits import Limits
from appliance.telemetry.log import Log

ACCEPTS = 64
"""Connections accepted from one listening socket before the others get their turn."""

GRACE = 1.0
"""Seconds in which a silent connection does not have to go for a newer one of its address…"""

BURST = 8
"""…while there are fewer than so many times the cap."""

FAILURES = 100
"""Rounds in a row that fail for a reason nobody foresaw; then the front gives up, and `alive` says so."""

HEADER = 6
"""Bytes of a PDU header (PS3.8 9.3.1)."""

REJECT_LOCAL_LIMIT = bytes((3, 0, 0, 0, 0, 4, 0, 2, 3, 2))
"""A-ASSOCIATE-RJ: transient, service provider (presentation), local limit exceeded (PS3.8 9.3.4)."""

TLS_ALERT = bytes((0x15, 3, 3, 0, 2, 2, 80))
"""The same before a handshake, where there is no better word for it: internal_error (RFC 8446 6.2)."""

LONGEST_RECORD = 1 << 14
"""Bytes of a TLS record that is not encrypted yet (RFC 8446 5.1)."""

NEVER = 1 << 63
EDGES = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

log = Log("receive")


@dataclass(frozen=True, slots=True)
class Arrival:
    """A connection that has begun an A-ASSOCIATE-RQ, or at a TLS listener (`secure`) a handshake. `deadline` is in boot
    nanoseconds, for the whole of that PDU and the handshake before it. `token`: what opens the side door by which it came."""

    listener: str
    port: int
    address: str
    peer_port: int
    deadline: int
    secure: bool = False
    token: str = field(default="", repr=False)


class Bound:
    """A listening socket of one `[[listener]]`."""

    __slots__ = ("listener", "port", "secure", "sock", "token")

    def __init__(self, listener: str, sock: socket.socket, *, secure: bool = False, token: str = "") -> None:
        self.listener = listener
        self.token = token
        self.secure = secure
        self.sock = sock
        self.port = int(sock.getsockname()[1])


class _Pending:
    __slots__ = ("arrival", "sock")

    def __init__(self, sock: socket.socket, arrival: Arrival) -> None:
        self.sock = sock
        self.arrival = arrival


Take = Callable[[socket.socket, Arrival], bool]
"""Takes a socket over, and with it the duty to close it; False: no place, the front rejects it."""


def _plausible(head: bytes, *, secure: bool) -> bool:
    """Whether it may be the head of an A-ASSOCIATE-RQ, or of a TLS handshake where one is wanted.

    DICOM without TLS at a TLS port is handed on too: a person will ask why this scanner does not come in.
    """
    if not head:
        return False
    if head[0] == 1:
        return True
    return secure and head[0] == 0x16 and head[1:2] in (b"", b"\3") and head[2:3] <= b"\4" and (
        len(head) < 5 or int.from_bytes(head[3:5]) <= LONGEST_RECORD)


class Front:
    """Accepts on all listening sockets of the box in one thread."""

    def __init__(self, limits: Limits, take: Take) -> None:
        self.rounds = 0
        self.accepted = 0
        self._limits = limits
        self._take = take
        self._epoll = select.epoll()
        self._bound: dict[int, Bound] = {}
        self._pending: dict[int, _Pending] = {}
        self._of_address: dict[str, dict[int, _Pending]] = {}
        self._refused: dict[int, tuple[socket.socket, int]] = {}
        self._watched: dict[int, Callable[[], None]] = {}
        self._calls: deque[Callable[[], None]] = deque()
        self._wake_in, self._wake_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._reserve = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._paused_until = 0
        self._stopped = False
        self._closed = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._epoll.register(self._wake_in, select.EPOLLIN)

    # -- from any thread ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="front", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close everything that was not handed on; listening sockets too."""
        self._stopped = True
        self.call(lambda: None)
        if self._thread is not None:
            self._thread.join(10)

    def call(self, what: Callable[[], None]) -> None:
        """Have the front's thread do something between two rounds."""
        self._calls.append(what)
        with self._lock, suppress(OSError):      # full: it is awake already
            if not self._closed:
                os.write(self._wake_out, b"x")

    def listen(self, bound: Iterable[Bound]) -> None:
        """Accept on these from now on, and close those that are not among them; the same object stays as it is."""
        wanted = list(bound)
        self.call(lambda: self._listen(wanted))

    def watch(self, fd: int, what: Callable[[], None]) -> None:
        """Call `what` in the front's thread whenever `fd` is readable or closed."""
        self._watched[fd] = what
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP)

    def unwatch(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def silent(self) -> int:
        """Connections that have not spoken yet."""
        return len(self._pending)

    # -- the front's thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        try:
            while not self._stopped and failures < FAILURES:
                try:
                    self._round(self._epoll.poll(self._patience(), 256))
                    failures = 0
                except Exception:  # noqa: BLE001 top of the front's thread: without it no scanner is answered any more
                    failures += 1
                    log.crash("a round of the accepting thread failed", in_a_row=failures)
        finally:
            self._close()

    def _patience(self) -> float:
        """Seconds until the first deadline; -1 (for ever) if there is none. Both tables are in order of their deadlines."""
        first = self._paused_until or NEVER
        if self._pending:
            first = min(first, next(iter(self._pending.values())).arrival.deadline)
        if self._refused:
            first = min(first, next(iter(self._refused.values()))[1])
        return -1 if first == NEVER else max(first - now_ns(), 0) / SECOND + 0.001

    def _round(self, ready: list[tuple[int, int]]) -> None:
        self.rounds += 1
        for fd, _mask in ready:
            if fd in self._bound:
                self._accept(self._bound[fd])
            elif fd in self._pending:
                self._look(fd)
            elif fd in self._refused:
                self._discard(fd)
            elif fd in self._watched:
                self._watched[fd]()
            elif fd == self._wake_in:
                os.read(fd, 4096)
        while self._calls:
            self._calls.popleft()()
        if self._pending or self._refused or self._paused_until:
            self._expire(now_ns())

    def _listen(self, wanted: list[Bound]) -> None:
        keep = {bound.sock.fileno() for bound in wanted}
        for fd in [fd for fd in self._bound if fd not in keep]:
            self._epoll.unregister(fd)
            self._bound.pop(fd).sock.close()
        for bound in wanted:
            fd = bound.sock.fileno()
            if fd not in self._bound:
                self._epoll.register(fd, select.EPOLLIN)
            self._bound[fd] = bound

    def _accept(self, bound: Bound) -> None:
        for _ in range(ACCEPTS):
            try:
                sock, name = bound.sock.accept()
            except BlockingIOError:
                return
            except OSError as e:
                if e.errno in NO_ROOM:
                    self._no_descriptor(bound)
                    return
                log.debug("accept", error=e)      # the peer was gone before we came to it (ECONNABORTED and the like)
                continue
            self.accepted += 1
            deadline = now_ns() + int(self._limits.first_pdu * SECOND)
            # A v4 peer on a v6 socket is the v4 peer.
            address = str(name[0]).removeprefix("::ffff:") if "." in name[0] else str(name[0])
            arrival = Arrival(bound.listener, bound.port, address, int(name[1]), deadline, bound.secure, bound.token)
            if not self._speaks(sock, arrival):
                self._keep(sock, arrival)

    def _speaks(self, sock: socket.socket, arrival: Arrival) -> bool:
        """Whether it is settled: handed on, rejected, or closed. Most scanners have spoken by the time of accept."""
        try:
            head = sock.recv(HEADER, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            head = b""
        if not _plausible(head, secure=arrival.secure):
            sock.close()
            return True
        if len(head) < HEADER:
            return False
        if not self._take(sock, arrival):
            self._reject(sock, secure=arrival.secure)
        return True

    def _keep(self, sock: socket.socket, arrival: Arrival) -> None:
        same = self._of_address.get(arrival.address, {})
        cap = self._limits.pending_per_address
        if len(same) >= cap and (len(same) >= BURST * cap or self._is_old(next(iter(same.values())))):
            self._evict(next(iter(same)))
        elif len(self._pending) >= self._limits.pending:
            self._evict(next(iter(self._busiest())))
        fd = sock.fileno()
        pending = _Pending(sock, arrival)
        self._pending[fd] = pending
        self._of_address.setdefault(arrival.address, {})[fd] = pending
        self._epoll.register(fd, EDGES)

    def _is_old(self, pending: _Pending) -> bool:
        """Whether it had its time to speak: a scanner's request is on its way for a moment, while a port scan goes on."""
        return pending.arrival.deadline - now_ns() < int((self._limits.first_pdu - GRACE) * SECOND)

    def _evict(self, fd: int) -> None:
        """Close it, unless it has spoken just now."""
        self._look(fd)
        if fd in self._pending:
            self._drop(fd)

    def _busiest(self) -> dict[int, _Pending]:
        """The silent connections of the address that has the most."""
        return max(self._of_address.values(), key=lambda same: len(same))

    def _forget(self, fd: int) -> _Pending:
        pending = self._pending.pop(fd)
        same = self._of_address[pending.arrival.address]
        del same[fd]
        if not same:
            del self._of_address[pending.arrival.address]
        self._epoll.unregister(fd)
        return pending

    def _drop(self, fd: int) -> None:
        self._forget(fd).sock.close()

    def _look(self, fd: int) -> None:
        """A silent connection has said something, or has gone."""
        pending = self._pending[fd]
        try:
            head = pending.sock.recv(HEADER, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            head = b""
        if not _plausible(head, secure=pending.arrival.secure):
            self._drop(fd)
        elif len(head) == HEADER:
            self._forget(fd)
            if not self._take(pending.sock, pending.arrival):
                self._reject(pending.sock, secure=pending.arrival.secure)

    def _reject(self, sock: socket.socket, *, secure: bool) -> None:
        """Say that a limit is reached, and leave the peer time to read it: closing with unread bytes would reset it away."""
        if len(self._refused) >= self._limits.refused:
            sock.close()
            return
        try:
            sock.send(TLS_ALERT if secure else REJECT_LOCAL_LIMIT, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            sock.close()
            return
        self._refused[sock.fileno()] = (sock, now_ns() + int(self._limits.closing * SECOND))
        self._epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLRDHUP)

    def _discard(self, fd: int) -> None:
        sock = self._refused[fd][0]
        try:
            if sock.recv(65536, socket.MSG_DONTWAIT):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        del self._refused[fd]
        sock.close()

    def _expire(self, now: int) -> None:
        if 0 < self._paused_until <= now:
            self._resume()
        while self._pending:
            fd, pending = next(iter(self._pending.items()))
            if pending.arrival.deadline > now:
                break
            self._drop(fd)
        while self._refused:
            fd, (sock, deadline) = next(iter(self._refused.items()))
            if deadline > now:
                break
            del self._refused[fd]
            sock.close()

    def _no_descriptor(self, bound: Bound) -> None:
        """No descriptor is left: close the newcomer through the reserve, and the oldest silent connection."""
        log.warning("no descriptor left: a connection is closed", silent=len(self._pending))
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1
        with suppress(OSError):
            bound.sock.accept()[0].close()
        while self._reserve < 0:
            # Another thread may have been quicker with the free descriptor: then something silent has to go for it.
            with suppress(OSError):
                self._reserve = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            if not self._pending:
                break
            self._drop(next(iter(self._pending)))
        if self._reserve < 0:
            self._pause()

    def _pause(self) -> None:
        """Not even the reserve is left: look away from the listening sockets for a moment, lest they keep us spinning."""
        for fd in self._bound:
            self._epoll.modify(fd, 0)
        self._paused_until = now_ns() + SECOND // 4

    def _resume(self) -> None:
        self._paused_until = 0
        for fd in self._bound:
            self._epoll.modify(fd, select.EPOLLIN)

    def _close(self) -> None:
        for sock in [b.sock for b in self._bound.values()] + [p.sock for p in self._pending.values()] + [
                s for s, _ in self._refused.values()]:
            sock.close()
        self._bound.clear()
        self._pending.clear()
        self._of_address.clear()
        self._refused.clear()
        with self._lock:
            self._closed = True
            for fd in (self._wake_in, self._wake_out, self._reserve):
                if fd >= 0:
                    os.close(fd)
        self._epoll.close()
