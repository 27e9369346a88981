"""Each boot knows why it began, from what the last one left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.policy.resets import Reset
from appliance.watchdog import boots


@pytest.fixture
def box(tmp_path: Path) -> Path:
    for name in ("state", "run", "boards/watchdog0", "pstore"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "boards/watchdog0/bootstatus").write_text("0\n")
    return tmp_path


def begin(box: Path, id: str, remark: str = "") -> boots.Boot:
    return boots.begin(box / "state", box / "run", box / "boards", (box / "pstore",), id, kept=True, remark=remark)


def test_boots_are_told_apart(box: Path) -> None:
    assert begin(box, "a").reset == Reset.FIRST
    assert begin(box, "a").number == 1, "the same boot"
    assert begin(box, "b").reset == Reset.CUT
    boots.end(box / "state")
    third = begin(box, "c")
    assert (third.reset, third.number) == (Reset.ORDERLY, 3)
    assert not boots.is_bad(third)
    boots.reboots("receiver: restarts have not helped", box / "state")
    boots.end(box / "state")
    assert "restarts have not helped" in begin(box, "d").text
    boots.end(box / "state")
    assert begin(box, "e").reset == Reset.ORDERLY
    assert boots.read(box / "run") == begin(box, "e")
    boots.end(box / "state")
    assert begin(box, "f", "and once for the TPM").text.endswith("; and once for the TPM")


def test_the_board_is_believed(box: Path) -> None:
    begin(box, "a")
    (box / "boards/watchdog0/bootstatus").write_text("32\n")
    found = begin(box, "b")
    assert found.reset == Reset.WATCHDOG
    assert boots.is_bad(found)


def test_the_kernel_s_last_words_are_told_once(box: Path) -> None:
    begin(box, "a")
    words = "<6>[   51.1] usb 1-1: new device\n<0>[   61.514] Kernel panic - not syncing: sysrq triggered crash\n"
    (box / "pstore/dmesg-efi_pstore-1").write_text(words)
    assert begin(box, "b").text.endswith(": Kernel panic - not syncing: sysrq triggered crash")
    assert begin(box, "c").reset == Reset.CUT


def test_a_marker_that_makes_no_sense_is_no_marker(box: Path) -> None:
    (box / "state" / boots.MARKER).write_text("[1, 2")
    assert begin(box, "a").reset == Reset.FIRST
