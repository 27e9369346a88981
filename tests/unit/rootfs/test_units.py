"""The units of the image, as files: what the service manager would pass over without a word."""

from __future__ import annotations

from pathlib import Path

UNITS = Path(__file__).resolve().parents[3] / "rootfs/usr/lib/systemd/system"
SANDBOX = "10-sandbox.conf"


def test_each_template_has_the_sandbox_of_all_units():
    """`dcmgate-.service.d` counts for every unit of ours but templates: those need it by their own name."""
    shared = (UNITS / "dcmgate-.service.d" / SANDBOX).resolve(strict=True)
    templates = list(UNITS.glob("dcmgate-*@.service"))
    assert templates
    assert [path.name for path in templates if (path.parent / f"{path.name}.d" / SANDBOX).resolve() != shared] == []
