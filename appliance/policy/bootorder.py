"""Boot order: what the firmware tries where the boot menu cannot start what it chose. Pure: the bytes of UEFI variables.

systemd-boot gives the control back where a UKI cannot be started: one that is
not signed, or has rotted. The firmware then takes the next option of its own
list; these are the UKIs that have proven themselves, the newest first.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

ACTIVE = 1
OURS = (0xDC00, 0xDC01)
"""Numbers of our options (`BootDC00`): high, so that no firmware counts up to them."""

_HARD_DRIVE, _FILE, _END = (4, 1), (4, 4), b"\x7f\xff\x04\x00"
_GPT, _SIGNATURE_GUID = 2, 2


@dataclass(frozen=True, slots=True)
class EspPlace:
    """The EFI system partition: its number, first sector and sectors, its GUID."""

    number: int
    start: int
    size: int
    guid: str


def load_option(place: EspPlace, path: str, description: str) -> bytes:
    """EFI_LOAD_OPTION (UEFI 2.10, 3.1.3) for a file of that partition, `\\EFI\\Linux\\…`."""
    guid = uuid.UUID(place.guid).bytes_le
    drive = struct.pack("<IQQ16sBB", place.number, place.start, place.size, guid, _GPT, _SIGNATURE_GUID)
    paths = _node(_HARD_DRIVE, drive) + _node(_FILE, _text(path)) + _END
    return struct.pack("<IH", ACTIVE, len(paths)) + _text(description) + paths


def _node(kind: tuple[int, int], data: bytes) -> bytes:
    return struct.pack("<BBH", *kind, 4 + len(data)) + data


def _text(text: str) -> bytes:
    return (text + "\0").encode("utf-16-le")


def order(known: Sequence[int], current: int | None, count: int) -> list[int]:
    """The boot order with `count` options of ours behind the one that was booted; where that was one of ours, where they are;
    else behind the first. Others keep their place. Empty where the firmware has none: then it is not ours to begin one."""
    others = [number for number in known if number not in OURS]
    if not others:
        return []
    if current in others:
        behind = others.index(current) + 1
    else:
        behind = next((place for place, number in enumerate(known) if number in OURS), 1)
    return [*others[:behind], *OURS[:count], *others[behind:]]
