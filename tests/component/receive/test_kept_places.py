"""Places kept for known peers: everybody else on the network together keeps no scanner out."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

import pytest

from appliance.config.settings import Listener, Peer
from tests.support.acceptor import config, connect, receiving, session
from tests.support.scu import IMPLICIT, VERIFICATION, associate_request
from tests.support.waiting import wait_until

ACCEPTED = b"\2"


def calls(port: int, source: str) -> socket.socket:
    """An association request from that address; nobody releases it."""
    sock = connect(port, source=source)
    sock.sendall(associate_request("DCMGATE", "ANYBODY", [(VERIFICATION, IMPLICIT)]))
    return sock


def answer(sock: socket.socket) -> bytes:
    """Type of the PDU that comes back: 2 where it was accepted, 3 where it was rejected."""
    return sock.recv(10_000)[:1]


@pytest.mark.requirement("hazard: silent socket")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_known_scanner_comes_in_while_many_addresses_hold_all_they_can_get(tmp_path: Path, workers: int) -> None:
    lan = Listener(id="lan", address="127.0.0.1", ports=(0,), unknown="admit", max_associations=24, max_per_address=6)
    known = [Peer(id="ct", addresses=("127.0.0.1",)), Peer(id="mr", addresses=("127.0.1.1",))]
    with receiving(tmp_path, config(lan, peers=known), workers=workers) as box, contextlib.ExitStack() as stack:
        strangers = [stack.enter_context(calls(box.port, f"127.0.2.{host}")) for host in range(2, 42)]
        assert sum(answer(sock) == ACCEPTED for sock in strangers) == 18, "three quarters"
        for _ in range(6):
            answer(stack.enter_context(calls(box.port, "127.0.1.1")))
        before = box.receiver.associations
        for _ in range(5):
            began = time.monotonic()
            with session(box.port) as scanner:
                assert scanner.echo() == 0
                assert time.monotonic() - began <= 1.0, "a hard deadline of the product"
            wait_until(lambda: box.receiver.associations == before, 10, "its place is free again")
