"""What the kernel is asked for while an instance is accepted, seen by strace on a real receiver (design, Spool).

On the accepting thread, between the last byte and the status: one fdatasync, and
no file made, no folder synced, nothing renamed or deleted.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import objects
from tests.support.acceptor import Served, served, session
from tests.support.waiting import wait_until

CALLS = ("fdatasync,fsync,syncfs,sync,sync_file_range,msync,open,openat,openat2,creat,mkdir,mkdirat,rename,renameat,renameat2,"
         "link,linkat,symlink,symlinkat,unlink,unlinkat,rmdir,pwrite64,write,ftruncate,sendto,sendmsg,recvfrom,recvmsg,read")
FORBIDDEN = re.compile(r"^(fsync|syncfs|sync|sync_file_range|msync|creat|mkdir\w*|rename\w*|link\w*|symlink\w*|unlink\w*"
                       r"|rmdir)\(|O_CREAT")


def traced(server: Served, log: Path) -> subprocess.Popen[bytes]:
    strace = shutil.which("strace", path="/usr/bin:/bin")
    if strace is None:
        pytest.skip("strace is missing")
    tracer = subprocess.Popen([strace, "-f", "-qq", "-s", "0", "-e", f"trace={CALLS}", "-e", "signal=none", "-o", str(log),
                               "-p", str(server.pid)], stderr=subprocess.PIPE)
    tasks = Path(f"/proc/{server.pid}/task")
    wait_until(lambda: all("TracerPid:\t0\n" not in (task / "status").read_text() for task in tasks.iterdir()), 20, "attached")
    return tracer


def by_thread(log: Path) -> dict[str, list[str]]:
    """Completed calls of each thread, in order: a call that was interrupted by another thread's line counts where it ended."""
    found: dict[str, list[str]] = {}
    begun: dict[str, str] = {}
    for line in log.read_text().splitlines():
        thread, _, call = line.partition(" ")
        call = call.strip()
        if call.endswith("<unfinished ...>"):
            begun[thread] = call.removesuffix("<unfinished ...>")
        elif call.startswith("<..."):
            found.setdefault(thread, []).append(begun.pop(thread, "?(") + call.partition("resumed>")[2])
        elif "(" in call:
            found.setdefault(thread, []).append(call)
    return found


@pytest.mark.requirement("I1")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sr", "ct", "large"])
def test_one_sync_and_nothing_else_between_last_byte_and_status(tmp_path: Path, kind: str) -> None:
    count = {"sr": 40, "ct": 15, "large": 4}[kind]
    instances = [make(kind, n) for n in range(count)]
    with served(tmp_path / "box") as server:
        tracer = traced(server, tmp_path / "log")
        try:
            with session(server.port, *instances, timeout=60) as scanner:
                assert [scanner.store(instance) for instance in instances] == [0] * count
        finally:
            tracer.terminate()
            tracer.wait(20)
            if tracer.stderr is not None:
                tracer.stderr.close()
    threads = by_thread(tmp_path / "log")
    accepting = [calls for calls in threads.values() if has(calls, "recv") and has(calls, "fdatasync(")]
    assert len(accepting) == 1, {thread: len(calls) for thread, calls in threads.items()}
    assert [c for c in accepting[0] if FORBIDDEN.search(c)] == []
    statuses = 0
    since: list[str] = []
    for call in accepting[0]:
        since.append(call)
        if call.startswith(("sendto(", "sendmsg(")) and any(c.startswith("pwrite64(") for c in since):
            syncs = [n for n, c in enumerate(since) if c.startswith("fdatasync(")]
            last_byte = max(n for n, c in enumerate(since) if c.startswith("recv"))
            last_write = max(n for n, c in enumerate(since) if c.startswith(("pwrite64(", "ftruncate(")))
            assert len(syncs) == 1 and since[syncs[0]].rstrip().endswith("= 0"), since
            assert last_byte < syncs[0] and last_write < syncs[0], since
            statuses += 1
            since = []
    assert statuses == count


def has(calls: list[str], name: str) -> bool:
    return any(call.startswith(name) for call in calls)


def make(kind: str, n: int) -> objects.Instance:
    if kind == "sr":
        return objects.sr(n)
    return objects.ct(n) if kind == "ct" else objects.dx(n, size=3 << 20)
