"""The figures of the page of promises (appliance/man/promise.md): its part between two headings is generated.

    python -m tests.proof.promise [FILE]     from build/proof.json, or another report of the proof
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.proof import instruments, known, report
from tests.proof.instruments import EXPECTED, ROOT, Instrument
from tests.proof.known import Known

PAGE = ROOT / "appliance" / "man" / "promise.md"
HEADING = "## The promises, and the last figures"


def section(what: Known, found: Sequence[Instrument], proof: Mapping[str, Any]) -> str:
    """The generated part: each invariant with its instruments, then each instrument with its figures."""
    ran: Mapping[str, Any] = proof.get("instruments", {})
    lines = [HEADING, "", *_when(proof), "", "| | what it means | instruments | last figure |", "| --- | --- | --- | --- |"]
    for one in what.requirements:
        if one.plain:
            its = [i for i in found if any(one.name in what.resolve(name) for name in i.requirements)]
            last = "; ".join(_headline(ran[i.name]) for i in its if i.name in ran) or "not run yet"
            lines.append(f"| {one.name} | {one.plain} | {', '.join(_words(i.name) for i in its)} | {last} |")
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
    lines = [f"Run of {proof['ended'][:10]} on commit {proof['commit']}, seed {proof['seed']}"
             f"{', **a quick sample**' if proof['quick'] else ''}; {machine['cores']} cores, Linux {machine['kernel']}, "
             f"Python {machine['python']}.",
             f"**{sums['acknowledged']:,} images acknowledged, {sums['lost']:,} lost, {sums['altered']:,} altered, "
             f"{sums['unaccounted']:,} unaccounted; {sums['mutants_caught']:,} of {sums['mutants']:,} deliberate breakages "
             "caught.**"]
    return lines + [f"Wanting: {line}." for line in proof["wanting"]]


def _headline(figures: Mapping[str, Any]) -> str:
    """The first of the counts, such as "10,000 kills"; "fails" and the like before what does not hold."""
    counts = list(figures["counts"].items())[:1]
    text = ", ".join(f"{value:,.0f} {_words(name)}" for name, value in counts) or f"{len(figures['mutants'])} mutants"
    return text if figures["result"] == "holds" else f"**{figures['result']}**: {text}"


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
