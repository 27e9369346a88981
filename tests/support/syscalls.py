"""Stops a process and all its threads at every system call, and kills it at the n-th: `strace -e inject=…:signal=KILL`,
but with one count over all calls and threads, and without a new interpreter for each case.

The victim is a fork of this process: it puts a seccomp filter on itself that
reports its calls, and this process, which must have a single thread, is told of
each by ptrace. Kills in between are for a timer (`kill_after`).
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

BEFORE, AFTER = "before", "after"
"""Where a kill comes: at the entry of the call, which is then never made; or when it is done, and its result never seen."""

_SEIZE, _CONT, _SYSCALL, _INFO = 0x4206, 7, 24, 0x420E
_OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x80 | 0x100000
"""TRACESYSGOOD, TRACEFORK, TRACEVFORK, TRACECLONE, TRACEEXEC, TRACESECCOMP, EXITKILL."""
_EVENT_SECCOMP = 7
_WALL = 0x40000000
_ALLOW, _TRACE = 0x7FFF0000, 0x7FF00000

_X86 = """read 0 write 1 open 2 close 3 stat 4 fstat 5 lstat 6 poll 7 lseek 8 mmap 9 mprotect 10 munmap 11 brk 12
rt_sigaction 13 rt_sigprocmask 14 rt_sigreturn 15 ioctl 16 pread64 17 pwrite64 18 readv 19 writev 20 access 21 pipe 22
select 23 sched_yield 24 mremap 25 msync 26 madvise 28 dup 32 dup2 33 nanosleep 35 getpid 39 sendfile 40 socket 41 connect 42
accept 43 sendto 44 recvfrom 45 sendmsg 46 recvmsg 47 shutdown 48 bind 49 listen 50 getsockname 51 getpeername 52
socketpair 53 setsockopt 54 getsockopt 55 clone 56 fork 57 vfork 58 execve 59 exit 60 wait4 61 kill 62 uname 63 fcntl 72
flock 73 fsync 74 fdatasync 75 truncate 76 ftruncate 77 getdents 78 getcwd 79 chdir 80 rename 82 mkdir 83 rmdir 84 link 86
unlink 87 symlink 88 readlink 89 chmod 90 fchmod 91 fchown 93 umask 95 gettimeofday 96 getrlimit 97 getuid 102 getgid 104
geteuid 107 getegid 108 getppid 110 setsid 112 sigaltstack 131 statfs 137 fstatfs 138 prctl 157 setrlimit 160 gettid 186
futex 202 sched_getaffinity 204 epoll_create 213 getdents64 217 restart_syscall 219 fadvise64 221 clock_gettime 228
clock_nanosleep 230 exit_group 231 epoll_wait 232 epoll_ctl 233 tgkill 234 openat 257 mkdirat 258 fchownat 260 newfstatat 262
unlinkat 263 renameat 264 linkat 265 symlinkat 266 readlinkat 267 fchmodat 268 faccessat 269 pselect6 270 ppoll 271
set_robust_list 273 utimensat 280 epoll_pwait 281 eventfd 284 fallocate 285 accept4 288 eventfd2 290 epoll_create1 291
dup3 292 pipe2 293 preadv 295 pwritev 296 prlimit64 302 sendmmsg 307 getcpu 309 renameat2 316 seccomp 317 getrandom 318
memfd_create 319 copy_file_range 326 preadv2 327 pwritev2 328 statx 332 rseq 334 clone3 435 close_range 436 openat2 437
faccessat2 439 epoll_pwait2 441"""
_ARM = """getcwd 17 eventfd2 19 epoll_create1 20 epoll_ctl 21 epoll_pwait 22 dup 23 dup3 24 fcntl 25 ioctl 29 flock 32
mkdirat 34 unlinkat 35 symlinkat 36 linkat 37 renameat 38 statfs 43 fstatfs 44 truncate 45 ftruncate 46 fallocate 47
faccessat 48 chdir 49 fchmod 52 fchmodat 53 fchownat 54 fchown 55 openat 56 close 57 pipe2 59 getdents64 61 lseek 62 read 63
write 64 readv 65 writev 66 pread64 67 pwrite64 68 preadv 69 pwritev 70 sendfile 71 pselect6 72 ppoll 73 readlinkat 78
newfstatat 79 fstat 80 fsync 82 fdatasync 83 utimensat 88 exit 93 exit_group 94 futex 98 set_robust_list 99 nanosleep 101
clock_gettime 113 clock_nanosleep 115 sched_getaffinity 123 sched_yield 124 restart_syscall 128 kill 129 tgkill 131
sigaltstack 132 rt_sigaction 134 rt_sigprocmask 135 rt_sigreturn 139 setsid 157 uname 160 umask 166 prctl 167 getcpu 168
gettimeofday 169 getpid 172 getppid 173 getuid 174 geteuid 175 getgid 176 getegid 177 gettid 178 socket 198 socketpair 199
bind 200 listen 201 accept 202 connect 203 getsockname 204 getpeername 205 sendto 206 recvfrom 207 setsockopt 208
getsockopt 209 shutdown 210 sendmsg 211 recvmsg 212 brk 214 munmap 215 mremap 216 clone 220 execve 221 mmap 222 fadvise64 223
mprotect 226 msync 227 madvise 233 accept4 242 wait4 260 prlimit64 261 sendmmsg 269 renameat2 276 seccomp 277 getrandom 278
memfd_create 279 copy_file_range 285 preadv2 286 pwritev2 287 statx 291 rseq 293 clone3 435 close_range 436 openat2 437
faccessat2 439 epoll_pwait2 441"""


def _table(text: str) -> dict[int, str]:
    words = text.split()
    return {int(number): name for name, number in zip(words[::2], words[1::2], strict=True)}


NAMES = _table({"x86_64": _X86, "aarch64": _ARM}.get(platform.machine(), ""))
"""Name of each system call that a Python program makes, by number, on this machine."""

_QUIET = """\
mmap mprotect munmap mremap brk madvise futex poll ppoll select pselect6 epoll_wait epoll_pwait epoll_pwait2 nanosleep
clock_nanosleep clock_gettime gettimeofday sched_yield sched_getaffinity rt_sigaction rt_sigprocmask rt_sigreturn
sigaltstack restart_syscall getpid gettid getppid getuid geteuid getgid getegid getcpu getrandom set_robust_list rseq
exit exit_group prctl seccomp getrlimit setrlimit prlimit64 uname umask wait4 ioctl lseek getcwd"""
_ASKING = """\
read readv pread64 preadv preadv2 stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2 readlink
readlinkat getdents getdents64 getsockname getpeername getsockopt setsockopt fcntl fadvise64 epoll_create epoll_create1
epoll_ctl eventfd eventfd2 pipe pipe2 dup dup2 dup3 socketpair chdir"""
QUIET = frozenset(_QUIET.split())
"""Never reported: they compute, wait, or map memory."""
ASKING = frozenset(_ASKING.split())
"""Not reported unless `asking`: they read, or change what dies with the process (descriptors, locks). A kill at one of
them leaves what a kill after the call before it leaves."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> None:
    if _libc.ptrace(request, pid, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace {request:#x}: {os.strerror(number)}")


def available() -> str:
    """Empty where victims can be watched here; else why not."""
    if not NAMES:
        return f"no table of system calls for {platform.machine()}"
    try:
        done = Victim(lambda: int(os.path.exists("/")), asking=True).watch()
    except OSError as error:
        return str(error)
    return "" if done.status == 1 and done.calls else f"nothing was reported of a process that ended with {done.status}"


def _report_calls(quiet: frozenset[str]) -> None:
    """From now on this process and what comes of it is stopped at its calls. For the child, before it has threads."""
    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    code = struct.pack("<HBBI", 0x20, 0, 0, 0)                      # load the number of the call
    for number, name in NAMES.items():
        if name in quiet:
            code += struct.pack("<HBBI", 0x15, 0, 1, number) + struct.pack("<HBBI", 0x06, 0, 0, _ALLOW)
    code += struct.pack("<HBBI", 0x06, 0, 0, _TRACE)
    program = Program(len(code) // 8, code)
    for request, first, second in ((38, 1, 0), (22, 2, ctypes.addressof(program))):   # NO_NEW_PRIVS, SECCOMP
        if _libc.prctl(request, ctypes.c_ulong(first), ctypes.c_ulong(second), ctypes.c_ulong(0), ctypes.c_ulong(0)) < 0:
            raise OSError(ctypes.get_errno(), "prctl")


@dataclass(slots=True)
class End:
    """How a victim ended. `calls`: what was reported, in order; `call`: the one at which it was killed."""

    status: int
    killed: bool
    calls: list[str] = field(default_factory=list)
    call: str = ""
    late: bool = False


class Victim:
    """`body` runs in a fork, in a process group of its own, and its result is the exit status. One at a time.

    `watch` lets it run to its end or its death; `kill_after` does without a trace.
    Helpers that work beside it (forks of this process) are made by `beside`, which
    is given its pid: when all of them have ended the victim gets SIGTERM. `seconds`: after that everything
    is killed, and the end is `late`. `asking`: report the calls of ASKING, too.
    """

    def __init__(self, body: Callable[[], int], *, beside: Callable[[int], list[int]] = lambda _: [],
                 seconds: float = 60.0, asking: bool = False) -> None:
        self._body = body
        self._beside = beside
        self._seconds = seconds
        self._asking = asking
        self._helpers: set[int] = set()
        self.statuses: dict[int, int] = {}
        """Exit status of each helper that has ended; negative: the signal that killed it."""

    def watch(self, at: int = 0, where: str = BEFORE) -> End:
        """Trace it, and kill it at call number `at` (1 is the first; 0: never). OSError where that is not permitted."""
        pid = self._start(traced=True)
        end = End(0, False)
        aim = 0                             # the thread whose call has to be done before the kill
        alarm = _Alarm(self._seconds, pid)
        try:
            while True:
                tid, status = os.waitpid(-1, _WALL)
                if tid in self._helpers:
                    self._ended(tid, status, pid, gone=end.killed)
                elif not os.WIFSTOPPED(status):
                    if tid == pid:
                        end.late = alarm.rung
                        end.status = os.waitstatus_to_exitcode(status)
                        return end
                elif end.killed:
                    _resume(_CONT, tid)
                else:
                    how = self._stopped(tid, status, end)
                    here = how == _AT_CALL and len(end.calls) == at
                    if here:
                        end.call = end.calls[-1]
                        aim = tid if where == AFTER else 0
                    if (here and not aim) or (how == _AFTER_CALL and tid == aim):
                        end.killed = True
                        _kill(pid)
                    _resume(_SYSCALL if tid == aim else _CONT, tid, max(how, 0))
        finally:
            alarm.off()
            _kill(pid)
            self._reap()

    def kill_after(self, seconds: float) -> End:
        """Let it run untraced, and kill it after so many seconds; where it has ended by then, that is its end."""
        pid = self._start(traced=False)
        end = End(0, False)
        alarm = _Alarm(self._seconds, pid)
        begin = time.monotonic()
        try:
            while True:
                left = begin + seconds - time.monotonic()
                if left <= 0 and not end.killed:
                    end.killed = True
                    _kill(pid)
                tid, status = os.waitpid(-1, 0 if end.killed else os.WNOHANG)
                if tid == pid:
                    end.late = alarm.rung
                    end.status = os.waitstatus_to_exitcode(status)
                    end.killed = end.status == -signal.SIGKILL and not end.late
                    return end
                if tid in self._helpers:
                    self._ended(tid, status, pid, gone=end.killed)
                elif tid == 0:
                    time.sleep(max(0.0, min(left, 0.0002)))
        finally:
            alarm.off()
            _kill(pid)
            self._reap()

    # --- inside -----------------------------------------------------------------------------------------------------------

    def _start(self, *, traced: bool) -> int:
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 101
            try:
                os.close(theirs)
                os.read(ours, 1)
                os.close(ours)
                if traced:
                    _report_calls(QUIET if self._asking else QUIET | ASKING)
                status = self._body()
            finally:
                os._exit(status)
        os.close(ours)
        try:
            os.setpgid(pid, pid)
            if traced:
                _ptrace(_SEIZE, pid, 0, _OPTIONS)
            self._helpers = set(self._beside(pid))
            self.statuses = {}
            os.write(theirs, b"+")
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, _WALL)
            raise
        finally:
            os.close(theirs)
        return pid

    def _stopped(self, tid: int, status: int, end: End) -> int:
        """Why it stopped: _AT_CALL, _AFTER_CALL, or the signal to go on with (0: none)."""
        event, number = status >> 16, os.WSTOPSIG(status)
        if event == _EVENT_SECCOMP:
            end.calls.append(_call_of(tid))
            return _AT_CALL
        if number == signal.SIGTRAP | 0x80:
            return _AFTER_CALL
        return 0 if event or number == signal.SIGTRAP else number

    def _ended(self, tid: int, status: int, pid: int, *, gone: bool) -> None:
        self._helpers.discard(tid)
        self.statuses[tid] = os.waitstatus_to_exitcode(status)
        if not self._helpers and not gone:
            _terminate(pid)

    def _reap(self) -> None:
        """Wait for the helpers: they end by themselves once the victim is gone."""
        deadline = time.monotonic() + 30
        while True:
            try:
                tid, status = os.waitpid(-1, _WALL | os.WNOHANG)
            except ChildProcessError:
                return
            if tid in self._helpers and not os.WIFSTOPPED(status):
                self._helpers.discard(tid)
                self.statuses[tid] = os.waitstatus_to_exitcode(status)
            elif tid and os.WIFSTOPPED(status):
                with suppress(OSError):
                    _ptrace(_CONT, tid)
            elif tid == 0:
                if not self._helpers:
                    return
                if time.monotonic() > deadline:
                    for helper in self._helpers:
                        with suppress(ProcessLookupError):
                            os.kill(helper, signal.SIGKILL)
                time.sleep(0.0005)


_AT_CALL, _AFTER_CALL = -1, -2


def _resume(request: int, tid: int, signal_number: int = 0) -> None:
    with suppress(ProcessLookupError):
        _ptrace(request, tid, 0, signal_number)


def _call_of(tid: int) -> str:
    buffer = ctypes.create_string_buffer(88)
    if _libc.ptrace(_INFO, tid, 88, ctypes.addressof(buffer)) <= 0:
        return "?"
    number = int.from_bytes(buffer.raw[24:32], "little")
    return NAMES.get(number, f"call {number}")


class _Alarm:
    """`rung` after so many seconds: then the victim is killed, and again every second."""

    def __init__(self, seconds: float, pid: int) -> None:
        self.rung = False
        self._pid = pid
        self._before = signal.signal(signal.SIGALRM, self._ring)
        signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)

    def _ring(self, *_: object) -> None:
        self.rung = True
        _kill(self._pid)

    def off(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)


def _kill(pid: int) -> None:
    """The whole group, as systemd does it."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _terminate(pid: int) -> None:
    """SIGTERM to its main thread: a signal for the process would go to another one while a tracer has the main thread
    stopped, and Python acts on signals in the main thread only, which would then never wake."""
    number = next(number for number, name in NAMES.items() if name == "tgkill")
    _libc.syscall(ctypes.c_long(number), ctypes.c_long(pid), ctypes.c_long(pid), ctypes.c_long(signal.SIGTERM))


def living(pid: int) -> bool:
    """Whether that process exists, and is not dead and waiting for its parent to hear of it."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False
