"""Processes of a broken product: what `Gateway` starts within the block runs a copy of the code in which a text is replaced."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import gateway


@contextmanager
def broken(folder: Path, file: str, old: str, new: str) -> Iterator[None]:
    """`old`, which occurs exactly once in `file` of the package `appliance`, becomes `new`."""
    root = gateway.ROOT
    shutil.copytree(root / "appliance", folder / "appliance", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests").symlink_to(root / "tests")
    path = folder / "appliance" / file
    text = path.read_text()
    assert text.count(old) == 1, f"{file} does not have this text once: {old!r}"
    path.write_text(text.replace(old, new))
    gateway.ROOT = folder
    try:
        yield
    finally:
        gateway.ROOT = root
        shutil.rmtree(folder)
