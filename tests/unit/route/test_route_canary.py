"""A canary goes to its own destination whatever rules, defaults and holds say; nothing that a peer says makes one."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from pydicom import dcmread

from appliance.config.settings import Config, Destination, Listener, Peer, Rule
from appliance.dicom import uids
from appliance.health.testobject import data_set, new_uid
from appliance.model import Attributes, Custody, Priority, Source
from appliance.policy.canary import CALLING, LISTENER, PATIENT, SOP_CLASS, title_of
from appliance.route import compile

CONFIG = Config(
    listeners=(Listener(id="in", unknown="hold"),), peers=(Peer(id="any", action="hold"),),
    destinations=(Destination(id="pacs"), Destination(id="other", default=True)),
    rules=(Rule(id="all", destinations=("other",), hold=True, priority="trauma"),
           Rule(id="ot", match={"modality": "OT"}, destinations=("other",)),
           Rule(id="listener", match={"listener": "*canary"}, destinations=("other",), last=True)))
CANARY = Custody(1, 1, 1, 0, SOP_CLASS.encode(), b"1.2.3", uids.EXPLICIT_LE, 100, bytes(32), Source(
    listener=LISTENER, calling=CALLING, called=title_of("pacs"), address="127.0.0.1", port=1))
TAGS = Attributes({0x00080060: "OT", 0x00100010: PATIENT})


@pytest.mark.requirement("canary: never routed by the site's rules")
@pytest.mark.parametrize("attributes", [TAGS, Attributes(readable=False)], ids=["readable", "unreadable"])
def test_no_rule_is_looked_at(attributes: Attributes) -> None:
    decision = compile(CONFIG).route(CANARY, attributes, None)
    assert (decision.destinations, decision.rules, decision.hold) == (("pacs",), (), False)
    assert decision.flags == ("canary",) and decision.priority is Priority.ROUTINE


@pytest.mark.requirement("canary: never routed by the site's rules")
def test_one_for_a_destination_that_is_gone_goes_nowhere() -> None:
    source = replace(CANARY.source, called=title_of("gone"))
    assert compile(CONFIG).route(replace(CANARY, source=source), TAGS, None).destinations == ()


@pytest.mark.requirement("canary: nobody outside can make one")
@pytest.mark.parametrize("listener", ["in", "canary", "x:canary", ""])
def test_what_comes_by_any_other_way_is_an_image(listener: str) -> None:
    decision = compile(CONFIG).route(replace(CANARY, source=replace(CANARY.source, listener=listener)), TAGS, None)
    assert "other" in decision.destinations and "pacs" not in decision.destinations and decision.flags == ()


def test_the_test_object_is_what_dicom_makes_of_a_secondary_capture() -> None:
    uid = new_uid()
    assert len(uid) <= 64 and uids.is_uid(uid) and uid != new_uid()
    meta = b"\x02\x00\x10\x00UI\x14\x00" + uids.EXPLICIT_LE.encode() + b"\0"
    found = dcmread(io.BytesIO(bytes(128) + b"DICM" + meta + data_set(uid, "box", "pacs", 1_800_000_000 * 10**9)))
    assert (found.SOPClassUID, found.SOPInstanceUID, found.PatientName) == (SOP_CLASS, uid, PATIENT)
    assert max(len(found.StudyInstanceUID), len(found.SeriesInstanceUID)) <= 64 and found.StudyDate == "20270115"
    assert [e.tag for e in found] == sorted(e.tag for e in found) and len(found.PixelData) == found.Rows * found.Columns
    again = dcmread(io.BytesIO(bytes(128) + b"DICM" + meta + data_set(new_uid(), "box", "pacs", 0)))
    assert again.SeriesInstanceUID == found.SeriesInstanceUID and again.StudyDate == ""
