"""One peer sends objects that cost the limited child all its time; what another sends meanwhile is routed and delivered."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest

from tests.proof.hostile_attacks import deflated_zeros
from tests.support import objects, peers
from tests.support.gateway import Gateway, to_peer
from tests.support.objects import Instance
from tests.support.scu import Scanner, contexts_of
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(150)]

CHILD_SECONDS = 1.0


@pytest.mark.requirement("hazard: 796 KiB deflate bomb")
def test_twenty_bombs_of_one_peer_do_not_keep_another_waiting(tmp_path: Path) -> None:
    big = b"\x09\0\x01\x10UN\0\0" + struct.pack("<L", 800_000_000)
    bomb = deflated_zeros(790, big)
    bombs = [Instance(objects.SR, objects.uid("bomb", n), objects.DEFLATED, (bomb,)) for n in range(20)]
    images = [objects.ct(n, "good", side=64) for n in range(10)]
    with peers.storescp(tmp_path / "pacs") as pacs, Gateway(
            tmp_path / "site", [to_peer(pacs)], extra=[("limits", {"child_seconds": CHILD_SECONDS, "child_memory": 1 << 30})],
            rules=[{"id": "tags", "match": {"modality": "CT", "PatientName": "*"}, "destinations": [pacs.kind]}]) as gateway:
        gateway.start_stages()
        with Scanner(gateway.port, contexts_of(bombs), calling="HOSTILE", source="127.0.0.2") as hostile:
            assert {hostile.store(one) for one in bombs} == {0}
        wait_until(lambda: gateway.balance()["accepted"] >= 20, 20, "rows of all bombs", every=0.1)
        with Scanner(gateway.port, contexts_of(images), calling="CT1", source="127.0.0.3") as scanner:
            assert {scanner.store(one) for one in images} == {0}
        began = time.monotonic()
        wanted = {image.sop_instance for image in images}
        wait_until(lambda: wanted <= {file.sop_instance for file in pacs.files()}, 60, "the images", every=0.1)
        took = time.monotonic() - began
        assert gateway.json("status")["unrouted"] >= 5, f"the bombs were through before, after {took:.1f} s"
