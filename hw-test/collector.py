"""A collector of logs: takes what systemd-journal-upload sends, over TLS, from whoever has a certificate of the authority."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path


class Collector:
    """`received` is the body as far as it has come, `subjects` the names in the certificates that were shown."""

    def __init__(self, address: tuple[str, int], key: Path, certificate: Path, trust: Path) -> None:
        self.received = b""
        self.subjects: list[str] = []
        self.refused = 0
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._context.load_verify_locations(trust)
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._listening = socket.create_server(address)
        threading.Thread(target=self._run, name="collector", daemon=True).start()

    def _run(self) -> None:
        while True:
            sock, _ = self._listening.accept()
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        try:
            with self._context.wrap_socket(plain, server_side=True) as sock:
                self.subjects.append(str(sock.getpeercert()))
                file = sock.makefile("rwb")
                while line := file.readline():
                    self._request(line, file)
        except ssl.SSLError:
            self.refused += 1
        except (OSError, ValueError):
            pass

    def _request(self, line: bytes, file: object) -> None:
        """One POST, whose body comes in chunks for as long as the box runs."""
        headers = {}
        while (header := file.readline()) not in (b"\r\n", b""):  # type: ignore[attr-defined]
            name, _, value = header.partition(b":")
            headers[name.lower()] = value.strip()
        if headers.get(b"expect", b"").lower() == b"100-continue":
            file.write(b"HTTP/1.1 100 Continue\r\n\r\n")  # type: ignore[attr-defined]
            file.flush()  # type: ignore[attr-defined]
        if line.startswith(b"POST /upload "):
            while size := int(file.readline() or b"0", 16):  # type: ignore[attr-defined]
                self.received += file.read(size)  # type: ignore[attr-defined]
                file.readline()  # type: ignore[attr-defined]
        file.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 3\r\n\r\nOK.")  # type: ignore[attr-defined]
        file.flush()  # type: ignore[attr-defined]
