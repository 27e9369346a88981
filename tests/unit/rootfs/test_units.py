"""The units of the image, as files: what the service manager would pass over without a word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
UNITS = ROOT / "rootfs/usr/lib/systemd/system"
INITRD = ROOT / "image-build/mkosi.images/initrd/mkosi.extra/usr/lib/systemd/system"
SANDBOX = "10-sandbox.conf"


def minutes(path: Path, key: str) -> float:
    """A time of a unit; KeyError where it is not there."""
    found = dict(re.findall(r"^(\w+)=(.*)$", path.read_text(), re.M))[key]
    return int(found.removesuffix("min")) if found.endswith("min") else int(found) / 60


def test_each_template_has_the_sandbox_of_all_units():
    """`dcmgate-.service.d` counts for every unit of ours but templates: those need it by their own name."""
    shared = (UNITS / "dcmgate-.service.d" / SANDBOX).resolve(strict=True)
    templates = list(UNITS.glob("dcmgate-*@.service"))
    assert templates
    assert [path.name for path in templates if (path.parent / f"{path.name}.d" / SANDBOX).resolve() != shared] == []


@pytest.mark.parametrize("target, longest", [(INITRD / "initrd.target.d", INITRD / "dcmgate-persist.service"),
                                             (UNITS / "multi-user.target.d", UNITS / "dcmgate-disks.service")])
def test_a_boot_that_does_not_end_is_reset_and_one_that_takes_long_is_not(target: Path, longest: Path):
    path = target / "10-dcmgate.conf"
    assert "\nJobTimeoutAction=reboot-force\n" in path.read_text()
    assert minutes(path, "JobTimeoutSec") > minutes(longest, "TimeoutStartSec")
