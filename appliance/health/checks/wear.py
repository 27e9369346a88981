"""Check `wear`: what the disks say of themselves in sysfs: the life of eMMC and SD cards, errors that a SCSI or SATA disk
has returned. (NVMe and SATA tell their wear only by commands that need raw access to the disk, which nothing here has.)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from appliance.health.checks.verdict import State, Verdict

BLOCKS = Path("/sys/block")
MEND = "Order a replacement, and change it before it fails: the spool can be taken over."

WORN, ENDED = 9, 11
"""eMMC life time estimate in steps of 10 %: 9 is 80 to 90 % used, 11 is beyond (JEDEC 84-B51, EXT_CSD 268 and 269)."""


def look(blocks: Path = BLOCKS) -> Verdict:
    states = {State.UNKNOWN: 0, State.GOOD: 1, State.POOR: 2, State.BAD: 3}
    found = [each for disk in sorted(blocks.iterdir()) for each in _of(disk)] if blocks.is_dir() else []
    if not found:
        return Verdict("wear", State.UNKNOWN)
    evidence = {text: str(state) for state, text in found}
    worst, text = max(found, key=lambda one: states[one[0]])
    return Verdict("wear", worst, text if worst is not State.GOOD else "", MEND if worst is not State.GOOD else "", evidence)


def _of(disk: Path) -> Iterator[tuple[State, str]]:
    used = [int(word, 16) for word in _words(disk / "device" / "life_time") if word.startswith("0x")]
    if any(used):
        worst = max(used)
        state = State.BAD if worst >= ENDED else State.POOR if worst >= WORN else State.GOOD
        yield state, f"{disk.name} has used {min(worst * 10, 100)} % of its life"
    for word in _words(disk / "device" / "pre_eol_info"):
        if word in ("0x02", "0x03"):
            yield State.BAD if word == "0x03" else State.POOR, f"{disk.name} has few spare blocks left"
    for word in _words(disk / "device" / "ioerr_cnt"):
        errors = int(word, 16) if word.startswith("0x") else 0
        yield State.POOR if errors > 100 else State.GOOD, f"{disk.name} has returned {errors} errors since it was found"


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
