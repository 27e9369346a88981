"""Routing: every condition, three-valued logic, and that nothing is ever routed nowhere."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config.settings import Config, Destination, Listener, Peer, Rule
from appliance.model import Attributes, Custody, Priority, Source
from appliance.route import INDEX_TAGS, Decision, compile, glob, tag_number

CT = b"1.2.840.10008.5.1.4.1.1.2"
SOURCE = Source(listener="scanners", calling="CT1", called="GATE", address="10.0.0.5", port=104, peer="ct")
MODALITY, SERIES, STATION = 0x00080060, 0x0008103E, 0x00081010

PEERS = (Peer(id="ct", titles=("CT1",)), Peer(id="er", titles=("ER",), priority="trauma"), Peer(id="new", action="hold"))
DESTINATIONS = (Destination(id="pacs", default=True), Destination(id="tele"), Destination(id="research"))


def custody(source: Source = SOURCE, sop_class: bytes = CT) -> Custody:
    return Custody(1, 1, 1, 1, sop_class, b"1.2.3", "1.2.840.10008.1.2.1", 10, b"\0" * 32, source)


def config(*rules: Rule, listeners: tuple[Listener, ...] = ()) -> Config:
    return Config(destinations=DESTINATIONS, rules=rules, peers=PEERS, listeners=listeners, generation=7)


def decide(*rules: Rule, values: dict[int, str] | None = None, readable: bool = True, minute: int | None = 720,
           source: Source = SOURCE, sop_class: bytes = CT, **others: Any) -> Decision:
    return compile(config(*rules)).route(custody(source, sop_class), Attributes(values or {}, readable), minute, **others)


def matches(match: dict[str, Any], **facts: Any) -> bool | None:
    """True, False or None (unknown), as the explanation tells."""
    decision = decide(Rule(id="r", match=match, destinations=("tele",)), **facts)
    assert (decision.destinations[0] == "tele") == (decision.rules == ("r",))
    word = decision.why[0].removeprefix("r: ").split(",")[0]
    return {"matches": True, "no": False, "unknown": None}[word]


@pytest.mark.parametrize(("match", "expected"), [
    ({}, True),
    ({"calling": "CT1"}, True), ({"calling": "ct1"}, False), ({"calling": "CT?"}, True), ({"calling": ["MR", "CT*"]}, True),
    ({"called": "GATE", "listener": "scanners", "peer": "ct"}, True), ({"called": "GATE", "peer": "mr"}, False),
    ({"address": "10.0.0.0/24"}, True), ({"address": "10.0.1.0/24"}, False), ({"address": "10.0.*"}, True),
    ({"address": ["192.0.2.1", "10.0.0.5"]}, True),
    ({"port": 104}, True), ({"port": "100..110"}, True), ({"port": "105..110"}, False), ({"port": [2104, "104"]}, True),
    ({"port": "..104"}, True), ({"port": "105.."}, False),
    ({"sop_class": CT.decode()}, True), ({"sop_class": "CT Image*"}, True), ({"sop_class": "mr*"}, False),
    ({"sop_class": "1.2.840.10008.5.1.4.1.1.*"}, True),
    ({"modality": "ct"}, True), ({"modality": ["MR", "CT"]}, True), ({"modality": "MR"}, False),
    ({"station": "ROOM 2"}, True), ({"body_part": ""}, True), ({"body_part": "?*"}, False), ({"body_part": "*"}, True),
    ({"SeriesDescription": "*STROKE*"}, True), ({"0008,103E": "*stroke*"}, True), ({"(0008,103e)": "acute*"}, True),
    ({"SeriesNumber": 3}, True), ({"SeriesNumber": "3..7"}, True), ({"SeriesNumber": "4..7"}, False),
    ({"SeriesNumber": "03"}, True),
    ({"StudyDate": "20260101..20261231"}, True), ({"StudyDate": "20270101.."}, False), ({"PatientAge": "0..16"}, True),
    ({"ImageType": "PRIMARY"}, True), ({"ImageType": "ORIGINAL\\PRIMARY*"}, True), ({"ImageType": "AXIAL?"}, False),
    ({"SliceThickness": "..1"}, True), ({"SliceThickness": "-2..-1"}, False),
    ({"hours": "08:00-18:00"}, True), ({"hours": "19:00-06:30"}, False), ({"hours": ["19:00-06:30", "12:00-12:01"]}, True),
    ({"any": [{"modality": "MR"}, {"calling": "CT1"}]}, True), ({"any": [{"modality": "MR"}, {"calling": "X"}]}, False),
    ({"all": [{"modality": "CT"}, {"calling": "X"}]}, False), ({"not": {"modality": "SR"}}, True),
    ({"not": {"modality": "CT"}}, False),
    ({"not": {"any": [{"modality": "MR"}, {"not": {"modality": "CT"}}]}}, True),
])
def test_conditions(match: dict[str, Any], expected: bool) -> None:
    values = {MODALITY: "CT", SERIES: "Acute Stroke head", STATION: "Room 2 ", 0x00200011: "3 ", 0x00080020: "20260504",
              0x00101010: "007M", 0x00080008: "ORIGINAL\\PRIMARY\\AXIAL", 0x00180050: "0.625"}
    assert matches(match, values=values) is expected


@pytest.mark.requirement("Routing: unknown conditions")
@pytest.mark.parametrize(("match", "expected"), [
    ({"modality": "CT"}, None), ({"not": {"modality": "CT"}}, None), ({"calling": "CT1"}, True), ({"calling": "X"}, False),
    ({"calling": "CT1", "modality": "CT"}, None), ({"calling": "X", "modality": "CT"}, False),
    ({"any": [{"calling": "CT1"}, {"modality": "CT"}]}, True), ({"any": [{"calling": "X"}, {"modality": "CT"}]}, None),
    ({"not": {"all": [{"calling": "X"}, {"modality": "CT"}]}}, True), ({"NoSuchKeyword": "x"}, None),
    ({"not": {"NoSuchKeyword": "x"}}, None), ({}, True),
])
def test_what_cannot_be_read_is_unknown_and_stays_so_under_not(match: dict[str, Any], expected: bool | None) -> None:
    assert matches(match, readable=False) is expected


@pytest.mark.requirement("I7")
def test_the_time_of_day_is_unknown_while_the_clock_is_not_trusted() -> None:
    assert matches({"hours": "00:00-24:00"}, minute=None) is None
    assert matches({"not": {"hours": "08:00-09:00"}}, minute=None) is None
    assert matches({"hours": "nonsense"}) is False


@pytest.mark.requirement("Routing: defaults for the unreadable")
def test_an_unreadable_object_goes_by_its_association_and_to_the_default_destinations_always() -> None:
    rules = (Rule(id="assoc", match={"calling": "CT1"}, destinations=("tele",), last=True),
             Rule(id="tag", match={"modality": "CT"}, destinations=("research",)))
    decision = decide(*rules, readable=False)
    assert (decision.rules, decision.destinations, decision.flags) == (("assoc",), ("tele", "pacs"), ("unreadable",))
    readable = decide(*rules, values={MODALITY: "CT"})
    assert (readable.rules, readable.destinations, readable.flags) == (("assoc",), ("tele",), ())


def test_every_rule_that_matches_adds_its_destinations_once_until_one_is_last() -> None:
    one = Rule(id="one", destinations=("tele", "pacs"))
    two = Rule(id="two", destinations=("research", "tele"))
    assert decide(one, two).destinations == ("tele", "pacs", "research")
    stop = Rule(id="stop", match={"calling": "CT1"}, destinations=("tele",), last=True)
    decision = decide(stop, two)
    assert decision.destinations == ("tele",)
    assert decision.why == ("stop: matches", "two: not looked at, stop is the last one")
    assert decide(Rule(id="no", match={"calling": "X"}, last=True), two).destinations == ("research", "tele")


def test_a_rule_without_destinations_leaves_the_defaults() -> None:
    decision = decide(Rule(id="urgent", match={"modality": "CT"}, priority="stat", last=True), values={MODALITY: "CT"})
    assert (decision.destinations, decision.priority) == (("pacs",), Priority.STAT)


def test_priority_is_the_most_urgent_of_the_rules_else_the_peers_else_routine() -> None:
    assert decide().priority is Priority.ROUTINE
    assert decide(source=Source(peer="er")).priority is Priority.TRAUMA
    assert decide(source=Source(peer="gone")).priority is Priority.ROUTINE
    low, high = Rule(id="low", priority="backfill"), Rule(id="high", priority="trauma")
    assert decide(low, source=Source(peer="er")).priority is Priority.BACKFILL
    assert decide(low, high).priority is decide(high, low).priority is Priority.TRAUMA


def test_hold_by_rule_by_peer_and_for_unknown_peers_until_a_person_admits_them() -> None:
    assert decide(Rule(id="h", hold=True, destinations=("tele",))).hold
    assert decide(source=Source(peer="new")).hold and not decide().hold
    router = compile(config(listeners=(Listener(id="l", unknown="hold"),)))
    unknown = custody(Source(listener="l", calling="WHO", address="192.0.2.1"))
    assert router.route(unknown, Attributes(), 0).hold
    assert not router.route(unknown, Attributes(), 0, {("WHO", "192.0.2.1")}).hold


def test_the_explanation_names_what_failed() -> None:
    rules = (Rule(id="a", match={"calling": "CT1", "modality": "MR"}), Rule(id="b", match={"hours": "19:00-06:30"}),
             Rule(id="c", match={"any": [{"calling": "X"}, {"port": 1}]}), Rule(id="d", match={"not": {"modality": "CT"}}),
             Rule(id="e", match={"address": "192.0.2.0/24"}), Rule(id="f", match={"Bogus": "1"}))
    why = decide(*rules, values={MODALITY: "CT\n"}).why
    assert why == (
        'a: no, modality is "CT\\x0a", not "MR"', "b: no, it is 12:00, not 19:00-06:30",
        'c: no, none of: calling is "CT1", not "X"; port is "104", not "1"', "d: matches",
        'e: no, address is "10.0.0.5", not 192.0.2.0/24', "f: unknown, Bogus is no tag that this release knows")
    assert decide(*rules, readable=False, minute=None).why[:2] == (
        "a: unknown, modality cannot be read", "b: unknown, the time of day is not known, because the clock is not trusted")


def test_the_tags_to_read_are_those_of_the_rules_and_of_the_index() -> None:
    rules = (Rule(id="a", match={"any": [{"not": {"ProtocolName": "x"}}], "all": [{"0009,1001": "y"}], "Exotic": "z"}),)
    router = compile(config(*rules), {"Exotic": 0x00182222}.get)
    assert router.wanted == INDEX_TAGS | {0x00181030, 0x00091001, 0x00182222}
    assert router.generation == 7


def test_the_built_in_keywords_are_those_of_the_standard() -> None:
    from pydicom.datadict import tag_for_keyword

    from appliance.route import _TAGS
    assert {keyword: tag_for_keyword(keyword) for keyword in _TAGS} == _TAGS


def test_the_built_in_class_names_are_those_of_the_standard() -> None:
    from pydicom.uid import UID

    from appliance.route import _CLASS_NAMES, _CLASS_ROOT
    assert {end: UID(_CLASS_ROOT + end).name for end in _CLASS_NAMES} == _CLASS_NAMES


@pytest.mark.parametrize(("text", "tag"), [
    ("0008,103E", SERIES), ("(0008, 103e)", SERIES), ("0008103E", SERIES), ("0008,103", None), ("SeriesDescription", None),
    ("٠٠٠٨,103E", None), ("", None)])
def test_tag_numbers(text: str, tag: int | None) -> None:
    assert tag_number(text) == tag


def test_a_hostile_value_costs_no_more_than_pattern_times_text() -> None:
    assert not glob("*a" * 30 + "b", "a" * 1024)


patterns = st.text("ab*?", max_size=8)


@given(patterns, st.text("ab", max_size=10))
def test_patterns_fit_what_fnmatch_fits(pattern: str, text: str) -> None:
    from fnmatch import fnmatchcase
    assert glob(pattern, text) == fnmatchcase(text, pattern)


# --- properties ----------------------------------------------------------------------------------------------------------

anything = st.text(st.characters(), max_size=12)
wanted = anything | st.integers(-9999, 99999) | st.floats(allow_nan=False) | st.sampled_from(
    ["CT*", "3..7", "..5", "20260101..20261231", "10.0.0.0/8", "19:00-06:30", "*", "", "..", "1e400"])
keys = st.sampled_from(["calling", "called", "address", "port", "listener", "peer", "modality", "sop_class", "station",
                        "body_part", "hours", "SeriesDescription", "0009,1001", "Bogus", "StudyDate"])
leaf = st.dictionaries(keys, wanted | st.lists(wanted, max_size=3), max_size=3)
conditions = st.recursive(leaf, lambda inner: st.fixed_dictionaries({}, optional={
    "all": st.lists(inner, max_size=3), "any": st.lists(inner, max_size=3), "not": inner}), max_leaves=6)
rules_drawn = st.lists(st.builds(
    Rule, id=st.uuids().map(str), match=conditions, last=st.booleans(), hold=st.booleans(),
    destinations=st.lists(st.sampled_from(["pacs", "tele", "research"]), max_size=2).map(tuple),
    priority=st.sampled_from(["", "trauma", "stat", "routine", "backfill"])), max_size=4).map(tuple)
surrogates = st.text(st.characters(codec=None, categories=["L", "N", "P", "Z", "C", "Cs"]), max_size=20)
attributes_drawn = st.builds(Attributes, st.dictionaries(
    st.sampled_from([MODALITY, SERIES, STATION, 0x00091001, 0x00080020, 0x00180015]), surrogates | wanted.map(str)),
    st.booleans())
sources = st.builds(Source, listener=anything, calling=anything, called=anything, address=anything | st.ip_addresses().map(str),
                    port=st.integers(0, 65535), peer=st.sampled_from(["", "ct", "er", "new", "gone"]))
minutes = st.none() | st.integers(0, 1439)


@given(rules_drawn, attributes_drawn, sources, st.binary(max_size=70), minutes)
@pytest.mark.requirement("Routing: nothing ever blocks, nothing is routed nowhere")
def test_any_object_is_routed_somewhere(rules: tuple[Rule, ...], attributes: Attributes, source: Source, sop_class: bytes,
                                        minute: int | None) -> None:
    decision = compile(config(*rules)).route(custody(source, sop_class), attributes, minute)
    assert decision.destinations and len(set(decision.destinations)) == len(decision.destinations)
    assert len(decision.why) == len(rules)
    assert all(line.isprintable() for line in decision.why)
    if not attributes.readable:
        assert "pacs" in decision.destinations and decision.flags == ("unreadable",)
    named = {d for rule in rules if rule.id in decision.rules for d in rule.destinations}
    assert named <= set(decision.destinations) <= named | {"pacs"}


@given(rules_drawn, attributes_drawn, sources, minutes)
def test_knowing_more_never_takes_a_rule_away(rules: tuple[Rule, ...], attributes: Attributes, source: Source,
                                              minute: int | None) -> None:
    """A rule that matches although tags or time are unknown matches whatever they turn out to be (Kleene)."""
    rules = tuple(Rule(id=r.id, match=r.match, destinations=r.destinations) for r in rules)
    router = compile(config(*rules))
    blind = router.route(custody(source), Attributes(readable=False), None)
    seeing = router.route(custody(source), Attributes(attributes.values), minute)
    assert set(blind.rules) <= set(seeing.rules)


@given(conditions, attributes_drawn, sources, minutes)
def test_not_turns_truth_round_and_leaves_the_unknown(match: dict[str, Any], attributes: Attributes, source: Source,
                                                      minute: int | None) -> None:
    facts = {"values": attributes.values, "readable": attributes.readable, "source": source, "minute": minute}
    truth = matches(match, **facts)
    assert matches({"not": match}, **facts) is (None if truth is None else not truth)
