"""What an idle receiver costs: nothing but its tick, however many associations are open."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
from collections import Counter
from pathlib import Path

import pytest

from tests.support import objects
from tests.support.acceptor import Served, associated, echo, served, session
from tests.support.measure import cpu_seconds
from tests.support.waiting import wait_until

SETTLED = 6.0
"""Seconds after which the guard has seen that nothing moves, and the intake has made its slots."""


def calls(server: Served, seconds: float, log: Path) -> Counter[tuple[str, str]]:
    """(thread, system call) of the whole process within that time."""
    strace = shutil.which("strace", path="/usr/bin:/bin")
    if strace is None:
        pytest.skip("strace is missing")
    with subprocess.Popen([strace, "-f", "-qq", "-e", "signal=none", "-o", str(log), "-p", str(server.pid)],
                          stderr=subprocess.PIPE) as tracer:
        try:
            tids = len(list(Path(f"/proc/{server.pid}/task").iterdir()))
            wait_until(lambda: sum("TracerPid:\t0\n" not in task.joinpath("status").read_text()
                                   for task in Path(f"/proc/{server.pid}/task").iterdir()) >= tids, 10, "attached")
            before = len(log.read_text().splitlines())             # each thread's call that it was in shows as unfinished
            threading.Event().wait(seconds)
        finally:
            tracer.terminate()
            tracer.wait(10)
    found: Counter[tuple[str, str]] = Counter()
    for line in log.read_text().splitlines()[before:]:
        thread, _, rest = line.partition(" ")
        name = rest.strip().removeprefix("<... ").split("(")[0].split(" ")[0]
        if "detached" not in rest and "<unfinished ...>" not in rest and "resuming" not in rest:
            found[thread, name] += 1
    return found


@pytest.mark.requirement("hazard: idle associations")
@pytest.mark.slow
def test_64_idle_associations_make_no_system_calls_but_one_tick(tmp_path: Path):
    with served(tmp_path / "box", max_per_address=65) as server:
        report = objects.sr(1)
        scanners = [associated(server.port) for _ in range(64)]
        with session(server.port, report) as busy:
            assert busy.store(report) == 0
        threading.Event().wait(SETTLED)
        found = calls(server, 10.0, tmp_path / "strace.log")
        # The tick goes through three threads: guard, receiver, front. None of an association makes a call.
        assert len({thread for thread, _ in found}) <= 3, found
        assert sum(found.values()) <= 25, found
        assert not {name for _, name in found} & {"recvmsg", "recvfrom", "poll", "sendto", "fdatasync"}, found
        assert [scanner.echo() for scanner in scanners] == [0] * 64
        for scanner in scanners:
            scanner.close()


@pytest.mark.requirement("hazard: idle associations")
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_16_idle_associations_cost_at_most_one_percent_of_a_core(tmp_path: Path, workers: int):
    with served(tmp_path, workers=workers) as server, contextlib.ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(session(server.port))
        echo(server.port)
        threading.Event().wait(3)
        before = cpu_seconds(server.pid)
        threading.Event().wait(5)
        assert cpu_seconds(server.pid) - before <= 0.05
