"""Through an HTTP proxy by CONNECT (RFC 9110, 9.3.6), with a user name and password where the proxy wants them (RFC 7617).

    <state>/proxies/<host>:<port>        0600: one line, user:password

The file is read at every connection, so a password that was changed counts from
the next one on. Whatever becomes of it, `ProxyError` says in words, and `check`
in one: nothing of what the proxy sends is taken for the far end's.
"""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import time
from base64 import b64encode
from pathlib import Path

from appliance.config.hosts import host_port
from appliance.net import sockets

FOLDER = "proxies"

LARGEST_ANSWER = 16384
"""Bytes of the head of a proxy's answer: who sends more is none."""

INTERIM = 8
"""Answers of class 1xx before the one that counts."""

_STATUS = re.compile(rb"HTTP/1\.[0-9] ([0-9]{3})(?: ([^\r\n]*))?\r?\n")
_END = re.compile(rb"\r?\n\r?\n")
_SCHEME = re.compile(rb"(?im)^proxy-authenticate:[ \t]*([A-Za-z0-9-]{1,32})")


class ProxyError(OSError):
    """The proxy does not lead there. `check` is a word for it: `reach` (it is not there), `credentials` (407), `forbidden`,
    `far_end` (it says that it cannot connect: any 5xx), `timeout`, `closed`, `not_a_proxy`, `no_password` (the file cannot
    be used). `settled`: it answered no, and will until somebody has mended it."""

    def __init__(self, check: str, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.check = check
        self.text = text
        self.status = status

    @property
    def settled(self) -> bool:
        return self.check in ("credentials", "forbidden", "no_password")

    def __str__(self) -> str:
        return self.text


class Proxy:
    """A proxy, as the configuration names it (`host:port`). `state` is the folder of `[spool] state`."""

    def __init__(self, place: str, state: str | Path) -> None:
        found = host_port(place)
        if found is None:
            raise ValueError(f"not host:port: {place}")
        self.host, self.port = found
        self.place = authority(self.host.lower(), self.port)
        self.file = Path(state) / FOLDER / self.place

    def connect(self, host: str, port: int, seconds: float, cancel: int = -1) -> socket.socket:
        """A blocking socket without Nagle that leads to host and port, within `seconds` for all of it. ProxyError.

        `cancel` as for `sockets.connect`. The proxy looks the name up, not we.
        """
        deadline = time.monotonic() + seconds
        sock = self.reach(seconds, cancel)
        try:
            self.ask(sock, host, port, deadline, cancel)
            sock.setblocking(True)
        except BaseException:
            sock.close()
            raise
        return sock

    def reach(self, seconds: float, cancel: int = -1) -> socket.socket:
        """The first hop: a connection with the proxy itself."""
        try:
            return sockets.connect(self.host, self.port, seconds, cancel)
        except OSError as e:
            raise ProxyError("reach", f"the proxy {self.place} cannot be reached: {e.strerror or e}") from None

    def ask(self, sock: socket.socket, host: str, port: int, deadline: float, cancel: int = -1) -> None:
        """The second: have it lead there, by `deadline` (monotonic seconds). The socket does not block any more."""
        there, login = authority(host, port), self.credentials()
        request = f"CONNECT {there} HTTP/1.1\r\nHost: {there}\r\n"
        if login:
            request += f"Proxy-Authorization: Basic {b64encode(login).decode('ascii')}\r\n"
        try:
            sock.setblocking(False)
            self._send(sock, (request + "\r\n").encode("ascii"), deadline, cancel)
            for _ in range(INTERIM):
                head = self._head(sock, deadline, cancel)
                match = _STATUS.match(head)
                if match is None:
                    raise ProxyError("not_a_proxy", f"what answers at {self.place} is no HTTP proxy")
                status = int(match[1])
                if status >= 200:
                    self._judge(status, _printable(match[2] or b""), head, there, bool(login))
                    return
        except ProxyError:
            raise
        except OSError as e:
            raise ProxyError("closed", f"the proxy {self.place} closed the connection: {e.strerror or e}") from None
        raise ProxyError("not_a_proxy", f"what answers at {self.place} never comes to its answer")

    def credentials(self) -> bytes:
        """`user:password`; empty where there is no file. ProxyError where it cannot be used."""
        try:
            line = self.file.read_bytes().splitlines()[:1]
        except FileNotFoundError:
            return b""
        except OSError as e:
            raise ProxyError("no_password", f"the password for the proxy {self.place} cannot be read from {self.file}: "
                                            f"{e.strerror}") from None
        problem = unusable(line[0] if line else b"")
        if problem:
            raise ProxyError("no_password", f"the password for the proxy {self.place} cannot be used: {self.file} {problem}")
        return line[0]

    # --- bytes --------------------------------------------------------------------------------------------------------

    def _send(self, sock: socket.socket, data: bytes, deadline: float, cancel: int) -> None:
        while data:
            self._wait(sock, select.POLLOUT, deadline, cancel)
            try:
                data = data[sock.send(data, socket.MSG_NOSIGNAL):]
            except BlockingIOError:
                continue

    def _head(self, sock: socket.socket, deadline: float, cancel: int) -> bytes:
        """Up to the empty line and no byte further: what comes after it is the far end's."""
        head = b""
        while len(head) < LARGEST_ANSWER:
            self._wait(sock, select.POLLIN, deadline, cancel)
            try:
                ahead = sock.recv(LARGEST_ANSWER - len(head), socket.MSG_PEEK)
            except BlockingIOError:
                continue
            if not ahead:
                raise ProxyError("closed", f"the proxy {self.place} closed the connection without an answer" if not head else
                                 f"the proxy {self.place} closed the connection in the middle of its answer")
            end = _END.search(head + ahead)
            head += sock.recv(end.end() - len(head) if end else len(ahead))
            if end:
                return head
            if head[:5] != b"HTTP/"[:len(head)]:
                raise ProxyError("not_a_proxy", f"what answers at {self.place} is no HTTP proxy")
        raise ProxyError("not_a_proxy", f"the answer of {self.place} is longer than a proxy's")

    def _wait(self, sock: socket.socket, event: int, deadline: float, cancel: int) -> None:
        poll = select.poll()
        poll.register(sock, event)
        if cancel >= 0:
            poll.register(cancel, select.POLLIN)
        left = deadline - time.monotonic()
        ready = poll.poll(max(1, round(left * 1000))) if left > 0 else []
        if any(fd == cancel for fd, _ in ready):
            raise ProxyError("closed", os.strerror(errno.ECANCELED))
        if not ready:
            raise ProxyError("timeout", f"no answer from the proxy {self.place} in time")

    def _judge(self, status: int, reason: str, head: bytes, there: str, named: bool) -> None:
        if status < 300:
            return
        said = f"the proxy {self.place} answered {status}" + (f" ({reason})" if reason else "")
        if status == 407 or (status == 401 and named):       # tinyproxy says 401 to a wrong password
            schemes = {found.lower() for found in _SCHEME.findall(head)}
            if schemes and b"basic" not in schemes:
                wanted = b", ".join(sorted(schemes)).decode("ascii")
                raise ProxyError("credentials", f"{said}: it wants {wanted}, and only Basic is spoken here", status)
            raise ProxyError("credentials", f"{said}: it does not take our user name and password" if named else
                             f"{said}: it wants a user name and password, and {self.file} is not there", status)
        if status >= 500:                    # 502 to 504 by the book; tinyproxy says 500
            raise ProxyError("far_end", f"{said}: it cannot reach {there}", status)
        raise ProxyError("forbidden", f"{said}: it does not lead to {there}", status)


def authority(host: str, port: int) -> str:
    """`host:port` as it stands in a request: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def unusable(line: bytes) -> str:
    """Why a line cannot be `user:password`; empty where it can."""
    if b":" not in line or line.startswith(b":"):
        return "has no line of the form user:password"
    if any(byte < 32 or byte == 127 for byte in line):
        return "has a control character in it"
    return "" if len(line) <= 1024 else "is too long"


def _printable(text: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in text[:80]).strip()
