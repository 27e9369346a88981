"""Another start for a TPM that did not give the key of the box's own partition: one, until the key was given.

    DcmgateKeeps    written here: this firmware keeps what it is told from one boot to the next
    DcmgateAgain    written by the initrd (`persist`) before it restarts, and only where the first is there; removed here

A measurement that a TPM missed is missed for as long as the machine runs, and a box on
memory takes nothing in: without a restart it would wait for a person to make one.
"""

from __future__ import annotations

from appliance.policy.disks import Boot, Opened
from appliance.watchdog.budget import EFI, SECONDS, Variable, within

KEEPS = EFI.with_name(EFI.name.replace("Budget", "Keeps"))
AGAIN = EFI.with_name(EFI.name.replace("Budget", "Again"))

TOLD = "the TPM did not give the disk's key at the start before, and the box restarted once for it"


def settle(found: Boot, keeps: Variable | None = None, again: Variable | None = None, seconds: float = SECONDS) -> bool:
    """Whether this boot is that other start, and it did what it was for. From now on there may be one more.

    OSError where the firmware's memory cannot be written within so many seconds: then no other start is taken.
    """
    keeps, again = keeps or Variable(KEEPS), again or Variable(AGAIN)
    if found.opened is Opened.NOTHING:
        return False
    there = within(again.remove, seconds)
    if found.opened is Opened.TPM and not within(keeps.exists, seconds):
        within(lambda: keeps.write(b"\1"), seconds)
    return there and found.opened is Opened.TPM
