"""What the firmware starts is what the builder has signed."""

from __future__ import annotations

from gateway import GatewayStrategy

GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"


def variable(box: GatewayStrategy, name: str) -> int:
    """A UEFI variable of one byte; the four before it are its attributes."""
    return int(box.run(f"od -An -tu1 -j4 -N1 /sys/firmware/efi/efivars/{name}-{GLOBAL}"))


def test_secure_boot_is_on(serving: GatewayStrategy) -> None:
    assert variable(serving, "SecureBoot") == 1
    assert variable(serving, "SetupMode") == 0
