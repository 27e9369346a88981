"""Canaries through the whole path, with the real programs: they arrive, go nowhere else, and nobody outside can make one."""

from __future__ import annotations

import json
import socket
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from appliance.dicom import pdu, uids
from appliance.health.testobject import data_set, new_uid
from appliance.net import sidedoor
from appliance.policy.canary import CALLING, SOP_CLASS, title_of
from appliance.probe.requestor import NoAnswer, Requestor
from tests.support import peers
from tests.support.gateway import Gateway, to_peer
from tests.support.waiting import free_port, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]

OFTEN = 0.05
"""Minutes: 3 s."""


@pytest.fixture(autouse=True)
def _as_on_the_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the service manager's watchdog, for which the receiver calls itself."""
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")


def shown(site: Gateway, id: str) -> dict[str, Any]:
    return next(d for d in site.json("status", "--once")["destinations"] if d["destination"] == id)


def arrived(site: Gateway, id: str) -> bool:
    canary = shown(site, id)["canary"]
    return canary is not None and canary["arrived_seconds_ago"] is not None


def alarms(site: Gateway) -> set[str]:
    return {alarm["key"] for alarm in site.json("status", "--once")["alarms"]}


@pytest.mark.requirement("canary: proven by arrival")
def test_a_canary_arrives_is_marked_and_leaves_no_trace_here(tmp_path: Path) -> None:
    """One destination by its status, one by read-back; two receiver processes."""
    with peers.storescp(tmp_path / "pacs") as pacs, peers.dcmqrscp(tmp_path / "archive") as archive, \
            Gateway(tmp_path / "site", [
                to_peer(pacs, id="pacs", canary_minutes=OFTEN, status_days=14.0),
                to_peer(archive, id="archive", canary_minutes=0.5, proof="readback")], receivers=2) as site:
        site.start()
        wait_until(lambda: arrived(site, "pacs"), 40, "a canary at pacs", every=0.3)
        wait_until(lambda: arrived(site, "archive"), 40, "a canary at the archive", every=0.3)
        assert "canary: arrived" in site.command("status", "--once")
        found = dcmread(pacs.files()[0].path)
        assert (found.PatientName, found.PatientID, found.SOPClassUID) == ("DCMGATE-CANARY^TEST", "DCMGATE-CANARY", SOP_CLASS)
        assert found.SOPInstanceUID.startswith(f"{uids.CANARY_INSTANCE}.") and "No image of a patient" in found.ImageComments
        assert (found.Rows, found.Columns, len(found.PixelData)) == (8, 8, 64)
        assert site.json("status", "--once")["studies"] == []
        wait_until(lambda: site.balance()["retired"] >= 2, 40, "canaries are retired", every=0.5)
        balance = site.balance()
        assert balance["unaccounted"] == 0 and balance["accepted"] - balance["retired"] <= 2, balance


@pytest.mark.requirement("canary: never routed by the site's rules")
def test_no_rule_default_or_hold_gets_a_canary(tmp_path: Path) -> None:
    with peers.storescp(tmp_path / "pacs") as pacs, peers.storescp(tmp_path / "other") as other, \
            Gateway(tmp_path / "site", [
                to_peer(pacs, id="pacs", default=False, canary_minutes=OFTEN), to_peer(other, id="other")],
                    listener={"unknown": "hold"}, rules=[
                        {"id": "all", "destinations": ["other"], "hold": True}, {"id": "ot", "match": {"modality": "OT"},
                                                                                 "destinations": ["other"]},
                        {"id": "named", "match": {"PatientID": "DCMGATE-CANARY"}, "destinations": ["other"]},
                        {"id": "from", "match": {"calling": CALLING}, "destinations": ["other"], "last": True}]) as site:
        site.start()
        wait_until(lambda: len(pacs.files()) >= 3, 60, "three canaries at pacs", every=0.3)
        assert other.files() == [] and shown(site, "other")["held"] == 0 and shown(site, "pacs")["held"] == 0
        assert shown(site, "other")["canary"] is None


@pytest.mark.requirement("canary: an alarm where it does not arrive")
def test_one_is_in_flight_and_no_other_while_the_destination_is_gone(tmp_path: Path) -> None:
    port = free_port()
    gone = peers.Destination("pacs", "STORESCP", port, tmp_path / "pacs")
    with peers.storescp(tmp_path / "other") as other, Gateway(tmp_path / "site", [
            to_peer(gone, id="pacs", canary_minutes=OFTEN, echo_minutes=0.0, failover="other", failover_seconds=0.5),
            to_peer(other, id="other", default=False)]) as site:
        site.start()
        wait_until(lambda: "canary:pacs" in alarms(site), 60, "an alarm", every=0.5)
        time.sleep(2 * OFTEN * 60)
        assert site.balance()["accepted"] == 1 and shown(site, "pacs")["canary"]["late"]
        # Neither the fail-over nor a person sends it elsewhere.
        site.command("requeue", "--destination", "pacs", "--to", "other", "--reason", "test", status=None)
        assert other.files() == [] and shown(site, "pacs")["owed"] == 1
        site.restart()
        wait_until(lambda: (shown(site, "pacs")["canary"] or {}).get("in_flight_for"), 30, "it is found again", every=0.5)
        assert site.balance()["accepted"] == 1
        with peers.storescp(tmp_path / "pacs", port=port):
            wait_until(lambda: arrived(site, "pacs"), 60, "it arrives", every=0.5)
        assert other.files() == []


def _offer(port: int, called: str, calling: str, identity: pdu.UserIdentity | None, uid: str) -> int | None:
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        requestor, deadline = Requestor(sock), time.monotonic() + 10
        requestor.associate(called, calling, [pdu.ProposedContext(1, SOP_CLASS, (uids.EXPLICIT_LE,))], deadline, identity)
        status = requestor.store(next(iter(requestor.contexts.values())), uid, data_set(uid, "box", "pacs", 0), deadline)
        requestor.release(deadline)
        return status


@pytest.mark.requirement("canary: nobody outside can make one")
def test_titles_uid_and_content_make_no_canary(tmp_path: Path) -> None:
    """What comes in at a listener is an image, whatever it says; the side door is on loopback and wants a token."""
    with peers.storescp(tmp_path / "pacs") as pacs, peers.storescp(tmp_path / "other") as other, \
            Gateway(tmp_path / "site", [to_peer(pacs, id="pacs", default=False, canary_minutes=60.0),
                                        to_peer(other, id="other")]) as site:
        site.start()
        wait_until(lambda: sidedoor.find(site.run) is not None, 20)
        door = sidedoor.find(site.run)
        assert door is not None
        file = site.run / sidedoor.NAME
        assert stat.S_IMODE(file.stat().st_mode) == 0o640 and len(json.loads(file.read_text())["token"]) == 32
        forged = new_uid()
        # At the listener, with everything that a canary has and even the token: it goes where the rules say.
        assert _offer(site.port, title_of("pacs"), CALLING, door.identity(), forged) == 0
        wait_until(lambda: [entry.sop_instance for entry in other.files()] == [forged], 30)
        assert forged not in [entry.sop_instance for entry in pacs.files()]
        # At the side door, without the token or with another one.
        for identity in (None, sidedoor.SideDoor(door.port, "0" * 32).identity(), sidedoor.SideDoor(door.port, "").identity()):
            with pytest.raises(NoAnswer) as refused:
                _offer(door.port, title_of("pacs"), CALLING, identity, new_uid())
            assert refused.value.answer.reason == 3     # type: ignore[union-attr]
        # With it, for a destination that does not exist: it goes nowhere at all.
        lost = new_uid()
        assert _offer(door.port, title_of("nowhere"), CALLING, door.identity(), lost) == 0
        wait_until(lambda: site.balance()["accepted"] >= 2, 20)
        time.sleep(2)
        assert lost not in [entry.sop_instance for entry in [*other.files(), *pacs.files()]]
        for log in site.folder.glob("*.log"):
            assert door.token not in log.read_text()
        kept = [path.read_bytes() for path in site.spool.rglob("*") if path.is_file()]
        assert not any(door.token.encode() in data for data in kept)
