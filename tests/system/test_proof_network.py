"""A sample of the instrument `network`, and breakages of the product that it finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proof import network, network_bytes
from tests.proof.figures import Budget, Figures
from tests.proof.network_part import Part
from tests.support import namespace
from tests.support.breakage import broken
from tests.support.cutting import CLOSING, PLACES, RESETTING, Cut, Place

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(280)]

SEED = 6


def _part() -> Part:
    return Part(Figures("network"), SEED, print)


@pytest.mark.requirement("I1")
@pytest.mark.requirement("I2")
@pytest.mark.requirement("I9")
@pytest.mark.parametrize("case", network.PARTS, ids=[name for name, _ in network.PARTS])
def test_the_network_breaks(case: network.Case, tmp_path: Path) -> None:
    if why := namespace.lacking():
        pytest.skip(why)
    part = _part()
    case[1](Budget(tmp_path, tmp_path / "state", SEED, True, 0.0, 2, "", print), part)
    assert part.figures.holds, part.figures
    assert part.figures.acknowledged


@pytest.mark.requirement("I1")
@pytest.mark.requirement("I9")
@pytest.mark.parametrize("place", [place for place in PLACES if place.name in ("data", "status but one byte")],
                         ids=lambda place: place.name)
def test_a_forwarder_that_takes_a_broken_connection_for_a_success_is_found(place: Place, tmp_path: Path) -> None:
    part = _part()
    with broken(tmp_path / "code", "forward/dimse.py", "            return classify(lost.answer, party), broken",
                "            return Finding(None), None"):
        cuts = [Cut(place, how) for how in (CLOSING, RESETTING)]
        network_bytes.deliver(tmp_path, cuts, part, lambda: False, patience=3.0)
    assert len(part.figures.failures) >= len(cuts), part.figures


@pytest.mark.requirement("I1")
def test_a_receiver_that_counts_half_an_object_is_found(tmp_path: Path) -> None:
    part = _part()
    with broken(tmp_path / "code", "receive/association.py", "                self._eof()\n",
                "                _ = task is None or task.end()\n                self._eof()\n"):
        cuts = [Cut(place, CLOSING) for place in PLACES if place.name in ("data", "between fragments", "data but one byte")]
        network_bytes.receive(tmp_path, cuts, part, lambda: False, patient=False)
    assert part.figures.altered or any("that came whole" in failure for failure in part.figures.failures), part.figures
