"""The installer's decisions: which disks it offers, what an installation does to one, what is said of the board.

Pure. The installer is the system image started from its stick; what it writes is what it was started from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.policy.disks import Disk

MIB = 1 << 20
SYSTEM_LABELS = ("esp", "dcmgate_", "_empty")
KEPT = ("dcmgate-key", "dcmgate-var", "dcmgate-spool")
LEAST = 4 << 30
"""Bytes of a disk that the system, its second slot, and a spool to speak of fit on."""

ERASE = "ERASE"
LAYOUT = 5
"""Partitions of the system: esp, root, verity, and the other slot's root and verity."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A disk that can be chosen. `keeps`: partitions of a box that stay; `foreign`: what else is on it, and would be lost."""

    disk: Disk
    keeps: tuple[str, ...] = ()
    foreign: bool = False
    refusal: str = ""

    @property
    def text(self) -> str:
        """A line for people."""
        size = f"{self.disk.size / 1e9:.0f} GB"
        name = f"{self.disk.name:24} {self.disk.model or 'disk':24} {size:>8}"
        if self.refusal:
            return f"{name}   cannot be used: {self.refusal}"
        if self.keeps:
            return f"{name}   a box of ours: {', '.join(self.keeps)} {'stays' if len(self.keeps) == 1 else 'stay'} as they are"
        return f"{name}   {'holds something else, which would be lost' if self.foreign else 'blank'}"


def offers(disks: Sequence[Disk], stick: str) -> list[Offer]:
    """What may be installed on, in the order of serial numbers; never the stick (its path), nor another removable one."""
    return [_offer(disk) for disk in sorted(disks, key=lambda disk: (disk.serial, disk.path))
            if disk.path != stick and not disk.removable]


def _offer(disk: Disk) -> Offer:
    if not disk.serial:
        return Offer(disk, refusal="it has no serial number")
    if disk.size < LEAST:
        return Offer(disk, refusal=f"smaller than {LEAST / 1e9:.0f} GB")
    labels = [part.label for part in disk.parts]
    keeps = tuple(label for label in labels if label in KEPT)
    ours = len(labels) >= LAYOUT and all(label.startswith(SYSTEM_LABELS) for label in labels[:LAYOUT])
    if keeps and not ours:
        if set(keeps) == set(labels):
            return Offer(disk, keeps, refusal="it is the second disk of a mirror, and holds images")
        return Offer(disk, keeps, refusal="it holds data of a box, but not its system in the usual place")
    return Offer(disk, keeps, foreign=not keeps and not disk.blank)


def choose(found: Sequence[Offer], serial: str) -> Offer | str:
    """The disk with exactly that serial number, or why it is not taken."""
    fit = [offer for offer in found if offer.disk.serial == serial]
    if len(fit) != 1:
        return f'no disk has the serial number "{serial}"' if not fit else f'several disks have the serial number "{serial}"'
    return fit[0].refusal or fit[0]


# --- the board -----------------------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Board:
    """What can be read of it. `watchdogs`: names of those in hardware; `secure_boot`: on, off, set-up mode, or ""."""

    tpm: int = 0
    secure_boot: str = ""
    watchdogs: tuple[str, ...] = ()


SOFTWARE_WATCHDOGS = ("Software Watchdog",)


def board_lines(board: Board) -> list[tuple[bool, str]]:
    """(good, text) for each thing a box wants of its board. What cannot be read is said to be so."""
    hard = [name for name in board.watchdogs if name not in SOFTWARE_WATCHDOGS]
    return [
        (board.tpm == 2, "TPM 2.0: there" if board.tpm == 2 else
         f"TPM {'1.2 only' if board.tpm == 1 else 'none'}: the key will lie on the disk, theft is not covered"),
        (board.secure_boot in ("on", "set-up mode"),
         {"on": "Secure Boot: on", "set-up mode": "Secure Boot: in set-up mode, our keys can be enrolled",
          "off": "Secure Boot: off, with keys that are not ours. Clear them in the firmware (set-up mode), then start again"}
         .get(board.secure_boot, "Secure Boot: this firmware has none")),
        (bool(hard), f"watchdog: {', '.join(hard)}" if hard else
         "watchdog: none in hardware; a system that hangs has to be restarted by hand"),
        (False, "power-on after AC loss: cannot be read. Set it in the firmware, then try it: pull the plug, put it back"),
    ]
