"""The installer: what it offers, what it refuses, what it says of a board."""

from __future__ import annotations

import pytest

from appliance.policy.disks import Disk, Part
from appliance.policy.install import Board, Offer, board_lines, choose, offers

GB = 1 << 30


def disk(path: str, serial: str, *labels: str, size: int = 64 * GB, **more: bool) -> Disk:
    parts = tuple(Part(f"{path}{n}", f"u{n}", label, GB) for n, label in enumerate(labels, 1))
    return Disk(path, serial, size=size, parts=parts, **more)


SYSTEM = ("esp", "dcmgate_1", "dcmgate_1", "_empty", "_empty")
STICK = disk("/dev/sdz", "STICK", *SYSTEM, removable=True)
BLANK = disk("/dev/sda", "A", blank=True)
OTHER = disk("/dev/sdb", "B", "Windows")
BOX = disk("/dev/sdc", "C", *SYSTEM, "dcmgate-var", "dcmgate-spool")


def test_disks_are_offered_by_serial_number_and_the_stick_is_not() -> None:
    found = offers([STICK, BOX, OTHER, BLANK], "/dev/sdz")
    assert [(offer.disk.serial, offer.foreign, offer.refusal) for offer in found] == [
        ("A", False, ""), ("B", True, ""), ("C", False, "")]
    assert "stay as they are" in found[2].text and "would be lost" in found[1].text and "blank" in found[0].text


def test_a_box_is_kept() -> None:
    offer = choose(offers([BOX], ""), "C")
    assert isinstance(offer, Offer) and offer.keeps == ("dcmgate-var", "dcmgate-spool")


@pytest.mark.requirement("I4")
@pytest.mark.parametrize(("one", "why"), [
    (disk("/dev/sda", "S", "dcmgate-spool"), "second disk of a mirror"),
    (disk("/dev/sda", "S", "Windows", "dcmgate-spool"), "holds data of a box"),
    (disk("/dev/sda", "S", blank=True, size=GB), "smaller"),
    (disk("/dev/sda", "", blank=True), "no serial number")])
def test_what_holds_images_elsewhere_or_is_no_disk_for_a_box_is_refused(one: Disk, why: str) -> None:
    found = choose(offers([one], ""), one.serial)
    assert isinstance(found, str) and why in found


def test_only_the_whole_serial_number_chooses_a_disk() -> None:
    found = offers([BLANK, OTHER], "")
    assert choose(found, "a") == 'no disk has the serial number "a"'
    twins = offers([BLANK, disk("/dev/sdb", "A", blank=True)], "")
    assert "several" in str(choose(twins, "A"))


def test_what_cannot_be_read_of_a_board_is_said_to_be_so() -> None:
    good = board_lines(Board(2, "set-up mode", ("iTCO_wdt",)))
    assert [found for found, _ in good] == [True, True, True, False]
    assert "cannot be read" in good[3][1]
    bad = " ".join(text for found, text in board_lines(Board(0, "", ("Software Watchdog",))) if not found)
    assert "theft is not covered" in bad and "none in hardware" in bad and "this firmware has none" in bad
