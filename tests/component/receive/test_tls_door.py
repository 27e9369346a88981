"""Nonsense, silence and crowds at a TLS port: each is over in its time, leaves nothing behind, and keeps nobody waiting."""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.config.settings import Listener, Spool
from appliance.dicom import pdu, uids
from tests.support import pki
from tests.support.acceptor import ECHO_SECONDS, QUICK, Box, config, descriptors, receiving
from tests.support.waiting import wait_until

REQUEST = pdu.encode(pdu.AssociateRequest(pdu.title_bytes("DCMGATE"), pdu.title_bytes("SCANNER"),
                                          (pdu.ProposedContext(1, uids.VERIFICATION, (uids.IMPLICIT_LE,)),), 16384))


class Door:
    """A receiver with one TLS listener."""

    def __init__(self, box: Box, context: ssl.SSLContext) -> None:
        self.box = box
        self.context = context

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.box.port), 10, (source, 0))

    def associate(self) -> float:
        """Seconds until a real peer's association is accepted."""
        began = time.monotonic()
        with self.connect() as sock, self.context.wrap_socket(sock, server_hostname="localhost") as tls:
            tls.sendall(REQUEST)
            assert tls.recv(1) == b"\2"
        return time.monotonic() - began

    def refused(self, check: str) -> int:
        with contextlib.closing(self.box.ledger()) as ledger:
            return sum(knock.count for knock in ledger.knocks(1000, only=["tls"]) if knock.called.endswith(f" {check}"))

    def is_empty(self) -> bool:
        return self.box.quiet() and not [t for t in threading.enumerate() if t.name.startswith("association-")]


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    ca = pki.Authority()
    pki.place(tmp_path / "state", "box", ca.leaf("box", dns=["localhost"]), trust=[ca])
    trust = tmp_path / "trust.pem"
    trust.write_bytes(pki.pem(ca.certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(trust)
    context.load_cert_chain(*reversed(ca.leaf("scanner").write(tmp_path, "scanner")))
    listener = Listener(id="tls", address="127.0.0.1", ports=(0,), unknown="admit", tls="bcp195", certificate="box")
    with receiving(tmp_path, replace(config(listener), spool=Spool(state=str(tmp_path / "state")))) as box:
        yield Door(box, context)


def openings(seed: int, count: int) -> Iterator[bytes]:
    """Bytes of no meaning, broken handshakes, and real hellos that were cut or changed."""
    random_ = random.Random(seed)
    out = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost").do_handshake()
    hello = out.read()
    for _ in range(count):
        kind = random_.randrange(5)
        if kind == 0:
            yield random_.randbytes(random_.randrange(200))
        elif kind == 1:
            yield b"\x16\x03" + random_.randbytes(random_.randrange(600))
        elif kind == 2:
            yield hello[:random_.randrange(len(hello))]
        elif kind == 3:
            broken = bytearray(hello)
            for _ in range(random_.randrange(1, 6)):
                broken[random_.randrange(5, len(broken))] = random_.randrange(256)
            yield bytes(broken)
        else:
            yield hello + random_.randbytes(random_.randrange(400))


@pytest.mark.requirement("hazard: 1,500 mutated inputs")
@pytest.mark.requirement("hazard: TLS handshake")
def test_nonsense_at_the_door_leaves_nothing_behind_and_keeps_nobody_waiting(door: Door) -> None:
    """600 openings, some hung up on, some left to their deadline; real peers all the while."""
    assert door.associate() < ECHO_SECONDS
    wait_until(door.is_empty, 10, "the first one is over")
    before = descriptors()
    slowest, left = 0.0, []
    for nth, opening in enumerate(openings(1, 600)):
        sock = door.connect("127.0.0.9")         # its own places are full before long, nobody else's
        with contextlib.suppress(OSError):
            sock.sendall(opening)
        if nth % 4:
            sock.close()
        else:
            left.append(sock)
        if nth % 50 == 0:
            slowest = max(slowest, door.associate())
    assert slowest <= ECHO_SECONDS
    wait_until(door.is_empty, 20, "every association is over")
    for sock in left:
        sock.close()
    wait_until(lambda: descriptors() <= before, 10, "every descriptor is given back")
    assert door.associate() < ECHO_SECONDS


@pytest.mark.requirement("hazard: TLS handshake")
def test_a_handshake_that_stops_anywhere_ends_at_the_deadline_and_is_counted(door: Door) -> None:
    """After the header, in the hello, after the hello, after the server's flight: each has the time of the first PDU."""
    out, into = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = door.context.wrap_bio(into, out, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = out.read()
    began = time.monotonic()
    stalled = [door.connect() for _ in range(3)]
    for sock, data in zip(stalled, (hello[:6], hello[:100], hello), strict=True):
        sock.sendall(data)
    for sock in stalled:
        sock.settimeout(10)
        while sock.recv(65536):
            pass
        sock.close()
    assert time.monotonic() - began < QUICK.first_pdu + QUICK.scan + QUICK.closing + 5, "hard deadline"
    wait_until(lambda: door.refused("timeout") == 3, 10, "all three are counted", every=0.1)
    wait_until(door.is_empty, 10, "every association is over")


@pytest.mark.requirement("hazard: TLS handshake")
def test_an_association_that_never_asks_after_its_handshake_ends_too(door: Door) -> None:
    with door.connect() as sock, door.context.wrap_socket(sock, server_hostname="localhost") as tls:
        tls.settimeout(20)
        with contextlib.suppress(ssl.SSLError, ConnectionError):     # cut off; a time-out of ours is none of these
            while tls.recv(4096):
                pass
        wait_until(door.is_empty, 10, "it is over, while the caller still holds its end")


@pytest.mark.requirement("hazard: TLS handshake")
def test_one_byte_at_a_time_gets_through_where_it_is_in_time(tmp_path: Path, door: Door) -> None:
    """However small the segments of a real handshake and of the request in it."""
    out, into = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = door.context.wrap_bio(into, out, server_hostname="localhost")
    with door.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def say() -> None:
            data = out.read()
            for at in range(0, len(data), 3):
                sock.sendall(data[at:at + 3])
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                say()
                into.write(sock.recv(65536))
        client.write(REQUEST)
        say()
        while True:
            try:
                assert client.read(1) == b"\2"
                break
            except ssl.SSLWantReadError:
                into.write(sock.recv(65536))
