"""Admission by certificate: a title that is bound to one is nobody else's, and to bind a peer never lets anybody else in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.config.settings import Listener, Peer
from appliance.policy import Admission, Verdict, admit

PRINT, OTHER = "ab" * 32, "cd" * 32
PROOFS = (f"sha256:{PRINT}", f"sha256:{OTHER}", "dns:ct1.example.org", "dns:mr1.example.org", "uri:urn:x:1", "email:a@b")
TITLES = ("CT1", "MR1", "US1")
ADDRESSES = ("10.0.0.5", "10.0.0.6")
LISTENER = Listener(id="tls", tls="bcp195", certificate="box")
CT = Peer(id="ct", titles=("CT1",), certificates=(f"sha256:{PRINT}", "dns:ct1.example.org"))

pytestmark = pytest.mark.requirement("conformance: certificate in the custody record")


def ask(peers: Sequence[Peer], calling: str = "CT1", proven: frozenset[str] = frozenset(), *, address: str = "10.0.0.5",
        listener: Listener = LISTENER, admitted: Sequence[tuple[str, str]] = ()) -> Admission:
    return admit(listener, peers, admitted, calling, "DCMGATE", address, proven)


# --- by example ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proof", [f"sha256:{PRINT}", "dns:ct1.example.org"])
def test_one_of_its_certificates_is_enough(proof: str) -> None:
    answer = ask([CT], proven=frozenset((proof, "dns:something.else")))
    assert (answer.verdict, answer.peer_id) == (Verdict.ACCEPT, "ct")


@pytest.mark.parametrize("unknown", ["refuse", "hold", "admit"])
@pytest.mark.parametrize(("proven", "words"), [
    (frozenset(), "this one shows none"), (frozenset((f"sha256:{OTHER}",)), "shows another"),
    (frozenset(("dns:ct1.example.org.evil.org",)), "shows another"), (frozenset(("uri:ct1.example.org",)), "shows another")])
def test_without_it_the_title_is_refused_whatever_the_listener_takes(unknown: str, proven: frozenset[str], words: str) -> None:
    answer = ask([CT], proven=proven, listener=Listener(id="tls", unknown=unknown))
    assert (answer.verdict, answer.result, answer.source, answer.reason) == (Verdict.REJECT, 1, 1, 3)
    assert "bound to the certificate of [[peer]] ct" in answer.text and words in answer.text


def test_neither_a_listener_without_tls_nor_one_for_others_takes_the_title() -> None:
    """The peer may use the TLS listener only: its title is no stranger's at the plain one."""
    bound = Peer(id="ct", titles=("CT1",), listeners=("tls",), certificates=("dns:ct1.example.org",))
    assert ask([bound], listener=Listener(id="plain", unknown="admit")).verdict is Verdict.REJECT


def test_another_entry_for_the_same_title_speaks_for_itself() -> None:
    """A site that moves one scanner at a time: the old way in stays as long as the file says so."""
    plain = Peer(id="ct-old", titles=("CT1",), addresses=("10.0.0.5",))
    assert ask([CT, plain]).peer_id == "ct-old"
    assert ask([CT, plain], address="10.0.0.6").verdict is Verdict.REJECT
    assert ask([CT], admitted=[("CT1", "10.0.0.5")]).verdict is Verdict.ACCEPT, "a person has said so"


def test_an_entry_without_titles_does_not_hide_one_that_names_the_title() -> None:
    """It was refused as bound to the first entry's certificate, though the last names it without one."""
    ward = Peer(id="ward", addresses=("10.0.0.5",))
    assert ask([ward, CT]).verdict is Verdict.REJECT, "an entry for a whole ward does not speak for a bound title"
    assert ask([ward, CT, Peer(id="old", titles=("CT1",))]).peer_id == "old"


def test_an_entry_of_certificates_alone_lets_each_title_in() -> None:
    fleet = Peer(id="fleet", certificates=("uri:urn:x:1",))
    assert ask([fleet], "ANYTHING", frozenset(("uri:urn:x:1",))).peer_id == "fleet"
    assert ask([fleet], "ANYTHING").verdict is Verdict.REJECT


def test_a_refusal_shows_what_came_and_nothing_that_breaks_a_line() -> None:
    text = ask([CT], proven=frozenset(("dns:a\nb\x1b[2J",))).text
    assert "\n" not in text and "\x1b" not in text


# --- for whatever peers there are ---------------------------------------------------------------------------------------

PEERS = st.lists(st.builds(
    Peer, id=st.sampled_from(["a", "b", "c", "d"]),
    titles=st.lists(st.sampled_from(TITLES), max_size=2, unique=True).map(tuple),
    addresses=st.lists(st.sampled_from(ADDRESSES), max_size=1).map(tuple),
    certificates=st.lists(st.sampled_from(PROOFS), max_size=2, unique=True).map(tuple)), max_size=4)
PROVEN = st.frozensets(st.sampled_from(PROOFS))
CALLER = st.tuples(st.sampled_from((*TITLES, "WHO")), st.sampled_from(ADDRESSES))
UNKNOWN = st.sampled_from(["refuse", "hold", "admit"])


@settings(max_examples=400, deadline=None)
@given(PEERS, CALLER, PROVEN, UNKNOWN)
def test_who_comes_in_as_a_peer_has_proven_what_it_wants(peers: list[Peer], caller: tuple[str, str], proven: frozenset[str],
                                                         unknown: str) -> None:
    answer = ask(peers, caller[0], proven, address=caller[1], listener=Listener(id="tls", unknown=unknown))
    if answer.verdict is Verdict.ACCEPT and answer.peer_id:
        named = [peer for peer in peers if peer.id == answer.peer_id]
        assert any(not peer.certificates or proven & set(peer.certificates) for peer in named)


@settings(max_examples=400, deadline=None)
@given(PEERS, CALLER, PROVEN, UNKNOWN)
def test_a_bound_title_is_only_for_who_has_proven_it_or_has_an_entry_of_its_own(
        peers: list[Peer], caller: tuple[str, str], proven: frozenset[str], unknown: str) -> None:
    title, address = caller
    bound = any(title in peer.titles and peer.certificates and not proven & set(peer.certificates) for peer in peers)
    own = any(title in peer.titles and (not peer.addresses or address in peer.addresses)
              and (not peer.certificates or proven & set(peer.certificates)) for peer in peers)
    answer = ask(peers, title, proven, address=address, listener=Listener(id="tls", unknown=unknown))
    if bound:
        assert answer.verdict is (Verdict.ACCEPT if own else Verdict.REJECT)


@settings(max_examples=400, deadline=None)
@given(PEERS, CALLER, PROVEN, UNKNOWN, st.integers(0, 3), st.sampled_from(PROOFS))
def test_to_bind_a_peer_never_lets_anybody_else_in(peers: list[Peer], caller: tuple[str, str], proven: frozenset[str],
                                                   unknown: str, nth: int, proof: str) -> None:
    """Certificates added to an entry that had none only take away; where it names no titles, strangers may be held or admitted
    as strangers, if the listener says so."""
    if nth >= len(peers) or peers[nth].certificates:
        return
    one = peers[nth]
    stricter = [*peers[:nth], replace(one, certificates=(proof,)), *peers[nth + 1:]]
    listener = Listener(id="tls", unknown=unknown)
    before = ask(peers, caller[0], proven, address=caller[1], listener=listener)
    after = ask(stricter, caller[0], proven, address=caller[1], listener=listener)
    if before.verdict is Verdict.REJECT:
        assert after.verdict is Verdict.REJECT


@settings(max_examples=300, deadline=None)
@given(PEERS, CALLER, PROVEN, st.sampled_from(PROOFS), UNKNOWN)
def test_to_prove_more_never_shuts_anybody_out(peers: list[Peer], caller: tuple[str, str], proven: frozenset[str], more: str,
                                               unknown: str) -> None:
    listener = Listener(id="tls", unknown=unknown)
    before = ask(peers, caller[0], proven, address=caller[1], listener=listener)
    after = ask(peers, caller[0], proven | {more}, address=caller[1], listener=listener)
    if before.verdict is Verdict.ACCEPT:
        assert after.verdict is Verdict.ACCEPT
