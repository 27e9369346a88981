"""TCP as Dcmgate wants it: listening (opened here or inherited), connecting within a deadline, and what a socket is set to.

Time-outs of established sockets are SO_RCVTIMEO and SO_SNDTIMEO: one system call
a read, where Python's own `settimeout` makes two. They end in BlockingIOError.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import threading
import time
from collections.abc import MutableMapping
from contextlib import suppress

from appliance.net.secure import Secure

Stream = socket.socket | Secure
"""A connection, plain or not."""

BACKLOG = 4096
"""Connections that the kernel keeps for us, as far as it lets us (net.core.somaxconn). Where this is full it drops a
scanner's SYN, which comes again after a second: a port scan at 2,500 a second fills 512 in one slow moment of ours."""

FIRST_INHERITED = 3
"""Descriptor of the first inherited socket (sd_listen_fds(3))."""

_OUTQ = 0x5411  # SIOCOUTQ: bytes that were sent and not acknowledged, and those not sent yet (tcp(7))

Inherited = dict[tuple[str, int], socket.socket]


# --- listening ----------------------------------------------------------------------------------------------------------


def inherited(environ: MutableMapping[str, str] | None = None, first: int = FIRST_INHERITED) -> Inherited:
    """Listening TCP sockets that the service manager opened for us (LISTEN_PID, LISTEN_FDS), by (address, port).

    Empty where there are none. The variables are taken out, so that no child takes
    the descriptors for its own. Descriptors that are no TCP listeners are left alone.
    """
    environ = os.environ if environ is None else environ
    for_us = environ.pop("LISTEN_PID", "") == str(os.getpid())
    count = environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    found: Inherited = {}
    if not for_us or not count.isdigit():
        return found
    for fd in range(first, first + int(count)):
        with suppress(OSError):
            os.set_inheritable(fd, False)
            sock = socket.socket(fileno=fd)
            if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM \
                    and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                name = sock.getsockname()
                found[str(name[0]), int(name[1])] = sock
            else:
                sock.detach()
    return found


def listen(address: str, port: int, given: Inherited | None = None) -> socket.socket:
    """A listening socket, non-blocking to accept: taken out of `given` where it is there, else opened. OSError.

    An inherited socket on all addresses serves any address. SO_REUSEADDR, so that a restart need not wait for
    connections of the past.
    """
    for key in ((address, port), ("::", port), ("0.0.0.0", port)):
        sock = given.pop(key, None) if given else None
        if sock is not None:
            sock.listen(BACKLOG)
            sock.setblocking(False)
            return sock
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


# --- what a socket is set to --------------------------------------------------------------------------------------------


def no_delay(sock: Stream) -> None:
    """No Nagle: a PDU goes out when it is written (hazards.md: 50 ms an image otherwise)."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def quick_ack(sock: Stream) -> None:
    """Acknowledge now what was received: to be renewed after each short read, because the kernel forgets it (tcp(7)).

    A peer with Nagle on holds the rest of its PDU until our acknowledgement.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def set_timeouts(sock: Stream, *, receive: float | None = None, send: float | None = None) -> None:
    """Longest time in one read or write without a single byte, in seconds; then BlockingIOError."""
    for option, seconds in ((socket.SO_RCVTIMEO, receive), (socket.SO_SNDTIMEO, send)):
        if seconds is not None:
            micro = max(1, round(seconds * 1e6))  # 0 would mean: for ever
            sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", *divmod(micro, 1_000_000)))


def unacknowledged(sock: Stream) -> int:
    """Bytes written to the socket that the peer's system has not acknowledged: while this falls, there is progress."""
    return int(struct.unpack("@i", fcntl.ioctl(sock.fileno(), _OUTQ, b"\0\0\0\0"))[0])


def is_quiet(sock: Stream) -> bool:
    """Whether nothing waits to be read: no bytes, no end of file, no error."""
    if isinstance(sock, Secure):
        return sock.is_quiet()
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)


# --- connecting ---------------------------------------------------------------------------------------------------------

Address = tuple[int, tuple[str | int, ...]]
"""Family, and the parts of an address of it without the port."""


class _Lookup:
    """One question to the resolver, which nobody can interrupt: in a thread of its own, so that we need not wait for it."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.addresses: list[Address] = []
        self.error: OSError | None = None
        self.done = threading.Event()
        threading.Thread(target=self._run, name="lookup", daemon=True).start()

    def _run(self) -> None:
        try:
            self.addresses = [(int(family), address[:1] + address[2:] if family == socket.AF_INET6 else address[:1])
                              for family, _, _, _, address in socket.getaddrinfo(self.host, None, type=socket.SOCK_STREAM)]
        except OSError as e:
            self.error = e
        except UnicodeError as e:  # a label that is empty or too long
            self.error = socket.gaierror(socket.EAI_NONAME, f"not a host name: {e}")
        with _lock:
            _lookups.pop(self.host, None)
        self.done.set()


_lock = threading.Lock()
_lookups: dict[str, _Lookup] = {}


def resolve(host: str, seconds: float) -> list[Address]:
    """The addresses of a name, of both families. socket.gaierror, also where there is no answer in time."""
    with suppress(OSError):
        socket.inet_pton(socket.AF_INET, host)
        return [(int(socket.AF_INET), (host,))]
    with _lock:  # attempts to one host share a question, so that a dead resolver does not collect threads
        lookup = _lookups.get(host)
        if lookup is None:
            lookup = _lookups[host] = _Lookup(host)
    if not lookup.done.wait(seconds):
        raise socket.gaierror(socket.EAI_AGAIN, f"no answer from DNS for {host!r} within {seconds:.3g} s")
    if lookup.error is not None:
        raise lookup.error
    return lookup.addresses


def connect(host: str, port: int, seconds: float, cancel: int = -1) -> socket.socket:
    """A connected, blocking socket without Nagle, within `seconds` for name and connection together.

    `cancel`: a descriptor; as soon as something can be read from it, the wait for the connection ends with TimeoutError.

    socket.gaierror: the name has no address. ConnectionRefusedError: nothing
    listens there. TimeoutError: no answer. OSError else: no route and the like.
    Every address of the name is tried; the error is that of the last.
    """
    deadline = time.monotonic() + seconds
    addresses = resolve(host, seconds)
    last: OSError = socket.gaierror(socket.EAI_NONAME, f"{host!r} has no address")
    for left, (family, parts) in zip(range(len(addresses), 0, -1), addresses, strict=True):
        share = (deadline - time.monotonic()) / left
        if share <= 0:
            raise TimeoutError(errno.ETIMEDOUT, f"no answer from {host} within {seconds:.3g} s")
        try:
            return connect_to((family, parts), port, share, cancel)
        except OSError as e:
            last = e
    raise last


def connect_to(there: Address, port: int, seconds: float, cancel: int = -1, *, segment: int = 0) -> socket.socket:
    """`connect` to one address. `segment`: most bytes of TCP payload in a packet, either way; 0: as the system thinks."""
    family, parts = there
    address = (parts[0], port, *parts[1:])
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        no_delay(sock)
        if segment:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
        sock.setblocking(False)
        code = sock.connect_ex(address)
        if code == errno.EINPROGRESS:
            poll = select.poll()
            poll.register(sock, select.POLLOUT)
            if cancel >= 0:
                poll.register(cancel, select.POLLIN)
            ready = poll.poll(max(1, round(seconds * 1000)))
            if any(fd == cancel for fd, _ in ready):
                raise TimeoutError(errno.ECANCELED, "given up")
            if not ready:
                raise TimeoutError(errno.ETIMEDOUT, f"no answer from {address[0]}:{address[1]} within {seconds:.3g} s")
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        sock.setblocking(True)
    except OSError:
        sock.close()
        raise
    return sock
