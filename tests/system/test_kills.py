"""SIGKILL at random moments of receiver, forwarder and keeper under load: every acknowledged instance arrives.

A killed process keeps what reached the kernel, so this proves crashes, not
power cuts (the sampler of crash states does those). DCMGATE_KILL_ROUNDS sets the
number of rounds, DCMGATE_KILL_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import objects, peers
from tests.support.gateway import STAGES, Gateway, to_peer
from tests.support.objects import Instance, Key
from tests.support.scu import Patient, contexts_of
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.xdist_group("serial")]

ROUNDS = int(os.environ.get("DCMGATE_KILL_ROUNDS", "20"))
SEED = int(os.environ.get("DCMGATE_KILL_SEED", "20260102"))


class Endless:
    """A source of instances for one scanner, until told that it is enough; every tenth is sent twice."""

    def __init__(self, scanner: int) -> None:
        self._scanner = scanner
        self._number = 0
        self.enough = threading.Event()

    def __call__(self) -> Instance | None:
        if self.enough.is_set():
            return None
        self._number += 1
        number = self._number - 1 if self._number % 10 == 0 else self._number
        patient = 10 * self._scanner + number // 40
        make: Callable[..., Instance] = objects.sr if number % 3 == 0 else objects.ct
        return make(number, ("kills", self._scanner), patient=patient)


def let_parked_go_on(gateway: Gateway, most: int) -> None:
    """What a person does after the alarm: an object that was under way at two crashes is parked, as it may be their cause."""
    parked = gateway.json("list", "--state", "parked")["objects"]
    assert len(parked) <= most, parked
    if parked:
        gateway.command("requeue", "--state", "parked")


@pytest.mark.timeout(60 + ROUNDS * 30)
@pytest.mark.requirement("I1")
@pytest.mark.requirement("I2")
def test_every_acknowledged_instance_arrives_whatever_is_killed(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    contexts = contexts_of([objects.ct(1), objects.sr(1)])
    with (peers.storescp(tmp_path / "storescp", profile=False) as pacs,
          Gateway(tmp_path / "gateway", [to_peer(pacs)], receivers=2) as gateway):
        gateway.start_stages()
        kills = dict.fromkeys(STAGES, 0)
        sources = [Endless(number) for number in range(3)]
        scanners = [Patient(gateway.port, source, contexts=contexts, calling=f"SCANNER{n}").start()
                    for n, source in enumerate(sources)]
        try:
            for number in range(ROUNDS):
                before = sum(len(scanner.journal) for scanner in scanners)
                victim = chance.choice(STAGES)
                moment = chance.randrange(1, 40)   # in acknowledged images, so that a slow machine has the same moments
                wait_until(lambda b=before, m=moment: sum(len(s.journal) for s in scanners) >= b + m, 60,   # type: ignore[misc]
                           f"scanners go on in round {number}", every=0.001)
                gateway.kill(victim)
                kills[victim] += 1
                gateway.start(victim)
        finally:
            for source in sources:
                source.enough.set()
            for scanner in scanners:
                scanner.join()
        let_parked_go_on(gateway, most=kills["forwarder"] // 2)
        journal: list[Key] = [key for scanner in scanners for key in scanner.journal]
        assert len(journal) >= ROUNDS
        balance = gateway.wait_settled(180, accepted=len(journal))
        assert balance["quarantined"] == 0, balance
        missing = set(journal) - set(pacs.arrived())
        assert not missing, f"seed {SEED}: {len(missing)} of {len(journal)} acknowledged instances did not arrive"
        for stage in STAGES:
            gateway.stop(stage)
        final = gateway.json("balance", "--deep")
        assert final["unaccounted"] == 0, final
        assert final["discrepancies"] == []


@pytest.mark.timeout(300)
@pytest.mark.requirement("I1")
def test_everything_killed_at_once_and_started_again(tmp_path: Path) -> None:
    """`dcmgate run` killed five times under load, then left in peace."""
    chance = random.Random(SEED)
    contexts = contexts_of([objects.ct(1), objects.sr(1)])
    with (peers.storescp(tmp_path / "storescp", profile=False) as pacs,
          Gateway(tmp_path / "gateway", [to_peer(pacs)]) as gateway):
        gateway.start()
        source = Endless(0)
        scanner = Patient(gateway.port, source, contexts=contexts).start()
        try:
            for number in range(5):
                target = len(scanner.journal) + chance.randrange(5, 60)
                wait_until(lambda t=target: len(scanner.journal) >= t, 60, f"round {number}", every=0.001)  # type: ignore[misc]
                gateway.restart()
        finally:
            source.enough.set()
            scanner.join()
        let_parked_go_on(gateway, most=2)
        gateway.wait_settled(120, accepted=len(scanner.journal))
        assert set(scanner.journal) <= set(pacs.arrived())
        assert gateway.stop() == 0
        assert gateway.json("balance", "--deep")["unaccounted"] == 0
