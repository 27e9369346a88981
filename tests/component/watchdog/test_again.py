"""A TPM that did not give the key has one more start, and not two, and none where that could go on for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.policy.disks import Boot, Opened
from appliance.watchdog.again import settle
from appliance.watchdog.budget import Variable


def test_the_firmware_shows_that_it_keeps_what_it_is_told(tmp_path: Path) -> None:
    """Without that, the initrd restarts nothing. It is written once, and not at every boot."""
    keeps, again = Variable(tmp_path / "keeps"), Variable(tmp_path / "again")
    assert not settle(Boot(opened=Opened.TPM), keeps, again)
    first = (tmp_path / "keeps").stat()
    assert (tmp_path / "keeps").read_bytes() == b"\7\0\0\0\1" and not again.exists()
    assert not settle(Boot(opened=Opened.TPM), keeps, again)
    assert (tmp_path / "keeps").stat().st_mtime_ns == first.st_mtime_ns


@pytest.mark.requirement("Goal 3")
def test_the_other_start_is_told_and_there_may_be_one_more(tmp_path: Path) -> None:
    keeps, again = Variable(tmp_path / "keeps"), Variable(tmp_path / "again")
    again.write(b"\1")
    assert settle(Boot(opened=Opened.TPM), keeps, again)
    assert not again.exists()
    assert not settle(Boot(opened=Opened.TPM), keeps, again)


@pytest.mark.parametrize("opened, left", [(Opened.NOTHING, True), (Opened.RECOVERY_KEY, False), (Opened.KEY_SLOT, False)])
def test_while_nothing_gives_the_key_there_is_no_second_one(tmp_path: Path, opened: Opened, left: bool) -> None:
    """Nor has a box whose key no TPM holds any use for one."""
    keeps, again = Variable(tmp_path / "keeps"), Variable(tmp_path / "again")
    again.write(b"\1")
    assert not settle(Boot(opened=opened), keeps, again)
    assert (again.exists(), keeps.exists()) == (left, False)


def test_firmware_that_takes_nothing_is_said(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="gone"):
        settle(Boot(opened=Opened.TPM), Variable(tmp_path / "gone/keeps"), Variable(tmp_path / "gone/again"))
