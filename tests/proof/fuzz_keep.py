"""Corpora worth keeping: `python -m tests.proof.fuzz_keep STATE [TARGET …]` writes `corpus/<target>.hex` of what was found.

Kept are the fewest bytes of inputs that take the product through the most steps
from line to line, up to an equal share of BYTES for each target; and whatever
crashed once (named in a comment) however long it is. libFuzzer's own merge starts
itself again as a program, which a fuzzer in Python is not.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from tests.proof import fuzz, fuzz_seeds

BYTES = 70_000
"""Of inputs; as hexadecimal text twice as much."""

LONGEST = 2000
"""Bytes of one input that is kept."""

_OURS = str(fuzz.ROOT / "appliance")
Steps = frozenset[tuple[str, int, int]]


def steps(target: Callable[[bytes], Any], data: bytes) -> Steps:
    """Which steps from line to line of the product the target takes for an input."""
    taken: set[tuple[str, int, int]] = set()

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(_OURS):
            return None
        last = 0

        def line(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal last
            if event == "line":
                taken.add((name, last, frame.f_lineno))
                last = frame.f_lineno
            return line

        return line

    sys.settrace(trace)
    try:
        target(data)
    finally:
        sys.settrace(None)
    return frozenset(taken)


def smallest(target: Callable[[bytes], Any], inputs: list[bytes], generated: list[bytes], most: int) -> list[bytes]:
    """Of `inputs`, those that take steps which `generated` does not take, the most for a byte first, `most` bytes in all."""
    known: set[tuple[str, int, int]] = set()
    for data in generated:
        known |= steps(target, data)
    left = {data: steps(target, data) for data in sorted(set(inputs), key=len) if 0 < len(data) <= LONGEST}
    kept: list[bytes] = []
    while left:
        gain = {data: len(taken - known) / (len(data) + 16) for data, taken in left.items()}
        best = max(gain, key=lambda data: gain[data])
        if not gain[best]:
            break
        known |= left.pop(best)
        if len(best) <= most:
            kept.append(best)
            most -= len(best)
    return kept


def keep(target: str, inputs: list[bytes]) -> Path:
    """Write them, below what the file says of crashes of before."""
    path = fuzz_seeds.KEPT / f"{target}.hex"
    lines = path.read_text().splitlines() if path.exists() else []
    named = [n for n, line in enumerate(lines) if line.startswith("#")]
    old = [line for n in named for line in lines[n:n + 2]]
    path.write_text("\n".join([*old, *(data.hex() for data in inputs if data.hex() not in old)]) + "\n")
    return path


def main() -> None:
    from tests.proof.fuzz_child import target_of

    state = fuzz.State(Path(sys.argv[1]))
    fuzz_seeds.KEPT.mkdir(exist_ok=True)
    for name in sys.argv[2:] or fuzz.TARGETS:
        with tempfile.TemporaryDirectory() as scratch:
            inputs = [path.read_bytes() for path in state.corpus(name).iterdir()]
            kept = smallest(target_of(name, Path(scratch) / "work"), inputs, fuzz_seeds.generated(name, 3),
                            BYTES // len(fuzz.TARGETS))
        if kept:
            print(f"{keep(name, kept).name}: {len(kept)} of {len(inputs)} inputs, {sum(map(len, kept))} bytes")


if __name__ == "__main__":
    main()
