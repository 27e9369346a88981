"""One HTTP request (RFC 9110) with one deadline for all of it and a bound on what may come back; TLS with every check of ours.

For what the keeper fetches: certificates (`net.est`) and revocation lists. Each
request has a connection of its own. Redirects are not followed: whoever may send
us elsewhere would choose whom we ask.
"""

from __future__ import annotations

import io
import time
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

from appliance import __version__
from appliance.net import sockets
from appliance.net.proxy import Proxy, ProxyError
from appliance.net.secure import Context, Secure
from appliance.net.sockets import Stream
from appliance.net.tlserrors import TlsError

HEAD = 1 << 16
"""Bytes that status line, headers and framing may have besides the body."""


class WebError(OSError):
    """There is no answer that could be used. `step` is where: `connect`, `proxy`, `tls` or `answer`. `tls`: the handshake's
    own error."""

    def __init__(self, step: str, text: str, tls: TlsError | None = None) -> None:
        super().__init__(text)
        self.step = step
        self.text = text
        self.tls = tls

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Answer:
    """`headers` by small letters."""

    status: int
    reason: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def said(self) -> str:
        """The status, and of a body in plain text its beginning."""
        text = f"{self.status} {_printable(self.reason.encode('latin-1', 'replace'))}".strip()
        if self.headers.get("content-type", "").lower().startswith("text/plain") and self.body.strip():
            text += f" ({_printable(self.body)})"
        return text


@dataclass(frozen=True, slots=True)
class Place:
    """Where a URL leads. ValueError from `of` where it is none of http or https."""

    secure: bool
    host: str
    port: int
    target: str

    @classmethod
    def of(cls, url: str) -> Place:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise ValueError(f"not a URL of http or https: {url[:100]}")
        secure = parts.scheme == "https"
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if not (target.isascii() and target.isprintable()) or " " in target:
            raise ValueError(f"a URL with characters that it may not have: {url[:100]!r}")
        return cls(secure, parts.hostname, parts.port or (443 if secure else 80), target)

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


def ask(method: str, url: str, *, deadline: float, largest: int, context: Context | None = None, proxy: Proxy | None = None,
        headers: Mapping[str, str] | None = None, body: bytes = b"") -> Answer:
    """The answer, whatever its status. `deadline` in monotonic seconds; `largest` bytes of body; `context` is for https.
    WebError, ValueError (a URL that is none)."""
    place = Place.of(url)
    sent = {"Host": place.authority, "User-Agent": f"dcmgate/{__version__}", "Connection": "close", **(headers or {})}
    target = place.target
    if proxy is not None and not place.secure:
        target = f"http://{place.authority}{target}"
        if login := _login(proxy):
            sent["Proxy-Authorization"] = f"Basic {b64encode(login).decode('ascii')}"
    stream = _connected(place, deadline, context, proxy)
    try:
        return _exchange(stream, place, method, target, sent, body, deadline, largest)
    finally:
        with suppress(OSError):
            stream.close()


def _login(proxy: Proxy) -> bytes:
    try:
        return proxy.credentials()
    except ProxyError as e:
        raise WebError("proxy", e.text) from None


def _connected(place: Place, deadline: float, context: Context | None, proxy: Proxy | None) -> Stream:
    left = max(0.01, deadline - time.monotonic())
    there = f"{place.host}:{place.port}"
    try:
        if proxy is None:
            sock = sockets.connect(place.host, place.port, left)
        elif place.secure:
            sock = proxy.connect(place.host, place.port, left)
        else:
            sock = proxy.reach(left)
    except ProxyError as e:
        raise WebError("proxy", e.text) from None
    except OSError as e:
        raise WebError("connect", f"{there} cannot be reached: {e.strerror or e}") from None
    sockets.set_timeouts(sock, send=max(0.01, deadline - time.monotonic()))
    if not place.secure:
        return sock
    try:
        if context is None:
            raise WebError("tls", f"nothing says whom to trust at {there}")
        secure = Secure(sock, context, server_name=place.host, whose=f"the certificate of {there}")
        secure.handshake(deadline)
        return secure
    except TlsError as e:
        sock.close()
        raise WebError("tls", f"{there}: {e.text}", e) from None
    except OSError as e:
        sock.close()
        raise WebError("tls", f"{there}: {e.strerror or e}") from None


def _exchange(stream: Stream, place: Place, method: str, target: str, headers: Mapping[str, str], body: bytes,
              deadline: float, largest: int) -> Answer:
    there = f"{place.host}:{place.port}"
    connection = HTTPConnection(place.host, place.port)
    connection.sock = _Adapter(stream, deadline, largest + HEAD)
    try:
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        if body:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body or None)
        response = connection.getresponse()
        data = response.read(largest + 1)
        if len(data) > largest:
            raise WebError("answer", f"{there} answers more than {largest} bytes")
        if response.length:
            raise WebError("answer", f"{there} closed the connection in the middle of its answer")
        return Answer(response.status, response.reason, data, {k.lower(): v for k, v in response.getheaders()})
    except TlsError as e:        # in TLS 1.3 our certificate is refused after the handshake
        raise WebError("tls", f"{there}: {e.text}", e) from None
    except (TimeoutError, BlockingIOError):
        raise WebError("answer", f"{there} does not answer in time") from None
    except WebError:
        raise
    except OSError as e:
        raise WebError("answer", f"{there} closed the connection: {e.strerror or e}") from None
    except (HTTPException, ValueError) as e:
        why = _printable((str(e) or type(e).__name__).encode("ascii", "replace"))
        raise WebError("answer", f"what {there} answers is no HTTP: {why}") from None


class _Adapter:
    """What `http.client` takes for a socket."""

    def __init__(self, stream: Stream, deadline: float, most: int) -> None:
        self._stream = stream
        self._reader = io.BufferedReader(_Bytes(stream, deadline, most))

    def sendall(self, data: Any) -> None:
        self._stream.sendall(data)

    def makefile(self, mode: str, *_: object, **__: object) -> Any:
        return self._reader

    def close(self) -> None:
        """The stream is closed by who opened it."""


class _Bytes(io.RawIOBase):
    """What comes, until the deadline, and no more than `most` bytes of it."""

    def __init__(self, stream: Stream, deadline: float, most: int) -> None:
        self._stream = stream
        self._deadline = deadline
        self._left = most

    def readable(self) -> bool:
        return True

    def readinto(self, view: Any) -> int:
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        if self._left <= 0:
            raise WebError("answer", "the answer has no end")
        sockets.set_timeouts(self._stream, receive=seconds)
        count = self._stream.recv_into(view)
        self._left -= count
        return count


def _printable(text: bytes) -> str:
    return " ".join("".join(chr(byte) if 32 <= byte < 127 else " " for byte in text[:200]).split())
