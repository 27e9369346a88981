"""Listening, inheriting, connecting and kicking."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from pathlib import Path

import pytest

from appliance.net import kick, sockets
from tests.support.waiting import free_port, wait_until


@pytest.mark.requirement("hazard: Nagle")
def test_connect_and_what_the_socket_is_set_to():
    with sockets.listen("127.0.0.1", 0) as listener:
        with pytest.raises(BlockingIOError):
            listener.accept()
        with sockets.connect("127.0.0.1", listener.getsockname()[1], 5) as sock:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getblocking()
            assert not sock.get_inheritable()
            accepted, _ = listener.accept()
            with accepted:
                accepted.setblocking(True)
                sock.sendall(b"abcd")
                assert accepted.recv(4) == b"abcd"
                wait_until(lambda: sockets.unacknowledged(sock) == 0, 5)
                sockets.quick_ack(sock)
                assert sockets.is_quiet(sock)
                accepted.sendall(b"x")
                wait_until(lambda: not sockets.is_quiet(sock), 5)


def test_time_outs_of_a_socket():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sockets.set_timeouts(ours, receive=0.05, send=0.05)
        begun = time.monotonic()
        with pytest.raises(BlockingIOError):
            ours.recv(1)
        with pytest.raises(BlockingIOError):
            while True:
                ours.sendmsg([bytes(1 << 16)])
        assert time.monotonic() - begun < 5


def test_unacknowledged_bytes_are_counted():
    with sockets.listen("127.0.0.1", 0) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with sockets.connect("127.0.0.1", listener.getsockname()[1], 5) as sock:
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                while True:
                    sock.send(bytes(1 << 16))
            assert sockets.unacknowledged(sock) > 0


def test_who_cannot_be_connected_to():
    with pytest.raises(ConnectionRefusedError):
        sockets.connect("127.0.0.1", free_port(), 5)
    with pytest.raises(socket.gaierror):
        sockets.connect("a..b", 104, 5)
    with pytest.raises(socket.gaierror):
        sockets.connect("", 104, 5)


def test_localhost_is_tried_at_every_address():
    with sockets.listen("127.0.0.1", 0) as listener, sockets.connect("localhost", listener.getsockname()[1], 5) as sock:
        assert sock.getpeername()[0] == "127.0.0.1"


def _full_listener() -> tuple[socket.socket, list[socket.socket]]:
    """One that takes no more connections: the kernel drops further SYNs."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    fill = []
    for _ in range(3):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(listener.getsockname())
        fill.append(sock)
    return listener, fill


@pytest.mark.requirement("hazard: backlog 5")
def test_connect_has_a_deadline_and_can_be_given_up():
    listener, fill = _full_listener()
    port = listener.getsockname()[1]
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer"):
        sockets.connect("127.0.0.1", port, 0.2)
    assert time.monotonic() - begun < 5
    cancel = os.eventfd(0, os.EFD_CLOEXEC)
    threading.Thread(target=os.eventfd_write, args=(cancel, 1), daemon=True).start()
    with pytest.raises(TimeoutError, match="given up"):
        sockets.connect("127.0.0.1", port, 60, cancel)
    assert time.monotonic() - begun < 10
    os.close(cancel)
    for sock in (*fill, listener):
        sock.close()


@pytest.mark.requirement("hazard: a resolver that does not answer")
def test_a_resolver_that_does_not_answer_does_not_keep_us(monkeypatch: pytest.MonkeyPatch):
    release = threading.Event()
    asked: list[str] = []

    def getaddrinfo(host: str, *args: object, **kwargs: object) -> list[object]:
        asked.append(host)
        release.wait(10)
        raise socket.gaierror(socket.EAI_AGAIN, "late")
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    begun = time.monotonic()
    for _ in range(3):
        with pytest.raises(socket.gaierror, match="no answer from DNS"):
            sockets.connect("pacs.example", 104, 0.05)
    assert time.monotonic() - begun < 5
    assert asked == ["pacs.example"], "attempts share one question"
    release.set()
    wait_until(lambda: not sockets._lookups, 5)


def test_inherited_listeners(tmp_path: Path):
    tcp = sockets.listen("127.0.0.1", 0)
    port = tcp.getsockname()[1]
    first = 200
    os.dup2(tcp.fileno(), first, inheritable=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        os.dup2(other.fileno(), first + 1, inheritable=True)
    tcp.close()
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "PATH": "x"}
    given = sockets.inherited(environ, first)
    assert environ == {"PATH": "x"}
    assert list(given) == [("127.0.0.1", port)]
    assert not os.get_inheritable(first)
    listener = sockets.listen("127.0.0.1", port, given)
    assert (listener.fileno(), given) == (first, {})
    with listener, sockets.connect("127.0.0.1", port, 5):
        assert select.select([listener], [], [], 5)[0]
    os.close(first + 1)


@pytest.mark.parametrize("environ", [{}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_PID": str(os.getpid())},
                                     {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "x"}])
def test_nothing_inherited(environ: dict[str, str]):
    assert sockets.inherited(dict(environ), 900) == {}


def test_kicks(tmp_path: Path):
    path = tmp_path / kick.FORWARDER
    kick.send(path)  # nobody there
    mailbox = kick.Mailbox(path)
    assert not mailbox.wait(0)
    for _ in range(1000):
        kick.send(path)
    assert mailbox.wait(5)
    assert not mailbox.wait(0), "kicks that came together are one"
    mailbox.close()
    kick.send(path)
    again = kick.Mailbox(path)  # the name of a dead process is taken over
    kick.send(path)
    assert again.wait(5)
    again.close()
    assert [p.name for p in tmp_path.iterdir()] == [kick.FORWARDER]
    with pytest.raises(OSError):
        kick.Mailbox(tmp_path / "missing" / "kick")
