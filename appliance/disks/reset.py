"""The factory reset, as root: ends intake, counts once more, leaves the order on the box's own partition, and restarts.

The initrd wipes the disks, where nothing of them is in use; it finds the order again after a power cut.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from appliance.disks.system import Run, run
from appliance.errors import DiskRefused
from appliance.policy.disks import Held, reset_refusal

KEEPER = 814
"""The user of the keeper (rootfs/usr/lib/sysusers.d/dcmgate.conf): what he has checked and nobody else could write."""

ORDER = Path("/var/etc/disk/factory-reset")
RECEIVER = ("dcmgate-receiver.socket", "dcmgate-receiver.service")


def reset_box(by: str, reason: str, *, override: bool, count: Callable[[], Held], run: Run = run, order: Path = ORDER) -> None:
    """Order the reset and restart. DiskRefused where something came in meanwhile: then intake goes on."""
    _system(run, "stop", *RECEIVER)
    held = count()
    if refusal := reset_refusal(held, override=override, reason=reason):
        _system(run, "start", RECEIVER[0])
        raise DiskRefused(f"the box is not made new: {refusal}", mend="something came in meanwhile; deliver that first")
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    words = f"{held.undelivered} not delivered, {held.unconfirmed} not confirmed, {held.damaged} in quarantine"
    line = " ".join(f"{by}, {when}, with {held.problem or words}: {reason or 'no reason given'}".split())
    with order.open("w") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(order.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    _system(run, "--no-block", "reboot")


def _system(run: Run, *words: str) -> None:
    run(["systemctl", *words], seconds=120.0)
