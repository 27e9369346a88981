"""A sample of the instrument `clocks`, and breakages of the product that it finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.forward.desk import Desk
from appliance.spool.ledger import Ledger
from tests.proof import clocks, clocks_real, clocks_twins
from tests.proof.clocks_real import YEAR
from tests.proof.figures import Budget, Figures
from tests.proof.network_part import Part
from tests.support import faked
from tests.support.breakage import broken

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(200)]

SEED = 7


@pytest.fixture
def part() -> Part:
    if faked.library() is None:
        pytest.skip("libfaketime is missing: run `.ci/setup peers`")
    return Part(Figures("clocks"), SEED, print)


@pytest.mark.requirement("I1")
@pytest.mark.requirement("I4")
@pytest.mark.requirement("I7")
@pytest.mark.parametrize("case", clocks.PARTS, ids=[name for name, _ in clocks.PARTS])
def test_the_wall_clock_is_wrong(case: clocks.Case, tmp_path: Path, part: Part) -> None:
    case[1](Budget(tmp_path, tmp_path / "state", SEED, True, 0.0, 2, "", print), part)
    assert part.figures.holds, part.figures


@pytest.mark.requirement("I4")
@pytest.mark.requirement("I7")
def test_a_gateway_that_goes_by_the_wall_clock_is_found(tmp_path: Path, part: Part) -> None:
    with broken(tmp_path / "code", "clock.py", "return time.clock_gettime_ns(time.CLOCK_BOOTTIME)", "return time.time_ns()"):
        clocks_real.retention(tmp_path, part, [10 * YEAR])
    assert any("are kept although a day has not passed" in failure for failure in part.figures.failures), part.figures


@pytest.mark.requirement("I7")
def test_retention_by_the_wall_clock_is_found(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "powered_on", lambda self, boot=None, at=None: self.clock.wall_ns())
    clocks_twins.run_twins(part, range(2))
    assert any(failure.startswith("retention, ") for failure in part.figures.failures), part.figures


@pytest.mark.requirement("I7")
def test_a_window_that_nobody_looks_at_again_is_found(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = Desk._allowed

    def slept(self: Desk, now: int) -> tuple[Any, float]:
        classes, pause = allowed(self, now)
        return classes, 3600.0 if len(classes) == 1 else pause

    monkeypatch.setattr(Desk, "_allowed", slept)
    clocks_twins.run_twins(part, range(2))
    assert any(failure.startswith("windows, ") for failure in part.figures.failures), part.figures
