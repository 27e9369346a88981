"""Corpora worth keeping: `python -m tests.proof.fuzz_keep STATE [BYTES]` makes `corpus/<target>.hex` of what the fuzzers found.

libFuzzer's merge picks the fewest inputs that reach everything a corpus reaches;
of these the shortest stay, up to an equal share of BYTES for each target, and
whatever crashed once (named in a comment) however long it is.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from tests.proof import fuzz, fuzz_seeds

BYTES = 80_000
"""Of inputs; as hexadecimal text twice as much."""


def smallest(state: fuzz.State, target: str, most: int, scratch: Path) -> list[bytes]:
    """Inputs of a target's corpus that reach the most for `most` bytes; those that are generated anyway are left out."""
    merged = scratch / "merged"
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir()
    status, _ = fuzz._run(fuzz._child(target, scratch / "work", "-set_cover_merge=1", "-timeout=20", merged,
                                      state.corpus(target)), scratch / "log", 600)
    if status:
        raise SystemExit(f"{target}: the merge ended with {status}: {(scratch / 'log').read_text(errors='replace')[-500:]}")
    generated = set(fuzz_seeds.generated(target, 3))
    found = sorted({path.read_bytes() for path in merged.iterdir()} - generated, key=lambda data: (len(data), data))
    kept: list[bytes] = []
    for data in found:
        most -= len(data)
        if most < 0:
            break
        kept.append(data)
    return kept


def keep(state: fuzz.State, target: str, inputs: list[bytes]) -> Path:
    """Write them, below what the file says of crashes of before."""
    path = fuzz_seeds.KEPT / f"{target}.hex"
    lines = path.read_text().splitlines() if path.exists() else []
    named = [n for n, line in enumerate(lines) if line.startswith("#")]
    old = [line for n in named for line in lines[n:n + 2]]
    path.write_text("\n".join([*old, *(data.hex() for data in inputs if data.hex() not in old)]) + "\n")
    return path


def main() -> None:
    state = fuzz.State(Path(sys.argv[1]))
    most = int(sys.argv[2]) if len(sys.argv) > 2 else BYTES
    fuzz_seeds.KEPT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for target in fuzz.TARGETS:
            path = keep(state, target, smallest(state, target, most // len(fuzz.TARGETS), Path(scratch)))
            print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
