"""What strace sees: an idle receiver does nothing but its tick; an accepted instance costs its thread one sync."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import objects
from tests.support.acceptor import Served, associated, echo, served, session
from tests.support.measure import cpu_seconds
from tests.support.waiting import wait_until

SETTLED = 6.0
"""Seconds after which the guard has seen that nothing moves, and the intake has made its slots."""


@contextlib.contextmanager
def traced(server: Served, log: Path, only: str = "all") -> Iterator[None]:
    """All threads of the process are traced into `log` while the block runs."""
    strace = shutil.which("strace", path="/usr/bin:/bin")
    if strace is None:
        pytest.skip("strace is missing")
    tasks = Path(f"/proc/{server.pid}/task")
    with subprocess.Popen([strace, "-f", "-qq", "-e", "signal=none", "-e", f"trace={only}", "-o", str(log), "-p",
                           str(server.pid)], stderr=subprocess.PIPE) as tracer:
        try:
            wait_until(lambda: all("TracerPid:\t0\n" not in (task / "status").read_text() for task in tasks.iterdir()), 10,
                       "attached")
            yield
        finally:
            tracer.terminate()
            tracer.wait(10)


def lines(log: Path) -> list[tuple[str, str, str]]:
    """(thread, system call, the rest) of each call that came to its end."""
    found = []
    for line in log.read_text().splitlines():
        thread, _, rest = line.partition(" ")
        rest = rest.strip()
        if "detached" not in rest and "<unfinished ...>" not in rest and "resuming" not in rest:
            found.append((thread, rest.removeprefix("<... ").split("(")[0].split(" ")[0], rest))
    return found


def calls(server: Served, seconds: float, log: Path) -> Counter[tuple[str, str]]:
    """(thread, system call) of the whole process within that time."""
    with traced(server, log):
        before = len(log.read_text().splitlines())                 # each thread shows the call that it is in
        threading.Event().wait(seconds)
        done = lines(log)
    kept = log.read_text().splitlines()[:before]
    log.write_text("\n".join(kept))
    return Counter((thread, name) for thread, name, _ in done[len(lines(log)):])


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
        waits = sum(count for (_, name), count in found.items() if name == "futex")
        assert sum(found.values()) - waits <= 16, found
        # How often the three wait for each other is the scheduler's; with one wait of each association there would be more.
        assert waits < len(scanners), found
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
        threading.Event().wait(SETTLED)
        before = cpu_seconds(server.pid)
        threading.Event().wait(5)
        assert cpu_seconds(server.pid) - before <= 0.05


@pytest.mark.requirement("I1")
@pytest.mark.parametrize("kind", ["SR", "CT", "3 MB"])
def test_one_sync_between_the_last_byte_and_the_status_and_nothing_is_created_there(tmp_path: Path, kind: str):
    count = 20
    instances = [{"SR": objects.sr, "CT": objects.ct, "3 MB": lambda n: objects.sr(n, size=3_000_000)}[kind](n)
                 for n in range(count)]
    with served(tmp_path / "box") as server, session(server.port, *instances) as scanner:
        assert scanner.echo() == 0
        log = tmp_path / "strace.log"
        with traced(server, log, "recvmsg,sendto,fdatasync,fsync,sync_file_range,openat,rename,mkdir,unlink,pwrite64"):
            assert [scanner.store(instance) for instance in instances] == [0] * count
        found = lines(log)
        thread = next(thread for thread, name, _ in found if name == "recvmsg")
        between: list[list[str]] = [[]]
        for who, name, _ in found:
            if who == thread and name == "sendto":                 # the status
                between.append([])
            elif who == thread and name != "recvmsg":
                between[-1].append(name)
        assert between.pop() == []
        assert len(between) == count
        for one in between:
            assert one.count("fdatasync") == 1 and one[-1] == "fdatasync", one
            assert set(one) <= {"pwrite64", "fdatasync"}, one
