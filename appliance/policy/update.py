"""Updates: which release may be installed, when, and what a trial came to. Pure.

A release is a folder: a list of files with their SHA-256 (`SHA256SUMS`), its signature, and for each device type the three
files of a version, whose names carry device type, version and the identifiers of their partitions. A version is numbers
and points, so that everybody orders it the same way: systemd-boot, systemd-sysupdate and we.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from appliance.schedule import within

TRIES = 2
"""Boots that a new version has (`TriesLeft=` of the transfer of the UKI)."""

MOST_LINES = 64
"""Lines of a list of files."""

PARTS = ("root-verity.raw.gz", "root.raw.gz", "efi")
"""What a version is made of."""

_VERSION = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){0,3}")
_LINE = re.compile(r"(?P<digest>[0-9a-f]{64}) [ *](?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,199})")
_FILE = re.compile(r"dcmgate-(?P<device>[a-z0-9-]{1,32})_(?P<version>[0-9.]+)(?:_(?P<uuid>[0-9a-f-]{36}))?\.(?P<part>.+)")
_ENTRY = re.compile(r"dcmgate_(?P<version>[0-9.]+)(?:\+(?P<left>[0-9]+)(?:-(?P<done>[0-9]+))?)?\.efi")


class Refused(Exception):
    """Why a release is not installed, in one sentence for people."""


def version_key(text: str) -> tuple[int, ...]:
    """What versions are ordered by. ValueError where it is none."""
    if not _VERSION.fullmatch(text):
        raise ValueError(f'"{text[:40]}" is no version: numbers and points')
    return tuple(int(part) for part in text.split("."))


def is_newer(one: str, other: str) -> bool:
    return version_key(one) > version_key(other)


@dataclass(frozen=True, slots=True)
class Release:
    """One version for one device type. `files`: name → SHA-256, in the order in which they are fetched."""

    device: str
    version: str
    files: Mapping[str, str]


def digests(text: str) -> dict[str, str]:
    """A list of files, as sha256sum(1) writes it. Refused where it is none."""
    lines = text.splitlines()
    found: dict[str, str] = {}
    for line in lines[:MOST_LINES]:
        match = _LINE.fullmatch(line)
        if match is None:
            raise Refused("its list of files (SHA256SUMS) cannot be understood")
        found[match["name"]] = match["digest"]
    if not found or len(lines) > MOST_LINES:
        raise Refused("its list of files (SHA256SUMS) is empty, or too long to be one")
    return found


def releases(found: Mapping[str, str]) -> list[Release]:
    """The versions that a list names and that are whole, the newest last. What is no file of ours is left out."""
    files: dict[tuple[str, str], dict[str, str]] = {}
    for name in found:
        match = _FILE.fullmatch(name)
        if match is not None and match["part"] in PARTS and _VERSION.fullmatch(match["version"]):
            files.setdefault((match["device"], match["version"]), {})[match["part"]] = name
    whole = [Release(device, version, {parts[part]: found[parts[part]] for part in PARTS})
             for (device, version), parts in files.items() if set(parts) == set(PARTS)]
    return sorted(whole, key=lambda release: version_key(release.version))


@dataclass(frozen=True, slots=True)
class Installed:
    """What the box is. `floor`: the oldest version that it takes. `failed`: versions that were on trial here and came back.
    `on_trial`: what runs has not proven itself yet, and the other slot is where it would go back to."""

    device: str
    running: str
    floor: str
    failed: Collection[str] = ()
    on_trial: bool = False


def choose(found: Mapping[str, str], box: Installed, *, again: bool = False) -> Release:
    """The release to install. `again`: also one that has come back. Refused."""
    if box.on_trial:
        raise Refused(f"{box.running}, which runs, is itself on trial: the other slot has the version that it would go back to")
    known = releases(found)
    ours = [release for release in known if release.device == box.device]
    if not ours:
        others = sorted({release.device for release in known})
        if others:
            raise Refused(f"it is for {' and '.join(others)}, and this box is {box.device}")
        raise Refused("it has no whole version: a version is a root, its verity and a UKI")
    newest = ours[-1]
    if version_key(newest.version) < version_key(box.floor):
        raise Refused(f"{newest.version} is older than {box.floor}, the oldest version that this box takes")
    if version_key(newest.version) == version_key(box.running):
        raise Refused(f"{newest.version} is what runs already")
    if not is_newer(newest.version, box.running):
        raise Refused(f"{newest.version} is older than {box.running}, which runs")
    if newest.version in box.failed and not again:
        raise Refused(f"{newest.version} was on trial here and came back: --again gives it another trial")
    return newest


def is_due(windows: Sequence[tuple[int, int]], minute: int | None, version: str, approved: str, *, by_person: bool) -> str:
    """Why the box does not install that version by itself now; empty where it does. `minute` of the day, None while the clock
    is not trusted. `by_person`: the site wants each version approved."""
    if by_person and approved != version:
        return f"{version} waits for approval: `dcmgate update approve {version}`"
    inside = within(windows, minute)
    if inside is None:
        return f"{version} waits for the site's window, and what time it is is not known"
    return "" if inside else f"{version} waits for the site's window"


# --- the boot menu -------------------------------------------------------------------------------------------------------

class Slot(StrEnum):
    GOOD = "good"
    TRIAL = "trial"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Entry:
    """A UKI in the boot menu, by its file name (boot counting: UAPI.1). `left` None: blessed."""

    name: str
    version: str
    left: int | None = None
    done: int = 0

    @property
    def slot(self) -> Slot:
        return Slot.GOOD if self.left is None else Slot.TRIAL if self.left else Slot.FAILED


def entry_of(name: str) -> Entry | None:
    match = _ENTRY.fullmatch(name)
    if match is None or not _VERSION.fullmatch(match["version"]):
        return None
    return Entry(name, match["version"], int(match["left"]) if match["left"] else None, int(match["done"] or 0))


def entries_of(names: Collection[str]) -> tuple[Entry, ...]:
    """Those of a folder, in the order of their versions."""
    found = [entry for entry in map(entry_of, names) if entry is not None]
    return tuple(sorted(found, key=lambda entry: version_key(entry.version)))


def may_reboot(entries: Collection[Entry], running: str) -> bool:
    """After a gate that did not open: whether a boot can lead elsewhere, or this version has a try left."""
    return any(entry.slot is Slot.TRIAL if entry.version == running else entry.slot is not Slot.FAILED for entry in entries)


# --- the gate ------------------------------------------------------------------------------------------------------------

UP, STARTING = frozenset({"active", "reloading"}), frozenset({"activating", "deactivating"})


@dataclass(frozen=True, slots=True)
class Signs:
    """What the gate has seen. `running`: the version; `counted`: that whose try the boot menu has counted, empty where that is
    not known. `services`: unit → its state in the service manager. `stored`, `answered`: why not, empty where it went well.
    `before`: destinations that were reached when the update was installed; `reached`: those reached now."""

    running: str = ""
    counted: str = ""
    services: Mapping[str, str] = field(default_factory=dict)
    failed_units: Collection[str] = ()
    answered: str = ""
    stored: str = ""
    unaccounted: int = 0
    discrepancy: str = ""
    before: Collection[str] = ()
    reached: Collection[str] = ()


def starting(services: Mapping[str, str]) -> bool:
    """Whether one is still on its way, and worth waiting for."""
    return any(state in STARTING for state in services.values())


def complaints(signs: Signs) -> list[str]:
    """Why this version is not good: empty where it is."""
    said = []
    if signs.counted and signs.counted != signs.running:      # it could not be started, and the firmware came to another
        said.append(f"{signs.counted} could not be started, {signs.running} runs")
    said += [f"{unit} is {state}" for unit, state in signs.services.items() if state not in UP]
    said += [f"{unit} has failed" for unit in signs.failed_units if unit not in signs.services]
    if signs.answered:
        said.append(f"the port for scanners: {signs.answered}")
    if signs.stored:
        said.append(f"a test object was not stored: {signs.stored}")
    if signs.unaccounted:
        more = f" ({signs.discrepancy})" if signs.discrepancy else ""
        said.append(f"the ledger does not balance: unaccounted {signs.unaccounted}{more}")
    if signs.before and not set(signs.before) & set(signs.reached):
        said.append(f"{' and '.join(sorted(signs.before))} could be reached before the update, and cannot now")
    return said


# --- what became of it ---------------------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Trial:
    """A version that was installed, and what was so then. `since`: what ran before it. `whole` False: it was only begun.
    `said`: what its gate complained of, try by try."""

    version: str
    since: str
    whole: bool = True
    by: str = ""
    wall_ns: int = 0
    before: Sequence[str] = ()
    said: Sequence[str] = ()


class Fate(StrEnum):
    CUT_OFF = "cut off"
    WAITING = "waiting"
    TRYING = "trying"
    BLESSED = "blessed"
    BACK = "back"


def fate(trial: Trial, running: str, entries: Collection[Entry]) -> Fate:
    """Seen from the version that runs."""
    entry = next((entry for entry in entries if entry.version == trial.version), None)
    if running == trial.version:
        return Fate.BLESSED if entry is None or entry.slot is Slot.GOOD else Fate.TRYING
    if entry is None and not trial.whole:
        return Fate.CUT_OFF
    return Fate.WAITING if entry is not None and entry.slot is not Slot.FAILED else Fate.BACK


def why_back(trial: Trial) -> str:
    """One sentence."""
    if trial.said:
        return f"{trial.version} came back to {trial.since}: {trial.said[-1]}"
    return f"{trial.version} came back to {trial.since}: it never came far enough to say why"
