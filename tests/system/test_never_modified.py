"""What is kept is what came: no file of an object is written again between its acceptance and its deletion (I3)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.support import objects, peers
from tests.support.gateway import STAGES, Gateway, to_folder, to_peer
from tests.support.scu import send_all

pytestmark = [pytest.mark.system, pytest.mark.slow]

Look = tuple[int, int, int, str]
HEAD = 4096


def _look(spool: Path) -> dict[str, Look]:
    """Inode, length, time of the last writing and digest of every object's file (empty ones are slots)."""
    found = {}
    for path in sorted((spool / "objects").glob("*/*.dcm")):
        about = path.stat()
        if about.st_size:
            found[path.name] = (about.st_ino, about.st_size, about.st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
    return found


@pytest.mark.requirement("I3")
def test_no_object_is_written_again_by_delivery_confirmation_reading_and_restarts(tmp_path: Path) -> None:
    """Delivered to two, confirmed, sent again, verified, exported, killed and started again."""
    study = objects.ct_study(12, "kept", side=64)
    with (peers.storescp(tmp_path / "pacs") as pacs,
          Gateway(tmp_path / "gateway", [to_peer(pacs), to_folder(tmp_path / "archive")]) as gateway):
        gateway.start_stages()
        assert set(send_all(gateway.port, study).values()) == {0}
        first = _look(gateway.spool)
        kept = {path.read_bytes()[HEAD:] for name in first for path in (gateway.spool / "objects").glob(f"*/{name}")}
        assert kept == {b"".join(map(bytes, instance.parts)) for instance in study}
        gateway.wait_settled(accepted=12, states=("waiting", "sent"))
        assert set(send_all(gateway.port, study[:3]).values()) == {0}
        for stage in STAGES:
            gateway.restart(stage)
        gateway.wait_settled(accepted=15, states=("waiting", "sent"))
        gateway.command("verify")
        gateway.command("export", "--state", "confirmed", "--to", str(tmp_path / "out"))
        assert len(list((tmp_path / "out").iterdir())) >= 12
        after = _look(gateway.spool)
        assert {name: after[name] for name in first} == first
