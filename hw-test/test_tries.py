"""A version on trial has two tries: one is counted before the root is looked at, whoever starts the box; what proves itself is
freed of them."""

from __future__ import annotations

import pytest
from conftest import in_tools
from gateway import GatewayStrategy, Status
from machine import DEVICE, FIRST
from partitions import Disk
from waiting import wait_until

COUNTED = "/sys/firmware/efi/efivars/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"


# On a PC the suite of updates shows the same, with versions that are good and bad.
pytestmark = [pytest.mark.full(minutes=4)] if DEVICE == "x86-64" else []


def test_a_try_is_counted_and_taken_off_again(serving: GatewayStrategy) -> None:
    serving.transition(Status.off)
    disk = Disk(FIRST, in_tools)
    [name] = disk.menu()
    disk.rename(name, name.replace(".efi", "+2.efi"))
    serving.transition(Status.serving)
    assert serving.run(f"cat {COUNTED} | tail -c +5 | tr -d '\\0'") == "\\EFI\\Linux\\" + name.replace(".efi", "+1-1.efi")
    wait_until(lambda: serving.run("systemctl is-active systemd-bless-boot.service || true") == "active", 300,
               lambda: serving.run("systemctl list-jobs --no-pager; systemctl --failed --no-pager"), every=5)
    serving.transition(Status.off)
    assert disk.menu() == [name]
