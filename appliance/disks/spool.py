"""Makes the spool's partition of a new box, and opens it at every boot: LUKS2, on one disk or on a mirror of two.

    one disk     partition → LUKS2 → XFS
    two disks    partition → dm-integrity, each → RAID 1 → LUKS2 → XFS

dm-integrity below, so that a rotten block is an error that the mirror mends from the other disk, and not an answer. Its bitmap
instead of its journal: no block is written twice, and after a power cut both copies are made equal again by the mirror's own
bitmap. The mirror is md's (mdadm): it goes on with one disk, takes a disk back, and mends what cannot be read.

The record (`spool.json` beside the key, on the box's own partition) is written before anything is made, and again when it is
done. Between the two there is no image yet, so a box whose power went there begins again, on the same partitions and no others.

A blank disk takes the place of one that is gone from a mirror, at the next boot. The record has it before anything is written
to it, as one that lacks everything: so the power may go meanwhile, and it is begun again.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.disks.found import FOLDER, MEMBER, RECOVERY_KEY, publish
from appliance.disks.system import Run, attached, run
from appliance.errors import DiskFault, DiskRefused
from appliance.policy.disks import LABEL, Boot, Disk, Member, Refused, SpoolDisks, new_spool, replacement, startable
from appliance.spool.durable import write_whole

KEYS = Path("/var/etc/disk")
KNOWN_SPOOL = Path("/var/lib/dcmgate/spool-uuid")
MAPPED = Path(f"/dev/mapper/{LABEL}")
ARRAY = f"/dev/md/{LABEL}"
TYPE = "d3c0a9f2-51c4-4b7e-9d3a-6e0f8b1c7a55"
"""GPT partition type of our own: nothing else takes it for something it knows."""

CHEAP = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000")
"""Our keys are 256 random bits and more: stretching them would only cost every boot its time and memory."""

INTEGRITY = ("--integrity", "crc32c")
MAKE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Record:
    """What the box remembers of its spool. `current`: the members (uuid) that took part in what was written last.

    `joining`: the one of them that is new in a mirror, until the mirror has it; "" for none. What is on it is nothing yet.
    """

    made: bool
    members: tuple[Member, ...]
    current: tuple[str, ...]
    joining: str = ""

    @property
    def mirror(self) -> bool:
        return len(self.members) > 1


class SpoolDisk:
    """One box's. `keys` is the folder of record and key; the others are for tests."""

    def __init__(self, *, keys: Path = KEYS, recovery_key: Path = RECOVERY_KEY, known_spool: Path = KNOWN_SPOOL,
                 run: Run = run, mapped: Path = MAPPED, published: Path = FOLDER,
                 new_uuid: Callable[[], str] = lambda: str(uuid.uuid4()), scratch: Path = Path("/run")) -> None:
        self._keys = keys
        self._recovery_key = recovery_key
        self._known_spool = known_spool
        self._run = run
        self._mapped = mapped
        self._new_uuid = new_uuid
        self._scratch = scratch
        self._published = published

    @property
    def key(self) -> Path:
        return self._keys / "spool.key"

    # what is remembered

    def record(self) -> Record | None:
        """None where this box never had a spool. DiskFault where it cannot be read."""
        try:
            said = json.loads((self._keys / "spool.json").read_text())
            return Record(bool(said["made"]), tuple(Member(one["uuid"], one["serial"]) for one in said["members"]),
                          tuple(said["current"]), said.get("joining", ""))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise DiskFault(f"the record of the spool's disks cannot be read: {e}", mend="look at the first disk") from e

    def remember(self, record: Record) -> None:
        """Durable when it returns."""
        said = {"made": record.made, "members": [{"uuid": one.uuid, "serial": one.serial} for one in record.members],
                "current": list(record.current), "joining": record.joining}
        write_whole(self._keys / "spool.json", json.dumps(said), 0o644)

    # opening

    def open(self, found: Boot) -> SpoolDisks:
        """Have the spool's file system at its place for mount(8); make it first where this box is new. DiskRefused, DiskFault.

        What is so is published, whatever comes of it.
        """
        record = None
        try:
            if found.var not in ("luks2", "plain"):
                raise DiskRefused("the box's own partition is not open, and the key of the spool is there",
                                  mend="restart with the recovery key on a stick labelled DCMGATE-KEY")
            record = self.record()
            if record is None or not record.made:
                self._all_found()
                record = self._make(record)
            spool = self._start(record)
        except DiskFault as e:
            members = record.members if record is not None else ()
            publish(SpoolDisks(record is not None and record.made, False, len(members) > 1, members, problem=e.message),
                    self._published)
            raise
        publish(spool, self._published)
        return spool

    def _all_found(self) -> None:
        """Wait until the kernel has told of every disk. One that is known is waited for by its name instead: that is sooner."""
        with suppress(DiskFault):
            self._run(["udevadm", "settle", "--timeout=60"], seconds=90)

    def _start(self, record: Record) -> SpoolDisks:
        for one in record.members:
            with suppress(DiskFault):      # a disk that takes its time to come up
                self._run(["udevadm", "wait", "--timeout=30", _partition(one.uuid)], seconds=60)
        there = {part.uuid for disk in attached(self._run, probe=False) for part in disk.parts}
        members = tuple(Member(one.uuid, one.serial, one.uuid in there) for one in record.members)
        started = startable(members, record.current)
        if isinstance(started, Refused):
            raise DiskRefused(started.reason, mend="put the disk back; what it holds is never started afresh")
        problem = ""
        if not self._mapped.exists():
            if record.mirror:
                working = self._assemble(record, members, started)
                members = tuple(replace(one, working=one.uuid in working) for one in members)
                members, problem = self._complete(members)
            device = ARRAY if record.mirror else _partition(record.members[0].uuid)
            self._run(["cryptsetup", "open", "--type", "luks2", "--key-file", str(self.key), device, self._mapped.name])
        return SpoolDisks(True, True, record.mirror, members, problem=problem)

    def _assemble(self, record: Record, members: tuple[Member, ...], started: tuple[Member, ...]) -> set[str]:
        """The mirror, with the members that are there; who is in it (uuid)."""
        opened: dict[str, str] = {}
        fault: DiskFault | None = None
        for member in (one for one in started if one.uuid != record.joining):
            try:
                opened[member.uuid] = self._checked(member.uuid)
            except DiskFault as e:      # a disk that answers no more is one that is not there
                fault = e
        left = startable([Member(one.uuid, one.serial, one.uuid in opened) for one in members], record.current)
        if isinstance(left, Refused):
            raise fault or DiskRefused(left.reason, mend="put the disk back")
        if len(opened) < len(members):
            # From now on the one that is missing lacks what is acknowledged: it is remembered before anything is written.
            self.remember(replace(record, current=tuple(one for one in record.current if one in opened)))
        self._run(["mdadm", "--assemble", "--run", ARRAY, *opened.values()], seconds=MAKE_SECONDS)
        detail = self._run(["mdadm", "--detail", ARRAY])
        for device in opened.values():
            if not _listed(detail, device):
                self._take_back(device)
        self._run(["udevadm", "settle", "--timeout=30"])
        return set(opened)

    def _take_back(self, device: str) -> None:
        """A member that was away for a while is brought up to date; what differs is what the mirror's bitmap says."""
        try:
            self._run(["mdadm", ARRAY, "--re-add", device])
        except DiskFault:
            with suppress(DiskFault):
                self._run(["mdadm", "--zero-superblock", device])
            self._run(["mdadm", ARRAY, "--add", device])

    # a new disk in the place of one that is gone

    def _complete(self, members: tuple[Member, ...]) -> tuple[tuple[Member, ...], str]:
        """The members of a mirror that has been started, with a new disk where one was gone, and why none was taken."""
        record = self.record()
        gone = [one for one in members if not one.present]
        if record is None or not (gone or record.joining):
            return members, ""
        try:
            if gone:
                self._all_found()
                size = int(self._run(["blockdev", "--getsize64", ARRAY]))
                disk = replacement(attached(self._run), members, size)
                if disk is None or isinstance(disk, Refused):
                    return members, disk.reason if disk else ""
                new = Member(self._new_uuid(), disk.serial, working=False)
                members = tuple(new if one == gone[0] else one for one in members)
                record = replace(record, members=members, joining=new.uuid)
                self.remember(record)
                self._partition_disk(disk, new.uuid)
                self._run(["udevadm", "wait", "--timeout=60", _partition(new.uuid)], seconds=90)
            self._format(record.joining)
            device = self._checked(record.joining)
            with suppress(DiskFault):      # there is one if the power went while it was added
                self._run(["mdadm", "--zero-superblock", device])
            self._run(["mdadm", ARRAY, "--add", device])
            self.remember(replace(record, joining=""))
        except (DiskFault, OSError, ValueError) as e:      # the other disk serves on
            return members, f"another disk cannot take its place: {e}"
        return tuple(replace(one, working=True) for one in members), ""

    def _format(self, part: str) -> None:
        """dm-integrity on a member's partition: what was there before is nothing from now on."""
        with suppress(DiskFault):
            self._run(["integritysetup", "close", MEMBER + part[:8]])
        self._run(["integritysetup", "format", "--batch-mode", *INTEGRITY, "--sector-size", "4096", "--no-wipe",
                   _partition(part)], seconds=MAKE_SECONDS)

    def _checked(self, part: str) -> str:
        """A partition behind dm-integrity: the device that md sees."""
        name = MEMBER + part[:8]
        if not Path(f"/dev/mapper/{name}").exists():
            self._run(["integritysetup", "open", *INTEGRITY, "--integrity-bitmap-mode", "--integrity-recalculate",
                       _partition(part), name])
        return f"/dev/mapper/{name}"

    def settle(self) -> None:
        """Remember which members take part, so that one that was left behind is never started alone. Called every minute."""
        record = self.record()
        if record is None or not record.mirror or not self._mapped.exists():
            return
        detail = self._run(["mdadm", "--detail", ARRAY])
        current = tuple(one.uuid for one in record.members if _in_sync(detail, self._device_of(one.uuid)))
        if current and set(current) != set(record.current):
            self.remember(replace(record, current=current, joining="" if record.joining in current else record.joining))

    def _device_of(self, part: str) -> str:
        """As mdadm names it: /dev/dm-N."""
        return os.path.realpath(f"/dev/mapper/{MEMBER}{part[:8]}")

    # making

    def _make(self, begun: Record | None) -> Record:
        if begun is None:
            disks = new_spool(attached(self._run), known_spool=self._known_spool.exists())
            if isinstance(disks, Refused):
                raise DiskRefused(disks.reason, mend="`dcmgate disk status` shows what is there; nothing was written")
            members = tuple(Member(self._new_uuid(), disk.serial) for disk in disks)
            begun = Record(False, members, tuple(one.uuid for one in members))
            self.remember(begun)
        else:
            disks = self._same_disks(begun)
        for disk, member in zip(disks, begun.members, strict=True):
            if member.uuid not in {part.uuid for part in disk.parts}:
                self._partition_disk(disk, member.uuid)
        self._run(["udevadm", "wait", "--timeout=60", *(_partition(one.uuid) for one in begun.members)], seconds=90)
        device = _partition(begun.members[0].uuid)
        if begun.mirror:
            device = self._make_mirror(begun)
        self._run(["wipefs", "--all", "--quiet", device])
        self._run(["cryptsetup", "luksFormat", "--type", "luks2", "--batch-mode", *CHEAP, "--cipher", "aes-xts-plain64",
                   "--key-size", "512", "--label", LABEL, "--key-file", str(self.key), device], seconds=MAKE_SECONDS)
        if self._recovery_key.exists():
            self._run(["cryptsetup", "luksAddKey", "--batch-mode", *CHEAP, "--key-file", str(self.key), device,
                       str(self._recovery_key)], seconds=MAKE_SECONDS)
        self._run(["cryptsetup", "open", "--type", "luks2", "--key-file", str(self.key), device, self._mapped.name])
        self._run(["mkfs.xfs", "-q", "-f", str(self._mapped)], seconds=MAKE_SECONDS)
        self._run(["sync"], seconds=MAKE_SECONDS)
        made = Record(True, begun.members, begun.current)
        self.remember(made)
        return made

    def _same_disks(self, begun: Record) -> tuple[Disk, ...]:
        """The disks of a making that was interrupted: by their partition, or by their serial number while they are blank."""
        disks = attached(self._run)
        chosen = []
        for member in begun.members:
            fit = [disk for disk in disks if member.uuid in {part.uuid for part in disk.parts}] or \
                  [disk for disk in disks if disk.serial == member.serial and (disk.blank or disk.system)]
            if not fit:
                raise DiskRefused(f"disk {member.serial or member.uuid} is not there, on which the spool was to be made",
                                  mend="put it back")
            chosen.append(fit[0])
        return tuple(chosen)

    def _partition_disk(self, disk: Disk, part: str) -> None:
        """The rest of the system's disk, or the whole of a blank one; never where there is another partition."""
        definitions = self._scratch / f"dcmgate-repart-{part[:8]}"
        definitions.mkdir(parents=True, exist_ok=True)
        (definitions / "40-spool.conf").write_text(f"[Partition]\nType={TYPE}\nUUID={part}\nLabel={LABEL}\nSizeMinBytes=256M\n")
        self._run(["systemd-repart", "--dry-run=no", f"--empty={'refuse' if disk.system else 'require'}", "--discard=no",
                   f"--definitions={definitions}", disk.path], seconds=MAKE_SECONDS)

    def _make_mirror(self, begun: Record) -> str:
        for member in begun.members:
            self._format(member.uuid)
        devices = [self._checked(member.uuid) for member in begun.members]
        self._run(["mdadm", "--create", ARRAY, "--run", "--level=1", f"--raid-devices={len(devices)}", "--metadata=1.2",
                   "--bitmap=internal", "--homehost=any", f"--name={LABEL}", *devices], seconds=MAKE_SECONDS)
        self._run(["udevadm", "settle", "--timeout=30"])
        return ARRAY


def _partition(part: str) -> str:
    return f"/dev/disk/by-partuuid/{part}"


def _listed(detail: str, device: str) -> bool:
    """Whether `mdadm --detail` has the device as a member that works or is being brought up to date."""
    return any(line.split()[-1] in (device, os.path.realpath(device)) and "faulty" not in line.split()
               for line in detail.splitlines() if line.strip())


def _in_sync(detail: str, device: str) -> bool:
    return any(line.split()[-1] == device and {"active", "sync"} <= set(line.split())
               for line in detail.splitlines() if line.strip())
