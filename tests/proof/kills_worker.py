"""One process that makes enumerated kills: `python -m tests.proof.kills_worker FOLDER [MODULE:FUNCTION]`.

The function, if there is one, breaks the product first, for a test that this is
found. It takes a case a line on standard input, answers with a line of JSON for each,
and ends with its input. The first line that it writes measures the paths. It
has one thread, because it forks all that it needs.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.proof.kills_cases import Kill, Measured, parse
from tests.proof.kills_ground import COURSES, Course, Ground, NotBegun, Run, ground
from tests.proof.oracle import Verdict


def measure(field: Ground, course: Course) -> Measured:
    """That path without a kill. AssertionError where it does not go well."""
    runs = []
    for trace, asking in ((True, False), (True, True), (False, False)):
        field.restore(course.template)
        runs.append(field.run(course, trace=trace, asking=asking))
        assert runs[-1].status == 0 and not runs[-1].late, f"{course.name} does not go well by itself: {field.said()}"
    return Measured(len(runs[0].calls), len(runs[1].calls), runs[2].seconds)


def one(field: Ground, case: str) -> dict[str, Any]:
    """One case from beginning to end: `failures` and the figures of the verdict, `at`: the calls at which it killed."""
    begin = time.monotonic()
    path, kills = parse(case)
    course = COURSES[path]
    field.restore(course.template)
    failures: list[str] = []
    total = Verdict()
    at: list[str] = []
    for kill in kills:
        run = _killed(field, course, kill)
        failures += _faults(run, f"at {kill}")
        if not run.killed:
            break
        at.append(run.call)
        _take(total, field.judge(balance=False), f"after the kill {kill}")
        if total.lost or total.altered:
            break
    run = field.run(COURSES["run"])
    failures += _faults(run, "in the end")
    final = field.judge(balance=True)
    total.acknowledged, total.delivered = final.acknowledged, final.delivered
    _take(total, final, "in the end")
    failures += _finish(field, final, total)
    if failures or not total.holds:
        failures.append(f"log: {field.said(1500)!r}")
    return {"case": case, "kills": len(at), "at": at, "acknowledged": total.acknowledged, "lost": total.lost,
            "altered": total.altered, "unaccounted": total.unaccounted, "failures": failures,
            "seconds": round(time.monotonic() - begin, 3)}


def _killed(field: Ground, course: Course, kill: Kill) -> Run:
    if kill.at:
        return field.run(course, at=kill.at, where=kill.where, asking=kill.asking)
    return field.run(course, after=kill.seconds)


def _faults(run: Run, when: str) -> list[str]:
    if run.late:
        return [f"{when}: not done in time"]
    if not run.killed and run.status:
        return [f"{when}: ended by itself with status {run.status}"]
    return []


def _take(total: Verdict, verdict: Verdict, when: str) -> None:
    total.lost += verdict.lost
    total.altered += verdict.altered
    total.unaccounted += verdict.unaccounted
    total.set_aside += verdict.set_aside
    total.notes += [f"{when}: {note}" for note in verdict.notes]


def _finish(field: Ground, final: Verdict, total: Verdict) -> list[str]:
    """What a gateway that was left in peace has to have come to, beyond the verdict."""
    failures = list(total.notes)
    wanted = len({instance.sop_instance for part in field.workload for instance in part})
    if final.delivered != wanted:
        failures.append(f"in the end: {final.delivered} of {wanted} are at every destination")
    if "Traceback" in field.said(1 << 20):
        failures.append("a traceback in the log")
    return failures


def main(folder: str, breakage: str = "") -> int:
    os.nice(5)
    if breakage:
        module, _, function = breakage.partition(":")
        getattr(importlib.import_module(module), function)()
    with ground(Path(folder)) as field:
        _say({name: asdict(measure(field, course)) for name, course in COURSES.items()})
        for line in sys.stdin:
            try:
                _say(one(field, line.strip()))
            except Exception as e:  # noqa: BLE001  an instrument that fails at a case says so, and goes on
                _say({"case": line.strip(), "kills": 0, "at": [], "acknowledged": 0, "lost": 0, "altered": 0, "unaccounted": 0,
                      "failures": [f"{type(e).__name__}: {e}"[:2000]], "seconds": 0.0, "broken": isinstance(e, NotBegun)})
    return 0


def _say(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
