"""Line: a connection to a destination for a process that has neither keys nor certificates, and opens no connections itself.

The way there is that of the destination's entry: through its proxy, by TLS with
everything that is checked there. What the other process gets is a descriptor of
plain bytes: the connection itself, or with TLS one end of a socket pair, at
whose other end a thread of ours encrypts and decrypts.

On failure: `Way.line` raises what connecting and the handshake raise. A line that
breaks later ends like a connection that was closed; `error` says why.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

from appliance.config.settings import Destination
from appliance.net import sockets
from appliance.net.certstore import Store
from appliance.net.proxy import Proxy
from appliance.net.secure import Secure
from appliance.net.tls import Client

CHUNK = 1 << 16
"""Bytes that are carried at once."""

END_SECONDS = 5.0
"""Longest wait for the carrying thread to end: it waits for nothing by then but a full socket."""


class Way:
    """How one destination is reached. Sessions are resumed from one line to the next. For one thread."""

    def __init__(self, destination: Destination, state: str | Path) -> None:
        """`state` is the folder that certificate store and proxies' passwords are in."""
        self._destination = destination
        self._tls = Client(Store(state), destination, destination.address) if destination.tls != "off" else None
        self._proxy = Proxy(destination.proxy, state) if destination.proxy else None

    def line(self) -> Line:
        """A new connection, proven, within `connect_seconds`. OSError (TlsError, ProxyError) where there is none."""
        wanted = self._destination
        deadline = time.monotonic() + wanted.connect_seconds
        connect = sockets.connect if self._proxy is None else self._proxy.connect
        sock = connect(wanted.address, wanted.port, wanted.connect_seconds)
        if self._tls is None:
            return Line(sock, sock.fileno(), None, None)
        try:
            secure = self._tls.wrap(sock, deadline, f"the certificate of {wanted.id} ({wanted.address}:{wanted.port})")
            sockets.set_timeouts(secure, receive=wanted.progress_seconds, send=wanted.progress_seconds)
        except OSError:
            sock.close()
            raise
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        sockets.set_timeouts(ours, send=wanted.progress_seconds)
        return Line(theirs, theirs.fileno(), _Carrier(secure, ours), self._tls)


class Line:
    """`descriptor` is what the other process uses; `handed_over` once it has a copy of its own; `close` in the end."""

    def __init__(self, theirs: socket.socket, descriptor: int, carrier: _Carrier | None, tls: Client | None) -> None:
        self.descriptor = descriptor
        self._theirs = theirs
        self._carrier = carrier
        self._tls = tls

    def handed_over(self) -> None:
        """Let go of our copy, so that the other process closing its own is the end."""
        self._theirs.close()

    @property
    def error(self) -> OSError | None:
        """What broke TLS under it, if anything did."""
        return self._carrier.error if self._carrier is not None else None

    def close(self) -> None:
        """End it, whoever still uses it. Never raises."""
        self._theirs.close()
        if self._carrier is not None:
            self._carrier.end(self._tls)


class _Carrier:
    """The thread between TLS and the pair."""

    def __init__(self, secure: Secure, ours: socket.socket) -> None:
        self.error: OSError | None = None
        self._secure = secure
        self._ours = ours
        self._thread = threading.Thread(target=self._run, name="line", daemon=True)
        self._thread.start()

    def end(self, tls: Client | None) -> None:
        with suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)
        self._thread.join(END_SECONDS)
        if self._thread.is_alive():              # a far end that takes nothing: then it is cut
            with suppress(OSError):
                self._secure.shutdown(socket.SHUT_RDWR)
            self._thread.join(END_SECONDS)
        elif tls is not None and self.error is None:
            tls.keep(self._secure)
        self._secure.close()
        self._ours.close()

    def _run(self) -> None:
        try:
            self._carry()
        except OSError as e:
            self.error = e
        with suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)

    def _carry(self) -> None:
        """Until either end closes."""
        secure, ours = self._secure, self._ours
        buffer = memoryview(bytearray(CHUNK))
        poll = select.poll()
        poll.register(secure.fileno(), select.POLLIN)
        poll.register(ours, select.POLLIN)
        while True:
            while not secure.is_quiet():         # decrypted bytes may wait where poll does not see them
                count = secure.recv_into(buffer)
                if not count:
                    return
                ours.sendall(buffer[:count])
            poll.poll()
            with suppress(BlockingIOError):
                data = ours.recv(CHUNK, socket.MSG_DONTWAIT)
                if not data:
                    return
                secure.sendall(data)
