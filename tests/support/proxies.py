"""HTTP proxies: Debian's tinyproxy with a password, and ones that say whatever a test wants."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.peers import program, running
from tests.support.waiting import free_port

LOGIN = "clinic:s3cret"


@dataclass
class RealProxy:
    port: int
    log: Path

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    def asked(self, port: int) -> int:
        """How often it was asked to lead to that port of this machine, password or not."""
        return sum(1 for line in self.log.read_text().splitlines() if f"CONNECT 127.0.0.1:{port} " in line)


@contextmanager
def tinyproxy(folder: Path, *, login: str = LOGIN, ports: Iterable[int] = (), port: int = 0) -> Iterator[RealProxy]:
    """It wants that user:password, if any, and leads to these ports only, if any are named."""
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    log = folder / "tinyproxy.log"
    lines = [f"Port {port}", "Listen 127.0.0.1", "Timeout 600", "MaxClients 50", "LogLevel Connect", f'LogFile "{log}"']
    lines += [f"ConnectPort {number}" for number in ports]
    if login:
        lines.append("BasicAuth " + login.replace(":", " ", 1))
    (folder / "tinyproxy.conf").write_text("\n".join(lines) + "\n")
    log.touch()
    with running([program("tinyproxy"), "-d", "-c", folder / "tinyproxy.conf"], [port], log=folder / "tinyproxy.out"):
        yield RealProxy(port, log)


@dataclass
class BadProxy:
    port: int = 0
    requests: list[bytes] = field(default_factory=list)

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"


Script = Callable[[socket.socket], None]


@contextmanager
def bad_proxy(script: Script) -> Iterator[BadProxy]:
    """Takes each connection, reads a request, and does what the script says with the connection."""
    proxy, stop = BadProxy(), threading.Event()

    def serve(listening: socket.socket) -> None:
        while not stop.is_set():
            try:
                sock, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(sock,), daemon=True).start()

    def answer(sock: socket.socket) -> None:
        with suppress(OSError), sock:
            request = b""
            while b"\r\n\r\n" not in request:
                part = sock.recv(4096)
                if not part:
                    return
                request += part
            proxy.requests.append(request)
            script(sock)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        proxy.port = listening.getsockname()[1]
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        try:
            yield proxy
        finally:
            stop.set()
            with suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)


def says(*parts: bytes) -> Script:
    """Each part in a packet of its own, then the end."""
    def script(sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            sock.sendall(part)
            threading.Event().wait(0.02)
    return script


def password(state: Path, place: str, login: str = LOGIN) -> Path:
    """The file of the store."""
    path = state / "proxies" / place
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.write_text(login + "\n")
    path.chmod(0o600)
    return path
