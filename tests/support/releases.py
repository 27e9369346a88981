"""Releases for the tests of updates: a folder with small files under the right names, signed by a key of the test's own."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

UUID = "f3c0a1d2-0000-4000-8000-0123456789ab"


class Signer:
    """An OpenPGP key. `keyring` is what a box would trust."""

    def __init__(self, folder: Path, name: str = "signer") -> None:
        self.home = folder / f"{name}.gnupg"
        self.home.mkdir(mode=0o700)
        self.keyring = folder / f"{name}.gpg"
        self._gpg("--passphrase", "", "--quick-gen-key", f"Test {name}", "ed25519", "sign", "never")
        self._gpg("--export", "--output", str(self.keyring))

    def sign(self, release: Path) -> None:
        (release / "SHA256SUMS.gpg").unlink(missing_ok=True)
        self._gpg("--detach-sign", "--output", str(release / "SHA256SUMS.gpg"), str(release / "SHA256SUMS"))

    def close(self) -> None:
        subprocess.run(["gpgconf", "--homedir", str(self.home), "--kill", "all"], check=False, capture_output=True)

    def _gpg(self, *words: str) -> None:
        subprocess.run(["gpg", "--homedir", str(self.home), "--batch", "--quiet", *words], check=True, capture_output=True)


def make(folder: Path, version: str, signer: Signer | None, *, device: str = "x86-64", size: int = 100_000) -> Path:
    """A release of that version; without a signer it is not signed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (f"dcmgate-{device}_{version}_{UUID}.root.raw.gz", f"dcmgate-{device}_{version}_{UUID}.root-verity.raw.gz",
                 f"dcmgate-{device}_{version}.efi"):
        (folder / name).write_bytes(hashlib.shake_256(f"{version} {name}".encode()).digest(size))
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(folder.glob("dcmgate-*"))]
    (folder / "SHA256SUMS").write_text("".join(lines))
    if signer is not None:
        signer.sign(folder)
    return folder
