"""What the driver decides before it starts anything: how long each instrument may take, and which code this is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proof import code, instruments
from tests.proof.__main__ import QUICK_MOST, QUICK_TOTAL, quick_seconds
from tests.proof.instruments import Instrument


@pytest.mark.parametrize("jobs", [1, 2, 4])
@pytest.mark.parametrize("alone", [0, 1, 5, 12])
def test_a_quick_run_is_done_within_its_time(jobs: int, alone: int):
    chosen = [Instrument(str(number), Path("one.py"), exclusive=number < alone) for number in range(12)]
    seconds = quick_seconds(chosen, jobs)
    rounds = alone + -(-(12 - alone) // jobs)
    assert 0 < seconds <= QUICK_MOST and seconds * rounds <= QUICK_TOTAL + 1e-6
    assert quick_seconds(chosen[:1], jobs) == QUICK_MOST


def test_the_version_is_that_of_what_runs(tmp_path: Path):
    (tmp_path / "appliance").mkdir()
    (tmp_path / "appliance" / "one.py").write_text("1")
    (tmp_path / "requirements.lock").write_text("a==1")
    first = code.version(tmp_path)
    (tmp_path / "appliance" / "page.md").write_text("words")
    assert code.version(tmp_path) == first
    seen = {first}
    for name, text in (("appliance/one.py", "2"), ("appliance/two.py", ""), ("requirements.lock", "a==2")):
        (tmp_path / name).write_text(text)
        seen.add(code.version(tmp_path))
    assert len(seen) == 4


def test_an_instrument_is_what_says_so(tmp_path: Path):
    (tmp_path / "whole.py").write_text('NAME = "w"\nABOUT = "a"\nREQUIREMENTS: tuple[str, ...] = ("I1",)\n'
                                       "EXCLUSIVE = True\ndef run(budget): ...\n")
    (tmp_path / "helper.py").write_text('NAME = "h"\n')
    (tmp_path / "silent.py").write_text('NAME = "s"\nABOUT = "a"\nREQUIREMENTS = ()\ndef run(budget): ...\n')
    (tmp_path / "broken.py").write_text("def run(:\n")
    found = {one.name: one for one in instruments.discover(tmp_path)}
    assert set(found) == {"w", "s", "broken"}
    assert found["w"] == Instrument("w", tmp_path / "whole.py", "a", ("I1",), True)
    assert "REQUIREMENTS" in found["s"].fault and "broken.py:1" in found["broken"].fault


def test_those_that_wait_run_beside_one_another_and_those_that_measure_alone():
    found = {one.name: one for one in instruments.discover()}
    assert {*instruments.ALONE, *instruments.SPARE, *instruments.LONGEST} <= set(found) == set(instruments.EXPECTED)
    assert {name for name, one in found.items() if one.exclusive} == instruments.ALONE
    assert {name for name, one in found.items() if one.spare} == instruments.SPARE
    order = [one.name for one in instruments.in_order(found.values())]
    assert order[0] in instruments.SPARE and order[1:4] == list(instruments.LONGEST[:3])
    assert set(order[-len(instruments.ALONE):]) == instruments.ALONE
