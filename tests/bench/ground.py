"""The ground that is measured on: what one contestant has left behind must not cost the next one anything.

ext4 without a journal, as machines in a cloud have it, never gives out an inode
that was deleted in the last minutes: it looks at every such inode of the group,
one after the other, each time that a file is made (`recently_deleted` in the
kernel's fs/ext4/ialloc.c). After a few cleared rounds a new file costs 0.3 to
0.6 ms rather than 0.03, for whoever makes files while the clock runs. So nothing
is deleted before the end of the run: what a round leaves is emptied and put
aside; and each contestant's folder lies in a part of the disk of its own, as if
it were at the top of a tree (`chattr +T`).
"""

from __future__ import annotations

import fcntl
import itertools
import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_GET, _SET = 0x80086601, 0x40086602      # FS_IOC_GETFLAGS, FS_IOC_SETFLAGS
_TOP = 0x00020000                        # EXT2_TOPDIR_FL

_numbers = itertools.count()


def spread(folder: Path) -> None:
    """Folders made in this one from now on are laid far from each other, where the file system can do that."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            flags, = struct.unpack("@l", fcntl.ioctl(descriptor, _GET, struct.pack("@l", 0)))
            fcntl.ioctl(descriptor, _SET, struct.pack("@l", flags | _TOP))
    finally:
        os.close(descriptor)


def put_aside(paths: Iterable[Path], aside: Path) -> None:
    """Empty these files and move them into `aside`, on the same file system."""
    aside.mkdir(exist_ok=True)
    for path in paths:
        with suppress(FileNotFoundError):
            os.truncate(path, 0)
            path.rename(aside / f"{next(_numbers):08d}")


def put_tree_aside(folder: Path, aside: Path) -> None:
    """The same for a folder and all that is in it."""
    aside.mkdir(exist_ok=True)
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            with suppress(OSError):
                if os.path.isfile(path) and not os.path.islink(path):
                    os.truncate(path, 0)
    folder.rename(aside / f"{next(_numbers):08d}")
