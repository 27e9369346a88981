"""TLS by other programs, in front of a plain one or towards a TLS port: Debian's stunnel, and OpenSSL's two test programs."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support import peers, pki
from tests.support.waiting import free_port, wait_listening


@contextmanager
def stunnel(folder: Path, connect: int, *, client: bool, pair: pki.Pair | None = None, trust: Path | None = None,
            options: tuple[str, ...] = ()) -> Iterator[int]:
    """The port that it listens on; `connect` is where it leads. `client`: plain here, TLS to there; else the other way.

    `trust`: the other end must show a certificate of these authorities. `options`: further lines of the service.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    lines = ["foreground = yes", "pid =", "syslog = no", "debug = notice", "[test]", f"client = {'yes' if client else 'no'}",
             f"accept = 127.0.0.1:{port}", f"connect = 127.0.0.1:{connect}", *options]
    if pair is not None:
        key, chain = pair.write(folder, "stunnel")
        lines += [f"cert = {chain}", f"key = {key}"]
    if trust is not None:
        lines += [f"CAfile = {trust}", "verifyChain = yes"]
    config = folder / "stunnel.conf"
    config.write_text("\n".join(lines) + "\n")
    with peers.running([peers.program("stunnel4"), config], [port], log=folder / "stunnel.log"):
        yield port


@contextmanager
def s_client(folder: Path, connect: int, *options: str) -> Iterator[int]:
    """The same with `openssl s_client` for each connection: plain here, TLS to `connect`. OpenSSL has no listening client."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:
        over = threading.Event()
        # Without -nocommands a piece of data that begins with Q or R would be a command to it.
        command = [peers.program("openssl"), "s_client", "-quiet", "-no_ign_eof", "-nocommands", "-connect",
                   f"127.0.0.1:{connect}", *options]
        log = stack.enter_context((folder / "s_client.log").open("ab"))

        def serve() -> None:
            while not over.is_set():
                try:
                    sock = listener.accept()[0]
                except OSError:
                    continue
                with sock:
                    child = subprocess.Popen(command, stdin=sock, stdout=sock, stderr=log, start_new_session=True)
                    stack.callback(peers.end, child)
        listener.settimeout(0.1)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            over.set()
            thread.join()


@contextmanager
def s_server(folder: Path, connect: int, pair: pki.Pair, *options: str) -> Iterator[int]:
    """`openssl s_server` for one connection: TLS here, its bytes plain to `connect` (0: nowhere, it reads and says nothing)."""
    port = free_port()
    key, chain = pair.write(folder, "server")
    command: list[str | Path] = [peers.program("openssl"), "s_server", "-accept", f"127.0.0.1:{port}", "-key", key,
                                 "-cert", chain, "-cert_chain", chain, "-quiet", *options]
    if not connect:
        with peers.running(command, [port], log=folder / "s_server.log"):
            yield port
        return
    with socket.create_connection(("127.0.0.1", connect)) as sock, (folder / "s_server.log").open("ab") as log:
        child = subprocess.Popen([str(part) for part in command], stdin=sock, stdout=sock, stderr=log, start_new_session=True)
    try:
        wait_listening([port], 20, lambda: child.poll() is None)
        yield port
    finally:
        peers.end(child)
