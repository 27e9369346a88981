"""Page: answers whoever asks, with one file: `python -m appliance.net.page page|metrics`, on the service manager's sockets.

`page` is for the scanners' side: green, yellow or red, and one sentence, without login and without patient data. `metrics`
are the figures for Prometheus. Nothing of the product is imported: the process is small, and knows nothing that is worth
getting in for.

Bounds, whoever asks: so many connections at once and of one address, so many bytes of a request, so many seconds for all of
it; what goes beyond is closed. It ends by itself when nobody has asked for `IDLE_SECONDS`.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CONNECTIONS = 32
PER_ADDRESS = 8
LONGEST_REQUEST = 4096
LONGEST_ANSWER = 1 << 20
SECONDS = 5.0
IDLE_SECONDS = 300.0
FIRST_SOCKET = 3
"""Of those that the service manager hands over (sd_listen_fds(3))."""

STALE_SECONDS = 60.0
"""A verdict that is older says nothing any more."""

VERDICT = Path("/run/dcmgate-public/verdict.json")
FIGURES = Path("/run/dcmgate-figures/metrics.prom")
SILENT = ("red", "This gateway does not report how it is. Please tell whoever looks after it.")
COLOURS = {"green": "#1a7f37", "yellow": "#b08800", "red": "#b62324"}
_HTML = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="10"><title>Gateway: {word}</title>
<style>body{{margin:0;min-height:100vh;display:flex;align-items:center;justify-content:center;background:{colour};color:#fff;\
font:2.5rem sans-serif;text-align:center}}main{{max-width:40ch;padding:1ch}}</style></head>
<body><main><h1>{word}</h1><p>{sentence}</p></main></body></html>
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """Body and its media type."""

    kind: str
    body: bytes


def verdict(path: Path = VERDICT) -> tuple[str, str]:
    """(colour, sentence) as it was written last; red where that is too long ago."""
    try:
        found = json.loads(path.read_text())
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - float(found["at"])
        if found["colour"] in COLOURS and 0 <= age <= STALE_SECONDS:
            return str(found["colour"]), str(found["sentence"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return SILENT


def page(path: Path = VERDICT) -> Answer:
    """The page of the scanners' side."""
    colour, sentence = verdict(path)
    safe = sentence.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return Answer("text/html; charset=utf-8",
                  _HTML.format(word=colour.capitalize(), colour=COLOURS[colour], sentence=safe).encode())


def metrics(path: Path = FIGURES) -> Answer:
    """The figures as they were written last; nothing where there are none."""
    body = b""
    with suppress(OSError):
        body = path.read_bytes()[:LONGEST_ANSWER]
    return Answer("text/plain; version=0.0.4; charset=utf-8", body)


PAGES = {"page": ("/", page), "metrics": ("/metrics", metrics)}


def respond(request: bytes, what: str) -> bytes:
    """The whole answer to the head of a request."""
    words = request.split(b"\r\n", 1)[0].split(b" ")
    place, make = PAGES[what]
    if len(words) != 3 or not words[2].startswith(b"HTTP/1.") or words[0] not in (b"GET", b"HEAD"):
        return _head(400 if len(words) != 3 else 405, Answer("text/plain", b""))
    if words[1].partition(b"?")[0] != place.encode():
        return _head(404, Answer("text/plain", b""))
    answer = make()
    return _head(200, answer) + (answer.body if words[0] == b"GET" else b"")


def _head(status: int, answer: Answer) -> bytes:
    words = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed"}
    return "\r\n".join([
        f"HTTP/1.1 {status} {words[status]}", f"Content-Type: {answer.kind}", f"Content-Length: {len(answer.body)}",
        "Cache-Control: no-store", "X-Content-Type-Options: nosniff", "Connection: close",
        "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'", "", ""]).encode()


class _Caller:
    """One connection: its request as far as it has come, and what of the answer is left to be sent."""

    def __init__(self, sock: socket.socket, address: str) -> None:
        self.sock = sock
        self.address = address
        self.until = time.monotonic() + SECONDS
        self.request = bytearray()
        self.left = b""
        self.answered = False


class Server:
    """`run` answers until nobody has asked for `idle` seconds, or `stop` was called."""

    def __init__(self, listening: list[socket.socket], what: str, idle: float = IDLE_SECONDS) -> None:
        self._what = what
        self._idle = idle
        self._ready = selectors.DefaultSelector()
        self._callers: dict[socket.socket, _Caller] = {}
        self._per_address: Counter[str] = Counter()
        self._stopped = False
        for sock in listening:
            sock.setblocking(False)
            self._ready.register(sock, selectors.EVENT_READ)

    def stop(self) -> None:
        self._stopped = True

    def run(self) -> None:
        """One thread, and never a wait for anybody."""
        asked = time.monotonic()
        while not self._stopped:
            now = time.monotonic()
            for caller in [c for c in self._callers.values() if c.until <= now]:
                self._close(caller)
            if not self._callers and now > asked + self._idle:
                return
            for key, _ in self._ready.select(1.0):
                caller = self._callers.get(key.fileobj)  # type: ignore[call-overload]
                if caller is None:
                    self._take(key.fileobj)              # type: ignore[arg-type]
                    asked = now
                else:
                    self._serve(caller)

    def _take(self, listening: socket.socket) -> None:
        try:
            sock, address = listening.accept()
        except OSError:
            return
        who = str(address[0])
        if len(self._callers) >= CONNECTIONS or self._per_address[who] >= PER_ADDRESS:
            sock.close()
            return
        sock.setblocking(False)
        self._callers[sock] = _Caller(sock, who)
        self._per_address[who] += 1
        self._ready.register(sock, selectors.EVENT_READ)

    def _serve(self, caller: _Caller) -> None:
        try:
            if not caller.answered:
                part = caller.sock.recv(LONGEST_REQUEST)
                caller.request += part
                if not part or len(caller.request) > LONGEST_REQUEST:
                    self._close(caller)
                    return
                if b"\r\n\r\n" not in caller.request:
                    return
                caller.left, caller.answered = respond(bytes(caller.request), self._what), True
                self._ready.modify(caller.sock, selectors.EVENT_WRITE)
            caller.left = caller.left[caller.sock.send(caller.left):]
            if not caller.left:
                with suppress(OSError):
                    caller.sock.shutdown(socket.SHUT_WR)
                self._close(caller)
        except BlockingIOError:
            pass
        except OSError:
            self._close(caller)

    def _close(self, caller: _Caller) -> None:
        self._ready.unregister(caller.sock)
        del self._callers[caller.sock]
        self._per_address[caller.address] -= 1
        if not self._per_address[caller.address]:
            del self._per_address[caller.address]
        caller.sock.close()


def main() -> int:
    """The entry point of the units `dcmgate-page.service` and `dcmgate-metrics.service`."""
    count = int(os.environ.get("LISTEN_FDS", "0"))
    if sys.argv[1:] not in (["page"], ["metrics"]) or not count:
        sys.stderr.write("page: started by dcmgate-page.socket or dcmgate-metrics.socket, with `page` or `metrics`\n")
        return 2
    Server([socket.socket(fileno=FIRST_SOCKET + nth) for nth in range(count)], sys.argv[1]).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
