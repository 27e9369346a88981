"""The spool's folders and its identity (design, Spool).

    SPOOL-ID                          uuid and format version; written last by `init`, so a half-made spool has none
    objects/<shard>/<16 digits>.dcm   shard = (number >> 12) & 0xff, two hex digits; all made by `init`
    quarantine/                       remnants and damaged objects, each with its reason
    ledger.sqlite, index.sqlite       custody; what people search by
    owners                            one locked byte for each live receiver (owners.py)
    ballast                           given up so that the ledger can still write on a full disk

Promises: an existing folder is never "started fresh". A missing, empty, foreign
or too new spool is SpoolRefused. No byte that came from a peer is part of a path.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import uuid as uuids
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from appliance.clock import Clock
from appliance.config.settings import Spool as SpoolSettings
from appliance.errors import SpoolError, SpoolFault, SpoolFull, SpoolRefused
from appliance.model import number_text
from appliance.spool import ballast
from appliance.spool.durable import sync_folder, write_whole
from appliance.spool.latch import DISK, Latch
from appliance.spool.ledger import Ledger
from appliance.spool.owners import OwnerLock, is_alive, nobody

FORMAT = 1
"""Version of the layout that this release writes."""

SHARDS = 256
SHARD_SHIFT = 12
BALLAST = 8 << 20
IDENTITY = "SPOOL-ID"
STATE_FILE = "spool-uuid"
_HARMLESS = frozenset({"lost+found"})
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})

Step = Callable[[Path], None]
"""One step of a migration: from version n to n + 1. It must bear being run again after a crash."""

MIGRATIONS: Mapping[int, Step] = {}
"""Key n leads from format n to n + 1."""


def spool_error(error: OSError, what: str) -> SpoolError:
    """The error of ours for a failed system call: SpoolFull for ENOSPC and EDQUOT, else SpoolFault."""
    text = f"{what}: {error.strerror or error}"
    if error.errno in _NO_ROOM:
        return SpoolFull(text, mend="Free some space, or enlarge the spool.")
    fault = SpoolFault(text, mend="Check the disk (dmesg, smartctl); intake stays closed until a restart.")
    fault.io = error.errno in DISK
    return fault


class Spool:
    """A spool that was found to be the right one. Holds no descriptors."""

    def __init__(self, path: Path, uuid: str, version: int, size: int = 0) -> None:
        self.path = path
        self.uuid = uuid
        self.version = version
        self.size = size
        self.objects = path / "objects"
        self.quarantine = path / "quarantine"
        self.ledger_path = path / "ledger.sqlite"
        self.index_path = path / "index.sqlite"
        self.owners_path = path / "owners"
        self.ballast_path = path / ballast.NAME
        self.latch = Latch()

    @classmethod
    def init(cls, path: Path, *, size: int = 0, clock: Clock) -> Spool:
        """Make a spool in an empty (or not yet existing) folder. `size` is the quota in bytes, 0 for the whole disk.

        SpoolRefused where the folder holds anything; SpoolFull, SpoolFault or LedgerError where the disk fails.
        """
        path = Path(path)
        try:
            path.mkdir(mode=0o750, parents=True, exist_ok=True)
            found = sorted(name for name in os.listdir(path) if name not in _HARMLESS)
            if found:
                raise SpoolRefused(f"{path} is not empty ({found[0]!r}…)", mend="Give an empty folder: a spool is never "
                                   "made over something that is there.")
            spool = cls(path, str(uuids.uuid4()), FORMAT, size)
            spool._make_folders()
            spool.fill_ballast()
            Ledger.open(spool.ledger_path, clock).close()
            sync_folder(path)
            spool._write_identity(made=clock.wall_ns())
        except OSError as e:
            raise spool_error(e, f"cannot make a spool in {path}") from e
        return spool

    def _make_folders(self) -> None:
        for folder in (self.objects, self.quarantine):
            folder.mkdir(mode=0o750)
        for shard in range(SHARDS):
            (self.objects / f"{shard:02x}").mkdir(mode=0o750)
        os.close(os.open(self.owners_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o660))
        sync_folder(self.objects)

    def _write_identity(self, made: int) -> None:
        identity = {"format": self.version, "made": made, "size": self.size, "uuid": self.uuid, "what": "dcmgate spool"}
        write_whole(self.path / IDENTITY, json.dumps(identity, indent=1) + "\n")

    @classmethod
    def open(cls, path: Path, expected_uuid: str | None = None, *, size: int | None = None) -> Spool:
        """The spool in that folder. `expected_uuid` None looks at the identity only; `size` overrides the quota kept in it.

        SpoolRefused for anything but a whole spool of this format with that uuid.
        """
        path = Path(path)
        identity = read_identity(path)
        found, version = identity["uuid"], identity["format"]
        if expected_uuid is not None and found != expected_uuid:
            raise SpoolRefused(f"{path} is another spool: {found}, expected {expected_uuid}",
                               mend="Mount the right disk, or name this one on purpose with `dcmgate spool adopt`.")
        if version > FORMAT:
            raise SpoolRefused(f"{path} has format {version}, this release knows up to {FORMAT}",
                               mend="Start the release that wrote it, or a later one.")
        if version < FORMAT:
            raise SpoolRefused(f"{path} has the older format {version}, this release uses {FORMAT}",
                               mend="Run `dcmgate spool migrate`.")
        spool = cls(path, found, version, identity["size"] if size is None else size)
        for folder in (spool.objects, spool.quarantine, spool.owners_path):
            if not folder.exists():
                raise SpoolRefused(f"{path} lacks {folder.name}", mend="Run `dcmgate spool check`; restore the disk's content.")
        return spool

    def failed(self, error: OSError, what: str) -> SpoolError:
        """As `spool_error`, for what writes to the spool: an I/O error takes the disk out of intake, whoever met it (I6)."""
        found = spool_error(error, what)
        if isinstance(found, SpoolFault):
            self.latch.report(found, str(error.filename or ""))
        return found

    # Objects

    def shard(self, number: int) -> Path:
        """The folder that a number's file lies in."""
        return self.objects / f"{(number >> SHARD_SHIFT) & (SHARDS - 1):02x}"

    def object_path(self, number: int) -> Path:
        return self.shard(number) / f"{number_text(number)}.dcm"

    def open_object(self, number: int) -> int:
        """A descriptor for reading. FileNotFoundError where it was retired or never made."""
        path = f"{self.objects}/{(number >> SHARD_SHIFT) & (SHARDS - 1):02x}/{number_text(number)}.dcm"    # quicker than a Path
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)

    def is_there(self) -> bool:
        """Whether the spool is still mounted where it was found, and can be read. Where not, a missing object is not gone."""
        try:
            return (self.path / IDENTITY).exists()
        except OSError:                       # EIO of a disk that is torn out
            return False

    def object_numbers(self) -> list[int]:
        """Every number that has a file, in order. For checks and rebuilds: it reads all folders."""
        numbers: list[int] = []
        for shard in range(SHARDS):
            with suppress(FileNotFoundError), os.scandir(self.objects / f"{shard:02x}") as entries:
                numbers += [n for e in entries if (n := file_number(e.name)) is not None]
        return sorted(numbers)

    # Owners

    def lock_owner(self, owner: int) -> OwnerLock:
        """Try to hold that owner's byte; `.held` says whether it was free."""
        return OwnerLock(self.owners_path, owner)

    def is_alive(self, owner: int) -> bool:
        return is_alive(self.owners_path, owner)

    # Ballast

    def fill_ballast(self) -> bool:
        """Lay the ballast down again; False where there is no room for it."""
        fd = os.open(self.ballast_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
        try:
            os.posix_fallocate(fd, 0, BALLAST)
            os.fsync(fd)
        except OSError as e:
            if e.errno not in _NO_ROOM:
                raise
            os.ftruncate(fd, 0)
            return False
        finally:
            os.close(fd)
        return True


def file_number(name: str) -> int | None:
    """The number that a file's name stands for; None for a name that is not one of ours."""
    stem, dot, kind = name.partition(".")
    if len(stem) != 16 or dot + kind != ".dcm" or any(c not in "0123456789abcdef" for c in stem):
        return None
    return int(stem, 16)


def read_identity(path: Path) -> dict[str, Any]:
    """SPOOL-ID of a folder, checked: uuid (text), format (≥ 1), size (≥ 0)."""
    mend = "Mount the spool's disk; only `dcmgate spool init` makes a new spool."
    try:
        if not stat.S_ISDIR(os.stat(path).st_mode):
            raise SpoolRefused(f"{path} is not a folder", mend=mend)
        text = (path / IDENTITY).read_bytes()[:4096]
    except FileNotFoundError:
        empty = path.is_dir() and not [n for n in os.listdir(path) if n not in _HARMLESS]
        what = "is empty" if empty else ("holds no spool" if path.is_dir() else "does not exist")
        raise SpoolRefused(f"{path} {what}", mend=mend) from None
    except OSError as e:
        raise SpoolRefused(f"{path} cannot be read: {e.strerror}", mend=mend) from e
    try:
        identity = json.loads(text)
        size = identity.get("size", 0)
        if str(uuids.UUID(identity["uuid"])) != identity["uuid"] or type(identity["format"]) is not int \
                or identity["format"] < 1 or type(size) is not int or size < 0:
            raise ValueError("fields out of range")
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise SpoolRefused(f"{path}/{IDENTITY} cannot be read: {e}", mend="Run `dcmgate spool check`.") from None
    return {**identity, "size": size}


def migrate(path: Path, *, to: int = FORMAT, steps: Mapping[int, Step] = MIGRATIONS) -> int:
    """Bring a spool to format `to`, one step after another; each is recorded before the next begins. Returns the old format.

    SpoolRefused while a receiver holds the spool, where a step is missing, or for a
    format that is newer than `to`. A crash on the way repeats the step it was in.
    """
    path = Path(path)
    old = read_identity(path)["format"]
    if old > to:
        raise SpoolRefused(f"{path} has format {old}, this release knows up to {to}",
                           mend="Start the release that wrote it, or a later one.")
    missing = [version for version in range(old, to) if version not in steps]
    if missing:
        raise SpoolRefused(f"{path}: no way from format {missing[0]} to {missing[0] + 1}",
                           mend="Go by way of an earlier release.")
    try:
        with nobody(path / "owners") as free:
            if not free:
                raise SpoolRefused(f"{path} is in use", mend="Stop the receivers first.")
            for version in range(old, to):
                steps[version](path)
                identity = read_identity(path)
                identity["format"] = version + 1
                write_whole(path / IDENTITY, json.dumps(identity, indent=1) + "\n")
    except OSError as e:
        raise spool_error(e, f"cannot migrate {path}") from e
    return int(old)


# The expected identifier, kept outside the spool

def expected_uuid(settings: SpoolSettings) -> str | None:
    """The uuid that the site expects: the setting, else what `init` or `adopt` left in `[spool] state`; None: nothing known."""
    if settings.uuid:
        return settings.uuid
    try:
        return (Path(settings.state) / STATE_FILE).read_text().strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as e:
        raise SpoolRefused(f"the expected uuid in {settings.state} cannot be read: {e}",
                           mend="Mend the folder, or give `[spool] uuid`.") from e


def remember_uuid(state: Path, uuid: str) -> None:
    """Keep the uuid to expect from now on, outside the spool."""
    try:
        Path(state).mkdir(mode=0o755, parents=True, exist_ok=True)
        write_whole(Path(state) / STATE_FILE, uuid + "\n", 0o644)
    except OSError as e:
        raise spool_error(e, f"cannot keep the uuid in {state}") from e


def open_configured(settings: SpoolSettings) -> Spool:
    """The spool that the configuration means, or SpoolRefused: never one that merely happens to be mounted there."""
    expected = expected_uuid(settings)
    if expected is None:
        read_identity(Path(settings.path))
        raise SpoolRefused(f"no uuid is known for {settings.path}",
                           mend="`dcmgate spool init` keeps it, `dcmgate spool adopt` names an existing one.")
    return Spool.open(Path(settings.path), expected, size=settings.size or None)
