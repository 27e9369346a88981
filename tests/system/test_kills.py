"""SIGKILL at random moments of receiver, forwarder and keeper under load: every acknowledged instance arrives.

A killed process keeps what reached the kernel, so this proves crashes, not
power cuts (the sampler of crash states does those). DCMGATE_KILL_ROUNDS sets the
number of rounds, DCMGATE_KILL_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.proof import kills_rounds
from tests.proof.kills_rounds import Endless, let_parked_go_on
from tests.support import objects, peers
from tests.support.gateway import Gateway, to_peer
from tests.support.scu import Patient, contexts_of
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.xdist_group("serial")]

ROUNDS = int(os.environ.get("DCMGATE_KILL_ROUNDS", "20"))
SEED = int(os.environ.get("DCMGATE_KILL_SEED", "20260102"))


@pytest.mark.timeout(60 + ROUNDS * 30)
@pytest.mark.requirement("I1")
@pytest.mark.requirement("I2")
def test_every_acknowledged_instance_arrives_whatever_is_killed(tmp_path: Path) -> None:
    verdict, killed = kills_rounds.rounds(tmp_path, ROUNDS, SEED)
    assert len(killed) >= ROUNDS and verdict.acknowledged >= ROUNDS
    assert verdict.holds and not verdict.notes, f"seed {SEED}: {verdict.as_text()}"


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
