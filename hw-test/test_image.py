"""The image as a file: what it is made of decides what it is, and nothing else. Needs no box."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, in_tools
from machine import DEVICE, IMAGES


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the root and of its verity, whose last hash is the root hash."""
    found = {}
    for path in sorted(folder.glob("dcmgate_*.root*.raw")):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def test_no_account_has_the_day_of_the_build() -> None:
    """Else the same packages give another root tomorrow."""
    epoch = re.search(r"^SourceDateEpoch=(\d+)$", (ROOT / "image-build" / "mkosi.conf").read_text(), re.MULTILINE)
    assert epoch is not None
    shadow = in_tools("dump.erofs", "--cat", "--path=/etc/shadow", next(IMAGES.glob("dcmgate_*.root.raw")), works=(IMAGES,))
    days = {account.split(":")[0]: account.split(":")[2] for account in shadow.splitlines()}
    assert "dcmgate-keeper" in days
    assert set(days.values()) == {str(int(epoch[1]) // 86400)}


@pytest.mark.full(minutes=4)
@pytest.mark.timeout(3600)
def test_one_snapshot_of_the_packages_gives_the_same_root_twice(tmp_path: Path, figures: dict[str, Any]) -> None:
    """In another folder, from this tree as it is, with every package installed anew."""
    before = hashes(IMAGES)
    snapshot = next(IMAGES.glob("dcmgate_*.packages"))
    tree = tmp_path / "tree"
    subprocess.run(["git", "clone", "--quiet", ROOT, tree], check=True)
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True,
                            stdout=subprocess.PIPE).stdout.split(b"\0")
    for name in filter(None, map(os.fsdecode, listed)):
        (tree / name).unlink(missing_ok=True)
        if os.path.lexists(ROOT / name):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name, follow_symlinks=False)
    (tree / ".venv").symlink_to(ROOT / ".venv")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dcmgate"
    name = "mkosi" if DEVICE == "x86-64" else f"mkosi-{DEVICE}"
    own = cache / f"{name}-{hashlib.sha256(snapshot.read_bytes()).hexdigest()[:12]}"      # as image-build/build names it
    shutil.rmtree(own, ignore_errors=True)
    network = int(os.environ["DCMGATE_NETWORK"])        # where the packages are: the suites are in one of their own
    build = ["nsenter", f"--net=/proc/self/fd/{network}", tree / "image-build" / "build", DEVICE]
    made = subprocess.run(build, env={**os.environ, "DCMGATE_SNAPSHOT": str(snapshot)}, pass_fds=[network],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    shutil.rmtree(own, ignore_errors=True)
    assert made.returncode == 0, made.stdout[-3000:]
    again = hashes(tree / "build" / IMAGES.name)
    figures["root and verity, SHA-256"] = before
    assert len(before) == 2
    assert again == before
