"""What a limited child takes away from itself before it sees the first byte of a stranger."""

from __future__ import annotations

import ctypes
import os
import resource
import signal

_PDEATHSIG, _DUMPABLE, _NO_NEW_PRIVS = 1, 4, 38


def apply(memory: int, files: int, parent: int) -> None:
    """Limit this process for good: address space in bytes, open files, no core, no files written, no new rights.

    It dies with `parent` (a process id). CPU time is limited by the parent's deadline for each job.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for option, value in ((_PDEATHSIG, signal.SIGKILL), (_NO_NEW_PRIVS, 1), (_DUMPABLE, 0)):
        if prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)):
            raise OSError(ctypes.get_errno(), f"prctl {option}")
    if os.getppid() != parent:
        os._exit(0)                              # the parent died before the signal was armed
    for limit, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NOFILE, files),
                         (resource.RLIMIT_AS, memory)):
        resource.setrlimit(limit, (value, value))
