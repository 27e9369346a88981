"""Check `spool`: whether its disk still writes, syncs and gives back; in a child with a deadline.

A disk that hangs keeps the child, which nobody can kill then: it is left behind,
and no other is sent after it until it has ended. The file is one block that is
there already, so that the probe goes well on a full disk. Several look at once
where several services fail for the same disk: each has its turn, and the file is
the group's, whoever was first.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

from appliance.errors import SpoolRefused
from appliance.health.checks.verdict import State, Verdict
from appliance.policy.escalation import Disk
from appliance.spool.layout import read_identity

FILE = "probe"
SECONDS = 30.0
FULL_SHARE = 0.01

PROGRAM = """
import fcntl, os, sys
try:
    fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o660)
    if os.fstat(fd).st_uid == os.geteuid():
        os.fchmod(fd, 0o660)
    fcntl.flock(fd, fcntl.LOCK_EX)
    wrote = os.urandom(4096)
    os.pwrite(fd, wrote, 0)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 4096, os.POSIX_FADV_DONTNEED)
    sys.exit(0 if os.pread(fd, 4096, 0) == wrote else 255)
except OSError as e:
    sys.exit(e.errno)
"""
DIFFERENT = 255

MEND = "Look at the disk (`dmesg`): one that is gone may only need its cable or a power cycle, a worn one a replacement."


class Probe:
    """`look` again and again, from one thread."""

    def __init__(self, path: Path, seconds: float = SECONDS, program: str = PROGRAM) -> None:
        self._path = path
        self._seconds = seconds
        self._program = program
        self._child: subprocess.Popen[bytes] | None = None

    def look(self) -> Verdict:
        """Takes up to `seconds`."""
        if self._child is not None and self._child.poll() is None:
            return _bad("the disk of the spool still does not answer", hangs=True)
        command = [sys.executable, "-I", "-S", "-c", self._program, str(self._path / FILE)]
        self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            code = self._child.wait(self._seconds)
        except subprocess.TimeoutExpired:
            self._child.kill()
            return _bad(f"the disk of the spool has not answered for {self._seconds:g} s", hangs=True)
        self._child = None
        if code == 0:
            return Verdict("spool", State.GOOD)
        if code == errno.ENOSPC:
            return Verdict("spool", State.POOR, "the disk of the spool has no block left",
                           "Free some space, or enlarge the spool.", {"errno": code})
        if code == DIFFERENT:
            return _bad("the disk of the spool gives back other bytes than were written", errno=0)
        return _bad(f"the disk of the spool fails: {os.strerror(code) if code > 0 else f'the probe ended with {code}'}",
                    errno=code)


def _bad(text: str, **evidence: int) -> Verdict:
    return Verdict("spool", State.BAD, text, MEND, dict(evidence))


def absent() -> Verdict:
    """There is no spool."""
    return _bad("the disk of the spool is not there")


def is_there(path: Path) -> bool:
    """Whether a spool lies there: an empty folder is what a missing disk leaves. May hang with the disk."""
    try:
        read_identity(path)
    except SpoolRefused as e:
        cause = e.__cause__
        return isinstance(cause, OSError) and cause.errno in (errno.EIO, errno.ENXIO, errno.EREMOTEIO, errno.ESHUTDOWN)
    return True


def disk(path: Path, verdict: Verdict) -> Disk:
    """What escalation wants to know, of a spool that is there."""
    if verdict.state is State.POOR:
        return Disk.FULL
    if verdict.state is State.BAD:
        return Disk.FAILED
    figures = os.statvfs(path)
    return Disk.FULL if figures.f_bavail < FULL_SHARE * figures.f_blocks else Disk.GOOD
