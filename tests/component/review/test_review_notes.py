"""Notes of lanes on a run folder without room: a page that cannot be had must not be the end of the forwarder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from appliance.forward.underway import UnderWay

ROOT = Path(__file__).resolve().parents[3]

PROGRAM = """
import sys
from contextlib import suppress
from pathlib import Path
from appliance.forward.underway import UnderWay
notes = UnderWay(Path(sys.argv[1]))
notes.open()
early = notes.take("pacs")
with open(Path(sys.argv[1]) / "filler", "wb", buffering=0) as filler, suppress(OSError):
    while True:
        filler.write(bytes(4096))
late = notes.take("pacs")
for slot, note in (early, late):
    note.window([1, 2, 3])
    note.under_way(2)
    notes.give_back(slot)
early = notes.take("pacs")[1].window([7])
"""


@pytest.mark.requirement("Delivery: two crashes park")
def test_a_full_run_folder_costs_notes_and_not_the_forwarder(tmp_path: Path) -> None:
    """It would die of SIGBUS at each start with what it had claimed, and after the second time all of that is parked."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "none", str(tmp_path)], capture_output=True, timeout=60,
                      check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
                              timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert [claims.numbers for claims in UnderWay(tmp_path).left()] == [(7,)]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True, timeout=60)
