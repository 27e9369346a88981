"""The disks of a box: which ones a new spool is made on, which of a mirror may be started, what is said of all that.

Pure: facts in, decisions and words out. The facts are those of the initrd (`key=value` lines, what it found when it opened the
box's own partition) and those of `dcmgate disk open` (the spool).
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from appliance.model import Alarm, Severity

MIB = 1 << 20
LEAST_SPOOL = 512 * MIB
"""A second disk below that is no disk for a spool."""

NOT_COVERED = "theft is not covered"


class Opened(enum.StrEnum):
    """By what the box's own partition was opened at this boot."""

    TPM = "tpm2"
    KEY_SLOT = "key-slot"
    RECOVERY_KEY = "recovery-key"
    NOTHING = "none"


@dataclass(frozen=True, slots=True)
class Boot:
    """What the initrd found. `var`: luks2, plain, memory, or "" where this is no box with an initrd of ours."""

    var: str = ""
    opened: Opened = Opened.NOTHING
    sealed: frozenset[int] = frozenset()
    secure_boot: bool = False
    refused: str = ""


def boot(text: str) -> Boot:
    """The initrd's lines; what is not known there is left out, the last of two wins."""
    said = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    opened = said.get("opened", "")
    return Boot(said.get("var", ""), Opened(opened) if opened in set(Opened) else Opened.NOTHING,
                frozenset(int(word) for word in said.get("sealed", "").split() if word.isdecimal()),
                said.get("secure-boot") == "yes", said.get("refused", ""))


@dataclass(frozen=True, slots=True)
class Part:
    """A partition: `uuid` of the partition table, its label there, its size in bytes."""

    path: str
    uuid: str
    label: str
    size: int


@dataclass(frozen=True, slots=True)
class Disk:
    """A whole disk. `blank`: neither a partition table nor a file system on it. `removable`: a stick, or on USB."""

    path: str
    serial: str
    model: str = ""
    size: int = 0
    blank: bool = False
    removable: bool = False
    system: bool = False
    parts: tuple[Part, ...] = ()

    @property
    def name(self) -> str:
        """As people find it: what is printed on it."""
        return self.serial or self.path


@dataclass(frozen=True, slots=True)
class Member:
    """A partition of the spool, by the identifier of the partition and the serial number of its disk."""

    uuid: str
    serial: str
    present: bool = True
    working: bool = True


@dataclass(frozen=True, slots=True)
class SpoolDisks:
    """The spool as it was opened. `mirror`: two disks were there when it was made. `errors`: rotten blocks that were mended.

    `problem`: why it is not open, or why another disk does not take the place of one that is gone.
    """

    made: bool = False
    open: bool = False
    mirror: bool = False
    members: tuple[Member, ...] = ()
    resyncing: bool = False
    errors: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """No spool is made or opened, and why."""

    reason: str


LABEL = "dcmgate-spool"


def new_spool(disks: Sequence[Disk], *, known_spool: bool) -> tuple[Disk, ...] | Refused:
    """The disks that the spool of a new box is made on: that of the system, and a blank one beside it for the mirror.

    `known_spool`: this box remembers that it had a spool. Then, or where any disk has a partition for a spool already,
    none is made: what a disk holds is never started afresh.
    """
    if known_spool:
        return Refused("this box had a spool, and its disks are not recorded")
    for disk in disks:
        if any(part.label == LABEL for part in disk.parts):
            return Refused(f"disk {disk.name} holds a spool that is not this box's")
    system = [disk for disk in disks if disk.system]
    if not system:
        return Refused("the disk of the system is not found")
    others = [disk for disk in _second(disks) if disk.blank and disk.size >= LEAST_SPOOL]
    return (system[0], *others[:1])


def replacement(disks: Sequence[Disk], members: Sequence[Member], least: int) -> Disk | Refused | None:
    """The disk that takes the place of one that is gone from a mirror of `least` bytes: a blank one, as for a new spool.

    None where there is no other disk; Refused where there is one, and it is left alone: what it holds may be somebody's.
    """
    ours = {member.uuid for member in members}
    others = [disk for disk in _second(disks) if not any(part.uuid in ours for part in disk.parts)]
    for disk in others:
        if disk.blank and disk.size > least:
            return disk
    if not others:
        return None
    why = "too small" if others[0].blank else "not blank"
    return Refused(f"disk {others[0].name} is {why}, and does not take its place")


def _second(disks: Sequence[Disk]) -> list[Disk]:
    """What could be the second disk of a mirror, the largest first."""
    others = [disk for disk in disks if not disk.removable and not disk.system]
    return sorted(others, key=lambda disk: (-disk.size, disk.serial, disk.path))


def startable(members: Sequence[Member], current: Collection[str]) -> tuple[Member, ...] | Refused:
    """The members a mirror may be started with. `current`: those (uuid) that took part in the last write that is known.

    A member that was left behind is not started alone: it lacks what was acknowledged since. With one that is current it comes
    along, and is brought up to date.
    """
    there = tuple(member for member in members if member.present)
    if any(member.uuid in current for member in there):
        return there
    missing = ", ".join(member.serial or member.uuid for member in members if member.uuid in current)
    if there:
        return Refused(f"only a disk is there that was left behind; what is current is on disk {missing}")
    return Refused(f"disk {missing or 'of the spool'} is not there")


# --- words ---------------------------------------------------------------------------------------------------------------

def theft_covered(found: Boot) -> bool:
    """Whether who takes box or disk away cannot read it: a TPM holds the key, and Secure Boot (PCR 7) is part of the seal."""
    return found.var == "luks2" and found.opened is not Opened.KEY_SLOT and {7, 11, 12} <= found.sealed


def encryption_line(found: Boot) -> str:
    """Encryption in one sentence for people."""
    if found.var == "":
        return ""
    if found.var == "memory":
        return "the box's own partition is locked or broken: this boot keeps nothing"
    if found.var == "plain":
        return f"not encrypted: {NOT_COVERED}"
    if found.opened is Opened.RECOVERY_KEY:
        return "encrypted (LUKS2), opened by the recovery key" + ("" if theft_covered(found) else f": {NOT_COVERED}")
    if found.opened is Opened.KEY_SLOT:
        return f"encrypted (LUKS2), but the key lies on the same disk, as there is no TPM: {NOT_COVERED}"
    if not theft_covered(found):
        return f"encrypted (LUKS2), sealed to the TPM while Secure Boot was off: other software can ask it, {NOT_COVERED}"
    return "encrypted (LUKS2), sealed to the TPM and to Secure Boot"


def redundant(spool: SpoolDisks) -> bool:
    """Whether a disk may die now without an image being lost."""
    return spool.open and spool.mirror and all(one.present and one.working for one in spool.members) and not spool.resyncing


def redundancy_line(spool: SpoolDisks) -> str:
    """Redundancy in one sentence for people."""
    serials = " and ".join(member.serial or "without serial number" for member in spool.members)
    if not spool.made:
        return f"no spool: {spool.problem}" if spool.problem else ""
    if not spool.open:
        return f"the spool is not open: {spool.problem or 'its disk is not there'}"
    if not spool.mirror:
        return f"not redundant: one disk ({serials})"
    broken = [member.serial or member.uuid for member in spool.members if not (member.present and member.working)]
    if broken:
        why = f"; {spool.problem}" if spool.problem else ""
        return f"not redundant any more: disk {', '.join(broken)} is out of the mirror{why}"
    return f"two disks, mirrored ({serials})" + (", the second one is being brought up to date" if spool.resyncing else "")


def alarms(found: Boot, spool: SpoolDisks, *, recovery_key_unseen: bool) -> list[Alarm]:
    """What a person has to know of the disks; a disk is named by its serial number."""
    said = []
    if found.var == "memory":
        said.append(Alarm("disk-locked", Severity.CRITICAL, "the box's own partition cannot be opened: this boot keeps nothing",
                          "Restart with recovery-key.txt on a stick labelled DCMGATE-KEY, or type that key at the console."))
    elif found.opened is Opened.RECOVERY_KEY:
        said.append(Alarm("disk-recovery", Severity.WARNING,
                          "the disk was opened by its recovery key, as it did not open by itself",
                          "Take the stick away. If this comes again, TPM or firmware settings have changed for good."))
    if spool.made and not spool.open:
        said.append(Alarm("disk-spool", Severity.CRITICAL, redundancy_line(spool),
                          "Look at the disk and its cable; `dcmgate disk status` names it by its serial number."))
    broken = [one for one in spool.members if spool.mirror and spool.open and not (one.present and one.working)]
    said += [Alarm(f"disk:{one.serial or one.uuid}", Severity.CRITICAL,
                   f"disk {one.serial or one.uuid} is out of the mirror: every image is on one disk alone",
                   "Replace it with the power off: a blank disk of that size is taken in at the next start. Nothing is lost "
                   "while the other one works.") for one in broken]
    if spool.errors:
        said.append(Alarm("disk-rot", Severity.WARNING,
                          f"{spool.errors} blocks of a disk were not what was written there; the other disk had them",
                          "Replace the disk if the number grows: `dcmgate disk status` says which one."))
    if recovery_key_unseen:
        said.append(Alarm("recovery-key", Severity.WARNING, "nobody has written down the recovery key of the disk",
                          "`dcmgate disk recovery-key` shows it; with `--written-down` it is deleted from the box."))
    return said


# --- factory reset -------------------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Held:
    """What a reset would destroy, in objects. `problem`: why that cannot be counted."""

    undelivered: int = 0
    unconfirmed: int = 0
    damaged: int = 0
    problem: str = ""
    where: tuple[str, ...] = field(default=())


def reset_refusal(held: Held, *, override: bool, reason: str) -> str:
    """Why the box is not made new now; "" where it may be. Only a reason, with the name of who gives it, goes over that."""
    if override and not reason.strip():
        return "an override needs a reason"
    if override:
        return ""
    if held.problem:
        return f"what it holds cannot be counted: {held.problem}"
    parts = [f"{count} {what}" for count, what in ((held.undelivered, "not delivered"), (held.damaged, "in quarantine"),
                                                   (held.unconfirmed, "delivered, but not confirmed")) if count]
    return f"it holds images: {', '.join(parts)}" if parts else ""
