"""Budget: how many reboots each fault has had, kept where the suspect disk is not, and without a wall clock.

    EFI variable     in the board's own memory; where the firmware has one that can be written
    file             in `/var`, another partition than the spool, often on the same disk

Both hold the same few bytes of JSON with a serial number; the newest that can be
read counts. A disk that hangs keeps a thread of ours and nothing else. What was
not written anywhere does not count as kept: then nobody reboots (`decide`).
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from appliance.policy.escalation import UNSPENT, Spent
from appliance.spool.durable import write_whole

T = TypeVar("T")

SECONDS = 10.0
"""So long a place has to answer."""

LONGEST = 4096

EFI = Path("/sys/firmware/efi/efivars/DcmgateBudget-6f1f3d8e-36f0-4e0c-9a53-0d1b2f7c5a11")
FILE = Path("/var/lib/dcmgate-system/budget.json")

_ATTRIBUTES = struct.pack("<I", 7)       # non-volatile, at boot, at run time
_GET_FLAGS, _SET_FLAGS, _IMMUTABLE = 0x80086601, 0x40086602, 0x10


class Place(Protocol):
    """Where a few bytes outlive a reboot. OSError."""

    def read(self) -> bytes: ...

    def write(self, data: bytes) -> None: ...


class Variable:
    """An EFI variable, as the kernel shows it as a file."""

    def __init__(self, path: Path = EFI) -> None:
        self._path = path

    def read(self) -> bytes:
        return self._path.read_bytes()[len(_ATTRIBUTES):]

    def write(self, data: bytes) -> None:
        """In one write, as the kernel wants it; one that is there is protected from being deleted by accident."""
        if self._path.exists():
            self._unprotect()
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, _ATTRIBUTES + data)
        finally:
            os.close(fd)

    def exists(self) -> bool:
        return self._path.exists()

    def remove(self) -> bool:
        """Whether it was there."""
        if not self._path.exists():
            return False
        self._unprotect()
        self._path.unlink()
        return True

    def _unprotect(self) -> None:
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            flags = bytearray(struct.pack("l", 0))
            fcntl.ioctl(fd, _GET_FLAGS, flags)
            value = struct.unpack("l", flags)[0]
            if value & _IMMUTABLE:
                fcntl.ioctl(fd, _SET_FLAGS, struct.pack("l", value & ~_IMMUTABLE))
        finally:
            os.close(fd)


class File:
    """A file, written by renaming, with everything synced."""

    def __init__(self, path: Path = FILE) -> None:
        self._path = path

    def read(self) -> bytes:
        return self._path.read_bytes()

    def write(self, data: bytes) -> None:
        write_whole(self._path, data, 0o644)


def within(work: Callable[[], T], seconds: float = SECONDS) -> T:
    """What `work` returns or raises; OSError where it takes longer: then its thread is left behind."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:  # noqa: BLE001  raised again where it is waited for
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not done:
        raise OSError(f"no answer within {seconds:g} s")
    return done[0]


class Budget:
    """What was spent. `places`: those that are not on the suspect disk."""

    def __init__(self, places: Sequence[Place], seconds: float = SECONDS) -> None:
        self._places = places
        self._seconds = seconds
        self._serial = 0

    def read(self) -> dict[str, Spent]:
        """The newest that can be read; nothing where there is none."""
        newest: dict[str, Spent] = {}
        for place in self._places:
            try:
                serial, spent = parse(within(place.read, self._seconds))
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if serial > self._serial:
                self._serial, newest = serial, spent
        return newest

    def write(self, spent: Mapping[str, Spent]) -> int:
        """In how many places it is kept now."""
        self._serial += 1
        data = text(self._serial, spent)
        kept = 0
        for place in self._places:
            try:
                within(lambda place=place: _proven(place, data), self._seconds)      # type: ignore[misc]
                kept += 1
            except OSError:
                continue
        return kept


def _proven(place: Place, data: bytes) -> bool:
    """Written, and read back: firmware has been known to say yes and to keep nothing."""
    place.write(data)
    if place.read() != data:
        raise OSError("what was written is not what is read")
    return True


def text(serial: int, spent: Mapping[str, Spent]) -> bytes:
    faults = {fault: [one.reboots, one.owed] for fault, one in sorted(spent.items()) if one != UNSPENT}
    return json.dumps({"serial": serial, "faults": faults}, separators=(",", ":")).encode("ascii")


def parse(data: bytes) -> tuple[int, dict[str, Spent]]:
    """ValueError, KeyError or TypeError where it is none of ours."""
    found = json.loads(data[:LONGEST])
    return int(found["serial"]), {str(fault): Spent(int(one[0]), int(one[1])) for fault, one in found["faults"].items()}
