"""The trace: hazard → requirement → test → last result, with the components of others: build/trace.md.

    python -m tests.proof.trace [--write FILE]

Needs the standard library only. Exit status 1 where there is a gap: a requirement or
a hazard without a proof, a marker that names nothing, a component that nobody described.
"""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.proof import code, instruments, known, markers, results
from tests.proof.instruments import ROOT, Instrument
from tests.proof.known import Component, Known
from tests.proof.markers import MarkedTest
from tests.proof.results import Results

PAGE = ROOT / "build" / "trace.md"
MAN = ROOT / "appliance" / "man"


@dataclass(frozen=True)
class Trace:
    """What is known, and who proves it: name → tests, name → instruments."""

    known: Known
    tests: dict[str, list[MarkedTest]]
    instruments: dict[str, list[Instrument]]
    strays: tuple[str, ...]

    def proved(self, name: str) -> bool:
        return bool(self.tests.get(name) or self.instruments.get(name))


def trace(what: Known, tests: Iterable[MarkedTest], found: Iterable[Instrument]) -> Trace:
    """Sorts the tests and the instruments by what their names mean; `strays` are the names that mean nothing."""
    by_test: dict[str, list[MarkedTest]] = {}
    by_instrument: dict[str, list[Instrument]] = {}
    strays = []
    for test in tests:
        for spelled in dict.fromkeys(test.names):
            names = what.resolve(spelled)
            if not names:
                strays.append(f"{test.node}: {spelled!r} names no requirement and no hazard")
            for name in names:
                if test not in by_test.setdefault(name, []):
                    by_test[name].append(test)
    for instrument in found:
        for spelled in instrument.requirements:
            names = what.resolve(spelled)
            if not names:
                strays.append(f"instrument {instrument.name}: {spelled!r} names no requirement and no hazard")
            for name in names:
                if instrument not in by_instrument.setdefault(name, []):
                    by_instrument[name].append(instrument)
    return Trace(what, by_test, by_instrument, tuple(strays))


def gaps(traced: Trace) -> list[str]:
    """What is promised and not proved, or named and not known; one line each. Names are those of tests/proof/*.toml."""
    lines = list(traced.strays)
    requirements = {one.name for one in traced.known.requirements}
    lines += [f"requirement {name!r} has no test and no instrument" for name in sorted(requirements) if not traced.proved(name)]
    for hazard in traced.known.hazards:
        lines += [f"hazard {name!r} has no test and no instrument" for name in hazard.names
                  if not hazard.beyond and not traced.proved(f"hazard: {name}")]
        if hazard.serves not in requirements:
            lines.append(f"hazard {hazard.names[0]!r} serves {hazard.serves!r}, which is no requirement")
    return lines + page_gaps(traced.known) + component_gaps(traced.known)


def page_gaps(what: Known, man: Path = MAN) -> list[str]:
    """Where the pages and the list of requirements differ: the table of invariants, the brackets of the conformance page."""
    design = dict(re.findall(r"^\| (I[1-9]) \| (.+) \|$", (man / "design.md").read_text(), re.MULTILINE))
    invariants = {one.name: one.text for one in what.requirements if re.fullmatch(r"I[1-9]", one.name)}
    lines = [f"invariant {name}: the design page and requirements.toml differ" for name in sorted({*design, *invariants})
             if design.get(name) != invariants.get(name)]
    named = brackets((man / "conformance.md").read_text())
    own = {one.name for one in what.requirements if one.name.startswith("conformance: ")}
    lines += [f"the conformance page names [{name}], which is not known" for name in sorted(named)
              if not (what.resolve(name) or what.resolve(f"conformance: {name}"))]
    return lines + [f"{name!r} is not in the conformance page" for name in sorted(own - {f"conformance: {n}" for n in named})]


def brackets(text: str) -> set[str]:
    """The names in brackets, which may go over the end of a line."""
    return {" ".join(name.split()) for name in re.findall(r"\[([^\]\[]+)\](?!\()", text)}


def component_gaps(what: Known) -> list[str]:
    """Packages that are locked and not described, described and not locked; anomalies whose proof there is not."""
    odd = {one.name for one in what.components if one.kind == "wheel"} ^ set(known.locked())
    lines = [f"component {name}: in only one of requirements.lock and components.toml" for name in sorted(odd)]
    for component in what.components:
        lines += [f"component {component.name}: {anomaly['proved']!r} is not known" for anomaly in component.anomalies
                  if anomaly["proved"] and not what.resolve(anomaly["proved"])]
    return lines


def page(traced: Trace, last: Results) -> str:
    """The trace as Markdown, in the form of our man pages."""
    proof = last.proof
    when = [f"Tests: run of {last.when}." if last.when else "Tests: not run here.",
            f"Instruments: {proof['ended']}, commit {proof['commit']}{', a quick sample' if proof['quick'] else ''}." if proof
            else "Instruments: not run here.", f"Made of commit {code.commit() or 'unknown'}."]
    missing = gaps(traced)
    lines = ["# dcmgate-trace(7) — hazard, requirement, test and last result", "",
             "Generated by `make test`, `make proof` and `make trace`; not to be edited. " + " ".join(when), "",
             "A requirement is proved by the tests that carry its name and by instruments of `make proof`.", "",
             "## Gaps", "", *([f"- {line}" for line in missing] or ["None."])]
    for table in dict.fromkeys(hazard.table for hazard in traced.known.hazards):
        lines += ["", f"## Hazards: {table}", "", "| hazard | required | requirement | proved by | last result |",
                  "| --- | --- | --- | --- | --- |"]
        for hazard in traced.known.hazards:
            if hazard.table == table:
                names = [f"hazard: {name}" for name in hazard.names]
                proved = f"*not covered*: {hazard.beyond}" if hazard.beyond else _provers(traced, names)
                result = "" if hazard.beyond else _result(traced, names, last)
                lines.append("| " + " | ".join(map(_cell, (hazard.does, hazard.require, hazard.serves, proved, result))) + " |")
    lines += ["", "## Requirements", "", "| requirement | promise | proved by | last result |", "| --- | --- | --- | --- |"]
    for one in traced.known.requirements:
        by = [f"{len(traced.tests.get(one.name, []))} tests"] + [i.name for i in traced.instruments.get(one.name, [])]
        lines.append(f"| {one.name} | {_cell(one.text)} | {', '.join(by)} | {_result(traced, [one.name], last)} |")
    lines += ["", "## Tests of each name", ""]
    for name in dict.fromkeys(traced.known.names.values()):
        if traced.tests.get(name):
            lines += [name, "", *(f"- `{test.node}`: {last.of(test)}" for test in traced.tests[name]), ""]
    return "\n".join([*lines, *_components(traced.known)]) + "\n"


def _provers(traced: Trace, names: Sequence[str]) -> str:
    tests = dict.fromkeys(test.words for name in names for test in traced.tests.get(name, []))
    found = dict.fromkeys(one.name for name in names for one in traced.instruments.get(name, []))
    return "; ".join([*found, *tests]) or "**nothing**"


def _result(traced: Trace, names: Sequence[str], last: Results) -> str:
    """Such as "5 passed, 1 holds": what must be looked at comes first."""
    seen = Counter(last.of(test) for test in dict.fromkeys(t for name in names for t in traced.tests.get(name, [])))
    seen += Counter(last.of_instrument(one) for one in
                    dict.fromkeys(i.name for name in names for i in traced.instruments.get(name, [])))
    good = ("passed", "holds", "not run", "skipped")
    ordered = sorted(seen, key=lambda result: (result in good, good.index(result) if result in good else 0))
    return ", ".join(f"{seen[result]} {result}" if result in good else f"**{seen[result]} {result}**" for result in ordered)


def _components(what: Known) -> list[str]:
    lines = ["## Components of others", "",
             f"Known anomalies as far as they touch what is done with it; looked at {what.looked_at}.", "",
             "| component | version | for | known anomaly | what is done about it |", "| --- | --- | --- | --- | --- |"]
    for one in what.components:
        first = f"| {one.name} | {version(one)} | {_cell(one.use)} |"
        for anomaly in one.anomalies or ({"what": "none found that touches it", "guard": "", "proved": ""},):
            guard = anomaly["guard"] + (f" ({anomaly['proved']})" if anomaly["proved"] else "")
            lines.append(f"{first} {_cell(anomaly['what'])} | {_cell(guard)} |")
            first = "| | | |"
    return lines


def version(component: Component) -> str:
    """Of a package as it is locked; of what the system provides as it is here."""
    if component.kind == "wheel":
        return known.locked()[component.name]
    if component.kind == "in apsw":
        return ".".join(known.locked()["apsw"].split(".")[:3])
    if component.kind == "kernel":
        return f"{platform.release()} here"
    command = ["dpkg-query", "-W", "-f=${Version}", component.package]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "of the system"
    return f"{done.stdout} here" if done.returncode == 0 and done.stdout else "not here"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def load() -> Trace:
    """The trace of this tree."""
    return trace(known.load(), markers.tests(), instruments.discover())


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the page; says what is wanting."""
    parser = argparse.ArgumentParser(prog="python -m tests.proof.trace", description="Hazard → requirement → test → result.")
    parser.add_argument("--write", type=Path, default=PAGE, metavar="FILE")
    options = parser.parse_args(arguments)
    traced = load()
    options.write.parent.mkdir(parents=True, exist_ok=True)
    options.write.write_text(page(traced, results.load()))
    missing = gaps(traced)
    for line in missing:
        print(f"trace: {line}")
    print(f"trace: {len(traced.known.requirements)} requirements, {len(traced.known.hazards)} hazards, {len(missing)} gaps: "
          f"{options.write}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
