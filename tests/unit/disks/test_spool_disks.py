"""Making and opening the spool's disks: what is run, what is remembered, and what is never done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from appliance.disks.found import spool_found
from appliance.disks.spool import SpoolDisk
from appliance.disks.system import attached
from appliance.errors import DiskFault, DiskRefused
from appliance.policy.disks import Boot, Opened, redundancy_line

BOX = Boot("luks2", Opened.TPM, frozenset({7, 11}), True)


def entry(path: str, kind: str, **more: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("serial", "model", "tran", "pttype", "fstype", "partuuid", "partlabel"))
    return {"name": path, "path": path, "type": kind, "size": 64 << 30, "rm": False, "ro": False, **empty, **more}


class Machine:
    """Disks and programs: a new partition is seen from then on; `fails` is a word of a command that does not succeed."""

    def __init__(self, folder: Path, *, second: bool) -> None:
        self.folder = folder
        self.ran: list[str] = []
        self.fails = ""
        self.names = iter(("11111111-aaaa", "22222222-bbbb", "33333333-cccc", "44444444-dddd", "55555555-eeee"))
        self.disks = [entry("/dev/sda", "disk", serial="S1", pttype="gpt", children=[
            entry("/dev/sda6", "part", partuuid="var", partlabel="dcmgate-var", fstype="crypto_LUKS")])]
        if second:
            self.disks.append(entry("/dev/sdb", "disk", serial="S2"))
        self.mapped = folder / "dcmgate-spool"

    def run(self, command: Sequence[str], *, seconds: float = 60.0, stdin: str = "") -> str:
        self.ran.append(" ".join(command))
        if self.fails and self.fails in self.ran[-1]:
            raise DiskFault("it fails")
        if command[0] == "lsblk":
            return json.dumps({"blockdevices": self.disks})
        if command[0] == "systemd-repart":
            folder = next(word.split("=", 1)[1] for word in command if word.startswith("--definitions="))
            text = (Path(folder) / "40-spool.conf").read_text()
            lines = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
            disk = next(disk for disk in self.disks if disk["path"] == command[-1])
            disk["pttype"] = "gpt"
            part = entry(f"{disk['path']}7", "part", partuuid=lines["UUID"], partlabel=lines["Label"])
            disk.setdefault("children", []).append(part)
        if command[0] == "blockdev":
            return f"{60 << 30}\n"
        if command[:2] == ["cryptsetup", "open"]:
            self.mapped.touch()
        return ""

    def count(self, word: str) -> int:
        return sum(word in command for command in self.ran)

    def spool(self) -> SpoolDisk:
        self.mapped.unlink(missing_ok=True)
        self.ran.clear()
        keys = self.folder / "keys"
        keys.mkdir(exist_ok=True)
        (self.folder / "recovery-key").touch()
        return SpoolDisk(keys=keys, recovery_key=self.folder / "recovery-key", known_spool=self.folder / "spool-uuid",
                         run=self.run, mapped=self.mapped, published=self.folder / "run", new_uuid=lambda: next(self.names),
                         scratch=self.folder)


def test_a_new_box_makes_its_spool_once_and_opens_it_ever_after(tmp_path: Path) -> None:
    machine = Machine(tmp_path, second=False)
    spool = machine.spool().open(BOX)
    assert (spool.open, spool.mirror) == (True, False)
    assert machine.count("luksFormat") == machine.count("mkfs.xfs") == machine.count("luksAddKey") == 1
    assert spool_found(tmp_path / "run", tmp_path).members[0].serial == "S1"
    assert machine.count("settle --timeout=60") == 1, "there may be a second disk"
    machine.disks.append(entry("/dev/sdx", "disk"))      # it may hang: it is not read
    for _ in range(2):
        assert machine.spool().open(BOX).open
        assert machine.count("wipefs") == 0
        assert machine.count("settle") == 0, "no other disk is waited for"
        assert machine.count("luksFormat") == machine.count("mkfs") == machine.count("repart") == 0
        assert machine.count("cryptsetup open") == 1


def test_two_disks_are_a_mirror_over_checked_blocks(tmp_path: Path) -> None:
    machine = Machine(tmp_path, second=True)
    spool = machine.spool().open(BOX)
    assert spool.mirror and [one.serial for one in spool.members] == ["S1", "S2"]
    assert machine.count("integritysetup format") == 2 and machine.count("mdadm --create") == 1
    parted = [command for command in machine.ran if "repart" in command]
    assert "--empty=refuse" in parted[0] and parted[0].endswith("/dev/sda")
    assert "--empty=require" in parted[1] and parted[1].endswith("/dev/sdb")
    machine.spool().open(BOX)
    assert machine.count("integritysetup format") == machine.count("--create") == 0
    assert machine.count("mdadm --assemble") == 1


@pytest.mark.parametrize("step", ["systemd-repart", "integritysetup format", "mdadm --create", "luksFormat", "luksAddKey",
                                  "cryptsetup open", "mkfs.xfs"])
def test_a_power_cut_while_it_is_made_is_gone_on_from_on_the_same_partitions(tmp_path: Path, step: str) -> None:
    machine = Machine(tmp_path, second=True)
    machine.fails = step
    with pytest.raises(DiskFault):
        machine.spool().open(BOX)
    machine.fails = ""
    spool = machine.spool().open(BOX)
    assert spool.open and [one.uuid for one in spool.members] == ["11111111-aaaa", "22222222-bbbb"]
    assert sum(len(disk.get("children", [])) for disk in machine.disks) == 3


@pytest.mark.requirement("I1")
def test_without_its_record_a_spool_is_left_alone(tmp_path: Path) -> None:
    machine = Machine(tmp_path, second=False)
    machine.spool().open(BOX)
    (tmp_path / "keys" / "spool.json").unlink()
    with pytest.raises(DiskRefused, match="not this box's"):
        machine.spool().open(BOX)
    assert machine.count("luksFormat") == machine.count("repart") == machine.count("wipefs --all") == 0
    assert "not this box's" in spool_found(tmp_path / "run", tmp_path).problem


@pytest.mark.requirement("I1")
def test_a_damaged_record_makes_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, second=True)
    disks = machine.spool()
    (tmp_path / "keys" / "spool.json").write_text("{")
    with pytest.raises(DiskFault):
        disks.open(BOX)
    assert machine.count("repart") == machine.count("luksFormat") == 0


def test_a_locked_box_touches_no_disk(tmp_path: Path) -> None:
    machine = Machine(tmp_path, second=True)
    with pytest.raises(DiskRefused):
        machine.spool().open(Boot("memory"))
    assert machine.ran == []


@pytest.mark.requirement("I1")
def test_a_mirror_goes_on_with_one_disk_and_then_not_with_the_other_alone(tmp_path: Path) -> None:
    machine = Machine(tmp_path, second=True)
    machine.spool().open(BOX)
    both = machine.disks
    machine.disks = both[:1]
    spool = machine.spool().open(BOX)
    assert spool.open and [one.present for one in spool.members] == [True, False]
    assert json.loads((tmp_path / "keys" / "spool.json").read_text())["current"] == ["11111111-aaaa"]
    machine.disks = [{**both[0], "children": both[0]["children"][:1]}, both[1]]      # the partition of the spool is gone there
    with pytest.raises(DiskRefused, match="left behind"):
        machine.spool().open(BOX)
    machine.disks = both
    spool = machine.spool().open(BOX)
    assert spool.open and machine.count("--re-add") == 2     # this mdadm says nothing: each is taken back


def replaced(folder: Path, **new: Any) -> Machine:
    """A box with a mirror, switched off, of which the second disk was taken out, and another one put in."""
    machine = Machine(folder, second=True)
    machine.spool().open(BOX)
    machine.disks = [machine.disks[0], entry("/dev/sdb", "disk", serial="S3", **new)]
    return machine


@pytest.mark.requirement("I1")
def test_a_blank_disk_takes_the_place_of_one_that_is_gone(tmp_path: Path) -> None:
    machine = replaced(tmp_path)
    spool = machine.spool().open(BOX)
    assert [(one.serial, one.present) for one in spool.members] == [("S1", True), ("S3", True)] and not spool.problem
    assert machine.count("--create") == machine.count("luksFormat") == machine.count("mkfs") == 0
    assert next(command for command in machine.ran if "repart" in command).endswith("/dev/sdb")
    assert next(command for command in machine.ran if "--add" in command).endswith("33333333")
    assert machine.count("settle --timeout=60") == 1, "the new one may be slow"
    kept = json.loads((tmp_path / "keys" / "spool.json").read_text())
    assert (kept["current"], kept["joining"]) == (["11111111-aaaa"], ""), "until the mirror says that it is whole"
    machine.disks[0] = {**machine.disks[0], "children": machine.disks[0]["children"][:1]}
    with pytest.raises(DiskRefused, match="left behind"):
        machine.spool().open(BOX)


@pytest.mark.requirement("I1")
@pytest.mark.parametrize("step", ["systemd-repart", "udevadm wait --timeout=60", "integritysetup format",
                                  "dcmgate-member-33333333", "--add"])
def test_a_power_cut_while_a_new_disk_joins_is_gone_on_from_and_the_spool_opens(tmp_path: Path, step: str) -> None:
    machine = replaced(tmp_path)
    machine.fails = step
    spool = machine.spool().open(BOX)
    assert spool.open and "another disk cannot take its place: it fails" in spool.problem
    machine.fails = ""
    spool = machine.spool().open(BOX)
    assert [one.serial for one in spool.members] == ["S1", "S3"] and not spool.problem
    assert machine.count("integritysetup format") == machine.count("--add") == 1
    started = next(command for command in machine.ran if "--assemble" in command)
    assert "11111111" in started and "33333333" not in started, "md aborts where a member has no superblock"
    assert sum(len(disk.get("children", [])) for disk in machine.disks) == 3
    machine.spool().open(BOX)
    assert machine.count("integritysetup format") == 0


@pytest.mark.parametrize(("new", "why"), [({"size": 32 << 30}, "disk S3 is too small"),
                                          ({"pttype": "dos"}, "disk S3 is not blank")])
def test_a_disk_that_cannot_take_the_place_is_left_alone_and_named(tmp_path: Path, new: dict[str, Any], why: str) -> None:
    machine = replaced(tmp_path, **new)
    spool = machine.spool().open(BOX)
    assert spool.open and why in spool.problem and why in redundancy_line(spool)
    assert machine.count("repart") == machine.count("format") == machine.count("--add") == 0


def test_lsblk_is_read(tmp_path: Path) -> None:
    machine = Machine(tmp_path, second=True)
    machine.disks.append(entry("/dev/sdc", "disk", tran="usb"))
    machine.disks.append(entry("/dev/sr0", "rom"))
    system, second, stick = attached(machine.run)
    assert system.system and not system.blank
    assert second.blank and not second.removable
    assert stick.removable
