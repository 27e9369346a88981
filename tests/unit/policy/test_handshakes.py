"""Handshakes among the callers: written and read alike, and never mistaken for a title."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.policy.handshakes import KINDS, LEGACY, REFUSED, REFUSED_THERE, Handshake, by_legacy, read, refused

IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True)


@given(IDS, IDS)
def test_refusals_come_back(entry: str, check: str) -> None:
    for kind in (REFUSED, REFUSED_THERE):
        assert read(kind, refused(kind, entry, check)) == Handshake(kind, entry, check)


@given(IDS, st.sampled_from(["TLSv1", "TLSv1.2"]), IDS, st.booleans())
def test_associations_by_the_retired_profile_come_back(entry: str, version: str, suite: str, needed: bool) -> None:
    assert read(LEGACY, by_legacy(entry, version, suite, needed=needed)) == Handshake(
        LEGACY, entry, version=version, suite=suite, needed=needed)


@given(st.text(max_size=16), st.sampled_from(["reject", "hold", "accept", *KINDS]))
def test_no_title_is_taken_for_one(called: str, verdict: str) -> None:
    """An AE title has 16 characters at most: what a caller says never falls into the row of a handshake, or of another kind."""
    assert read(verdict, called) is None
    assert all(len(text) > 16 for text in (refused(REFUSED, "a", "b"), by_legacy("a", "b", "c", needed=True)))
