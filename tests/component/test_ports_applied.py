"""Ports that have changed are taken up: how long the board's watchdog waits while the service manager reloads, and after it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "rootfs/usr/lib/dcmgate/libexec/apply"
LONGER, STATED = "180000000", str(2**64 - 1)
COMMANDS = {
    "dcmgate": 'mkdir -p "$3"; cd "$3"; echo "receiver 104" >ports; for each in tunnels journal-upload.conf; do : >$each; done',
    "nft": "", "chronyc": "", "busctl": 'echo "board $7" >>"$SAID"',
    "systemctl": 'case $1 in daemon-reload) echo reload >>"$SAID"; eval "$RELOAD";; is-active) exit 1;; esac',
}


def applied(folder: Path, kept: str = "", reload: str = "") -> tuple[int, list[str]]:
    """Run the script with its folders moved below this one, and commands that only say that they were called."""
    programs = folder / "bin"
    programs.mkdir()
    for name, body in COMMANDS.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    (folder / "var/etc").mkdir(parents=True)
    (folder / "var/etc/ports").write_text(kept)
    (folder / "run").mkdir()
    moved = folder / "apply"
    text = SCRIPT.read_text()
    for place in ("/run/", "/var/etc/"):
        assert f"={place}" in text
        text = text.replace(f"={place}", f"={folder}{place}")
    moved.write_text(text)
    environ = {"PATH": f"{programs}:{os.environ['PATH']}", "SAID": str(folder / "said"), "RELOAD": reload}
    done = subprocess.run(["sh", moved], env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    said = folder / "said"
    return done.returncode, said.read_text().splitlines() if said.exists() else []


@pytest.mark.requirement("Watchdog chain: a slow reload is no reset")
@pytest.mark.parametrize("reload, ends", [("", 0), ("exit 1", 1), ("kill -TERM $PPID", 143)])
def test_the_board_waits_longer_for_a_reload_and_no_longer_after_it(tmp_path: Path, reload: str, ends: int):
    status, said = applied(tmp_path, reload=reload)
    assert status == ends
    assert said[:3] == [f"board {LONGER}", "reload", f"board {STATED}"]
    assert set(said[3:]) <= {f"board {STATED}"}


@pytest.mark.requirement("Watchdog chain: a slow reload is no reset")
def test_ports_that_have_not_changed_cost_no_reload(tmp_path: Path):
    assert applied(tmp_path, kept="receiver 104\n") == (0, [])
