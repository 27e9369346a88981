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
    tries = re.findall(r"^StartLimitBurst=(\d+)$", longest.read_text(), re.M) or ["1"]
    assert minutes(path, "JobTimeoutSec") > int(tries[0]) * minutes(longest, "TimeoutStartSec")


@pytest.mark.requirement("Watchdog chain: a slow start is tried again")
@pytest.mark.parametrize("unit", ["dcmgate-disks", "dcmgate-apply"])
def test_what_is_done_once_on_the_way_to_serving_is_tried_again(unit: str):
    """And what waits for it does not count it as failed before the last try."""
    said = (UNITS / f"{unit}.service").read_text()
    assert {"Type=oneshot", "Restart=on-failure", "RestartMode=direct"} <= set(said.splitlines())
    tries, pause = (int(re.findall(rf"^{key}=(\d+)$", said, re.M)[0]) for key in ("StartLimitBurst", "RestartSec"))
    assert tries >= 3
    # A try that ends at its time limit still counts when the last one begins: there is a last one.
    each = minutes(UNITS / f"{unit}.service", "TimeoutStartSec")
    limit = re.findall(r"^StartLimitIntervalSec=(\d+)(min|h)$", said, re.M)[0]
    assert int(limit[0]) * {"min": 1, "h": 60}[limit[1]] > (tries - 1) * (each + pause / 60)


@pytest.mark.requirement("Watchdog chain: a slow start is tried again")
def test_a_unit_that_each_start_of_a_service_pulls_in_counts_no_starts():
    """Skipped for its condition it is started again each time, and a limit of its own would be that of the service."""
    for path in UNITS.glob("dcmgate-*.service"):
        for name in re.findall(r"^Requires=(dcmgate-\S+\.service)$", path.read_text(), re.M):
            needed = (UNITS / name).read_text()
            assert "Condition" not in needed or "StartLimit" not in needed, name


@pytest.mark.requirement("Watchdog chain: a box that is not set up escalates nothing")
def test_nothing_escalates_on_a_box_that_is_not_set_up():
    assert "\nConditionPathExists=/etc/dcmgate/dcmgate.toml\n" in (UNITS / "dcmgate-escalate@.service").read_text()


@pytest.mark.requirement("Watchdog chain: a box that is not set up escalates nothing")
def test_the_device_of_the_spool_is_waited_for_from_when_its_disks_are_made():
    line = next(line for line in (ROOT / "rootfs/etc/fstab").read_text().splitlines() if "/var/spool/dcmgate" in line)
    assert "x-systemd.requires=dcmgate-disks.service" in line
    device = line.split()[0].removeprefix("/").replace("-", "\\x2d").replace("/", "-")
    assert "\nAfter=dcmgate-disks.service\n" in (UNITS / f"{device}.device.d" / "10-dcmgate.conf").read_text()
