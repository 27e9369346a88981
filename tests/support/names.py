"""A name server of the tests' own on 127.0.0.1:53 of a namespace: names that resolve, change, vanish, or get no answer."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tests.support.namespace import in_place_of

NOWHERE, FAILS, SILENT, EMPTY = "no such name", "server failure", "silence", "no address"
_CODES = {NOWHERE: 3, FAILS: 2, EMPTY: 0}

Answer = str | tuple[str, ...]
"""One of the constants above, or IPv4 addresses."""


class Names:
    """`answers` by name, to be changed at any time; what is not there is NOWHERE. For `tests.support.namespace.inside` only."""

    def __init__(self, folder: Path) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked = 0
        files = {"resolv.conf": "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n", "hosts": "127.0.0.1 localhost\n",
                 "nsswitch.conf": "hosts: files dns\n"}
        for name, text in files.items():
            (folder / name).write_text(text)
            in_place_of(f"/etc/{name}", folder / name)
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", 53))
        self._thread = threading.Thread(target=self._serve, name="names", daemon=True)
        self._thread.start()

    def __enter__(self) -> Names:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._thread.join(5)

    def _serve(self) -> None:
        while True:
            try:
                query, address = self._sock.recvfrom(512)
            except OSError:
                return
            reply = self._reply(query) if query else b""
            if reply:
                with suppress(OSError):
                    self._sock.sendto(reply, address)
            elif not query:
                return

    def _reply(self, query: bytes) -> bytes:
        """RFC 1035 4.1; nothing for silence. A question for another type than A has no answer (and no error)."""
        self.asked += 1
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1:at + 1 + query[at]].decode("latin-1"))
            at += 1 + query[at]
        kind = struct.unpack_from(">H", query, at + 1)[0]
        question = query[12:at + 5]
        answer = self.answers.get(".".join(labels).lower(), NOWHERE)
        if answer == SILENT:
            return b""
        addresses = answer if isinstance(answer, tuple) and kind == 1 else ()
        code = _CODES[answer] if isinstance(answer, str) else 0
        head = query[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, len(addresses), 0, 0)
        found = (struct.pack(">HHHLH", 0xC00C, 1, 1, 1, 4) + socket.inet_aton(one) for one in addresses)
        return head + question + b"".join(found)
