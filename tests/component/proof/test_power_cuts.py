"""A sample of the power cuts (tests/proof/power_cuts.py): the whole life of a gateway on each file system."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.proof.power_cuts import run_case
from tests.proof.power_cuts_case import Case
from tests.support.crash import need_root_and_loops

pytestmark = [pytest.mark.slow, pytest.mark.system]

STATES = int(os.environ.get("DCMGATE_CRASH_STATES", "108"))
"""Of each life; the states of the recoveries come on top: together more than 300 on each file system."""

SEED = int(os.environ.get("DCMGATE_CRASH_SEED", "20260101"))


@pytest.mark.requirement("I1")
@pytest.mark.requirement("I2")
@pytest.mark.requirement("I4")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "cached"])
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_nothing_acknowledged_is_lost_in_a_whole_life(tmp_path: Path, kind: str, direct: bool) -> None:
    need_root_and_loops(tmp_path)
    result = run_case(Case(kind, direct, SEED, STATES, goes_on=20), tmp_path / "case", tmp_path / "kept", print)
    assert not result.failures
    assert (result.lost, result.altered, result.unaccounted) == (0, 0, 0)
    assert result.states == STATES and result.second and result.third and result.went_on
    assert result.states + result.second + result.third >= 150 or STATES < 108
    assert result.acknowledged == 120 and result.adopted


@pytest.mark.requirement("I4")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mistake, kind, direct", [
    ("objects not synced", "xfs", False),
    ("ledger not FULL", "ext4", True),
    ("deleted before the row", "ext4", False),
    ("confirmed without proof", "xfs", True),
])
def test_a_mistake_shows(tmp_path: Path, mistake: str, kind: str, direct: bool) -> None:
    need_root_and_loops(tmp_path)
    case = Case(kind, direct, SEED, 120, mistakes=(mistake,), first=True)
    assert run_case(case, tmp_path / "case", tmp_path / "kept", print).caught > 0
