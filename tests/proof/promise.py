"""The figures of the page of promises (appliance/man/promise.md): its part between two headings is generated.

    python -m tests.proof.promise [FILE]     from build/proof.json, or another report of the proof
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.proof import instruments, known, report
from tests.proof.instruments import EXPECTED, ROOT, Instrument
from tests.proof.known import Known

PAGE = ROOT / "appliance" / "man" / "promise.md"
HEADING = "## The promises, and the last figures"

HEADLINES = ("states", "lives", "walks", "objects_per_second", "cases")
"""The count to name an instrument by, where none is called as it is: the first of these that it has, or else its first."""


def section(what: Known, found: Sequence[Instrument], proof: Mapping[str, Any]) -> str:
    """The generated part: each invariant with its instruments, then each instrument with its figures."""
    ran: Mapping[str, Any] = proof.get("instruments", {})
    lines = [HEADING, "", *_when(proof), "", "| | what it means | instruments: last figure |", "| --- | --- | --- |"]
    for one in what.requirements:
        if one.plain:
            its = [i for i in found if any(one.name in what.resolve(name) for name in i.requirements)]
            last = "; ".join(f"{_words(i.name)}: {_headline(i.name, ran.get(i.name))}" for i in its)
            lines.append(f"| {one.name} | {one.plain} | {last} |")
    lines += ["", "| instrument | what it does | result | tried |", "| --- | --- | --- | --- |"]
    about = {**dict.fromkeys(EXPECTED, "**is not there**"), **{instrument.name: instrument.about for instrument in found}}
    for name in sorted(about):
        figures = ran.get(name)
        result, tried = (figures["result"], report.tried(figures)) if figures else ("not run yet", "")
        lines.append(f"| {_words(name)} | {about[name]} | {result} | {tried} |")
    return "\n".join(lines) + "\n"


def _when(proof: Mapping[str, Any]) -> list[str]:
    if not proof:
        return ["Not run yet."]
    sums = proof["totals"]
    machine = proof["machine"]
    others = sorted({one["commit"] for one in proof["instruments"].values()} - {proof["commit"]})
    lines = [f"Run of {proof['ended'][:10]} on commit {proof['commit']}, seed {proof['seed']}"
             f"{', **a quick sample**' if proof['quick'] else ''}; {machine['cores']} cores, Linux {machine['kernel']}, "
             f"Python {machine['python']}.",
             f"**{sums['acknowledged']:,} images acknowledged, {sums['lost']:,} lost, {sums['altered']:,} altered, "
             f"{sums['unaccounted']:,} unaccounted; {sums['mutants_caught']:,} of {sums['mutants']:,} deliberate breakages "
             "caught.**"]
    if others:      # a part that ran on other code of the product is among what is wanting
        lines.insert(1, f"Parts of it ran on {', '.join(others)}.")
    return lines + [f"Wanting: {textwrap.shorten(line, 100)}." for line in proof["wanting"]]


def _headline(name: str, figures: Mapping[str, Any] | None) -> str:
    """One count, such as "1,200 states"; or what is wrong."""
    if figures is None:
        return "not run yet"
    counts = figures["counts"]
    if figures["result"] != "holds" or not counts:
        return f"**{figures['result']}**"
    key = next((each for each in (name, *HEADLINES) if each in counts), next(iter(counts)))
    return f"{report.number(counts[key])} {_words(key)}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def replaced(page: str, new: str) -> str:
    """The page with its generated part new; ValueError where it has none."""
    pattern = re.compile(rf"^{re.escape(HEADING)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"the page has no heading {HEADING!r}")
    return pattern.sub(lambda _: new + "\n", page, count=1)


def refresh(proof: Mapping[str, Any], page: Path = PAGE) -> None:
    """Puts the figures of the proof into the page."""
    page.write_text(replaced(page.read_text(), section(known.load(), instruments.discover(), proof)))


if __name__ == "__main__":
    refresh(report.read(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "proof.json"))
    print(f"promise: {PAGE}")
