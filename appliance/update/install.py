"""Install: has systemd-sysupdate write a checked release to the other slot, then drains, then restarts into it. As root.

The order is what a power cut has to leave bootable: systemd-sysupdate writes
verity and root to the slot that does not run, and the UKI last, under a name
with its tries. The running version is protected from it.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from appliance.health import published
from appliance.policy.update import Refused, Release, Trial
from appliance.update import firmware
from appliance.update.fetch import Broken
from appliance.update.records import Records
from appliance.update.release import checked

SYSUPDATE = "/usr/lib/systemd/systemd-sysupdate"
SECONDS = 3600
DRAIN_LOOK = 2.0
ESTABLISHED = "01"


def install(records: Records, offered: Release, run: Path, by: str, *, again: bool = False) -> None:
    """Write it; the box has to be restarted afterwards. Refused, Broken, OSError. `run`: of `[control]`."""
    places, box = records.places, records.installed()
    if checked(places.bundle, box, places, again=again).version != offered.version:
        raise Refused("the folder that it was fetched to holds another version now")
    _clear_away(records, offered.version)
    before = reached(run)
    trial = Trial(offered.version, box.running, False, by, time.time_ns(), before)
    records.set_trial(trial)
    command = [SYSUPDATE, "update", offered.version]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, errors="replace")
    except subprocess.TimeoutExpired:
        raise Broken(f"{offered.version} could not be written within {SECONDS} s") from None
    if done.returncode != 0:
        records.end_trial()
        raise Broken(f"{offered.version} could not be written: {_last_words(done.stderr)}")
    os.sync()
    records.set_trial(Trial(offered.version, box.running, True, by, time.time_ns(), before))
    firmware.offer(places)
    records.note("installed", offered.version, f"beside {box.running}", by)


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "systemd-sysupdate says nothing"


def _clear_away(records: Records, version: str) -> None:
    """The UKI of an earlier trial of that version, which would count as installed, and what a power cut left half written."""
    folder = records.places.menu()
    if folder is None:
        return
    for entry in records.places.entries():
        if entry.version == version and version != records.places.running():
            (folder / entry.name).unlink()
    for name in os.listdir(folder):
        if name.startswith(".#"):
            (folder / name).unlink()


def reached(run: Path) -> tuple[str, ...]:
    """Destinations that can be reached now, as the forwarder's monitor knows it."""
    reaches, _ = published.read(run)
    return tuple(sorted(id for id, reach in reaches.items() if reach.reached is not None and not reach.failures))


# --- drain ---------------------------------------------------------------------------------------------------------------

def associations(ports: Collection[int]) -> int:
    """Connections that scanners have with our ports, as the kernel counts them."""
    count = 0
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                count += fields[3] == ESTABLISHED and int(fields[1].rpartition(":")[2], 16) in ports
    return count


def drain(ports: Collection[int], seconds: float, tell: Callable[[int], None]) -> int:
    """Wait until no scanner is connected, at most so long. How many still are."""
    deadline = time.monotonic() + seconds
    while (left := associations(ports)) and time.monotonic() < deadline:
        tell(left)
        time.sleep(DRAIN_LOOK)
    return left


def restart() -> None:
    subprocess.run(["systemctl", "--no-block", "start", "reboot.target"], check=True, timeout=60)
