#!/usr/bin/env python3
"""Suites in lanes, each with a virtual box of its own: `hw-test/lanes.py vm [PYTEST…]`, LANES of them.

One more than half of the processors: each is slower beside the others, but a box that waits leaves its time to them. One lane
and its checks are `hw-test/run` with $DCMGATE_LANE, e.g. 1/2. What the lanes write to build/vm-1.json, build/vm-2.json … is put
together in build/vm.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
THE_REST, REST_MINUTES = "the rest", 22.0
"""The checks that share the first boots, and what they take."""
MEMORY = 3 << 30
"""Of one lane, in bytes: the box, its disk's pages, what stands around it."""
NO_CHECKS = 5
"""pytest's exit status."""


def shared_out(pieces: Mapping[str, float], lanes: int) -> dict[str, int]:
    """The lane of each piece, from 0: the longest first, each to the lane that has least to do; the rest in the first, whose
    figures count. `pieces` has minutes."""
    total, lane_of = [0.0] * lanes, {}
    for piece in sorted(pieces, key=lambda piece: (piece != THE_REST, -pieces[piece])):
        lane_of[piece] = total.index(min(total))
        total[lane_of[piece]] += pieces[piece]
    return lane_of


def fitting() -> int:
    """Lanes for this machine's processors and memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(len(os.sched_getaffinity(0)) // 2 + 1, memory // MEMORY))


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
    lanes = int(os.environ.get("LANES") or fitting())
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
    return max([len(wanting), *(status for status in statuses if status != NO_CHECKS or not whole["checks"])])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
