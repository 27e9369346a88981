"""A sample of the instrument "full_disk", and that it can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proof import full_disk
from tests.proof.figures import CannotRun
from tests.proof.full_disk import Round, need_disks

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(150)]


@pytest.fixture(autouse=True)
def disks() -> None:
    try:
        need_disks()
    except CannotRun as error:
        pytest.skip(str(error))


@pytest.mark.requirement("design: Space")
@pytest.mark.parametrize("kind, seed", [("inodes", 2), ("restart", 1)])
def test_full_at_a_random_point_and_back_without_a_hand(tmp_path: Path, kind: str, seed: int) -> None:
    one = Round(tmp_path / "round", kind, seed)
    one.run()
    assert one.wrong == []
    assert one.verdict.holds and one.verdict.acknowledged
    assert one.counts["recovered"] == 1 and one.counts["echoes"]


def test_a_gateway_that_does_not_recover_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The room does not come back, which from outside is the same."""
    monkeypatch.setattr(full_disk, "RECOVERS_SECONDS", 2.0)
    monkeypatch.setattr("tests.proof.full_disk.shutil.rmtree", lambda *_, **__: None)
    one = Round(tmp_path / "round", "inodes", 2)
    one.run()
    assert any("does not recover" in line for line in one.wrong), one.wrong
