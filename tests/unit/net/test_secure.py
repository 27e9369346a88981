"""Secure: the same bytes whatever the wire does, an end that is told from silence, and nothing that ends a wait too late."""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.net import sockets
from appliance.net.secure import Secure
from appliance.net.tlserrors import TlsError
from tests.support.tls_pair import Peer, pair

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
BOTH = pytest.mark.parametrize("version", [V12, V13], ids=["1.2", "1.3"])
VERSIONS = st.sampled_from([V12, V13])
HARD = 5.0
"""Seconds within which a wait that was ended has to be over."""


def read_all(secure: Secure, count: int, sizes: list[int]) -> bytes:
    """So many bytes, through views of these sizes, again and again; fewer where the end comes first."""
    got = bytearray()
    nth = 0
    while len(got) < count:
        views = [memoryview(bytearray(size)) for size in sizes[nth % len(sizes):][:3]]
        nth += 1
        read, _ = secure.recvmsg_into(views)
        if not read:
            break
        left = read
        for view in views:
            got += view[:min(left, len(view))]
            left -= min(left, len(view))
        assert left <= 0, "never more than there is room for"
    return bytes(got)


def within(seconds: float, what: Callable[[], Any]) -> tuple[threading.Thread, list[object]]:
    """`what` in a thread that has certainly begun to wait, and what it returned or raised."""
    said: list[object] = []

    def run() -> None:
        try:
            said.append(what())
        except Exception as e:  # noqa: BLE001 told to the test
            said.append(e)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert thread.is_alive(), f"it should wait, and said {said}"
    return thread, said


def ended(thread: threading.Thread) -> None:
    thread.join(HARD)
    assert not thread.is_alive(), "hard deadline"


# --- bytes --------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(VERSIONS, st.binary(min_size=1, max_size=70_000), st.lists(st.integers(1, 20_000), max_size=6),
       st.lists(st.integers(1, 30_000), max_size=8), st.lists(st.integers(1, 40_000), min_size=1, max_size=4))
def test_however_the_wire_cuts_it_the_same_bytes_are_read(version: ssl.TLSVersion, data: bytes, records: list[int],
                                                          cuts: list[int], views: list[int]) -> None:
    """Records of any size, in segments of any size, into views of any size."""
    with pair(version) as (secure, peer):
        wire = peer.records(data, records)

        def send() -> None:
            at = 0
            for cut in (*cuts, len(wire)):
                peer.wire.sendall(wire[at:at + cut])
                at += cut
        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        assert read_all(secure, len(data), views) == data
        thread.join(10)


@settings(max_examples=40, deadline=None)
@given(VERSIONS, st.lists(st.lists(st.binary(max_size=40_000), min_size=1, max_size=4), min_size=1, max_size=3))
def test_however_it_is_gathered_the_same_bytes_are_sent(version: ssl.TLSVersion, writes: list[list[bytes]]) -> None:
    with pair(version) as (secure, peer):
        heard: list[bytes] = []
        whole = b"".join(b"".join(buffers) for buffers in writes)
        thread = threading.Thread(target=lambda: heard.append(peer.listen(len(whole))), daemon=True)
        thread.start()
        for buffers in writes:
            assert secure.sendmsg(buffers) == sum(map(len, buffers))
        thread.join(10)
        assert heard == [whole]


@BOTH
def test_a_byte_at_a_time_is_no_end_and_no_error(version: ssl.TLSVersion) -> None:
    """Secure waits for the rest of a record; what is whole comes at once."""
    with pair(version) as (secure, peer):
        for byte in peer.records(b"hello"):
            peer.wire.sendall(bytes((byte,)))
            time.sleep(0.0005)
        assert read_all(secure, 5, [64]) == b"hello"


@BOTH
def test_both_directions_at_once(version: ssl.TLSVersion) -> None:
    """Two megabytes each way at the same time, by a thread that reads and one that writes."""
    size = 2 << 20
    with pair(version) as (secure, peer):
        wire = peer.records(b"b" * size, [16384] * 100)
        got: list[bytes] = []
        threads = [threading.Thread(target=what, daemon=True) for what in (
            lambda: peer.wire.sendall(wire), lambda: got.append(read_all(secure, size, [1 << 17])),
            lambda: secure.sendmsg([b"a" * 1000] * (size // 1000 + 1)))]
        for thread in threads:
            thread.start()
        assert peer.listen(size) == b"a" * size
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert got == [b"b" * size]


# --- what poll does not see ---------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.requirement("hazard: ssl")
def test_decrypted_bytes_that_poll_does_not_see_are_no_silence(version: ssl.TLSVersion) -> None:
    with pair(version) as (secure, peer):
        assert sockets.is_quiet(secure)
        peer.wire.sendall(peer.records(b"0123456789"))
        assert not sockets.is_quiet(secure)
        poll = select.poll()
        poll.register(secure.fileno(), select.POLLIN)
        assert not poll.poll(0), "it is all in our hands already"
        for expected in (b"0123", b"4567", b"89"):
            assert not sockets.is_quiet(secure)
            view = bytearray(4)
            assert bytes(view[:secure.recv_into(view)]) == expected
        assert sockets.is_quiet(secure)


@BOTH
def test_a_part_of_a_record_is_silence_still(version: ssl.TLSVersion) -> None:
    with pair(version) as (secure, peer):
        wire = peer.records(b"data")
        peer.wire.sendall(wire[:-1])
        assert sockets.is_quiet(secure)
        peer.wire.sendall(wire[-1:])
        assert not sockets.is_quiet(secure)
        assert read_all(secure, 4, [64]) == b"data"


def test_tickets_are_no_event() -> None:
    """A server of TLS 1.3 sends them when it likes: an association that lies idle is not over because of them."""
    with pair(V13, server_side=False) as (secure, peer):
        select.select([secure.fileno()], [], [], 5)          # they have come
        assert sockets.is_quiet(secure)
        peer.wire.sendall(peer.records(b"x"))
        assert not sockets.is_quiet(secure)


@pytest.mark.parametrize("how", ["close_notify", "cut", "reset"])
def test_an_end_is_no_silence(how: str) -> None:
    with pair() as (secure, peer):
        _end(peer, how)
        assert not sockets.is_quiet(secure)


# --- the end ------------------------------------------------------------------------------------------------------------


def _end(peer: Peer, how: str) -> None:
    if how == "close_notify":
        with pytest.raises(ssl.SSLWantReadError):
            peer.tls.unwrap()
        peer.send()
        return
    if how == "cut":
        peer.hang_up()
    peer.wire.close()                            # what was not read makes it a reset


@BOTH
@pytest.mark.parametrize("how", ["close_notify", "cut"])
def test_the_end_comes_after_the_last_byte(version: ssl.TLSVersion, how: str) -> None:
    with pair(version) as (secure, peer):
        peer.wire.sendall(peer.records(b"last"))
        _end(peer, how)
        assert read_all(secure, 100, [64]) == b"last"
        assert secure.recv_into(bytearray(8)) == 0
        assert secure.recv_into(bytearray(8)) == 0, "and again"


@BOTH
def test_what_was_cut_in_a_record_is_not_given_out(version: ssl.TLSVersion) -> None:
    with pair(version) as (secure, peer):
        whole, half = peer.records(b"whole"), peer.records(b"half")
        peer.wire.sendall(whole + half[:-3])
        peer.hang_up()
        assert read_all(secure, 100, [64]) == b"whole"


@BOTH
@settings(max_examples=30, deadline=None)
@given(at=st.integers(5, 60), bit=st.integers(0, 7))
def test_a_bit_that_flips_on_the_wire_is_an_error_and_never_a_byte(version: ssl.TLSVersion, at: int, bit: int) -> None:
    with pair(version) as (secure, peer):
        good, bad = peer.records(b"good"), bytearray(peer.records(b"x" * 60))
        bad[at] ^= 1 << bit
        peer.wire.sendall(good + bad)
        got = bytearray()
        with pytest.raises(TlsError) as broken:
            for _ in range(3):
                view = bytearray(200)
                got += view[:secure.recv_into(view)]
        assert bytes(got) == b"good" and broken.value.check == "broken"


@BOTH
def test_an_error_behind_good_bytes_is_said_after_them(version: ssl.TLSVersion) -> None:
    """Whether they are read at once, or were come upon by a look whether it is quiet."""
    for look in (False, True):
        with pair(version) as (secure, peer):
            peer.wire.sendall(peer.records(b"good") + b"\x17\x03\x03\x00\x20" + bytes(32))
            if look:
                assert not sockets.is_quiet(secure)
            assert read_all(secure, 4, [64]) == b"good"
            with pytest.raises(TlsError):
                secure.recv_into(bytearray(8))


@BOTH
def test_shutting_our_side_says_so_in_tls(version: ssl.TLSVersion) -> None:
    with pair(version) as (secure, peer):
        secure.sendall(b"bye")
        secure.shutdown(socket.SHUT_WR)
        assert peer.listen(3) == b"bye"
        with pytest.raises(ConnectionError, match="closed in TLS"):
            peer.listen(1)
        peer.wire.sendall(peer.records(b"still heard"))
        assert read_all(secure, 11, [64]) == b"still heard"


# --- ending a wait: the guard's thread ----------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_RDWR])
@pytest.mark.requirement("conformance: deadlines")
def test_a_blocked_read_ends_when_the_guard_says_so(version: ssl.TLSVersion, how: int) -> None:
    with pair(version) as (secure, peer):
        peer.wire.sendall(peer.records(b"x" * 100)[:50])
        thread, said = within(0.2, lambda: secure.recv_into(bytearray(64)))
        secure.shutdown(how)
        ended(thread)
        assert said == [0]


@BOTH
def test_a_blocked_write_ends_when_the_guard_says_so(version: ssl.TLSVersion) -> None:
    with pair(version) as (secure, _):
        thread, said = within(0.3, lambda: secure.sendall(bytes(32 << 20)))
        secure.shutdown(socket.SHUT_RDWR)
        ended(thread)
        assert isinstance(said[0], OSError)


def test_a_blocked_handshake_ends_when_the_guard_says_so() -> None:
    for nothing in (b"", b"\x16\x03\x01\x02\x00\x01"):
        with pair(shaken=False) as (secure, peer):
            peer.wire.sendall(nothing)
            thread, said = within(0.2, secure.handshake)
            secure.shutdown(socket.SHUT_RD)
            ended(thread)
            assert isinstance(said[0], TlsError) and said[0].check == "closed"


@BOTH
def test_the_guard_may_speak_while_another_reads(version: ssl.TLSVersion) -> None:
    with pair(version) as (secure, peer):
        thread, said = within(0.2, lambda: secure.recv_into(bytearray(64)))
        assert secure.send(b"A-ABORT", socket.MSG_DONTWAIT) == 7
        assert peer.listen(7) == b"A-ABORT"
        peer.wire.sendall(peer.records(b"ok"))
        ended(thread)
        assert said == [2]


@BOTH
def test_the_guard_does_not_wait_for_one_who_writes(version: ssl.TLSVersion) -> None:
    """Nor does it write into the middle of what another writes."""
    with pair(version) as (secure, peer):
        size = 8 << 20
        thread, said = within(0.3, lambda: secure.sendall(b"d" * size))
        began = time.monotonic()
        with pytest.raises(BlockingIOError):
            secure.send(b"A-ABORT", socket.MSG_DONTWAIT)
        assert time.monotonic() - began < HARD
        assert peer.listen(size) == b"d" * size
        ended(thread)
        assert said == [None]


# --- time-outs of the sending side --------------------------------------------------------------------------------------


@pytest.mark.requirement("hazard: destination never answers")
def test_silence_and_a_peer_that_takes_nothing_are_blocking_io_errors() -> None:
    with pair(server_side=False) as (secure, _):
        sockets.set_timeouts(secure, receive=0.2, send=0.2)
        with pytest.raises(BlockingIOError):
            secure.recv_into(bytearray(8))
        with pytest.raises(BlockingIOError):
            secure.sendall(bytes(32 << 20))


@pytest.mark.requirement("hazard: TLS handshake")
def test_a_handshake_has_one_deadline_however_it_drips() -> None:
    with pair(server_side=False, shaken=False) as (secure, peer):
        over = threading.Event()

        def drip() -> None:
            peer.wire.sendall(b"\x16\x03\x03\x40\x00")      # a record of 16384 bytes, of which one comes at a time
            while not over.wait(0.05):
                peer.wire.sendall(b"\0")
        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="in time"):
            secure.handshake(time.monotonic() + 0.5)
        assert time.monotonic() - began < HARD
        over.set()
        thread.join(5)


def test_a_handshake_without_end_is_cut_off() -> None:
    """A hundred thousand bytes of certificates and more: who sends that means no handshake."""
    with pair(shaken=False) as (secure, peer):
        hello = b"\x16\x03\x01\x40\x00\x01\x7f\xff\xff" + bytes(0x4000 - 4)

        def flood() -> None:
            try:
                for _ in range(200):
                    peer.wire.sendall(hello)
            except OSError:
                pass
        threading.Thread(target=flood, daemon=True).start()
        with pytest.raises(TlsError):
            secure.handshake()


OPENINGS = st.one_of(
    st.binary(max_size=300), st.binary(max_size=200).map(lambda body: b"\x16\x03\x01" + len(body).to_bytes(2) + body),
    st.binary(max_size=80).map(lambda body: b"\x16\x03\x01" + (len(body) + 4).to_bytes(2) + b"\x01\0" +
                               len(body).to_bytes(2) + body))
"""Nothing in particular, a handshake record of it, and a ClientHello of it."""

# --- nonsense -----------------------------------------------------------------------------------------------------------


@settings(max_examples=250, deadline=None)
@given(OPENINGS, st.booleans())
@pytest.mark.requirement("hazard: 1,500 mutated inputs")
def test_nonsense_instead_of_a_handshake_is_one_of_our_errors(opening: bytes, server_side: bool) -> None:
    with pair(server_side=server_side, shaken=False) as (secure, peer):
        peer.wire.sendall(opening)
        peer.wire.shutdown(socket.SHUT_WR)
        with pytest.raises(TlsError) as refused:
            secure.handshake()
        assert refused.value.check and refused.value.text


@pytest.mark.parametrize(("opening", "check"), [
    (b"GET / HTTP/1.1\r\n\r\n", "not_tls"), (b"\x01\x00\x00\x00\x00\xcd" + bytes(68), "not_tls"), (b"", "closed"),
    (b"\x16\x03\x01\x00\x05\x01\x00", "closed"), (b"SSH-2.0-x\r\n", "not_tls")])
def test_who_speaks_something_else_is_named(opening: bytes, check: str) -> None:
    with pair(shaken=False) as (secure, peer):
        peer.wire.sendall(opening)
        peer.wire.shutdown(socket.SHUT_WR)
        with pytest.raises(TlsError) as refused:
            secure.handshake()
        assert refused.value.check == check


# --- who it is ----------------------------------------------------------------------------------------------------------


@BOTH
def test_what_a_certificate_says_is_known_after_the_handshake(version: ssl.TLSVersion) -> None:
    with pair(version, mutual=True) as (secure, _):
        assert secure.identity is not None
        assert secure.identity.proven >= {"dns:client.example.org", "uri:urn:x:1", "email:a@b",
                                          f"sha256:{secure.identity.fingerprint}"}
        assert len(secure.identity.fingerprint) == 64 and secure.identity.subject == "CN=client"
        assert secure.version == {V12: "TLSv1.2", V13: "TLSv1.3"}[version] and secure.suite
    with pair(version) as (secure, _):
        assert secure.identity is None
