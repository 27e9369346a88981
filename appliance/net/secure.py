"""Secure: a connected socket that speaks TLS, with the few methods that associations use of a plain one.

The TLS engine works on memory, and the socket is read and written by us: so one
system call fetches many records, the kernel's time-outs (SO_RCVTIMEO) count as
they do without TLS, and nothing that the engine does ever blocks. The engine is
not safe for two threads at once (hazards, Python's ssl): one lock is held for
each of its calls, and never while the socket is waited for. The guard's thread
sends only if nobody else is about to (`send_now`).

On failure: `TlsError` says which check failed and whose certificate it was
about; OSError of the socket goes through as it is, BlockingIOError included.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from appliance.net.crl import Lists
from appliance.net.tlserrors import THEIRS, TlsError, clock_says, in_words

CHUNK = 1 << 17
"""Bytes that are taken from the socket at once."""

_DER = 2
"""What `public_bytes` of Python's own certificates is asked for."""

_MOST_HANDSHAKE = 1 << 18
"""Bytes of a handshake, certificates and all; who sends more means no handshake."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What the other end's certificate says, once it was found good. `names`: (`dns`, `uri`, `email` or `address`, value)."""

    fingerprint: str
    names: tuple[tuple[str, str], ...] = ()
    subject: str = ""
    issuer: str = ""
    not_after: float = 0.0

    @property
    def proven(self) -> frozenset[str]:
        """Whatever a `[[peer]]` may be bound to: `sha256:…`, `dns:…`, `uri:…`, `email:…`."""
        return frozenset((f"sha256:{self.fingerprint}", *(f"{kind}:{value}" for kind, value in self.names)))


class Context(ssl.SSLContext):
    """A context that knows who is revoked (OpenSSL is not asked: `net.crl` says why)."""

    lists: Lists | None = None


class Secure:
    """TLS over `sock`, which it owns from now on. `handshake` comes first. `whose` is said of the other end's certificate."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, server_side: bool = False, server_name: str = "",
                 session: ssl.SSLSession | None = None, whose: str = "its certificate") -> None:
        self._sock = sock
        self._whose = whose
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side, server_name or None, session)
        self._engine = threading.Lock()      # the engine, and the order of what it wrote
        self._sending = threading.Lock()     # the socket's writing side
        self._buffer = memoryview(bytearray(CHUNK))
        self._ahead = b""                    # what `is_quiet` came upon,
        self._broken: ssl.SSLError | None = None     # or how it found TLS broken: the next read says so
        self._server_side = server_side
        self._lists = context.lists if isinstance(context, Context) else None
        self.identity: Identity | None = None

    # --- the handshake ------------------------------------------------------------------------------------------------

    def handshake(self, deadline: float | None = None) -> None:
        """Until both ends have proven themselves. `deadline`: monotonic seconds, for the whole; TimeoutError. TlsError."""
        left = _MOST_HANDSHAKE
        try:
            while True:
                try:
                    self._tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    self._flush()
                left -= self._more(deadline, left)
            self._flush()
            self.identity = self._proven()
        except ssl.SSLError as e:
            with suppress(OSError):
                self._flush()                # the alert, so that the other end knows too
            raise in_words(e, self._whose) from None

    def _more(self, deadline: float | None, left: int) -> int:
        if left <= 0:
            raise TlsError("broken", "the handshake has no end")
        if deadline is not None:
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                raise TimeoutError("no answer to our TLS handshake in time")
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack(
                "@ll", *divmod(max(1, round(seconds * 1e6)), 1_000_000)))
        try:
            count = self._sock.recv_into(self._buffer[:4096])
        except BlockingIOError:
            raise TimeoutError("no answer to our TLS handshake in time") from None
        except ConnectionError:
            count = 0
        if not count:
            raise TlsError("closed", "the connection was closed in the middle of the TLS handshake")
        if self._server_side and left == _MOST_HANDSHAKE and self._buffer[0] == 1:
            raise TlsError("not_tls", "it speaks DICOM without TLS at a port that wants TLS")
        self._in.write(self._buffer[:count])
        return count

    def _proven(self) -> Identity | None:
        """Who the other end is. A resumed session was proven earlier: that it still holds is looked at here."""
        der = self._tls.getpeercert(True)
        if not der:
            return None
        facts: dict[str, Any] = dict(self._tls.getpeercert() or {})
        identity = Identity(sha256(der).hexdigest(), tuple(_names(facts.get("subjectAltName", ()))),
                            _readable(facts, "subject"), _readable(facts, "issuer"), _seconds(facts.get("notAfter")))
        if identity.not_after and time.time() > identity.not_after:
            raise TlsError("expired", f"{self._whose} is refused: it has expired; {clock_says()}", THEIRS)
        self._not_revoked(der)
        return identity

    def _not_revoked(self, leaf: bytes) -> None:
        """A resumed session has no chain any more: the rest of it was looked up in these lists when the session was made."""
        if self._lists is None:
            return
        try:
            place = self._lists.revoked(_told(self._tls, "get_verified_chain") or (leaf,))
        except ValueError as e:
            raise TlsError("bad_chain", f"{self._whose} is refused: {e}", THEIRS) from None
        if place >= 0:
            which = "it" if place == 0 else "a certificate above it"
            raise TlsError("revoked", f"{self._whose} is refused: {which} has been revoked", THEIRS)

    @property
    def session(self) -> ssl.SSLSession | None:
        """What a later connection may resume (client side)."""
        with self._engine:
            return self._tls.session

    def chain(self) -> tuple[bytes, ...]:
        """The certificates that the other end has sent, leaf first, in DER; the leaf alone where this Python does not tell, or
        where the session was resumed."""
        return chain_of(self._tls)

    @property
    def resumed(self) -> bool:
        return bool(self._tls.session_reused)

    @property
    def version(self) -> str:
        """`TLSv1.3`."""
        return self._tls.version() or ""

    @property
    def suite(self) -> str:
        """The cipher suite as OpenSSL names it."""
        cipher = self._tls.cipher()
        return cipher[0] if cipher else ""

    # --- reading ------------------------------------------------------------------------------------------------------

    def recv_into(self, view: memoryview | bytearray) -> int:
        return self.recvmsg_into((memoryview(view),))[0]

    def recvmsg_into(self, views: Sequence[memoryview]) -> tuple[int, None]:
        """As many bytes as there are, into the views one after the other; 0 at the end. Only the count is told."""
        while True:
            count, ended = self._decrypted(views)
            if count or ended:
                return count, None
            got = self._sock.recv_into(self._buffer)
            with self._engine:
                if got:
                    self._in.write(self._buffer[:got])
                else:
                    self._in.write_eof()

    def _decrypted(self, views: Iterable[memoryview]) -> tuple[int, bool]:
        """Bytes put into the views, and whether there will be no more."""
        total = 0
        with self._engine:
            if self._ahead:
                view = next(iter(views))
                total = min(len(view), len(self._ahead))
                view[:total], self._ahead = self._ahead[:total], self._ahead[total:]
                return total, False
            if self._broken is not None:
                raise in_words(self._broken, self._whose)
            read: Callable[[int, Any], int] = self._tls.read  # type: ignore[assignment]
            try:
                for view in views:
                    at, size = 0, len(view)
                    while at < size:
                        # read(1 << 14 bytes) gives a record at most: the rest of the chunk is decrypted in the same breath
                        count = read(size - at, view[at:] if at else view)
                        if not count:
                            return total, True
                        at += count
                        total += count
            except ssl.SSLWantReadError:
                waiting = self._out.pending
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                return total, True       # closed without a word of TLS: PDUs have lengths, so nothing is cut off unnoticed
            except ssl.SSLError as e:
                if "UNEXPECTED_EOF" in (e.reason or ""):
                    return total, True
                self._broken = e             # OpenSSL says it once, and an end of the stream from then on
                if total:
                    return total, False
                raise in_words(e, self._whose) from None
            else:
                waiting = self._out.pending
        if waiting:                          # the answer to a change of keys
            self._flush()
        return total, False

    def is_quiet(self) -> bool:
        """Whether nothing waits to be read: no bytes, no end. Tickets and the like are no event of the peer's application."""
        while not self._ahead:
            try:
                got = self._sock.recv_into(self._buffer, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return not self._pending()
            except OSError:
                return False
            if not got:
                self._in.write_eof()
                return False
            self._in.write(self._buffer[:got])
            if self._pending():
                return False
        return False

    def _pending(self) -> bool:
        """Look whether the engine has bytes for us; they are kept for the next read."""
        with self._engine:
            try:
                self._ahead = self._tls.read(16384)
                return True
            except ssl.SSLWantReadError:
                return False
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                return True
            except ssl.SSLError as e:
                self._broken = e
                return True

    # --- writing ------------------------------------------------------------------------------------------------------

    def sendall(self, data: bytes | memoryview) -> None:
        self.sendmsg((data,))

    def sendmsg(self, buffers: Sequence[bytes | memoryview]) -> int:
        """All of it: how many bytes. BlockingIOError where the socket takes no byte for its time-out."""
        data = buffers[0] if len(buffers) == 1 else b"".join(buffers)
        with self._sending:
            with self._engine:
                if len(data):
                    try:
                        self._tls.write(data)
                    except ssl.SSLError as e:
                        raise in_words(e, self._whose) from None
                out = memoryview(self._out.read())
            self._push(out)
        return len(data)

    def _push(self, out: memoryview) -> None:
        try:
            while out:
                out = out[self._sock.send(out, socket.MSG_NOSIGNAL):]
        except (BrokenPipeError, ConnectionResetError):
            self._alert()
            raise

    def _alert(self) -> None:
        """The other end broke the connection: raise what it said before it did, if it said anything (TLS 1.3 refuses late)."""
        with suppress(BlockingIOError, ConnectionError), self._engine:
            while got := self._sock.recv_into(self._buffer, 0, socket.MSG_DONTWAIT):
                self._in.write(self._buffer[:got])
                with suppress(ssl.SSLWantReadError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
                    try:
                        self._tls.read(16384)
                    except ssl.SSLError as e:
                        if "ALERT" in (e.reason or "").upper():
                            raise in_words(e, self._whose) from None
                        raise

    def send(self, data: bytes, flags: int = 0) -> int:
        """Now or not at all (any thread): OSError where somebody else is writing, or the socket does not take it whole."""
        if not self._sending.acquire(blocking=False):
            raise BlockingIOError("somebody else is writing")
        try:
            if not self._engine.acquire(blocking=False):
                raise BlockingIOError("the engine is in use")
            try:
                self._tls.write(data)
                out = self._out.read()
            except ssl.SSLError as e:
                raise in_words(e, self._whose) from None
            finally:
                self._engine.release()
            if self._sock.send(out, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) < len(out):
                raise BlockingIOError("not taken whole")
        finally:
            self._sending.release()
        return len(data)

    def _flush(self) -> None:
        with self._sending:
            with self._engine:
                out = memoryview(self._out.read())
            self._push(out)

    # --- the socket ---------------------------------------------------------------------------------------------------

    def discard(self, view: memoryview) -> int:
        """Read past TLS, for what nobody will look at; 0 at the end."""
        return self._sock.recv_into(view)

    def fileno(self) -> int:
        return self._sock.fileno()

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        self._sock.setsockopt(level, option, value)

    def setblocking(self, flag: bool) -> None:
        self._sock.setblocking(flag)

    def shutdown(self, how: int) -> None:
        """SHUT_WR says so in TLS first; the other two may be called from any thread."""
        if how == socket.SHUT_WR:
            self._farewell()
        self._sock.shutdown(how)

    def _farewell(self) -> None:
        """close_notify, if it can go at once."""
        if not self._sending.acquire(blocking=False):
            return
        try:
            with suppress(OSError, ValueError), self._engine:
                with suppress(ssl.SSLError):     # theirs has not come, which is not waited for
                    self._tls.unwrap()
                out = self._out.read()
                if out:
                    self._sock.send(out, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        finally:
            self._sending.release()

    def close(self) -> None:
        self._farewell()
        self._sock.close()


def chain_of(tls: ssl.SSLObject | ssl.SSLSocket) -> tuple[bytes, ...]:
    """See `Secure.chain`."""
    if found := _told(tls, "get_unverified_chain"):
        return found
    leaf = tls.getpeercert(True)
    return (leaf,) if leaf else ()


def _told(tls: ssl.SSLObject | ssl.SSLSocket, what: str) -> tuple[bytes, ...]:
    """A chain in DER as this Python tells it; empty where it does not, or there is none."""
    tell = getattr(tls, what, None) or getattr(getattr(tls, "_sslobj", None), what, None)
    with suppress(ssl.SSLError, ValueError, TypeError):
        found = tell() if tell is not None else None
        if found:        # bytes from Python 3.13 on, before that objects of OpenSSL's
            return tuple(each if isinstance(each, bytes) else bytes(each.public_bytes(_DER)) for each in found)
    return ()


def _names(alternatives: Iterable[Any]) -> Iterable[tuple[str, str]]:
    kinds = {"DNS": "dns", "URI": "uri", "email": "email", "IP Address": "address"}
    for entry in alternatives:
        if len(entry) == 2 and entry[0] in kinds:
            yield kinds[entry[0]], str(entry[1]).lower() if entry[0] == "DNS" else str(entry[1])


def _readable(facts: dict[str, Any], key: str) -> str:
    parts = [f"{name}={value}" for group in facts.get(key, ()) for name, value in group]
    return ", ".join(parts).replace("commonName", "CN").replace("organizationName", "O")


def _seconds(text: str | None) -> float:
    try:
        return float(ssl.cert_time_to_seconds(text)) if text else 0.0
    except ValueError:
        return 0.0
