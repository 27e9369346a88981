"""The page of promises: each invariant in plain words, each instrument with its last figure, and what is not covered."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proof import instruments, known, promise, report
from tests.proof.instruments import Instrument
from tests.proof.known import Known, Requirement

WHAT = Known((Requirement("I1", "design", "durable", "it survives"), Requirement("space", "design", "room")), ())
KILLS = Instrument("kills", Path("kills.py"), "kills it", ("I1",))
FUZZ = Instrument("fuzz", Path("fuzz.py"), "any bytes", ("space",))


def _proof(result: str = "holds", *, quick: bool = False) -> dict[str, object]:
    one = {"result": result, "reason": "", "counts": {"kills": 12345, "seeds": 3}, "acknowledged": 2000, "lost": 0,
           "altered": 0, "unaccounted": 0, "mutants": {"a": "test_a"}, "commit": "abc", "version": "v"}
    ran = {"kills": one}
    return {"totals": report.totals(ran), "instruments": ran, "commit": "abc", "ended": "2026-11-21T11:00:00+00:00", "seed": 7,
            "quick": quick, "wanting": report.wanting(ran, ["kills", "fuzz"], "v"),
            "machine": {"cores": 4, "kernel": "6.18", "python": "3.11.7"}}


def test_figures_by_invariant_and_by_instrument():
    text = promise.section(WHAT, [FUZZ, KILLS], _proof())
    assert "| I1 | it survives | kills: 12,345 kills |" in text
    assert "| kills | kills it | holds | 12,345 kills, 3 seeds |" in text
    assert "| fuzz | any bytes | not run yet |  |" in text and "| clocks | **is not there** | not run yet |  |" in text
    assert "Run of 2026-11-21 on commit abc, seed 7; 4 cores, Linux 6.18, Python 3.11.7." in text
    assert "**2,000 images acknowledged, 0 lost, 0 altered, 0 unaccounted; 1 of 1 deliberate breakages caught.**" in text
    assert "Wanting: fuzz: not run." in text
    assert "space" not in text, "only the invariants are promises to everyone"


def test_what_does_not_hold_or_is_a_sample_says_so():
    text = promise.section(WHAT, [KILLS], _proof("fails", quick=True))
    assert "| kills: **fails** |" in text and "**a quick sample**" in text and "Wanting: kills: fails." in text


def test_parts_that_ran_on_another_commit_are_named():
    proof = _proof()
    assert "Parts of it" not in promise.section(WHAT, [KILLS], proof)
    proof["instruments"]["fuzz"] = {**proof["instruments"]["kills"], "commit": "older"}
    assert "Parts of it ran on older." in promise.section(WHAT, [KILLS], proof)


def test_only_the_generated_part_is_replaced():
    page = f"# title\n\nbefore\n\n{promise.HEADING}\n\nold \\1\n\n### more\n\n## After\n\nrest\n"
    new = promise.replaced(page, promise.section(WHAT, [KILLS], {}))
    assert new.startswith("# title\n\nbefore\n\n") and new.endswith("\n\n## After\n\nrest\n") and "old" not in new
    assert promise.replaced(new, promise.section(WHAT, [KILLS], {})) == new
    with pytest.raises(ValueError, match="no heading"):
        promise.replaced("# title\n", "new")


def test_the_page_says_what_every_invariant_means_and_names_every_instrument():
    """After a new instrument or other words: `python -m tests.proof.promise`."""
    page = promise.PAGE.read_text()
    missing = [one.name for one in known.load().requirements if one.plain and f"| {one.name} | {one.plain} |" not in page]
    missing += [name for name in {*instruments.EXPECTED, *(one.name for one in instruments.discover())}
                if f"\n| {name.replace('_', ' ')} |" not in page]
    assert missing == []
    assert [f"I{n}" for n in range(1, 10)] == [one.name for one in known.load().requirements if one.plain]


def test_what_no_test_can_show_is_told():
    page = promise.PAGE.read_text().lower().partition("## what is not covered")[2]
    beyond = [name for hazard in known.load().hazards if hazard.beyond for name in hazard.names]
    words = {"drives that lie": "drives that lie", "TLS handshake": "tls", "ssl": "tls"}
    assert [name for name in beyond if words.get(name, name).lower() not in page] == []
