"""The exchange through a tunnel, where what stands for stunnel answers as it does on bad days."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from appliance.config.settings import Tunnel
from appliance.tunnel import through
from appliance.tunnel.through import prove
from tests.support import pki
from tests.support.waiting import free_port


@contextmanager
def resetting() -> Iterator[int]:
    """Takes each connection and resets it, often before whoever connects has seen that it is up."""
    def serve(listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                sock, _ = listening.accept()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
                sock.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    ca = pki.Authority()
    pki.place(tmp_path, "box", ca.leaf("box"), trust=[ca])
    return tmp_path


def tunnel(listen: int, connect: int, **settings: object) -> Tunnel:
    return Tunnel(**{"id": "ris", "listen": f"127.0.0.1:{listen}", "connect": f"127.0.0.1:{connect}",  # type: ignore[arg-type]
                     "certificate": "box", "check": "echo", "called": "RIS", **settings})


def test_a_reset_is_no_tunnel_that_does_not_run(state: Path) -> None:
    """The far end is named all the same."""
    with resetting() as near:
        for _ in range(20):
            found = prove(tunnel(near, free_port()), state)
            assert (found.hop, found.cause) == ("tcp", "refused"), found
    assert prove(tunnel(free_port(), free_port()), state).cause == "not_running"


def test_a_reset_as_the_connection_comes_up(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(host: str, port: int, seconds: float) -> socket.socket:
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr("appliance.net.sockets.connect", connect)
    found = prove(tunnel(2000, free_port()), state)
    assert (found.hop, found.cause) == ("tcp", "refused"), found


def test_a_far_end_that_answers_and_resets_within_the_tunnel(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from appliance.probe.report import Hop, Report, State
    monkeypatch.setattr(through, "walk", lambda *_, **__: Report("ris", "", (Hop("tls", State.OK),)))
    with resetting() as near:
        for settings in ({}, {"check": "tcp", "called": ""}):
            found = prove(tunnel(near, 2762, **settings), state)
            assert not found.up and (found.hop, found.cause) == ("tunnel", "closed"), found
