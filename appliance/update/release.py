"""Release: the folder that an update comes in, and the checks that it has to pass before anything of it is used.

The signature is OpenPGP's over the list of files; gpg(1) checks it against one
keyring of the verified root, the same way as systemd-pull does it later.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from appliance.policy.update import Installed, Refused, Release, choose, digests
from appliance.update.places import SIGNATURE, SUMS, Places

GPG_SECONDS = 120
BLOCK = 1 << 20


def signed(sums: bytes, signature: bytes, keyring: Path) -> None:
    """Whether a key that this box trusts has signed the list. Refused where not."""
    if not keyring.exists():
        raise Refused("this box has no key that a release could be signed with")
    with tempfile.TemporaryDirectory() as home:
        beside = Path(home) / "signature"
        beside.write_bytes(signature)
        command = ["gpg", "--homedir", home, "--no-options", "--no-default-keyring", "--no-auto-key-locate",
                   "--no-auto-check-trustdb", "--batch", "--trust-model=always", "--keyring", str(keyring), "--status-fd", "1",
                   "--verify", str(beside), "-"]
        try:
            done = subprocess.run(command, input=sums, capture_output=True, timeout=GPG_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as e:
            raise Refused(f"its signature cannot be checked: {e}") from None
    if done.returncode != 0 or b"[GNUPG:] VALIDSIG " not in done.stdout:
        raise Refused("it is not signed by a key that this box trusts")


def checked(folder: Path, box: Installed, places: Places, *, again: bool = False) -> Release:
    """The version that a folder's signed list offers to this box. Refused."""
    sums, signature = read(folder / SUMS), read(folder / SIGNATURE)
    signed(sums, signature, places.keyring)
    return choose(listed(sums), box, again=again)


def listed(sums: bytes) -> Mapping[str, str]:
    try:
        return digests(sums.decode("ascii"))
    except UnicodeDecodeError:
        raise Refused("its list of files (SHA256SUMS) cannot be understood") from None


def read(path: Path, largest: int = 1 << 16) -> bytes:
    """A small file. Refused where it is not there, or not small."""
    try:
        with path.open("rb") as file:
            data = file.read(largest + 1)
    except FileNotFoundError:
        raise Refused(f"it has no {path.name}") from None
    if len(data) > largest:
        raise Refused(f"its {path.name} is too long to be one")
    return data


def digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()


def uki_is_ours(path: Path, certificate: Path) -> None:
    """A UKI that the firmware would refuse must not get into the boot menu: the box would stand at the firmware's prompt.
    Refused."""
    if not certificate.exists():
        return
    try:
        done = subprocess.run(["sbverify", "--cert", str(certificate), str(path)], capture_output=True, timeout=GPG_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise Refused(f"the signature of its UKI cannot be checked: {e}") from None
    if done.returncode != 0:
        raise Refused("its UKI is not signed with the key that this box boots")
