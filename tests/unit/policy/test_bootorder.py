"""The firmware's own list: the UKIs that have proven themselves stand behind the boot menu, and nobody else is moved."""

from __future__ import annotations

from appliance.policy.bootorder import EspPlace, load_option, order

PLACE = EspPlace(1, 2048, 1048576, "c12a7328-f81f-11d2-ba4b-00a0c93ec93b")


def test_an_option_is_what_the_firmware_reads() -> None:
    """UEFI 2.10, 3.1.3 and 10.3: attributes, length, description, hard drive, file, end."""
    found = load_option(PLACE, "\\EFI\\a.efi", "D")
    assert found[:4] == b"\1\0\0\0"
    assert found[6:10] == b"D\0\0\0"
    drive = found[10:52]
    assert drive[:4] == b"\4\1\x2a\0"
    assert drive[4:24] == b"\1\0\0\0" + (2048).to_bytes(8, "little") + (1048576).to_bytes(8, "little")
    assert drive[24:40] == bytes.fromhex("28732ac11ff8d211ba4b00a0c93ec93b")
    assert drive[40:] == b"\2\2"
    path = found[52:-4]
    assert path[:4] == b"\4\4" + len(path).to_bytes(2, "little")
    assert path[4:].decode("utf-16-le") == "\\EFI\\a.efi\0"
    assert found[-4:] == b"\x7f\xff\4\0"
    assert int.from_bytes(found[4:6], "little") == len(found) - 10


def test_ours_stand_behind_the_one_that_was_booted() -> None:
    assert order([1, 2, 0], 1, 2) == [1, 0xDC00, 0xDC01, 2, 0]
    assert order([2, 1, 0], 1, 1) == [2, 1, 0xDC00, 0]
    assert order([1, 0xDC00, 0xDC01, 2], 1, 1) == [1, 0xDC00, 2]
    assert order([1, 0xDC00, 2], 0xDC00, 2) == [1, 0xDC00, 0xDC01, 2], "booted by one of ours: the menu stays the first"
    assert order([0, 1, 0xDC00, 2], 0xDC00, 2) == [0, 1, 0xDC00, 0xDC01, 2], "behind the menu, wherever that is"
    assert order([1, 2], None, 1) == [1, 0xDC00, 2]
    assert order([], None, 1) == []
