"""A destination that fails costs its neighbour nothing, and gets everything when it is back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import objects, peers
from tests.support.badpeers import FAILING
from tests.support.gateway import Gateway, to_peer
from tests.support.scu import send_all

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.mark.requirement("Goal 3")
@pytest.mark.timeout(200)
@pytest.mark.parametrize("kind", FAILING)
def test_a_failing_destination_beside_a_good_one(kind: str, tmp_path: Path) -> None:
    study = objects.ct_study(30, kind, side=128)
    keys = {instance.key for instance in study}
    with peers.storescp(tmp_path / "good") as good:
        with FAILING[kind]() as port:
            bad = {"id": "bad", "type": "dimse", "address": "127.0.0.1", "port": port, "called": "BAD", "calling": "DCMGATE",
                   "default": True, "connect_seconds": 1.0, "progress_seconds": 1.0}
            with Gateway(tmp_path / "gateway", [to_peer(good), bad]) as gateway:
                gateway.start()
                assert set(send_all(gateway.port, study).values()) == {0}
                good.wait_for(keys, 30)
                balance = gateway.balance()
                assert balance["waiting"] == 30, balance   # counted at the least advanced destination
                assert gateway.stop() == 0
        # The destination is replaced by one that works: everything arrives, nothing is sent twice to the good one.
        with peers.storescp(tmp_path / "mended") as mended:
            gateway.destinations[1].update(port=mended.port, called=mended.title)
            gateway.write_config()
            with gateway:
                gateway.start()
                gateway.wait_settled(120, accepted=30)
                assert set(mended.arrived()) == keys
                assert sorted(good.arrived()) == sorted(keys)


@pytest.mark.requirement("one object never holds up the others")
@pytest.mark.timeout(200)
def test_one_object_that_a_destination_refuses_does_not_stop_the_others(tmp_path: Path) -> None:
    """0xC000 for one object, for ever: five tries, then it is parked with an alarm; the rest is delivered."""
    study = objects.ct_study(10, "parked", side=64)
    with peers.pynetdicom_scp() as archive:
        refused = study[3].sop_instance
        archive.refuse[refused] = 0xC000
        destination = {"id": "pacs", "type": "dimse", "address": "127.0.0.1", "port": archive.port, "called": "PYNET",
                       "calling": "DCMGATE", "default": True}
        with Gateway(tmp_path / "gateway", [destination]) as gateway:
            gateway.start()
            assert set(send_all(gateway.port, study).values()) == {0}
            archive.wait_for({i.key for i in study if i.sop_instance != refused}, 60)
            more = objects.ct_study(20, "after", side=64)
            assert set(send_all(gateway.port, more).values()) == {0}
            archive.wait_for({i.key for i in more}, 60)
            assert gateway.balance()["unaccounted"] == 0
            assert refused not in {key[0] for key in archive.keys}
