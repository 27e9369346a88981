"""One chunk of fuzzing, in a process of its own: `python -m tests.proof.fuzz_child TARGET FOLDER [libFuzzer's options …]`.

The product's modules are instrumented for coverage as they are imported; the
tests' are not. libFuzzer ends the process: 0 done, 77 an exception that is none of
ours, 70 longer than its time-out, 71 out of memory; what did it lies in `artifacts`.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import atheris  # type: ignore[import-untyped]

GROWTH = 64 << 20
"""Bytes by which one input may raise the process's peak memory; they have 100 kB at most, and warm-up is over."""

WARM = 2000
"""Inputs in which tables and caches are filled."""


class Grown(AssertionError):
    """One input took that much memory."""


def _watched(target: Any) -> Any:
    """The target, with an eye on the peak of memory."""
    count = 0
    peak = 0

    def run(data: bytes) -> None:
        nonlocal count, peak
        target(data)
        count += 1
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        if now > peak:
            if count > WARM and now - peak > GROWTH:
                raise Grown(f"{(now - peak) >> 20} MiB more for an input of {len(data)} bytes")
            peak = now

    return run


def target_of(name: str, folder: Path) -> Any:
    """The target of that name; `folder` is its own, for what it has to write. Importing it is what instruments it."""
    if name == "live":
        from tests.proof.fuzz_live import live
        return live(folder)
    if name.startswith("structured_"):
        from tests.proof.fuzz_structured import STRUCTURED
        return STRUCTURED[name].hypothesis.fuzz_one_input
    if name.endswith("_meaning") and name != "pdu_meaning":
        from tests.proof.fuzz_meaning import MEANINGS
        return MEANINGS[name]
    from tests.proof.fuzz_targets import PURE
    return PURE[name]


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    with atheris.instrument_imports(include=["appliance"]):
        import appliance.dicom.upper
        import appliance.receive.association  # noqa: F401  instrumented once, before anything imports it plainly
        target = target_of(name, folder)
    atheris.Setup([sys.argv[0], *sys.argv[3:]], _watched(target))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
