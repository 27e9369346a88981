"""The first bytes at the door: what may become an association or a handshake is handed on, the rest is closed by the front."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from appliance.receive.front import HEADER, LONGEST_RECORD, _plausible

HEADS = st.one_of(st.binary(max_size=HEADER), st.binary(max_size=HEADER - 1).map(lambda rest: b"\x16" + rest),
                  st.binary(max_size=HEADER - 2).map(lambda rest: b"\x16\x03" + rest))


@given(HEADS, st.booleans())
@example(b"", True)
@example(b"\x16", True)
@example(b"\x16\x03\x04\x40\x00\x01", True)
def test_whatever_comes_is_judged(head: bytes, secure: bool) -> None:
    judged = _plausible(head, secure=secure)
    expected = head[:1] == b"\x01" or (
        secure and head[:1] == b"\x16" and (len(head) < 2 or head[1] == 3) and (len(head) < 3 or head[2] <= 4)
        and (len(head) < 5 or head[3] * 256 + head[4] <= LONGEST_RECORD))
    assert judged is expected


@given(HEADS, st.booleans())
def test_a_good_head_is_good_from_its_first_byte_on(head: bytes, secure: bool) -> None:
    """A peer whose segments are small is not closed in the middle of what would have been let in."""
    if _plausible(head, secure=secure):
        assert all(_plausible(head[:size], secure=secure) for size in range(1, len(head)))


@given(HEADS)
def test_a_plain_port_takes_no_handshake_and_a_tls_port_all_that_a_plain_one_takes(head: bytes) -> None:
    if _plausible(head, secure=False):
        assert head[0] == 1 and _plausible(head, secure=True)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1 is deprecated")
def test_real_hellos_are_handed_on(version: ssl.TLSVersion) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    out = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost").do_handshake()
    assert _plausible(out.read()[:HEADER], secure=True)
