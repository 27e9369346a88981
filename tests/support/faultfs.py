"""A file system that fails on purpose: a FUSE pass-through to a folder, which counts calls and spoils those it was told to.

    with fault_folder(mount, backing) as disk:
        disk.plan([Rule("object", "sync", 3, errno.EIO)])      # the third sync of an object's file fails
        ...
        disk.hits()                                            # what was spoiled: when, by which process, on which file

Programs on it run unchanged, and what they see is what a kernel says of a bad
disk. A write that failed is not done; a sync that failed loses what was written
since the last good one, as Linux does. Every kind of call on every class of file
is counted, so that "the call number n" can be enumerated. Root and /dev/fuse are
needed. The server is `tests.support.faultfs_server`.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ALWAYS = 1 << 30
GONE, THERE = "gone", "there"

OPS = ("open", "create", "read", "write", "sync", "rename", "unlink", "truncate")
"""Kinds of calls that rules name. "sync" is fsync and fdatasync, of files and of folders; "truncate" is ftruncate too."""

CLASSES = ("object", "folder", "quarantine", "ledger", "wal", "shm", "index", "identity", "ballast", "other")


def class_of(path: str) -> str:
    """Which part of a spool a path is, whatever folder the spool lies in."""
    name = path.rpartition("/")[2]
    if name.startswith("ledger.sqlite"):
        return {"": "ledger", "-wal": "wal", "-shm": "shm"}.get(name.removeprefix("ledger.sqlite"), "other")
    if name.startswith("index.sqlite"):
        return "index"
    if "/quarantine" in path:
        return "quarantine"
    if "/objects" in path:
        return "object" if name.endswith(".dcm") else "folder"
    return {"SPOOL-ID": "identity", "SPOOL-ID.new": "identity", "ballast": "ballast"}.get(name, "other")


@dataclass(frozen=True, slots=True)
class Rule:
    """Spoil calls `first` to `first + times - 1` (counted from 1) of a kind on a class of files ("*": on all).

    `error`: the errno; `short`: a write takes this part of its bytes and says so; `delay`: seconds before anything else.
    """

    where: str
    op: str
    first: int = 1
    error: int = 0
    times: int = 1
    short: float = 1.0
    delay: float = 0.0

    def __str__(self) -> str:
        what = errno.errorcode[self.error] if self.error else f"{self.short:g} short" if self.short < 1 else f"{self.delay:g} s"
        return f"{what} at {self.op} {self.first} of {self.where}" + ("" if self.times == 1 else f", {self.times} times")


@dataclass(frozen=True, slots=True)
class Hit:
    """A call that was spoiled. `at`: CLOCK_MONOTONIC seconds when it was answered; `pid`: the process that made it."""

    at: float
    pid: int
    op: str
    where: str
    path: str
    call: int
    error: int


class FaultFolder:
    """A mounted folder that fails on purpose, and what it is told. `backing`: the same files, without the faults."""

    def __init__(self, mount: Path, backing: Path, control: Path) -> None:
        self.mount = mount
        self.backing = backing
        self._control = control

    def _ask(self, **command: Any) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(str(self._control))
            sock.sendall(json.dumps(command).encode() + b"\n")
            with sock.makefile() as answers:
                found: dict[str, Any] = json.loads(answers.readline())
                return found

    def plan(self, rules: Sequence[Rule]) -> None:
        """From now on these rules; counts and hits begin anew, and what was delayed goes on at once."""
        self._ask(plan=[asdict(rule) for rule in rules])

    def hits(self) -> list[Hit]:
        return [Hit(**hit) for hit in self._ask()["hits"]]

    def counts(self) -> dict[tuple[str, str], int]:
        """(class, kind of call) → how many there were since the plan was made; class "*" is all of them."""
        return {(where, op): count for where, op, count in self._ask()["counts"]}

    def forget(self) -> None:
        """The backing folder was filled anew, and nobody uses the old files: nothing of them is remembered."""
        self._ask(forget=True)

    @contextmanager
    def gone(self) -> Iterator[None]:
        """Every call fails, as if the cable were out; then the disk is back."""
        self._ask(mode=GONE)
        try:
            yield
        finally:
            self._ask(mode=THERE)


@contextmanager
def fault_folder(mount: Path, backing: Path) -> Iterator[FaultFolder]:
    """`backing` seen through faults at `mount`; both are made. The control socket lies beside the backing folder."""
    mount.mkdir(parents=True, exist_ok=True)
    backing.mkdir(parents=True, exist_ok=True)
    control = Path(f"/tmp/dg-faultfs-{os.getpid()}-{time.monotonic_ns()}")    # a socket's path may have 107 bytes
    with ExitStack() as stack:
        command = [sys.executable, "-m", "tests.support.faultfs_server", str(mount), str(backing), str(control)]
        server = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT))
        stack.callback(ended, server)
        assert server.stdout is not None
        assert server.stdout.readline() == b"mounted\n"
        stack.callback(control.unlink, missing_ok=True)
        stack.callback(subprocess.run, ["umount", "-l", str(mount)], check=True, capture_output=True, timeout=60)
        disk = FaultFolder(mount, backing, control)
        stack.callback(disk.plan, [])
        yield disk


def ended(server: subprocess.Popen[bytes]) -> None:
    """It ends by itself with its last open file; whoever still has one then finds that the disk is gone."""
    try:
        server.wait(5)
    except subprocess.TimeoutExpired:
        server.kill()
