"""The disks: encrypted, opened by this machine's TPM alone; a key slot without one; a mirror; a reset."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import FOLDER, image, root_shell
from dicom import arrived, content, pacs, send, study
from gateway import BOOT_SECONDS, GatewayStrategy, Status
from machine import FIRST, GIB, blank, environment, more, new_box, stick_of, tpm
from rootshell import RootShellProtocol
from waiting import wait_until

MIB = 1 << 20
PLAIN = [b"Test^Vm", b'address = "10.99.2.10"']
"""What would lie on a disk that is not encrypted: a patient's name, and a line of this site's configuration."""


def said(box: GatewayStrategy) -> dict[str, Any]:
    """`dcmgate disk status`."""
    found: dict[str, Any] = json.loads("\n".join(box.ssh.run("dcmgate disk status --json", timeout=60)[0]))
    return found


def holds(disk: Path, words: list[bytes]) -> list[bytes]:
    """Which of these words lie on the disk, in plain."""
    found: set[bytes] = set()
    longest = max(len(word) for word in words)
    with disk.open("rb") as file:
        before = b""
        while chunk := file.read(16 * MIB):
            found |= {word for word in words if word in before + chunk}
            before = chunk[-longest:]
    return sorted(found)


def test_the_disk_is_encrypted_and_opened_by_the_tpm(serving: GatewayStrategy, figures: dict[str, Any]) -> None:
    found = said(serving)
    assert found["opened_by"] == "tpm2", found
    assert found["redundancy"] == "not redundant: one disk (box)"
    assert found["encryption"].startswith("encrypted (LUKS2), sealed to the TPM")
    figures["disk"] = found["encryption"]
    for place in ("/var", "/var/spool/dcmgate"):
        device = serving.run(f"findmnt -fno SOURCE {place}")
        assert "crypt" in serving.run(f"lsblk -sno TYPE {device}").split()
    assert "not redundant" in serving.run("dcmgate status --once")


def test_nothing_of_a_patient_or_of_the_site_lies_on_the_disk_in_plain(serving: GatewayStrategy, tmp_path: Path) -> None:
    assert send(study(tmp_path / "sent", 3)).returncode == 0
    serving.run("sync")
    assert holds(FIRST, PLAIN) == []


RECOVERY_KEY = FOLDER / "recovery-key.txt"
"""What a person has written down, of this box's disk."""


def written_down(box: GatewayStrategy) -> Path:
    """The recovery key, in a file for the stick. It is shown as long as nobody has said that he has it."""
    shown, _error, code = box.ssh.run("dcmgate disk recovery-key 2>/dev/null", timeout=60)
    if code == 0:
        RECOVERY_KEY.write_text(shown[0] + "\r\n")
    return RECOVERY_KEY


def test_the_recovery_key_is_shown_until_somebody_has_written_it_down(serving: GatewayStrategy) -> None:
    """And then it is not on the box any more; that it was shown has the person's name."""
    key = written_down(serving).read_text().strip()
    assert len(key) == 71 and key.count("-") == 7
    assert serving.ssh.run("dcmgate disk recovery-key --written-down cccccccc", timeout=60)[2] != 0
    serving.run(f"dcmgate disk recovery-key --written-down {key[-8:]}")
    assert serving.ssh.run("dcmgate disk recovery-key", timeout=60)[2] != 0


def test_a_reset_is_refused_while_anything_is_undelivered(serving: GatewayStrategy, root: RootShellProtocol,
                                                          tmp_path: Path) -> None:
    sent = study(tmp_path / "sent", 2)
    assert send(sent).returncode == 0
    out, error, code = serving.ssh.run("dcmgate factory-reset --yes", timeout=60)
    assert code == 4 and "not delivered" in " ".join(out + error)
    assert serving.ssh.run("dcmgate factory-reset --override --yes", timeout=60)[2] == 4      # without a reason
    with pacs(tmp_path / "pacs") as folder:
        root.run("systemctl restart dcmgate-forwarder.service", 120)      # it tries at once, whatever its back-off was
        assert set(dict(content(path) for path in sent)) <= set(arrived(folder, len(sent), 400))


def start(box: GatewayStrategy) -> None:
    """Power, and a console to read; not a word yet on whether it boots."""
    box.transition(Status.off)
    box.target.activate(box.console)
    box.power.on()


def test_a_tpm_that_does_not_give_the_key_costs_one_restart(serving: GatewayStrategy) -> None:
    """For a measurement that it missed: at the next start it has them all. Here another TPM is the one that has missed one."""
    with environment(DCMGATE_TPM=tpm("forgetful")):
        start(serving)
        serving.console.expect("restarts once", timeout=BOOT_SECONDS)
        serving.transition(Status.off)
    serving.transition("serving")
    assert "did not give the disk's key at the start before" in serving.run("dcmgate boot")
    assert "DcmgateAgain" not in serving.run("ls /sys/firmware/efi/efivars")      # and there may be one more


@pytest.mark.full(minutes=10)
@pytest.mark.timeout(5400)
def test_the_disk_in_another_machine_is_unreadable_until_the_recovery_key_is_given(serving: GatewayStrategy) -> None:
    """Another TPM: the box boots on memory and says so. With the stick it opens, and is sealed to that TPM from then on."""
    identity, key = serving.run("cat /etc/machine-id"), written_down(serving)
    with environment(DCMGATE_TPM=tpm("stranger")):
        start(serving)
        serving.console.expect("restarts once", timeout=BOOT_SECONDS)
        said_of_it = serving.console.expect("this boot keeps nothing", timeout=BOOT_SECONDS)
        assert b"restarts once" not in said_of_it[1]
        serving.console.expect(r"Reached target .*multi-user\.target", timeout=BOOT_SECONDS)
        serving.transition(Status.off)
        assert holds(FIRST, PLAIN) == []
    serving.transition("serving")      # at home it opens as ever
    for machine in ("stranger", "tpm"):
        with environment(DCMGATE_TPM=tpm(machine)):
            start(serving)
            serving.console.expect("waiting .* for its recovery key", timeout=BOOT_SECONDS)
            serving.target.activate(serving.stick)
            serving.stick.plug(stick_of("DCMGATE-KEY", key))
            serving.console.expect("sealed to this TPM", timeout=BOOT_SECONDS)
            serving.transition(Status.off)
            serving.transition("serving")
            assert said(serving)["opened_by"] == "tpm2"
            assert serving.run("cat /etc/machine-id") == identity
            serving.transition(Status.off)


@pytest.fixture
def without_tpm(box: GatewayStrategy) -> Iterator[GatewayStrategy]:
    with new_box(box, image(), DCMGATE_TPM="") as other:
        yield other


@pytest.mark.full(minutes=5)
@pytest.mark.timeout(5400)
def test_a_box_without_a_tpm_boots_and_says_that_theft_is_not_covered(without_tpm: GatewayStrategy) -> None:
    for _ in range(2):
        without_tpm.transition("serving")
        found = said(without_tpm)
        assert (found["opened_by"], found["theft_covered"]) == ("key-slot", False)
        assert "theft is not covered" in without_tpm.run("dcmgate status --once")
        without_tpm.transition(Status.off)


@pytest.fixture
def mirrored(box: GatewayStrategy) -> Iterator[tuple[GatewayStrategy, Path]]:
    second = blank("second.raw", 6 * GIB)
    with new_box(box, image(), DCMGATE_MORE=more([(second, "second")])) as other:
        yield other, second


def filled(disk: Path) -> set[int]:
    """The MiB of a disk that are not all zeros."""
    with disk.open("rb") as file:
        return {number for number in range(disk.stat().st_size // MIB) if any(file.read(MIB))}


def rot(disk: Path, places: list[int]) -> None:
    """4 KiB in the middle of each of these MiB are something else."""
    with disk.open("r+b") as file:
        for number in places:
            file.seek(number * MIB + MIB // 2)
            file.write(b"\xa5" * 4096)


READ_FROM_THE_FIRST = """\
for slot in /sys/block/md*/md/dev-*; do
    ls $slot/block/slaves | grep -q ^vda || echo writemostly >$slot/state
done
"""
"""md reads from whichever disk is nearer; from now on from the box's own, while that can be read."""


def wait_for_mirror(box: GatewayStrategy) -> None:
    wait_until(lambda: said(box)["redundant"], 900, lambda: said(box), every=5)


@pytest.mark.full(minutes=15)
@pytest.mark.timeout(5400)
def test_a_mirror_survives_a_pulled_disk_a_new_one_and_rotten_blocks(mirrored: tuple[GatewayStrategy, Path], target: Any,
                                                                     figures: dict[str, Any], tmp_path: Path) -> None:
    box, _second = mirrored
    box.transition("serving")
    assert said(box)["redundancy"].startswith("two disks, mirrored (box and second)")
    wait_for_mirror(box)
    box.run("sync")
    before = filled(FIRST)
    sent = study(tmp_path / "sent", 40)
    assert send(sent, 600).returncode == 0
    box.run("sync")
    places = sorted(filled(FIRST) - before)[:12]
    # Pulled: it serves on, and says which disk.
    box.power.monitor_command("device_del", {"id": "second"})
    further = study(tmp_path / "further", 5)
    assert send(further, 600).returncode == 0
    wait_until(lambda: "disk second is out of the mirror" in said(box)["redundancy"], 900, lambda: said(box), every=5)
    box.transition(Status.off)
    # Put back: it is brought up to date.
    box.transition("serving")
    wait_for_mirror(box)
    box.transition(Status.off)
    with environment(DCMGATE_MORE=more([(blank("third.raw", 6 * GIB), "third")])):
        # Replaced: a blank disk is taken in, by itself, and is not called a mirror before it has all of it.
        box.transition("serving")
        assert "being brought up to date" in box.run("journalctl -b --no-pager -o cat -u dcmgate-disks.service")
        wait_for_mirror(box)
        assert said(box)["redundancy"] == "two disks, mirrored (box and third)"
        box.transition(Status.off)
        # Rotten: every image arrives as it was, and the blocks are mended from the new disk, and counted.
        assert places
        rot(FIRST, places)
        box.transition("serving")
        root_shell(target).run(READ_FROM_THE_FIRST)
        with pacs(tmp_path / "pacs") as folder:
            wanted = dict(content(path) for path in [*sent, *further])
            assert arrived(folder, len(wanted), 900) == wanted
        assert json.loads(box.run("dcmgate balance --json", 120))["unaccounted"] == 0
        figures["blocks that rotted"], figures["errors mended by the mirror"] = len(places), said(box)["errors_mended"]
        assert figures["errors mended by the mirror"] > 0
        box.transition(Status.off)


@pytest.mark.full(minutes=5)
@pytest.mark.timeout(5400)
def test_a_reset_makes_a_new_box_and_keeps_who_did_it(box: GatewayStrategy, tmp_path: Path) -> None:
    with new_box(box, image()):
        box.transition("serving")
        identity = box.run("cat /etc/machine-id")
        assert send(study(tmp_path / "sent", 2)).returncode == 0
        box.run('dcmgate factory-reset --override --reason "end of the test" --yes')
        box.console.expect("factory reset, as asked by engineer", timeout=BOOT_SECONDS)
        box.console.expect("first boot", timeout=BOOT_SECONDS)
        box.console.expect(r"Reached target .*multi-user\.target", timeout=BOOT_SECONDS)
        box.figures.pop("provisioning")
        box.transition(Status.off)
        box.transition("serving")
        assert box.run("cat /etc/machine-id") != identity
        assert json.loads(box.run("dcmgate balance --json", 120))["accepted"] == 0
