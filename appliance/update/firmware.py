"""Firmware: keeps the UKIs that have proven themselves in the firmware's own list, behind the boot menu (`policy.bootorder`).

UEFI variables are written only where they change: they are flash.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from appliance.policy.bootorder import OURS, EspPlace, load_option, order
from appliance.policy.update import Slot
from appliance.telemetry.log import Log
from appliance.update.places import LOADER, Places

GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
KEPT = 7
"""Attributes: non-volatile, of boot services and of the running system."""

log = Log("update")


def offer(places: Places) -> None:
    """Never raises: a firmware that does not go along leaves things as they are."""
    try:
        _offer(places)
    except (OSError, ValueError, struct.error) as e:
        log.warning("the firmware's boot order stays as it is", why=str(e))


def _offer(places: Places) -> None:
    folder = places.menu()
    known = _numbers(places.efivars / f"BootOrder-{GLOBAL}")
    if folder is None or not known:
        return
    good = [entry for entry in reversed(places.entries()) if entry.slot is Slot.GOOD][:len(OURS)]
    if not good:
        return
    place = _place(folder / good[0].name, places)
    for number, entry in zip(OURS, good, strict=False):
        option = load_option(place, f"\\EFI\\Linux\\{entry.name}", f"Dcmgate {entry.version}")
        _put(places.efivars / f"Boot{number:04X}-{GLOBAL}", option)
    current = _numbers(places.efivars / f"BootCurrent-{GLOBAL}")
    wanted = order(known, current[0] if current else None, len(good))
    if wanted:
        _put(places.efivars / f"BootOrder-{GLOBAL}", struct.pack(f"<{len(wanted)}H", *wanted))


def _numbers(path: Path) -> list[int]:
    try:
        data = path.read_bytes()[4:]
    except FileNotFoundError:
        return []
    return list(struct.unpack(f"<{len(data) // 2}H", data[:len(data) // 2 * 2]))


def _put(path: Path, data: bytes) -> None:
    raw = struct.pack("<I", KEPT) + data
    if not path.exists() or path.read_bytes() != raw:
        path.write_bytes(raw)        # in one write: each is a variable of its own


def _place(file: Path, places: Places) -> EspPlace:
    device = os.stat(file).st_dev
    about = places.sysfs / f"dev/block/{os.major(device)}:{os.minor(device)}"
    guid = (places.efivars / f"LoaderDevicePartUUID-{LOADER}").read_bytes()[4:].decode("utf-16-le").rstrip("\0")
    number, start, size = (int((about / name).read_text()) for name in ("partition", "start", "size"))
    return EspPlace(number, start, size, guid)
