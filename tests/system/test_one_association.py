"""Destinations that take one association at a time, as many PACS do: two are tried by default, and nobody notices."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.component.forward.test_dimse_transport_pynetdicom import Arrived, scp
from tests.support import objects, peers
from tests.support.gateway import Gateway, to_peer
from tests.support.scu import send_all
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.system]

COUNT = 240


@contextmanager
def rejects() -> Iterator[tuple[dict[str, object], Arrived]]:
    """A second association is rejected: transient, local limit exceeded (pynetdicom)."""
    with scp(maximum_associations=1) as (port, arrived):
        yield {"id": "pacs", "type": "dimse", "address": "127.0.0.1", "port": port, "called": "PYNET", "calling": "DCMGATE",
               "default": True}, arrived


@pytest.mark.requirement("Delivery: destination fault")
@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["keeps the second waiting", "rejects the second", "takes both"])
def test_a_backlog_for_a_destination_that_takes_one_association(kind: str, tmp_path: Path) -> None:
    study = objects.ct_study(COUNT, kind, side=64)
    if kind == "rejects the second":
        with rejects() as (destination, arrived):
            said = deliver(tmp_path, destination, study)
            assert len({uid for uid, _, _ in arrived}) == len(arrived) == COUNT
    else:
        with peers.storescp(tmp_path / "pacs", fork=kind == "takes both") as pacs:
            said = deliver(tmp_path, to_peer(pacs, connect_seconds=2.0), study)
            assert sorted(pacs.arrived()) == sorted(instance.key for instance in study)
    assert ("takes no further association" in said) == (kind != "takes both"), said
    assert "attempt failed" not in said and "destination is down" not in said, said


def deliver(folder: Path, destination: dict[str, object], study: list[objects.Instance]) -> str:
    """Held while the forwarder is away, then delivered by up to two associations; what the forwarder says.

    Nothing was tried twice, and no alarm rose.
    """
    with Gateway(folder / "gateway", [{**destination, "associations": 2}]) as gateway:
        gateway.start("receiver")
        assert set(send_all(gateway.port, study).values()) == {0}
        gateway.start("keeper", "forwarder")
        gateway.wait_settled(120, accepted=COUNT, states=("waiting",))
        wait_until(lambda: gateway.json("status"), 10)
        status = gateway.json("status", status=None)
        alarms = [alarm for alarm in status["alarms"] if str(destination["id"]) in json.dumps(alarm)]
        assert not alarms, alarms
        return gateway.log("forwarder").read_text()
