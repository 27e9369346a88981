"""Latch: an I/O error on the write path, told at once to all who take images in, whichever process met it (I6).

One page of memory that every process of the gateway maps: `disk-faults` in
`[control] run`, which is never on the suspect disk.

    8 bytes    a mark, another one after each fault; zero where there was none yet
    2 bytes    length of the text that follows, little endian
    …          JSON: who met it, its process number, what it was

Looking is a comparison in memory, so it costs no system call and is done before
every success. Nothing takes a fault back: a receiver remembers the mark that it
started with, and its restart, whose recovery looks at the disk, opens intake again.

On failure: where the file cannot be had, a fault closes intake in this process only.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import LedgerFault, SpoolFault

NAME = "disk-faults"
SIZE = 4096
NONE = bytes(8)

DISK = frozenset({errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV, errno.ENOMEDIUM, errno.EREMOTEIO, errno.EBADMSG,
                  errno.EUCLEAN, errno.ETIMEDOUT, errno.ESHUTDOWN, errno.ENOTCONN})
"""What says that the disk is bad, or gone. Not among them: what we did wrong (EACCES, EBADF, ENOENT, EMFILE)."""

_TEXT = 10
_LONGEST = 1024


@dataclass(frozen=True, slots=True)
class Mark:
    """What was seen by then: on the page, and of this process alone."""

    page: bytes = NONE
    own: int = 0


class Latch:
    """That of one spool in this process. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._path: Path | None = None
        self._who = ""
        self._page: mmap.mmap | None = None
        self._inode = 0
        self._own = 0
        self._why = ""

    def attach(self, run: Path, who: str) -> None:
        """Share it with the other processes of that run folder; `who` is what others will read. Once is enough."""
        with self._lock:
            if self._path == run / NAME and self._page is not None:
                return
            self._path, self._who = run / NAME, who
            self._map()

    def renew(self) -> None:
        """Look whether the page is still the one that has the name: somebody may have emptied the run folder."""
        with self._lock:
            self._renew()

    def mark(self) -> Mark:
        """To be given to `since` later on."""
        return Mark(self._seen(), self._own)

    def since(self, mark: Mark) -> str:
        """Who has met which I/O error since that mark; empty where nobody did. No system call, and no waiting."""
        if self._own == mark.own and self._seen() in (mark.page, NONE):
            return ""
        return (self._why if self._own != mark.own else "") or self._text()

    def report(self, error: SpoolFault | LedgerFault, file: str = "") -> None:
        """An I/O error was met on the write path: intake ends, here and elsewhere. Anything else is no matter for the latch."""
        if not error.io:
            return
        who = f"{self._who or 'a process'} (process {os.getpid()})"
        what = error.message if not file or file in error.message else f"{error.message} ({file})"
        why = f"{who}: {what}"[:_LONGEST]
        with self._lock:
            self._why = why
            self._own += 1
            self._renew()
            page = self._page
            if page is not None:
                text = json.dumps(why).encode()[:SIZE - _TEXT]
                page[8:_TEXT] = len(text).to_bytes(2, "little")
                page[_TEXT:_TEXT + len(text)] = text
                page[:8] = os.urandom(7) + b"\1"

    # Inside

    def _seen(self) -> bytes:
        page = self._page
        return NONE if page is None else page[:8]

    def _text(self) -> str:
        page = self._page
        with suppress(ValueError):     # it is being written just now
            if page is not None:
                length = int.from_bytes(page[8:_TEXT], "little")
                return str(json.loads(page[_TEXT:_TEXT + length]))
        return "an I/O error in another process"

    def _renew(self) -> None:
        if self._path is None:
            return
        try:
            there = os.stat(self._path).st_ino
        except OSError:
            there = 0
        if self._page is None or there != self._inode:
            self._map()

    def _map(self) -> None:
        """The file's page, with its room made sure of: a page of memory that cannot be had when it is looked at is the end."""
        assert self._path is not None
        with suppress(OSError):
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o660)
            try:
                with suppress(PermissionError):
                    os.fchmod(fd, 0o660)      # receiver, forwarder and keeper are users of one group, whatever their umask
                os.posix_fallocate(fd, 0, SIZE)
                self._page = mmap.mmap(fd, SIZE)
                self._inode = os.fstat(fd).st_ino
            finally:
                os.close(fd)
