"""A file system without inodes is full, however many bytes are free: found by tests.proof.full_disk, where nobody was told."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.model import SpaceState
from appliance.spool import space
from tests.support.spools import fresh


@pytest.mark.requirement("design: Space")
@pytest.mark.parametrize("files, free, state", [
    (1000, space.LEAST_INODES - 1, SpaceState.BLACK), (1000, space.LEAST_INODES, SpaceState.GREEN), (0, 0, SpaceState.GREEN)])
def test_without_inodes_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int, free: int,
                                         state: SpaceState) -> None:
    spool = fresh(tmp_path / "spool")

    def statvfs(path: object) -> Any:
        return SimpleNamespace(f_blocks=1 << 20, f_bavail=1 << 20, f_frsize=4096, f_files=files, f_favail=free)

    monkeypatch.setattr(space, "os", SimpleNamespace(statvfs=statvfs, **{n: getattr(os, n) for n in ("path",)}))
    assert space.measure(spool, 0, 0).state is state
