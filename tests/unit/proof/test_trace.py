"""The trace has no gaps: every requirement and hazard is proved by something, and every marker means something."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.proof import known, markers, report, results, trace
from tests.proof.instruments import ROOT, Instrument
from tests.proof.known import Hazard, Known, Requirement
from tests.proof.markers import MarkedTest

JUNIT = """<?xml version="1.0"?><testsuites><testsuite name="pytest" timestamp="2026-11-21T10:00:00.1+00:00">
<testcase classname="tests.unit.test_a" name="test_one[x-1]"/>
<testcase classname="tests.unit.test_a" name="test_one[y[2]]"><failure message="no">no</failure></testcase>
<testcase classname="tests.unit.test_a" name="test_two"/>
<testcase classname="tests.unit.test_a" name="test_three"><skipped message="why"/></testcase>
<testcase classname="tests.unit.test_a.TestPart" name="test_four"/>
</testsuite></testsuites>"""

SOURCE = '''
import pytest
pytestmark = [pytest.mark.requirement("I2"), pytest.mark.slow]

@pytest.mark.requirement("I1")
@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.requirement("hazard: silent socket"))])
def test_one(n): pass

def test_two(): pass

@pytest.mark.requirement("I3")
class TestPart:
    @pytest.mark.requirement(NAME)
    def test_four(self): pass

def helper(): pass
'''


def test_there_is_no_gap():
    """Say what a test proves by a name of tests/proof/requirements.toml or hazards.toml, or add the name there."""
    assert trace.gaps(trace.load()) == []


@pytest.mark.parametrize("number", range(1, 10))
def test_every_invariant_has_a_test(number: int):
    assert trace.load().tests.get(f"I{number}")


SMALL = Known((Requirement("I1", "design", "durable", also=("sync first",)), Requirement("conformance: a", "conformance", "a")),
              (Hazard("Peers", "is silent", "a deadline", "I1", ("silent socket", "slow socket"), also=("silence",)),
               Hazard("Peers", "lies", "nothing helps", "I1", ("liar",), beyond="nobody can tell")))


@pytest.mark.parametrize(("spelled", "name"), [
    ("I1", "I1"), ("I1: within 25 s", "I1"), ("sync first", "I1"), ("conformance: a", "conformance: a"),
    ("hazard: silent socket", "hazard: silent socket"), ("threat: silence", "hazard: silent socket"),
    ("CVE class: slow socket", "hazard: slow socket"),
    ("I2", ""), ("I12", ""), ("hazard: I1", ""), ("hazard: silent", ""), ("conformance: b", ""), ("", "")])
def test_what_a_marker_means(spelled: str, name: str):
    assert SMALL.resolve(spelled) == ((name,) if name else ())


def test_a_row_that_is_quoted_means_all_its_names():
    assert SMALL.resolve("hazard: is silent") == ("hazard: silent socket", "hazard: slow socket")


def _gaps(tests: list[MarkedTest], found: list[Instrument] | None = None, what: Known = SMALL) -> list[str]:
    traced = trace.trace(what, tests, found or [])
    return [line for line in trace.gaps(traced) if "page" not in line and "component" not in line and "invariant" not in line]


def test_what_is_not_proved_is_a_gap():
    proved = MarkedTest("t.py", "test_it", ("I1", "conformance: a", "hazard: silent socket", "hazard: slow socket"))
    assert _gaps([proved]) == []
    for name in proved.names:
        rest = replace(proved, names=tuple(other for other in proved.names if other != name))
        assert len(_gaps([rest])) == 1 and name.removeprefix("hazard: ") in _gaps([rest])[0]
        assert _gaps([rest], [Instrument("kills", Path("kills.py"), requirements=(name,))]) == []


def test_a_name_that_means_nothing_is_a_gap():
    names = ("I1", "conformance: a", "hazard: silent socket", "hazard: slow socket")
    assert "test_it: 'I7' names no" in _gaps([MarkedTest("t.py", "test_it", (*names, "I7"))])[0]
    stray = Instrument("kills", Path("kills.py"), requirements=("hazard: meteorites",))
    assert "instrument kills: 'hazard: meteorites'" in _gaps([MarkedTest("t.py", "test_it", names)], [stray])[0]


def test_a_hazard_that_serves_nothing_is_a_gap():
    odd = Known(SMALL.requirements, (replace(SMALL.hazards[1], serves="I8"),))
    tests = [MarkedTest("t.py", "test_it", ("I1", "conformance: a"))]
    assert _gaps(tests, what=odd) == ["hazard 'liar' serves 'I8', which is no requirement"]


def test_the_conformance_page_and_the_list_are_held_against_each_other(tmp_path: Path):
    (tmp_path / "design.md").write_text("| I1 | durable |\n")
    (tmp_path / "conformance.md").write_text("It does a [a]. It is [I1], and over a line [hazard: silent\nsocket].\n")
    assert trace.page_gaps(SMALL, tmp_path) == []
    (tmp_path / "design.md").write_text("| I1 | often durable |\n")
    (tmp_path / "conformance.md").write_text("It does b [b].\n")
    assert trace.page_gaps(SMALL, tmp_path) == ["invariant I1: the design page and requirements.toml differ",
                                                "the conformance page names [b], which is not known",
                                                "'conformance: a' is not in the conformance page"]


def test_markers_are_read_from_the_source(tmp_path: Path):
    (tmp_path / "test_a.py").write_text(SOURCE)
    assert markers.tests(tmp_path, tmp_path) == [
        MarkedTest("test_a.py", "test_one", ("I2", "I1", "hazard: silent socket")),
        MarkedTest("test_a.py", "test_two", ("I2",)),
        MarkedTest("test_a.py", "TestPart::test_four", ("I2", "I3", "<NAME>"))]


def test_results_are_those_of_the_last_run(tmp_path: Path):
    (tmp_path / "tests.xml").write_text(JUNIT)
    report.write(_proof(), tmp_path / "proof.json")
    last = results.load(tmp_path / "tests.xml", tmp_path / "proof.json")
    expected = {"test_one": "failed", "test_two": "passed", "test_three": "skipped", "TestPart::test_four": "passed",
                "test_5": "not run"}
    assert {name: last.of(MarkedTest("tests/unit/test_a.py", name, ())) for name in expected} == expected
    assert last.when == "2026-11-21T10:00:00"
    assert last.of_instrument("kills") == "holds" and last.of_instrument("fuzz") == "not run"


def _proof() -> dict[str, object]:
    one = {"result": "holds", "reason": "", "counts": {"kills": 3}, "acknowledged": 2, "lost": 0, "altered": 0,
           "unaccounted": 0, "mutants": {}, "failures": [], "notes": [], "seconds": 1.0, "commit": "abc", "version": "v"}
    return {"holds": True, "wanting": [], "commit": "abc", "ended": "2026-11-21T11:00:00+00:00", "quick": True, "seed": 1,
            "seconds": 1.0, "totals": report.totals({"kills": one}), "instruments": {"kills": one}}


def test_the_page_shows_hazard_requirement_test_and_last_result(tmp_path: Path):
    (tmp_path / "tests.xml").write_text(JUNIT)
    report.write(_proof(), tmp_path / "proof.json")
    traced = trace.trace(SMALL, [MarkedTest("tests/unit/test_a.py", "test_one", ("I1", "hazard: silent socket"))],
                         [Instrument("kills", Path("kills.py"), requirements=("I1",))])
    page = trace.page(traced, results.load(tmp_path / "tests.xml", tmp_path / "proof.json"))
    assert "| is silent | a deadline | I1 | one | **1 failed** |" in page
    assert "| lies | nothing helps | I1 | *not covered*: nobody can tell |  |" in page
    assert "| I1 | durable | 1 tests, kills | **1 failed**, 1 holds |" in page
    assert "- `tests/unit/test_a.py::test_one`: failed" in page
    assert "- hazard 'slow socket' has no test and no instrument" in page


def test_components_have_their_versions():
    what = known.load()
    versions = {one.name: trace.version(one) for one in what.components}
    assert versions["apsw"] == known.locked()["apsw"] and versions["apsw"].startswith(versions["SQLite"])
    assert all(versions.values())
    assert trace.component_gaps(replace(what, components=what.components[1:])) == [
        "component apsw: in only one of requirements.lock and components.toml"]


def test_the_trace_needs_no_package_of_others(tmp_path: Path):
    """So that `make man` has it on a machine without our environment."""
    done = subprocess.run(["python3", "-I", "-S", "-c", "import sys; sys.path.insert(0, sys.argv.pop(1)); "
                           "from tests.proof import trace; sys.exit(trace.main(sys.argv[1:]))", ROOT, "--write",
                           tmp_path / "trace.md"], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert (tmp_path / "trace.md").read_text().startswith("# dcmgate-trace(7) — ")
