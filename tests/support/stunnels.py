"""Debian's stunnel with a configuration of the tests' own: TLS in front of a plain program, or a plain port to a TLS one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import peers, pki
from tests.support.waiting import free_port


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
