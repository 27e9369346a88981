"""Durable: small files, and names in folders, that a power cut leaves old or new. Imports nothing: every boot waits for it."""

from __future__ import annotations

import os
from pathlib import Path


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_whole(path: Path, text: str | bytes, mode: int = 0o640, *, sync: bool = True) -> None:
    """Replace a small file so that a crash leaves either the old text or the new one. `sync`: and that it is kept. OSError."""
    new = path.with_name(path.name + ".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    left = memoryview(text.encode() if isinstance(text, str) else text)
    try:
        while left:
            left = left[os.write(fd, left):]
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(new, path)
    if sync:
        sync_folder(path.parent)
