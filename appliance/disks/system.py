"""The system's programs for disks, with a time limit for each; what is attached, by lsblk(8). Only root can do most of it.

A disk that hangs must not hang the box: whatever takes longer than its limit is given up, and said.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from appliance.errors import DiskFault
from appliance.policy.disks import Disk, Part

Run = Callable[..., str]
"""`run(command, seconds=…, stdin=…)`: what the program wrote. DiskFault where it fails."""

COLUMNS = "NAME,PATH,TYPE,SERIAL,MODEL,SIZE,RM,TRAN,RO,PTTYPE,FSTYPE,PARTUUID,PARTLABEL"
VAR_LABEL = "dcmgate-var"


def run(command: Sequence[str], *, seconds: float = 60.0, stdin: str = "") -> str:
    """Run a program; its output. DiskFault with its last line."""
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise DiskFault(f"{command[0]} did not end within {seconds:.0f} s", mend="look at the disk and its cable") from None
    except OSError as e:
        raise DiskFault(f"{command[0]}: {e.strerror}", mend="this works on the box alone, as root") from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()[-1]
        raise DiskFault(f"{command[0]}: {said}", mend="look at the disk and its cable")
    return done.stdout


def attached(run: Run = run, *, probe: bool = True) -> list[Disk]:
    """Every disk that can be written, with its partitions. `probe`: read those that look blank, to be sure; else none is blank.

    A disk that hangs is not to be read where it does not matter.
    """
    listed = json.loads(run(["lsblk", "--json", "--bytes", "--output", COLUMNS]))
    return [_disk(entry, run if probe else None) for entry in listed["blockdevices"]
            if entry["type"] == "disk" and entry["size"] and not entry["ro"] and not entry["path"].startswith("/dev/zram")]


def _disk(entry: dict[str, Any], run: Run | None) -> Disk:
    children = entry.get("children", [])
    parts = tuple(Part(part["path"], part["partuuid"] or "", part["partlabel"] or "", int(part["size"]))
                  for part in children if part["type"] == "part")
    # udev's word first; then the disk itself is asked, for a signature that udev does not know.
    unknown = not (children or entry["pttype"] or entry["fstype"])
    blank = unknown and run is not None and not run(["wipefs", "--noheadings", entry["path"]]).strip()
    return Disk(entry["path"], (entry["serial"] or "").strip(), (entry["model"] or "").strip(), int(entry["size"]), blank,
                bool(entry["rm"]) or entry["tran"] == "usb", any(part.label == VAR_LABEL for part in parts), parts)
