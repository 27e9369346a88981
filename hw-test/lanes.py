#!/usr/bin/env python3
"""Suites in lanes, each with a virtual box of its own: `hw-test/lanes.py vm [PYTEST…]`, LANES of them (one for two processors).

One lane and its checks are `hw-test/run` with $DCMGATE_LANE, e.g. 1/2. What the lanes write to build/vm-1.json, build/vm-2.json
… is put together in build/vm.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MINUTES = 0.6
"""Of a check that names none: most boots are shared by many checks."""


def shared_out(minutes: Sequence[float], lanes: int) -> list[int]:
    """The lane of each check, from 0. Short ones share their boots: they stay together, in their order, in one lane."""
    total, lane_of = [0.0] * lanes, [0] * len(minutes)
    total[0] = sum(each for each in minutes if each <= MINUTES)
    for place in sorted((place for place, each in enumerate(minutes) if each > MINUTES), key=lambda place: -minutes[place]):
        lane_of[place] = total.index(min(total))
        total[lane_of[place]] += minutes[place]
    return lane_of


def together(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One result out of those of all lanes. A figure that several have measured is the first one's."""
    whole: dict[str, Any] = {"checks": {}, "figures": {}, "totals": {"passed": 0, "failed": 0, "skipped": 0, "reasons": {}}}
    for one in results:
        whole["checks"].update(one["checks"])
        whole["figures"] = {**one["figures"], **whole["figures"]}
        for kind in ("passed", "failed", "skipped"):
            whole["totals"][kind] += one["totals"][kind]
        whole["totals"]["reasons"].update(one["totals"]["reasons"])
    return whole


def _lane(environment: str, lane: str, words: Sequence[str], statuses: list[int]) -> None:
    command = [ROOT / "hw-test" / "run", environment, "-v", *words]
    with subprocess.Popen(command, env={**os.environ, "DCMGATE_LANE": lane}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, errors="replace") as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(f"{lane} {line}")
            sys.stdout.flush()
    statuses.append(process.returncode)


def main(environment: str, *words: str) -> int:
    lanes = int(os.environ.get("LANES") or max(1, len(os.sched_getaffinity(0)) // 2))
    build, name = ROOT / "build", f"vm{environment.removeprefix('vm')}"
    parts = [build / f"{name}-{number}.json" for number in range(1, lanes + 1)]
    for part in parts:
        part.unlink(missing_ok=True)
    statuses: list[int] = []
    threads = [threading.Thread(target=_lane, args=(environment, f"{number}/{lanes}", words, statuses))
               for number in range(1, lanes + 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanting = [part.name for part in parts if not part.exists()]
    if wanting:
        sys.stderr.write(f"no result of {', '.join(wanting)}: read what that lane said above\n")
    whole = together([json.loads(part.read_text()) for part in parts if part.exists()])
    (build / f"{name}.json").write_text(json.dumps(whole, indent=1) + "\n")
    sys.stdout.write("{passed} passed, {failed} failed, {skipped} skipped".format(**whole["totals"]) + f": build/{name}.json\n")
    return max([*statuses, len(wanting)])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
