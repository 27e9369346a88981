"""Plugin of pytest in a mutant's run: one line of JSON for each test that was run, and whose code it was.

DCMGATE_MUTANT_REPORT names the file. Where the product is not imported from the
copy in the current folder, the run ends at once: it would prove nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def _tell(**what: Any) -> None:
    with open(os.environ["DCMGATE_MUTANT_REPORT"], "a", encoding="utf-8") as report:
        report.write(json.dumps(what) + "\n")


def pytest_sessionstart(session: pytest.Session) -> None:
    where = subprocess.run([sys.executable, "-I", "-c", "import appliance; print(appliance.__file__)"], cwd="/",
                           capture_output=True, text=True, timeout=60, check=False)
    if Path(where.stdout.strip()).resolve().parents[1] != Path.cwd().resolve():
        raise pytest.UsageError(f"the product comes from {where.stdout or where.stderr}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed or report.skipped or report.when == "call":
        _tell(test=report.nodeid, when=report.when, outcome=report.outcome, why=_reason(report))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _tell(test=report.nodeid, when="collect", outcome="error", why=_reason(report))


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr or "")
    return text.strip().replace("\n", " ")[:300]
