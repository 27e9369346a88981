"""Studies that are sent again: by a technologist whose PACS lost them, and by two scanners at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import objects, peers
from tests.support.gateway import Gateway, to_peer
from tests.support.scu import Patient, Scanner, contexts_of, send_all

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.mark.requirement("conformance: duplicates")
@pytest.mark.requirement("I9")
def test_a_resend_reaches_a_pacs_that_lost_the_study(tmp_path: Path) -> None:
    study = objects.ct_study(20, "lost", side=128)
    keys = {instance.key for instance in study}
    with peers.storescp(tmp_path / "pacs") as pacs, Gateway(tmp_path / "gateway", [to_peer(pacs)]) as gateway:
        gateway.start()
        assert set(send_all(gateway.port, study).values()) == {0}
        gateway.wait_settled(accepted=20)
        assert set(pacs.arrived()) == keys
        pacs.clear()
        assert set(send_all(gateway.port, study).values()) == {0}
        gateway.wait_settled(accepted=40)
        pacs.wait_for(keys)
        assert len(pacs.arrived()) == 20   # each once


@pytest.mark.requirement("I9")
def test_a_resend_while_the_first_is_still_waiting_is_delivered_once(tmp_path: Path) -> None:
    study = objects.ct_study(10, "twice", side=64)
    with peers.storescp(tmp_path / "pacs") as pacs, Gateway(tmp_path / "gateway", [to_peer(pacs)]) as gateway:
        gateway.start("receiver", "keeper")   # nothing is delivered yet
        assert set(send_all(gateway.port, study).values()) == {0}
        assert set(send_all(gateway.port, study).values()) == {0}
        gateway.start("forwarder")
        gateway.wait_settled(accepted=20)
        assert sorted(pacs.arrived()) == sorted(instance.key for instance in study)


@pytest.mark.requirement("I2")
@pytest.mark.timeout(300)
def test_parallel_resends_by_two_receivers_end_in_an_exact_balance(tmp_path: Path) -> None:
    """Two receiver processes, six scanners that send the same study at the same time, forwarding all the while."""
    study = objects.ct_study(40, "parallel", side=128)
    keys = {instance.key for instance in study}
    with (peers.storescp(tmp_path / "pacs") as pacs,
          Gateway(tmp_path / "gateway", [to_peer(pacs)], receivers=2) as gateway):
        gateway.start_stages()
        scanners = []
        for number in range(6):
            rest = iter(study if number % 2 else study[::-1])
            scanners.append(Patient(gateway.port, lambda rest=rest: next(rest, None),  # type: ignore[misc]
                                    contexts=contexts_of(study), calling=f"SCANNER{number}").start())
        for scanner in scanners:
            scanner.join()
            assert scanner.failures == []
        gateway.wait_settled(accepted=240)
        pacs.wait_for(keys)
        assert set(pacs.arrived()) == keys
        for stage in ("receiver", "forwarder", "keeper"):
            gateway.stop(stage)
        balance = gateway.json("balance", "--deep")
        assert balance["accepted"] == 240
        assert balance["unaccounted"] == 0
        assert balance["discrepancies"] == []


@pytest.mark.requirement("conformance: duplicates")
def test_a_different_called_title_is_routed_afresh(tmp_path: Path) -> None:
    """The same objects to another title go to that title's destination as well."""
    study = objects.ct_study(5, "titles", side=64)
    with peers.storescp(tmp_path / "one") as one, peers.storescp(tmp_path / "two") as two:
        destinations = [{**to_peer(one), "id": "one"}, {**to_peer(two), "id": "two", "default": False}]
        rules = [{"id": "second", "match": {"called": "SECOND"}, "destinations": ["two"]}]
        with Gateway(tmp_path / "gateway", destinations, rules=rules) as gateway:
            gateway.start()
            for title in ("FIRST", "SECOND"):
                with Scanner(gateway.port, contexts_of(study), called=title) as scanner:
                    assert [scanner.store(instance) for instance in study] == [0] * 5
            gateway.wait_settled(accepted=10)
            two.wait_for({instance.key for instance in study})
            assert set(one.arrived()) == {instance.key for instance in study}
