"""Tunnels for tests: stunnel as `dcmgate` sets it up, without a gateway around it; servers at their ends."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from appliance.config.settings import Config, Control, Spool, Tunnel
from appliance.tunnel import program
from appliance.tunnel.place import Place
from appliance.tunnel.setup import Maker
from tests.support import peers
from tests.support.waiting import free_port, wait_until


class Carried:
    """A tunnel of an own, as systemd would run it. `entry` can be replaced; `state` has the certificate store."""

    def __init__(self, folder: Path, state: Path, **settings: object) -> None:
        self.state = state
        self.run = folder / "run"
        self.run.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.entry = Tunnel(**{"id": "far", "listen": f"127.0.0.1:{self.port}", "certificate": "box",  # type: ignore[arg-type]
                               **settings})
        self.place = Place(self.run, self.entry.id)
        self.log = folder / "stunnel.log"
        self.process: subprocess.Popen[bytes] | None = None

    def config(self) -> Config:
        return Config(tunnels=(self.entry,), spool=Spool(state=str(self.state)), control=Control(run=str(self.run)))

    def __enter__(self) -> Carried:
        setup = Maker(self.state, self.run).setup(self.entry)
        program.check(setup)
        path, claim = self.place.write(setup), self.place.claim()
        self.log.touch()
        before = self._read()
        with self.log.open("ab") as log, program.listen(setup) as listening:
            self.process = program.start(path, listening, claim, stderr=log.fileno())
        self.place.sign(claim, self.process.pid, setup)
        os.close(claim)
        try:
            wait_until(lambda: self._read() > before, 20, "stunnel has read its configuration")    # it listens before that
        except AssertionError:
            program.end(self.process)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            program.end(self.process)

    def _read(self) -> int:
        """How often it has taken up a configuration."""
        return self.said().count(program.ACCEPTED.decode())

    def written(self) -> str:
        """The configuration that it has now."""
        return self.place.configuration.read_text()

    def pid(self) -> int:
        running = self.place.running()
        return running.pid if running else 0

    def said(self) -> str:
        return self.log.read_text(errors="replace")


@contextmanager
def echoing() -> Iterator[int]:
    """A plain server that sends back whatever comes, as an HL7 engine answers: no word before it is spoken to."""
    def serve(listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listening.accept()[0],), daemon=True).start()

    def answer(sock: socket.socket) -> None:
        with suppress(OSError), sock:
            while data := sock.recv(65536):
                sock.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)


@contextmanager
def far_stunnel(folder: Path, key: Path, chain: Path, trust: Path, plain: int, *options: str) -> Iterator[int]:
    """A stunnel of somebody else's: mutual TLS here, `plain` behind it."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    lines = ["foreground = yes", "syslog = no", "pid =", "debug = notice", "[there]", "client = no",
             f"accept = 127.0.0.1:{port}", f"connect = 127.0.0.1:{plain}", f"cert = {chain}", f"key = {key}",
             f"CAfile = {trust}", "verifyChain = yes", *options]
    (folder / "far.conf").write_text("\n".join(lines) + "\n")
    with peers.running([peers.program("stunnel4"), folder / "far.conf"], [port], log=folder / "far.log"):
        yield port


def tool(name: str, *arguments: str | Path, seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
    """One of DCMTK's programs, to its end."""
    return subprocess.run([peers.program(name), *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          errors="replace", timeout=seconds, check=False)


def echo(port: int, *options: str | Path, called: str = "ANY-SCP") -> subprocess.CompletedProcess[str]:
    return tool("echoscu", "-v", "-to", "10", "-ta", "10", "-td", "10", "-aec", called, *options, "127.0.0.1", str(port))


def options_of(pairs: Sequence[Path], trust: Path) -> list[str]:
    """DCMTK's, for a server or a client with a certificate."""
    key, chain = pairs
    return ["+tls", str(key), str(chain), "+cf", str(trust)]
