"""Hang: one thread of another process stands still, or is gone, while the others go on: by ptrace(2), on x86-64 Linux.

    python hang.py freeze TID          it stands still until this program ends (its standard input ends it)
    python hang.py kill TID            it leaves by exit(2): nobody has noticed, no `finally` has run
    python hang.py kill-in PID CALL…   so does the one thread of that process which waits in one of these system calls

A program of its own, so that a virtual machine can run it too. Needs the right to trace (CAP_SYS_PTRACE).
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

SEIZE, INTERRUPT, DETACH, GETREGS, SETREGS = 0x4206, 0x4207, 17, 12, 13
WALL = 0x40000000
SYS_EXIT = 60

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


class Registers(ctypes.Structure):
    """struct user_regs_struct."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in (
        "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi", "orig_rax",
        "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs")]


def _ptrace(request: int, tid: int, data: object = None) -> None:
    if libc.ptrace(request, tid, None, data) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def stop(tid: int) -> None:
    """That thread stands still, as long as this one lives."""
    _ptrace(SEIZE, tid)
    _ptrace(INTERRUPT, tid)
    os.waitpid(tid, WALL)


def kill(tid: int) -> None:
    """Let a thread that waits in a system call leave by exit(2) instead."""
    stop(tid)
    registers = Registers()
    _ptrace(GETREGS, tid, ctypes.byref(registers))
    if registers.orig_rax >= 1 << 63:
        raise OSError("it is not in a system call")
    registers.rip -= 2               # the instruction `syscall` again, with another number
    registers.rax, registers.orig_rax, registers.rdi = SYS_EXIT, 0xFFFF_FFFF_FFFF_FFFF, 0
    _ptrace(SETREGS, tid, ctypes.byref(registers))
    _ptrace(DETACH, tid)


def waiting_in(pid: int, *calls: int) -> list[int]:
    """Threads of a process that wait in one of these system calls, by its number (232 epoll_wait, 281 epoll_pwait)."""
    def call(thread: Path) -> int:
        first = (thread / "syscall").read_text().split()[0]
        return int(first) if first.isdigit() else -1

    return [int(each.name) for each in sorted(Path(f"/proc/{pid}/task").iterdir()) if call(each) in calls]


if __name__ == "__main__":
    if sys.argv[1] == "kill":
        kill(int(sys.argv[2]))
    elif sys.argv[1] == "kill-in":
        (only,) = waiting_in(*map(int, sys.argv[2:]))
        kill(only)
    else:
        stop(int(sys.argv[2]))
        print("frozen", flush=True)
        sys.stdin.read()
