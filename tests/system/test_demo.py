"""`make run ONCE=1`, as it is typed: the archive goes away and comes back, and the last line is the balance's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.gateway import ROOT
from tests.support.waiting import free_port

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.mark.requirement("I2")
def test_the_demo_ends_with_an_exact_balance(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "appliance.demo", "--once", "--folder", str(tmp_path), "--port", str(free_port())]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "unaccounted 0"
    assert any("the archive is taken away" in line for line in lines)
    assert any("archive down" in line or "archive retrying" in line for line in lines), "the outage was seen"
    assert any("storescu -v -aec DCMGATE 127.0.0.1" in line for line in lines)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
