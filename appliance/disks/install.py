"""The installer's hands: looks at the board, writes the system from the stick to a disk, enrols the keys of Secure Boot.

A disk that holds a box keeps its own partitions (`dcmgate-key`, `-var`, `-spool`): only the content of the system's five is
written, and never a byte outside of them.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from appliance.disks.system import Run, run
from appliance.errors import DiskFault, DiskRefused
from appliance.policy.disks import Disk
from appliance.policy.install import LAYOUT, Board, Offer

STARTED = Path("/run/dcmgate-system/installer")
"""There where this system was started as an installer; the initrd says so."""

STICK_ESP = "1f5a6c9e-3b0d-4e57-9a44-d0c3a7e1b682"
"""Identifier of the first partition of an installer's stick (image-build/installer), by which it is told from a box."""

EFI = Path("/sys/firmware/efi/efivars")
GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
IMAGES = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
KEYS = (("db", IMAGES), ("KEK", GLOBAL), ("PK", GLOBAL))
"""In this order: with the last one the firmware leaves set-up mode."""

ATTRIBUTES = (0x27).to_bytes(4, "little")
"""Non-volatile, boot and run time, time-based authenticated write (UEFI 2.10, 8.2)."""

SETTLE_SECONDS = 120.0
"""Who is quick at the console asks while a slow board still looks for its devices."""

CHUNK = 4 << 20
Progress = Callable[[str, int, int], None]


def board(sys: Path = Path("/sys"), efi: Path = EFI) -> Board:
    """What can be read of the board."""
    tpm = 0
    with suppress(OSError, ValueError):
        tpm = int((sys / "class/tpm/tpm0/tpm_version_major").read_text())
    secure_boot = ""
    with suppress(OSError):
        secure_boot = "on" if (efi / f"SecureBoot-{GLOBAL}").read_bytes()[4:] == b"\1" else "off"
        if (efi / f"SetupMode-{GLOBAL}").read_bytes()[4:] == b"\1":
            secure_boot = "set-up mode"
    names = []
    for one in sorted((sys / "class/watchdog").glob("watchdog*/identity")):
        with suppress(OSError):
            names.append(one.read_text().strip())
    return Board(tpm, secure_boot, tuple(names))


def stick(disks: list[Disk]) -> Disk:
    """The stick that this was started from. DiskRefused."""
    fit = [disk for disk in disks if any(part.uuid == STICK_ESP for part in disk.parts)]
    if len(fit) != 1:
        raise DiskRefused("the installer's stick is not found" if not fit else "there are several sticks of an installer",
                          mend="have exactly one in the box, and start from it")
    return fit[0]


def install(source: Disk, offer: Offer, *, run: Run = run, progress: Progress = lambda *_: None,
            new_uuid: Callable[[], str] = lambda: str(uuid.uuid4())) -> None:
    """Write the system to the disk. DiskFault; an installation that was cut off is done again from the beginning."""
    target = offer.disk.path
    model = _table(source.path, run)[:LAYOUT]
    if len(model) < LAYOUT:
        raise DiskRefused(f"{source.path} is not the stick of an installer", mend="write the installer's image to it again")
    if offer.keeps:
        _fits(model, _table(target, run)[:LAYOUT])
        for number, entry in enumerate(model, 1):
            name, part = _names(number, entry, new_uuid)
            run(["sfdisk", "--quiet", "--no-reread", "--part-label", target, str(number), name])
            run(["sfdisk", "--quiet", "--no-reread", "--part-uuid", target, str(number), part])
    else:
        run(["wipefs", "--all", "--force", "--quiet", target])
        lines = ["label: gpt"]
        for number, entry in enumerate(model, 1):
            name, part = _names(number, entry, new_uuid)
            lines.append(f'size={entry["size"]}, type={entry["type"]}, uuid={part}, name="{name}"'
                         + (f', attrs="{entry["attrs"]}"' if entry.get("attrs") else ""))
        run(["sfdisk", "--quiet", "--wipe", "always", "--wipe-partitions", "always", target], stdin="\n".join(lines) + "\n")
    _settle(run)
    written = _table(target, run)[:LAYOUT]
    for number, (entry, to) in enumerate(zip(model, written, strict=True), 1):
        if number <= 3:
            try:
                _copy(Path(entry["node"]), Path(to["node"]), int(entry["size"]) * 512, partial(progress, entry["name"]))
            except OSError as e:
                raise DiskFault(f"{to['node']}: {e.strerror}", mend="try again; if it comes again, take another disk") from e
    _settle(run)


def _settle(run: Run) -> None:
    """Wait until the kernel has told of all that was changed. DiskFault."""
    run(["udevadm", "settle", f"--timeout={SETTLE_SECONDS:.0f}"], seconds=2 * SETTLE_SECONDS)


def _names(number: int, entry: dict[str, Any], new_uuid: Callable[[], str]) -> tuple[str, str]:
    """Label and identifier of a partition: root and verity are found by theirs, every other is this disk's own."""
    if number in (2, 3):
        return entry["name"], entry["uuid"]
    return ("_empty" if number > 3 else entry["name"]), new_uuid()


def _fits(model: list[dict[str, Any]], there: list[dict[str, Any]]) -> None:
    """Nothing is written beyond the partitions that a disk has."""
    for entry, old in zip(model, there, strict=True):
        if old["type"] != entry["type"] or int(old["size"]) < int(entry["size"]):
            raise DiskRefused("this disk was laid out by another version, whose partitions are too small",
                              mend="deliver what it holds, then factory-reset it and install anew")


def _table(path: str, run: Run) -> list[dict[str, Any]]:
    """sfdisk's word on the partitions, in the order of their numbers; sizes in sectors of 512 bytes. DiskFault."""
    table = json.loads(run(["sfdisk", "--json", path]))["partitiontable"]
    if table["label"] != "gpt" or int(table.get("sectorsize", 512)) != 512:
        raise DiskRefused(f"{path} has no partition table that is known here", mend="take another disk")
    found: list[dict[str, Any]] = table["partitions"]
    return found


def _copy(source: Path, target: Path, size: int, progress: Callable[[int, int], None]) -> None:
    """So many bytes, on stable storage when it returns. OSError."""
    with source.open("rb") as reading, target.open("r+b", buffering=0) as writing:
        done = 0
        while done < size and (chunk := reading.read(min(CHUNK, size - done))):
            writing.write(chunk)
            done += len(chunk)
            progress(done, size)
        if done < size:
            raise OSError(5, "ends before its time")
        os.fsync(writing.fileno())


def enrol(folder: Path, efi: Path = EFI) -> None:
    """Put the signed lists `db.auth`, `KEK.auth`, `PK.auth` in force; the firmware takes them in set-up mode. DiskFault."""
    for name, vendor in KEYS:
        variable = efi / f"{name}-{vendor}"
        try:
            content = (folder / f"{name}.auth").read_bytes()
            handle = os.open(variable, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.write(handle, ATTRIBUTES + content)      # one write is one variable
            finally:
                os.close(handle)
        except OSError as e:
            raise DiskFault(f"the firmware does not take the key {name}: {e.strerror}",
                            mend="enrol it in the firmware's own menu: loader/keys/auto on the stick") from e
