"""Quarantine: what is not an object we vouch for, kept with the reason, never deleted by itself.

    <16 digits>.dcm     the file as it was found
    <16 digits>.json    why, and what its head says, if it has one

A *remnant* was never acknowledged (start-up found it in a slot). It may be
dropped once the same UID was acknowledged later on, because then the sender has
sent it again. Everything else waits for a person.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.dicom.part10 import HEAD, parse_head
from appliance.errors import HeadError
from appliance.model import Custody, number_text
from appliance.spool.durable import sync_folder, write_whole
from appliance.spool.events import unescape
from appliance.spool.layout import Spool, file_number, spool_error
from appliance.spool.ledger import Ledger

Acknowledged = Callable[[str, int, int], bool]
"""Whether an object of that SOP Instance UID was acknowledged after that boot ordinal and time since boot."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file in quarantine. `uid`, `boot` and `since_boot` are those of its head; "" and 0 where it has no valid one."""

    number: int
    reason: str
    remnant: bool
    uid: str = ""
    boot: int = 0
    since_boot: int = 0


def path(spool: Spool, number: int) -> Path:
    return spool.quarantine / f"{number_text(number)}.dcm"


def put(spool: Spool, number: int, reason: str, *, remnant: bool = False) -> Entry:
    """Move an object's file to quarantine, durably. Safe to repeat after a crash at any point. SpoolFull, SpoolFault.

    The ledger's row is the caller's: before it for an accepted object, after it for a remnant.
    """
    target = path(spool, number)
    source = spool.object_path(number)
    try:
        found = _head(source if source.exists() else target)
        entry = Entry(number, reason, remnant) if found is None else Entry(
            number, reason, remnant, found.uid_text, found.boot, found.since_boot)
        write_whole(target.with_suffix(".json"), json.dumps({
            "reason": reason, "remnant": remnant, "uid": entry.uid, "boot": entry.boot, "since_boot": entry.since_boot}) + "\n")
        with suppress(FileNotFoundError):
            os.rename(source, target)
        sync_folder(spool.quarantine)
        sync_folder(spool.shard(number))
    except OSError as e:
        raise spool.failed(e, f"cannot move object {number_text(number)} to quarantine") from e
    return entry


def _head(file: Path) -> Custody | None:
    try:
        with open(file, "rb") as stream:
            return parse_head(stream.read(HEAD))
    except (OSError, HeadError):
        return None


def entries(spool: Spool) -> list[Entry]:
    """All that lies in quarantine, by number. A file without a readable note is listed all the same."""
    found = []
    try:
        numbers = sorted(n for n in map(file_number, os.listdir(spool.quarantine)) if n is not None)
    except OSError as e:
        raise spool_error(e, "cannot read the quarantine") from e
    for number in numbers:
        try:
            note = json.loads(path(spool, number).with_suffix(".json").read_text())
            found.append(Entry(number, str(note["reason"]), bool(note["remnant"]), str(note["uid"]), int(note["boot"]),
                               int(note["since_boot"])))
        except (OSError, ValueError, KeyError, TypeError):
            found.append(Entry(number, "no note of the reason", False))
    return found


def acknowledged_in(ledger: Ledger) -> Acknowledged:
    """What `drop_remnants` asks, answered from the ledger."""
    def acknowledged(uid: str, boot: int, since_boot: int) -> bool:
        return any((row.custody.boot, row.custody.since_boot) > (boot, since_boot)
                   for row in ledger.objects_of_uid(unescape(uid), limit=1))
    return acknowledged


def drop_remnants(spool: Spool, acknowledged: Acknowledged) -> list[int]:
    """Delete the remnants whose UID was acknowledged since; returns their numbers. For the keeper alone (I4).

    A remnant without a valid head has no UID, so it is never dropped.
    """
    dropped = []
    for entry in entries(spool):
        if entry.remnant and entry.uid and acknowledged(entry.uid, entry.boot, entry.since_boot):
            file = path(spool, entry.number)
            try:
                file.unlink()
                file.with_suffix(".json").unlink(missing_ok=True)
            except OSError as e:
                raise spool.failed(e, f"cannot drop remnant {number_text(entry.number)}") from e
            dropped.append(entry.number)
    return dropped
