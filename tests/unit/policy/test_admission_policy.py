"""Admission: every near miss is named, and nobody comes in by half a match."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config.settings import Listener, Peer
from appliance.policy import Verdict, admit
from appliance.policy.admission import difference, inside

OPEN = Listener(id="scanners")
CT = Peer(id="ct", titles=("CT_1",), addresses=("10.0.0.5",))
MR = Peer(id="mr", titles=("MR1",), addresses=("10.0.1.0/24", "fd00:1::/64"))


def ask(calling: str = "CT_1", called: str = "DCMGATE", address: str = "10.0.0.5", *, listener: Listener = OPEN,
        peers: tuple[Peer, ...] = (CT, MR), admitted: Any = ()) -> Any:
    return admit(listener, peers, admitted, calling, called, address)


def test_a_known_title_from_its_address_comes_in_and_is_named() -> None:
    answer = ask()
    assert (answer.verdict, answer.peer_id, answer.text) == (Verdict.ACCEPT, "ct", "")


@pytest.mark.requirement("PS3.5 6.2: spaces around an AE title do not count")
def test_spaces_around_titles_do_not_count() -> None:
    assert ask("  CT_1   ", "DCMGATE ").verdict is Verdict.ACCEPT
    assert ask(called=" GATE ", listener=Listener(id="a", titles=("GATE",))).verdict is Verdict.ACCEPT


@pytest.mark.requirement("near miss")
@pytest.mark.parametrize(("calling", "address", "words"), [
    ("ct_1", "10.0.0.5", ["upper and lower case", '"CT_1"', "ct"]),
    ("CT 1", "10.0.0.5", ["a space or punctuation", '"CT_1"']),
    ("M R1", "10.0.1.9", ["a space", '"MR1"']),
    ("CT_2", "10.0.0.5", ["one character", '"CT_1"']),
    ("CT_1", "10.0.0.9", ["10.0.0.5", "10.0.0.9", "ct"]),
    ("SOMETHING", "10.0.1.77", ["10.0.1.77", "mr", '"MR1"', '"SOMETHING"']),
    ("", "10.0.0.5", ["a blank title", "ct", '"CT_1"']),
    ("mr1", "192.0.2.1", ["upper and lower case", "another address", "10.0.1.0/24"]),
    ("NOBODY", "192.0.2.1", ["no known peer", "dcmgate admit"]),
])
def test_refusals_of_the_calling_title_name_the_near_miss(calling: str, address: str, words: list[str]) -> None:
    answer = ask(calling, address=address)
    assert (answer.verdict, answer.result, answer.source, answer.reason) == (Verdict.REJECT, 1, 1, 3)
    for word in words:
        assert word in answer.text


@pytest.mark.requirement("near miss")
def test_a_called_title_that_is_nearly_ours_is_named() -> None:
    ours = Listener(id="a", titles=("DCMGATE", "ARCHIVE"))
    answer = ask(called="dcmgate", listener=ours)
    assert (answer.verdict, answer.result, answer.source, answer.reason) == (Verdict.REJECT, 1, 1, 7)
    assert "upper and lower case" in answer.text and '"DCMGATE"' in answer.text
    assert '"DCMGATE", "ARCHIVE"' in ask(called="PACS", listener=ours).text
    assert ask(called="", listener=ours).verdict is Verdict.REJECT


def test_a_peer_of_another_listener_is_told_so() -> None:
    answer = ask(peers=(Peer(id="us", titles=("CT_1",), listeners=("other",)),))
    assert answer.verdict is Verdict.REJECT
    assert "may only use other" in answer.text


@pytest.mark.requirement("conformance: unknown peers")
def test_unknown_peers_are_refused_held_or_admitted_as_the_listener_says() -> None:
    verdicts = [ask("WHO", address="192.0.2.9", listener=Listener(id="a", unknown=unknown)).verdict
                for unknown in ("refuse", "hold", "admit")]
    assert verdicts == [Verdict.REJECT, Verdict.HOLD, Verdict.ACCEPT]


def test_the_action_of_a_peer_decides_and_the_first_one_that_matches_counts() -> None:
    bad = Peer(id="bad", addresses=("10.0.0.0/24",), action="refuse")
    assert ask(peers=(bad, CT)).verdict is Verdict.REJECT
    assert ask(peers=(CT, bad)).verdict is Verdict.ACCEPT
    assert ask(peers=(Peer(id="h", titles=("CT_1",), action="hold"),)).verdict is Verdict.HOLD
    assert ask(peers=(bad,), listener=Listener(id="a", unknown="admit")).verdict is Verdict.REJECT


def test_a_person_may_admit_a_title_at_an_address() -> None:
    assert ask("NEW", address="192.0.2.4", admitted={("NEW", "192.0.2.4")}).verdict is Verdict.ACCEPT
    assert ask("NEW", address="192.0.2.5", admitted={("NEW", "192.0.2.4")}).verdict is Verdict.REJECT
    assert ask("new", address="192.0.2.4", admitted={("NEW", "192.0.2.4")}).verdict is Verdict.REJECT


@pytest.mark.requirement("conformance: titles")
def test_blank_titles_are_admitted_only_where_said() -> None:
    blank = Peer(id="old", titles=("",), addresses=("10.0.0.7",))
    assert ask("    ", address="10.0.0.7", peers=(blank,)).verdict is Verdict.ACCEPT
    assert ask("X", address="10.0.0.7", peers=(blank,)).verdict is Verdict.REJECT
    assert ask("", peers=(CT,)).verdict is Verdict.REJECT


def test_subnets_of_both_families() -> None:
    assert ask("MR1", address="10.0.1.200").peer_id == "mr"
    assert ask("MR1", address="fd00:1::42").peer_id == "mr"
    assert ask("MR1", address="fd00:2::42").verdict is Verdict.REJECT
    assert ask("MR1", address="::ffff:10.0.1.3").peer_id == "mr"
    assert inside("fe80::1%eth0", ["fe80::/10"])
    assert not inside("10.0.0.1", ["::/0"])
    assert not inside("nonsense", ["0.0.0.0/0"]) and not inside("10.0.0.1", ["nonsense"])


@pytest.mark.parametrize(("one", "other", "how"), [
    ("CT1", "CT1", ""), ("", "CT1", ""), ("___", "CT1", ""),
    ("ct-1", "CT1", "upper and lower case, and a space or punctuation"),
    ("CT12", "CT1", "one character"), ("TC1", "CT1", "one character"), ("MR", "CT", ""), ("CT15", "CT1", "one character"),
    ("CTX9", "CT1", ""),
])
def test_difference(one: str, other: str, how: str) -> None:
    assert difference(one, other) == difference(other, one) == how


titles = st.text(max_size=20)


@given(titles, titles, st.text(max_size=20) | st.ip_addresses().map(str))
def test_any_association_gets_an_answer_in_printable_ascii_or_quotes_ours(calling: str, called: str, address: str) -> None:
    answer = ask(calling, called, address, listener=Listener(id="a", titles=("GATE",)))
    assert answer.verdict in set(Verdict)
    assert answer.text.isprintable()


@pytest.mark.requirement("conformance: unknown peers")
@given(titles, st.ip_addresses().map(str))
def test_a_title_alone_or_an_address_alone_never_comes_in(calling: str, address: str) -> None:
    answer = ask(calling, address=address)
    known = calling.strip(" \0") == "CT_1" and inside(address, CT.addresses)
    known |= calling.strip(" \0") == "MR1" and inside(address, MR.addresses)
    assert (answer.verdict is Verdict.ACCEPT) == known
