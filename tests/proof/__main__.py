"""The driver of the proof: every instrument in a process of its own, and what they found.

    python -m tests.proof [--quick] [--only NAME]… [--seconds N] [--seed N] [--write FILE] [--refresh]

Writes build/proof.json and build/proof.md. What an instrument keeps from run to
run is in build/proof-state/<name>, its log in build/proof-state/<name>.log.
Exit status: 0 if every instrument that was asked for ran and holds, 1 if not.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from tests.proof import code, instruments, promise, report, runner
from tests.proof.instruments import ROOT, Instrument
from tests.proof.runner import Outcome, Plan

QUICK_TOTAL = 450.0
"""Seconds for all instruments of a quick run: with set-up and putting away it stays below 10 minutes."""

QUICK_MOST = 60.0
SILENCE = 1800.0
SEED = 20260801


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what was asked for and writes the report."""
    options = _parser().parse_args(arguments)
    found = instruments.discover(options.package)
    names = [name for word in options.only for name in word.replace(",", " ").split()]
    unknown = set(names) - {one.name for one in found}
    if unknown:
        print(f"proof: no such instrument: {', '.join(sorted(unknown))}; there are: {', '.join(o.name for o in found)}")
        return 2
    if options.list:
        for one in found:
            print(f"{one.name:14} {one.fault or one.about}{' [alone]' if one.exclusive else ' [beside]' if one.spare else ''}")
        return 0
    chosen = [one for one in found if not names or one.name in names]
    if not chosen:
        print("proof: there is no instrument")
        return 1
    began = time.monotonic()
    commit, version = code.commit(), code.version()
    plan = _plan(options, chosen, version)
    outcomes = _run(chosen, plan, options.jobs)
    whole = {one.name: one for one in found}
    for folder in (plan.scratch, plan.scratch.parent):
        with suppress(OSError):  # another run's are in it
            folder.rmdir()
    with report.locked(options.write):
        proof = _merge(options, whole, outcomes, commit, version, time.monotonic() - began)
        report.write(proof, options.write)
    if options.refresh:
        promise.refresh(proof)
    _tell(proof, outcomes, options.write, whole_proof=not names)
    return 0 if all(outcome.result == "holds" for outcome in outcomes) and (names or proof["holds"]) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.proof", description="Tries to make the gateway lose an image.")
    parser.add_argument("--quick", action="store_true", help="a sample of each, within 10 minutes in all")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this instrument; may be given again")
    parser.add_argument("--seconds", type=float, default=0.0, help="no new case after so long; default: all of it")
    parser.add_argument("--seed", type=int, default=SEED, help="of every choice that an instrument makes")
    parser.add_argument("--jobs", type=int, default=0, help="instruments at once; default: three for four cores")
    parser.add_argument("--limit", type=float, default=0.0, help="an instrument hangs after so long; default: by its seconds")
    parser.add_argument("--write", type=Path, default=ROOT / "build" / "proof.json", metavar="FILE", help="the report")
    parser.add_argument("--refresh", action="store_true", help="also put the figures into the page of promises")
    parser.add_argument("--list", action="store_true", help="what there is")
    parser.add_argument("--package", type=Path, default=instruments.PACKAGE, help=argparse.SUPPRESS)
    return parser


def _jobs(wanted: int) -> tuple[int, int]:
    """How many instruments at once, and the cores of each: half of them wait for something at any time."""
    cores = len(os.sched_getaffinity(0))
    return wanted or max(1, cores * 3 // 4), max(1, cores // (wanted or 2))


def quick_seconds(chosen: Sequence[Instrument], jobs: int) -> float:
    """What each may take so that all are done in QUICK_TOTAL, with `jobs` of them at once where they can share the machine."""
    alone = sum(1 for one in chosen if one.exclusive)
    spare = sum(1 for one in chosen if one.spare)
    rounds = alone + max(-(-(len(chosen) - alone - spare) // jobs), spare > 0)
    return min(QUICK_MOST, QUICK_TOTAL / rounds)


def _plan(options: argparse.Namespace, chosen: Sequence[Instrument], version: str) -> Plan:
    seconds = options.seconds or (quick_seconds(chosen, _jobs(options.jobs)[0]) if options.quick else 0.0)
    limit = options.limit or (0.0 if not seconds else seconds + 75 if options.quick else seconds * 1.5 + 600)
    state = (options.write.parent / "proof-state").resolve()
    # Two trees at once must not share it; sockets want short paths.
    scratch = Path(tempfile.gettempdir()) / "dcmgate-proof" / hashlib.sha256(bytes(state)).hexdigest()[:6]
    return Plan(state, scratch, options.seed, options.quick, seconds, version, limit, SILENCE)


def _run(chosen: Sequence[Instrument], plan: Plan, wanted: int) -> list[Outcome]:
    """Those that can share the machine first, side by side; then one by one those that cannot."""
    jobs, cores = _jobs(wanted)
    began = time.monotonic()
    outcomes: list[Outcome] = []

    def one(instrument: Instrument, its_cores: int) -> None:
        def say(line: str) -> None:
            print(f"{time.monotonic() - began:7.0f} s  {instrument.name}: {line}", flush=True)

        say("begins" + (f", for {plan.seconds:.0f} s" if plan.seconds else ""))
        outcome = runner.run(instrument, plan, its_cores, say)
        outcomes.append(outcome)
        say(f"{outcome.result} after {outcome.seconds:.0f} s: {outcome.reason or report.tried(outcome.as_json())}")

    ordered = instruments.in_order(chosen)
    beside = [instrument for instrument in ordered if not (instrument.exclusive or instrument.spare)]
    spare = [instrument for instrument in ordered if instrument.spare]
    with ThreadPoolExecutor(max(1, len(spare))) as pool_of_spare, ThreadPoolExecutor(jobs) as pool:
        running = [pool_of_spare.submit(one, instrument, jobs * cores) for instrument in spare]
        running += [pool.submit(one, instrument, cores) for instrument in beside]
        try:
            for done in running:
                done.result()
        except BaseException:  # a Ctrl-C reaches this thread alone
            plan.stop.set()
            pool.shutdown(cancel_futures=True)
            pool_of_spare.shutdown(cancel_futures=True)
            raise
    for instrument in ordered:
        if instrument.exclusive:
            one(instrument, len(os.sched_getaffinity(0)))
    return outcomes


def _merge(options: argparse.Namespace, whole: dict[str, Instrument], outcomes: Sequence[Outcome], commit: str, version: str,
           seconds: float) -> dict[str, Any]:
    """This run's results over those of earlier ones, of the instruments that exist."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    earlier = report.read(options.write).get("instruments", {})
    merged = {name: one for name, one in earlier.items() if name in whole}
    for outcome in outcomes:
        about = whole[outcome.name]
        merged[outcome.name] = {
            "about": about.about, "requirements": list(about.requirements), "when": now, "commit": commit, "version": version,
            "seed": options.seed, "quick": options.quick, **outcome.as_json()}
    merged = dict(sorted(merged.items()))
    expected = {*whole, *(instruments.EXPECTED if options.package == instruments.PACKAGE else ())}
    wanting = report.wanting(merged, expected, version)
    return {"format": 1, "holds": not wanting, "wanting": wanting, "totals": report.totals(merged), "quick": options.quick,
            "commit": commit, "version": version, "seed": options.seed, "ended": now, "seconds": round(seconds, 1),
            "machine": {"cores": len(os.sched_getaffinity(0)), "kernel": platform.release(), "machine": platform.machine(),
                        "python": platform.python_version()},
            "instruments": merged}


def _tell(proof: dict[str, Any], outcomes: Sequence[Outcome], file: Path, *, whole_proof: bool) -> None:
    for outcome in outcomes:
        print(f"proof: {outcome.name}: {outcome.result}{': ' if outcome.reason else ''}{outcome.reason}")
        for failure in outcome.figures.failures:
            print(f"proof: {outcome.name}: {failure}")
    sums = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in proof["totals"].items())
    print(f"proof: in all: {sums}")
    if whole_proof:
        print(f"proof: {'holds' if proof['holds'] else 'DOES NOT HOLD'}")
        for line in proof["wanting"]:
            print(f"proof: wanting: {line}")
    print(f"proof: {file}, {file.with_suffix('.md')}")


def _terminated(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
