"""Folders in memory: for what asks nothing of a disk, or whose disks are made by the test itself."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MEMORY = Path("/dev/shm")


@contextmanager
def in_memory(prefix: str, needed: int, otherwise: Path) -> Iterator[Path]:
    """A new folder, with room for `needed` bytes of memory; where there is less, one in the folder `otherwise`.

    It goes at the end. What processes with the same prefix left that were killed themselves goes now.
    """
    for place in MEMORY.glob(f"{prefix}*"):
        owner = place.name.removeprefix(prefix).partition("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(place, ignore_errors=True)
    room = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > needed
    with tempfile.TemporaryDirectory(prefix=f"{prefix}{os.getpid()}-", dir=MEMORY if room else otherwise,
                                     ignore_cleanup_errors=True) as place:
        yield Path(place)
