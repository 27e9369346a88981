"""What `dcmgate run` takes of a small box's memory: summed PSS of the process and its children, at most 150 MB."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.support import objects, peers
from tests.support.gateway import Gateway, to_peer
from tests.support.measure import PeakMemory
from tests.support.objects import Instance
from tests.support.scu import Scanner, contexts_of

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.xdist_group("serial")]

LIMIT = 150_000_000


def _send(gateway: Gateway, instances: list[Instance]) -> list[int]:
    """All at once, each over an association of its own."""
    statuses = [-1] * len(instances)
    ready = threading.Barrier(len(instances))

    def send(number: int) -> None:
        with Scanner(gateway.port, contexts_of(instances[:1]), calling=f"SCANNER{number}", timeout=120.0) as scanner:
            ready.wait(60)
            statuses[number] = scanner.store(instances[number])

    threads = [threading.Thread(target=send, args=(number,)) for number in range(len(instances))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    return statuses


LOADS = {
    "one object of 400 MB": lambda: [objects.multiframe(1, "memory")],
    "16 objects of 30 MB": lambda: [objects.dx(number, "memory") for number in range(16)],
    "16 reports": lambda: [objects.sr(number, "memory") for number in range(16)],
}


@pytest.mark.requirement("small box")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("load", LOADS)
def test_memory_stays_within_150_mb(load: str, tmp_path: Path) -> None:
    instances = LOADS[load]()
    with (peers.storescp(tmp_path / "pacs", options=["-pdu", "131072"]) as pacs,
          Gateway(tmp_path / "gateway", [to_peer(pacs)]) as gateway):
        gateway.start()
        with PeakMemory(gateway.pid()) as memory:
            assert _send(gateway, instances) == [0] * len(instances)
            gateway.wait_settled(180, accepted=len(instances))
        print(f"{load}: {memory.peak / 1e6:.0f} MB in {len(memory.at)} processes: {memory.at}")
        assert memory.peak <= LIMIT, memory.at
        assert {instance.key for instance in instances} == set(pacs.arrived())
