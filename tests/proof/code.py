"""Which code was proved: a digest of what runs, and the commit for people."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from tests.proof.instruments import ROOT


def version(root: Path = ROOT) -> str:
    """Of the product's modules and its locked dependencies; a page or a test that changes does not change it."""
    digest = hashlib.sha256()
    for path in [*sorted((root / "appliance").rglob("*.py")), root / "requirements.lock"]:
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def commit() -> str:
    """The short name of the commit; with "+" where files of the product or the tests differ from it; "" outside a clone."""
    named = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--", "appliance", "tests", "requirements.lock")
    return named + ("+" if named and changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.strip() if done.returncode == 0 else ""
