"""Writing the system to a disk: what is written, and what a box keeps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from appliance.disks import install
from appliance.disks.reset import reset_box
from appliance.errors import DiskFault, DiskRefused
from appliance.policy.disks import Disk, Held
from appliance.policy.install import Offer

NAMES = ("esp", "dcmgate_2", "dcmgate_2", "_empty", "_empty")
SECTORS = (64, 32, 8, 32, 8)


class Bench:
    """Two disks, each partition a file; sfdisk's answers are made of what it was told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ran: list[list[str]] = []
        self.scripts: list[str] = []
        for disk, fill in (("stick", b"n"), ("target", b"o")):
            for number, sectors in enumerate(SECTORS, 1):
                (folder / f"{disk}{number}").write_bytes(fill * 512 * sectors)
        self.sizes = {"stick": SECTORS, "target": SECTORS}

    def run(self, command: Sequence[str], *, seconds: float = 60.0, stdin: str = "") -> str:
        self.ran.append(list(command))
        if command[:2] == ["sfdisk", "--json"]:
            sizes = self.sizes[Path(command[2]).name]
            parts = [{"node": f"{command[2]}{n}", "size": size, "type": f"T{n % 2}", "uuid": f"U{n}", "name": NAMES[n - 1]}
                     for n, size in enumerate(sizes, 1)]
            return json.dumps({"partitiontable": {"label": "gpt", "partitions": parts}})
        if stdin:
            self.scripts.append(stdin)
        return ""

    def install(self, *, keeps: tuple[str, ...] = ()) -> None:
        stick, target = (Disk(str(self.folder / name), name) for name in ("stick", "target"))
        install.install(stick, Offer(target, keeps), run=self.run, new_uuid=lambda: "NEW")

    def content(self, number: int) -> bytes:
        return (self.folder / f"target{number}").read_bytes()


def test_a_blank_disk_gets_the_table_and_the_first_slot(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.install()
    lines = bench.scripts[0].splitlines()
    assert lines[0] == "label: gpt" and len(lines) == 6
    assert "uuid=NEW" in lines[1] and "uuid=U2" in lines[2] and "uuid=U3" in lines[3]
    assert [set(bench.content(n)) for n in (1, 2, 3, 4, 5)] == [{ord("n")}] * 3 + [{ord("o")}] * 2


@pytest.mark.requirement("I4")
def test_a_box_keeps_its_table_and_its_own_partitions(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.install(keeps=("dcmgate-var", "dcmgate-spool"))
    assert bench.scripts == [] and not any("wipefs" in word for command in bench.ran for word in command)
    labels = [command[-2:] for command in bench.ran if "--part-label" in command]
    assert labels == [["1", "esp"], ["2", "dcmgate_2"], ["3", "dcmgate_2"], ["4", "_empty"], ["5", "_empty"]]
    assert set(bench.content(2)) == {ord("n")}


@pytest.mark.requirement("I4")
def test_nothing_is_written_where_the_partitions_of_a_box_are_too_small(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.sizes["target"] = (64, 16, 8, 16, 8)
    with pytest.raises(DiskRefused):
        bench.install(keeps=("dcmgate-spool",))
    assert not any("--part" in word for command in bench.ran for word in command)
    assert set(bench.content(1)) == {ord("o")}


def test_a_stick_that_ends_too_early_is_said(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    (tmp_path / "stick2").write_bytes(b"n" * 512)
    with pytest.raises(DiskFault):
        bench.install()


def test_keys_are_enrolled_with_the_platform_key_last(tmp_path: Path) -> None:
    for name in ("db", "KEK", "PK"):
        (tmp_path / f"{name}.auth").write_bytes(name.encode())
    efi = tmp_path / "efi"
    efi.mkdir()
    install.enrol(tmp_path, efi)
    assert (efi / f"db-{install.IMAGES}").read_bytes() == b"\x27\0\0\0db"
    assert [name for name, _ in install.KEYS][-1] == "PK"
    with pytest.raises(DiskFault, match="PK"):
        (tmp_path / "PK.auth").unlink()
        install.enrol(tmp_path, efi)


def test_the_board_is_read(tmp_path: Path) -> None:
    places = {"sys/class/tpm/tpm0/tpm_version_major": "2\n", "sys/class/watchdog/watchdog0/identity": "iTCO\n"}
    for place, content in places.items():
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_text(content)
    (tmp_path / f"SecureBoot-{install.GLOBAL}").write_bytes(b"\6\0\0\0\0")
    (tmp_path / f"SetupMode-{install.GLOBAL}").write_bytes(b"\6\0\0\0\1")
    found = install.board(tmp_path / "sys", tmp_path)
    assert (found.tpm, found.secure_boot, found.watchdogs) == (2, "set-up mode", ("iTCO",))
    assert install.board(tmp_path / "nothing", tmp_path / "nothing").secure_boot == ""


@pytest.mark.requirement("I4")
def test_a_reset_counts_again_once_nothing_comes_in_any_more(tmp_path: Path) -> None:
    ran: list[list[str]] = []
    order = tmp_path / "order"

    def run(command: Sequence[str], *, seconds: float = 60.0, stdin: str = "") -> str:
        ran.append(list(command))
        return ""

    def count(held: Held) -> Held:
        assert ran[-1][1] == "stop"      # intake has ended before it is counted
        return held

    with pytest.raises(DiskRefused):
        reset_box("anna", "sold", override=False, count=lambda: count(Held(undelivered=1)), run=run, order=order)
    assert ran[-1] == ["systemctl", "start", "dcmgate-receiver.socket"] and not order.exists()
    reset_box("anna", "sold\nfor good", override=True, count=lambda: count(Held(undelivered=1)), run=run, order=order)
    assert ran[-1] == ["systemctl", "--no-block", "reboot"]
    assert order.read_text().startswith("anna, ") and order.read_text().count("\n") == 1
    assert "1 not delivered" in order.read_text()
