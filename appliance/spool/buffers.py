"""Page-aligned buffers: space for the head in front, room for a mebibyte of data set behind it.

One buffer is one O_DIRECT write, so an object that fits reaches the disk in a
single call. Buffers are lent to one instance at a time, never to an idle association.
"""

from __future__ import annotations

import mmap
import threading

from appliance.dicom.part10 import HEAD

CAPACITY = 1 << 20
"""Bytes of data set in a buffer."""

PAGE = 4096
"""Alignment of memory, offset and length that O_DIRECT asks for on any disk we know."""

KEPT = 16
"""Free buffers that are kept for the next instance; the others go back to the system."""


class Buffer:
    """Private memory: `whole` is head and data, `data` the data alone. Aligned, because HEAD is one page."""

    __slots__ = ("data", "whole")

    def __init__(self) -> None:
        self.whole = memoryview(mmap.mmap(-1, HEAD + CAPACITY, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        self.data = self.whole[HEAD:]


class BufferPool:
    """Free buffers, last used first, because those are in the processor's cache."""

    def __init__(self) -> None:
        self._free: list[Buffer] = []
        self._lock = threading.Lock()

    def take(self) -> Buffer:
        with self._lock:
            if self._free:
                return self._free.pop()
        return Buffer()

    def give(self, buffer: Buffer) -> None:
        with self._lock:
            if len(self._free) < KEPT:
                self._free.append(buffer)
