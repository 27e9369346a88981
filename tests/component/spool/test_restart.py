"""A box that holds 100,000 objects takes images again within 10 s of process start, after being killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from blake3 import blake3

from appliance.clock import SystemClock
from appliance.dicom.part10 import build_head
from appliance.model import Custody
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from tests.support.spools import CT_CLASS, EXPLICIT, SOURCE, fresh

HELD = 100_000
GROUP = 5000
OPEN = 256
LINKS = 60_000
SECONDS = 10.0

RESTART = """
import sys
from pathlib import Path
from appliance.clock import SystemClock
from appliance.spool.intake import Intake
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from tests.support.spools import accept
spool = Spool.open(Path(sys.argv[1]))
intake = Intake(spool, Ledger.open(spool.ledger_path, SystemClock()), SystemClock())
intake.start()
accept(intake)
print(intake.recovery.adopted, intake.recovery.void, flush=True)
intake.stop()
"""


def held(spool: Spool, ledger: Ledger) -> None:
    """Rows through the ledger, files as links to one another: a start-up must not look at them, nor need to."""
    owner = ledger.register_owner("receiver")
    first = ledger.grant(owner, HELD)
    pattern = spool.path / "pattern"
    for start in range(0, HELD, GROUP):
        group = []
        for number in range(first + start, first + start + GROUP):
            if (number - first) % LINKS == 0:
                pattern.unlink(missing_ok=True)
                pattern.write_bytes(bytes(4097))
            os.link(pattern, spool.object_path(number))
            group.append(Custody(number, ledger.boot, number, 0, CT_CLASS, b"1.2.%d" % number, EXPLICIT, 1, bytes(32), SOURCE))
        ledger.accepted(group)
    pattern.unlink()


def under_way(spool: Spool, ledger: Ledger) -> None:
    """As much as a receiver may owe when it is killed, and its unused slots."""
    owner = ledger.register_owner("receiver")
    first = ledger.grant(owner, 2 * OPEN)
    data = os.urandom(200_000)
    digest = blake3(data).digest()
    for number in range(first, first + OPEN):
        custody = Custody(number, ledger.boot, number, 0, CT_CLASS, b"2.%d" % number, EXPLICIT, len(data), digest, SOURCE)
        spool.object_path(number).write_bytes(build_head(custody) + data)
    for number in range(first + OPEN, first + 2 * OPEN):
        spool.object_path(number).touch()


@pytest.mark.requirement("100,000 held objects: intake open within 10 s of process start")
@pytest.mark.slow
def test_ready_within_ten_seconds(tmp_path: Path) -> None:
    spool = fresh(tmp_path / "spool")
    with Ledger.open(spool.ledger_path, SystemClock()) as ledger:
        held(spool, ledger)
        under_way(spool, ledger)
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", RESTART, str(spool.path)], cwd=Path(__file__).parents[3], check=True,
                          stdout=subprocess.PIPE, text=True, timeout=60)
    took = time.monotonic() - begin
    assert done.stdout.split() == [str(OPEN), str(OPEN)]
    assert took <= SECONDS, f"{took:.2f} s"
    print(f"ready after {took:.2f} s with {HELD} objects held")
