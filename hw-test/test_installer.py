"""The installer: from its stick to a blank disk, and again to the same box, which keeps what it holds."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import FOLDER, ROOT
from dicom import arrived, content, pacs, send, study
from gateway import BOOT_SECONDS, GatewayStrategy, Status
from machine import environment, new_box

pytestmark = [pytest.mark.full(minutes=12), pytest.mark.timeout(5400)]


def stick() -> str:
    """A stick of the installer, for $DCMGATE_MORE: the firmware starts from it first."""
    image = FOLDER / "installer.raw"
    made = subprocess.run([ROOT / "image-build" / "installer"], capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run(["cp", "--sparse=always", made, image], check=True)
    return (f"-drive if=none,id=installer,format=raw,file={image} "
            "-device usb-storage,bus=usb.0,drive=installer,removable=on,serial=installer,bootindex=0")


def installed(box: GatewayStrategy, more: str, expected: str) -> float:
    """One installation by somebody at the console, who types the serial number; `expected`: what the list says of the disk.

    How many seconds it took from then on.
    """
    box.transition(Status.off)
    with environment(DCMGATE_MORE=more):
        box.target.activate(box.console)
        box.power.on()
        box.console.expect("this is the installer", timeout=BOOT_SECONDS)
        box.console.expect("TPM 2.0: there", timeout=BOOT_SECONDS)
        box.console.expect("Secure Boot: on", timeout=60)
        box.console.expect("watchdog: .*i6300ESB", timeout=60)
        box.console.expect("power-on after AC loss: cannot be read", timeout=60)
        box.console.expect(rf"\n\s+box .*{expected}", timeout=60)
        box.console.expect("Serial number of the disk to install on", timeout=60)
        box.console.sendline("bo")
        box.console.expect('no disk has the serial number "bo"', timeout=60)
        box.console.expect("Serial number of the disk to install on", timeout=60)
        box.console.sendline("box")
        began = time.monotonic()
        box.console.expect("installed on disk box", timeout=600)
        seconds = time.monotonic() - began
        box.transition(Status.off)
    return round(seconds, 1)


def test_a_blank_disk_becomes_a_box_and_a_re_installation_keeps_the_spool(box: GatewayStrategy, figures: dict[str, Any],
                                                                          tmp_path: Path) -> None:
    more = stick()
    with new_box(box, None):
        figures["seconds of an installation"] = installed(box, more, "blank")
        box.transition("serving")
        identity = box.run("cat /etc/machine-id")
        sent = study(tmp_path / "sent", 10)
        assert send(sent).returncode == 0
        installed(box, more, "dcmgate-var, dcmgate-spool stay as they are")
        box.transition("serving")
        assert box.run("cat /etc/machine-id") == identity
        with pacs(tmp_path / "pacs") as folder:
            assert arrived(folder, len(sent), 400) == dict(content(path) for path in sent)
