"""A connected pair: our `Secure`, and at the other end an engine of Python's ssl whose records the test sends as it likes."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache

from appliance.net.secure import Secure
from tests.support import pki


@cache
def contexts(version: ssl.TLSVersion, mutual: bool = False) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(server, client), of one authority; made once."""
    import tempfile
    from pathlib import Path
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ca = pki.Authority()
        trust = folder / "trust.pem"
        trust.write_bytes(pki.pem(ca.certificate))
        made = []
        for protocol, pair in ((ssl.PROTOCOL_TLS_SERVER, ca.leaf("server", dns=["localhost"])),
                               (ssl.PROTOCOL_TLS_CLIENT, ca.leaf("client", dns=["Client.example.org"],
                                                                  uris=["urn:x:1"], emails=["a@b"], addresses=["127.0.0.1"]))):
            context = ssl.SSLContext(protocol)
            context.minimum_version = context.maximum_version = version
            context.load_verify_locations(trust)
            key, chain = pair.write(folder, "pair")
            if protocol == ssl.PROTOCOL_TLS_SERVER or mutual:
                context.load_cert_chain(chain, key)
            made.append(context)
        if mutual:
            made[0].verify_mode = ssl.CERT_REQUIRED
    return made[0], made[1]


@dataclass
class Peer:
    """The other end. What it says waits in `out` until the test sends it: whole, in pieces, cut or broken."""

    wire: socket.socket
    tls: ssl.SSLObject
    into: ssl.MemoryBIO
    out: ssl.MemoryBIO
    heard: bytearray = field(default_factory=bytearray)

    def handshake(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.send()
                got = self.wire.recv(65536)
                if not got:
                    raise ConnectionError("closed in the handshake") from None
                self.into.write(got)
        self.send()

    def send(self) -> None:
        """What waits, as it is."""
        if data := self.out.read():
            self.wire.sendall(data)

    def hang_up(self) -> None:
        """Close without a word of TLS, in order: what was said to us is read before, or it would be a reset."""
        self.wire.setblocking(False)
        with suppress(BlockingIOError):
            while self.wire.recv(65536):
                pass
        self.wire.close()

    def records(self, data: bytes, sizes: Sequence[int] = ()) -> bytes:
        """`data` encrypted, in records of these sizes and the rest in one."""
        at = 0
        for size in (*sizes, len(data)):
            if data[at:at + size]:
                self.tls.write(data[at:at + size])
            at += size
        return self.out.read()

    def listen(self, count: int, seconds: float = 10.0) -> bytes:
        """So many bytes of what was said to it."""
        self.wire.settimeout(seconds)
        while len(self.heard) < count:
            try:
                read = self.tls.read(65536)
                if not read:
                    raise ConnectionError("closed in TLS")
                self.heard += read
            except ssl.SSLWantReadError:
                got = self.wire.recv(1 << 18)
                if not got:
                    raise ConnectionError("closed") from None
                self.into.write(got)
        found = bytes(self.heard[:count])
        del self.heard[:count]
        return found


@contextmanager
def pair(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, *, server_side: bool = True, mutual: bool = False,
         shaken: bool = True) -> Iterator[tuple[Secure, Peer]]:
    """Ours is the server unless `server_side` is False. `shaken`: the handshake is done."""
    ours, wire = socket.socketpair()
    server, client = contexts(version, mutual)
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    if server_side:
        secure = Secure(ours, server, server_side=True)
        tls = client.wrap_bio(into, out, server_hostname="localhost")
    else:
        secure = Secure(ours, client, server_name="localhost")
        tls = server.wrap_bio(into, out, server_side=True)
    peer = Peer(wire, tls, into, out)
    try:
        if shaken:
            thread = threading.Thread(target=peer.handshake, daemon=True)
            thread.start()
            secure.handshake()
            thread.join(10)
        yield secure, peer
    finally:
        secure.close()
        wire.close()
