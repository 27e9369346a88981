"""What is known of the disks, for everybody: the initrd's word, that of `dcmgate disk open`, and the kernel's, now.

    /run/dcmgate-system/disk        the initrd: how the box's own partition was opened
    /run/dcmgate-system/spool.json  the spool: which disks, and whether it is open
    /sys/block/…/md                 the mirror: which members work, what was mended
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from appliance.model import Alarm
from appliance.policy.disks import Boot, Member, SpoolDisks, alarms, boot

FOLDER = Path("/run/dcmgate-system")
BOOT = "disk"
SPOOL = "spool.json"
MEMBER = "dcmgate-member-"
"""Device-mapper name of a member of the mirror: this and the first eight letters of its partition's identifier."""

RECOVERY_KEY = Path("/var/lib/dcmgate/recovery-key")
"""There from the first boot until somebody has written it down; the keeper's."""


def boot_found(folder: Path = FOLDER) -> Boot:
    """The initrd's word; `Boot()` where there was none."""
    try:
        return boot((folder / BOOT).read_text())
    except (OSError, ValueError):
        return Boot()


def spool_found(folder: Path = FOLDER, sys: Path = Path("/sys")) -> SpoolDisks:
    """The spool's disks as they are now; `SpoolDisks()` where nothing is known of them."""
    try:
        said = json.loads((folder / SPOOL).read_text())
        spool = SpoolDisks(said["made"], said["open"], said["mirror"], tuple(_member(one) for one in said["members"]),
                           problem=said["problem"])
    except (OSError, ValueError, KeyError, TypeError):
        return SpoolDisks()
    return _mirror_now(spool, sys) if spool.mirror and spool.open else spool


def _member(said: dict[str, Any]) -> Member:
    return Member(str(said["uuid"]), str(said["serial"]), bool(said["present"]), bool(said["working"]))


def _mirror_now(spool: SpoolDisks, sys: Path) -> SpoolDisks:
    """With the kernel's word on each member: in_sync and spare ones work, faulty and removed ones do not."""
    for array in sorted((sys / "block").glob("md*/md")):
        states: dict[str, str] = {}
        errors = 0
        for slot in array.glob("dev-*"):
            with suppress(OSError, ValueError):
                name = (slot / "block/dm/name").read_text().strip()
                if name.startswith(MEMBER):
                    states[name.removeprefix(MEMBER)] = (slot / "state").read_text().strip()
                    errors += int((slot / "errors").read_text())
        if not states:
            continue
        members = tuple(replace(member, working=member.uuid[:8] in states and not _out(states[member.uuid[:8]]))
                        for member in spool.members)
        doing = ""
        with suppress(OSError):
            doing = (array / "sync_action").read_text().strip()
        behind = any("spare" in _words(state) for state in states.values())      # also where the kernel has given up on it
        return replace(spool, members=members, errors=errors, resyncing=behind or doing in ("resync", "recover"))
    return replace(spool, members=tuple(replace(member, working=False) for member in spool.members))


def _out(state: str) -> bool:
    return not {"faulty", "blocked"}.isdisjoint(_words(state))


def _words(state: str) -> list[str]:
    return state.replace("\n", ",").split(",")


def recovery_key_unseen() -> bool:
    """Whether the recovery key still waits to be written down; False for those who may not look."""
    try:
        return RECOVERY_KEY.exists()
    except OSError:
        return False


def disk_alarms() -> list[Alarm]:
    """What a person has to know of the disks now; nothing on a computer that is not the box."""
    found = boot_found()
    return alarms(found, spool_found(), recovery_key_unseen=recovery_key_unseen()) if found.var else []


def publish(spool: SpoolDisks, folder: Path = FOLDER) -> None:
    """Say what was found of the spool. OSError."""
    said = {"made": spool.made, "open": spool.open, "mirror": spool.mirror, "problem": spool.problem,
            "members": [{"uuid": one.uuid, "serial": one.serial, "present": one.present, "working": one.working}
                        for one in spool.members]}
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f"{SPOOL}.new"
    new.write_text(json.dumps(said) + "\n")
    new.chmod(0o644)
    new.replace(folder / SPOOL)
