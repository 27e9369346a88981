"""Places: where things of an update are, and what the running system says of itself."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.policy.update import Entry, entries_of, entry_of

DEVICES = {"x86_64": "x86-64", "aarch64": "arm64"}
"""The machine's name → that of the device type, which is systemd's of the architecture (`%a` of the transfers)."""

LOADER = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
"""The vendor of systemd-boot's UEFI variables."""

SUMS, SIGNATURE = "SHA256SUMS", "SHA256SUMS.gpg"


@dataclass(frozen=True, slots=True)
class Places:
    """`state` is kept, `run` is not; `lent`: see lend.py. `requests` is where a person leaves what is wanted; whose file it is,
    is who asks. `keyring` has the keys that may sign a release, and lies in the verified root."""

    state: Path = Path("/var/lib/dcmgate-update")
    run: Path = Path("/run/dcmgate-update")
    requests: Path = Path("/run/dcmgate-update/requests")
    stick: Path = Path("/run/dcmgate-update/stick")
    lent: Path = Path("/run/dcmgate-update/lent")
    keyring: Path = Path("/usr/lib/systemd/import-pubring.gpg")
    certificate: Path = Path("/usr/lib/dcmgate/secure-boot.crt")
    os_release: Path = Path("/usr/lib/os-release")
    floor: Path = Path("/usr/lib/dcmgate/update-floor")
    menus: tuple[Path, ...] = (Path("/efi/EFI/Linux"), Path("/boot/EFI/Linux"), Path("/boot/efi/EFI/Linux"))

    efivars: Path = Path("/sys/firmware/efi/efivars")
    sysfs: Path = Path("/sys")

    @property
    def bundle(self) -> Path:
        """Where a release is fetched to; the transfers read it there."""
        return self.state / "bundle"

    def running(self) -> str:
        """The version of the image; "0" where this is no image of ours."""
        with suppress(OSError):
            for line in self.os_release.read_text().splitlines():
                if line.startswith("IMAGE_VERSION="):
                    return line.partition("=")[2].strip("\"'")
        return "0"

    def floor_of_image(self) -> str:
        try:
            return self.floor.read_text().strip() or "0"
        except OSError:
            return "0"

    def menu(self) -> Path | None:
        """The folder of the boot menu's UKIs."""
        for folder in self.menus:
            with suppress(OSError):
                if any(name.endswith(".efi") for name in os.listdir(folder)):
                    return folder
        return None

    def entries(self) -> tuple[Entry, ...]:
        folder = self.menu()
        return entries_of(os.listdir(folder)) if folder is not None else ()

    def counted(self) -> str:
        """The version whose try systemd-boot has counted on this boot; empty where none was."""
        with suppress(OSError):
            path = (self.efivars / f"LoaderBootCountPath-{LOADER}").read_bytes()[4:].decode("utf-16-le", "replace").rstrip("\0")
            entry = entry_of(path.rpartition("\\")[2])
            return entry.version if entry is not None else ""
        return ""


def device() -> str:
    """The type of this device."""
    machine = platform.machine()
    return DEVICES.get(machine, machine)
