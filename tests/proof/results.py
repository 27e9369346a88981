"""The last results: of the tests from the JUnit file that `make test` writes, of the instruments from build/proof.json."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.proof import report
from tests.proof.instruments import ROOT
from tests.proof.markers import MarkedTest

JUNIT = ROOT / "build" / "tests.xml"
PROOF = ROOT / "build" / "proof.json"


@dataclass(frozen=True)
class Results:
    """`tests`: (class name of JUnit, function) → how often passed, failed, skipped. `when` is "" where there is no run."""

    tests: Mapping[tuple[str, str], Counter[str]] = field(default_factory=dict)
    when: str = ""
    proof: Mapping[str, Any] = field(default_factory=dict)

    def of(self, test: MarkedTest) -> str:
        """passed, failed, skipped or "not run": the worst of its parameters."""
        *classes, function = test.function.split("::")
        seen = self.tests.get((".".join([test.file.removesuffix(".py").replace("/", "."), *classes]), function), Counter())
        return "failed" if seen["failed"] else "passed" if seen["passed"] else "skipped" if seen["skipped"] else "not run"

    def of_instrument(self, name: str) -> str:
        """holds, fails, cannot run, crashed, hung or "not run"."""
        return str(self.proof.get("instruments", {}).get(name, {}).get("result", "not run"))


def load(junit: Path = JUNIT, proof: Path = PROOF) -> Results:
    """What there is of the two files; one that cannot be read is as one that is not there."""
    found: dict[tuple[str, str], Counter[str]] = {}
    when = ""
    try:
        root = ElementTree.parse(junit).getroot()
    except (FileNotFoundError, ElementTree.ParseError):
        root = ElementTree.Element("testsuites")
    for suite in root.iter("testsuite"):
        when = suite.get("timestamp", "")[:19]
        for case in suite.iter("testcase"):
            kinds = {child.tag for child in case}
            result = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
            function = re.sub(r"\[.*", "", case.get("name", ""), flags=re.DOTALL)
            found.setdefault((case.get("classname", ""), function), Counter())[result] += 1
    return Results(found, when, report.read(proof))
