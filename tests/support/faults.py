"""What the tests of faults share: disks that fail when told to, a sender that keeps a journal, and where an alarm shows.

`file_system` and `failing_disk` mount a small ext4 of their own on a loop
device; whatever a test did to it, at the end it is thawed, unmounted and let go.
Everything here needs root: `need_mounts` skips, with the reason, where nothing can be mounted.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support import objects, recorder
from tests.support.faultfs import ended
from tests.support.gateway import Gateway
from tests.support.objects import Instance, Key
from tests.support.scu import IMPLICIT, VERIFICATION, Lost, Scanner, contexts_of
from tests.support.waiting import wait_until

MIB = 1 << 20
HEAD = 4096
"""Bytes before the data set in an object of the spool (man/spool-format.md)."""

_FREEZE, _THAW, _SHUTDOWN = 0xC0045877, 0xC0045878, 0x8004587D
_NO_LOG_FLUSH = 2
"""ioctls of Linux: FIFREEZE, FITHAW, EXT4_IOC_SHUTDOWN (XFS has the same), and its flag for "as if it were torn out"."""

LONGEST_FREEZE = 90.0
"""Seconds after which a frozen file system thaws whatever became of the test: what waits for it cannot even be killed."""


# --- disks ------------------------------------------------------------------------------------------------------------


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr.strip()}"
    return done.stdout.strip()


def need_mounts() -> None:
    """Skip, with the reason, where this machine does not let us mount."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount file systems")
    if not os.access("/dev/loop-control", os.R_OK | os.W_OK):
        pytest.skip("/dev/loop-control cannot be used here: no loop devices")
    if shutil.which("mkfs.ext4", path="/usr/sbin:/sbin") is None:
        pytest.skip("mkfs.ext4 is missing: e2fsprogs is not installed")


class Disk:
    """A mounted file system, and what can be done to it."""

    def __init__(self, mount: Path, device: str) -> None:
        self.mount = mount
        self.device = device
        self._filler = mount / "filler"

    # room

    def fill(self) -> None:
        """Somebody else takes all the room there is, to the last block."""
        with self._filler.open("ab") as file:
            free = os.statvfs(self.mount)
            os.posix_fallocate(file.fileno(), 0, max(free.f_bavail * free.f_frsize - 4 * MIB, 1))
            file.seek(0, os.SEEK_END)
            size = MIB
            while size >= 512:
                try:
                    os.write(file.fileno(), bytes(size))
                    os.fsync(file.fileno())
                except OSError as error:
                    assert error.errno == errno.ENOSPC, error
                    size //= 2

    def make_room(self) -> None:
        self._filler.unlink()

    # faults

    def turn_read_only(self) -> None:
        """What ext4 does by itself after an error: read-only from one moment to the next, files open for writing or not."""
        Path("/sys/fs/ext4", Path(self.device).name, "trigger_fs_error").write_text("dcmgate test")

    def tear_out(self) -> None:
        """Every read of what is not in memory and every write is an I/O error from now on, until it is mounted again."""
        with self._root() as fd:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Every write waits. What waits cannot be killed, so it thaws by itself, at the latest after LONGEST_FREEZE."""
        with self._root() as fd:
            fcntl.ioctl(fd, _FREEZE, 0)

            def thaw() -> None:
                with suppress(OSError):   # EINVAL: it is not frozen any more
                    fcntl.ioctl(fd, _THAW, 0)

            late = threading.Timer(LONGEST_FREEZE, thaw)
            late.daemon = True
            late.start()
            try:
                yield
            finally:
                late.cancel()
                late.join()
                thaw()

    @contextmanager
    def gone(self) -> Iterator[None]:
        """Unmounted under whoever has files open there: they keep those, and find nothing new. Mounted again at the end."""
        run("umount", "-l", self.device)
        try:
            yield
        finally:
            run("mount", "-o", _OPTIONS, self.device, self.mount)

    def mend(self) -> None:
        """Unmount, check, mount again: the disk as after a repair. Nobody may use it meanwhile."""
        if os.path.ismount(self.mount):
            run("umount", self.mount)
        subprocess.run(["e2fsck", "-p", "-f", self.device], capture_output=True, timeout=60, check=False)
        run("mount", "-o", _OPTIONS, self.device, self.mount)

    @contextmanager
    def _root(self) -> Iterator[int]:
        fd = os.open(self.mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


_OPTIONS = "noatime,errors=remount-ro"


@contextmanager
def file_system(mount: Path, mib: int = 64, inodes: int = 0) -> Iterator[Disk]:
    """A new ext4 of so many MiB at `mount`, which is made; with so many inodes, 0: as many as it takes."""
    need_mounts()
    mount.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        image = mount.with_name(mount.name + ".image")
        with image.open("wb") as file:
            file.truncate(mib * MIB)
        stack.callback(image.unlink)
        yield stack.enter_context(_mounted(image, mount, "-N", str(inodes)) if inodes else _mounted(image, mount))


@contextmanager
def _mounted(image: Path, mount: Path, *options: str) -> Iterator[Disk]:
    """A new ext4 in that image or file, through a loop device."""
    device = run("losetup", "-f", "--show", image)
    with ExitStack() as stack:
        stack.callback(_detach, device)
        run("mkfs.ext4", "-q", "-m", "0", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0", *options, device)
        run("mount", "-o", _OPTIONS, device, mount)
        stack.callback(unmount, device)
        yield Disk(mount, device)


def _detach(device: str) -> None:
    """Let the loop device go; `losetup -D` of somebody else on this machine may have done so when it was unmounted."""
    done = subprocess.run(["losetup", "-d", device], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 or "No such device" in done.stderr, done.stderr.strip()


def unmount(device: str) -> None:
    """Unmount what may have been unmounted already; where somebody still uses it, hide it and say so."""
    if not any(line.startswith(f"{device} ") for line in Path("/proc/self/mounts").read_text().splitlines()):
        return
    done = subprocess.run(["umount", device], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        run("umount", "-l", device)
        raise AssertionError(f"somebody still uses {device}: {done.stderr.strip()}")


GOOD, WRITE_ERRORS, BAD_SECTOR, HANGS = 0, 1, 2, 3
SECTOR = objects.noise(512 * 512 * 2, 1)[100_000:100_016]
"""Bytes in the pixels of CT slice 1: with BAD_SECTOR the disk cannot read them."""


class FailingDisk(Disk):
    """A disk on which, while `switch` says so, writes fail (EIO), one sector cannot be read, or nothing comes back at all."""

    def __init__(self, mount: Path, device: str, switch: mmap.mmap) -> None:
        super().__init__(mount, device)
        self._switch = switch

    def switch(self, mode: int) -> None:
        self._switch[0] = mode

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """What was begun does not come back, and nothing else either."""
        self.switch(HANGS)
        try:
            yield
        finally:
            self.switch(GOOD)


@contextmanager
def failing_disk(mount: Path, mib: int = 64) -> Iterator[FailingDisk]:
    """A new ext4 on a loop device on a FUSE file, whose server makes the errors."""
    need_mounts()
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse cannot be used here")
    mount.mkdir(parents=True, exist_ok=True)
    work = mount.with_name(mount.name + ".disk")
    work.mkdir()
    image, file, switch_file = work / "image", work / "file", work / "switch"
    file.touch()
    switch_file.write_bytes(bytes(mmap.PAGESIZE))
    with image.open("wb") as stream:
        stream.truncate(mib * MIB)
    with ExitStack() as stack:
        with switch_file.open("r+b") as stream:
            switch = stack.enter_context(mmap.mmap(stream.fileno(), mmap.PAGESIZE))
        server = stack.enter_context(subprocess.Popen([sys.executable, "-m", "tests.support.faults", str(file), str(image),
                                                       str(work / "log"), str(switch_file)], stdout=subprocess.PIPE))
        stack.callback(ended, server)      # a namespace that was made meanwhile still has it mounted
        assert server.stdout is not None
        assert server.stdout.readline() == b"mounted\n"
        stack.callback(run, "umount", "-l", file)
        disk = stack.enter_context(_mounted(file, mount))
        stack.callback(switch.__setitem__, 0, GOOD)   # before it is unmounted: that writes
        yield FailingDisk(mount, disk.device, switch)


class _Server(recorder.Server):
    """The recorder's disk without its record, with errors at the turn of a switch."""

    def __init__(self, mount_point: str, image: str, log: str, switch: str) -> None:
        super().__init__(mount_point, image, log)
        with open(switch, "r+b") as file:
            self._switch = mmap.mmap(file.fileno(), mmap.PAGESIZE)

    def _answer(self, kind: int, body: memoryview) -> tuple[int, bytes | memoryview]:
        while self._switch[0] == HANGS:
            time.sleep(0.01)
        mode = self._switch[0]
        if mode == WRITE_ERRORS and kind in (recorder._WRITE, recorder._FSYNC):
            return errno.EIO, b""
        error, answer = super()._answer(kind, body)
        if mode == BAD_SECTOR and kind == recorder._READ and SECTOR in bytes(answer):
            return errno.EIO, b""
        return error, answer

    def _record(self, kind: int, offset: int, data: bytes | memoryview) -> None:
        """Nobody wants it."""


# --- what a sender knows ----------------------------------------------------------------------------------------------


@dataclass
class Journal:
    """A sender's own account: what was acknowledged, and what it heard instead."""

    acknowledged: list[Key] = field(default_factory=list)
    refused: list[tuple[Key, str]] = field(default_factory=list)

    def send(self, port: int, instances: Sequence[Instance], *, timeout: float = 30.0, **settings: Any) -> list[str]:
        """What was heard of each: "0000", another status, "rejected: …", "aborted: …". A lost association is opened anew."""
        heard = []
        scanner: Scanner | None = None
        try:
            for instance in instances:
                try:
                    if scanner is None:
                        scanner = Scanner(port, contexts_of(instances), timeout=timeout, **settings).open()
                    heard.append(self.store(scanner, instance))
                except Lost as error:
                    scanner = None
                    heard.append(str(error))
                    self.refused.append((instance.key, str(error)))
        finally:
            if scanner is not None:
                scanner.release()
        return heard

    def store(self, scanner: Scanner, instance: Instance) -> str:
        """One object on an association that is open; Lost as the scanner raises it, and then nothing is noted."""
        status = scanner.store(instance)
        if status == 0:
            self.acknowledged.append(instance.key)
        else:
            self.refused.append((instance.key, f"{status:04X}"))
        return f"{status:04X}"

    def missing(self, gateway: Gateway, *arrived: Iterable[Key]) -> set[Key]:
        """What was acknowledged and is neither at a destination nor whole in the spool: always empty."""
        return set(self.acknowledged) - held(gateway.spool) - {key for keys in arrived for key in keys}


REJECTED_FULL = "rejected: result 2 source 3 reason 2"
"""Rejected transient, local limit exceeded (PS3.8 9.3.4)."""


def files(spool: Path) -> dict[Key, list[Path]]:
    """Every whole object file of a spool, by what it holds; read without the product's code."""
    found: dict[Key, list[Path]] = {}
    for path in sorted((spool / "objects").glob("*/*.dcm")):
        entry = objects.part10(path) if path.stat().st_size > HEAD else None
        if entry is not None and entry.offset == HEAD:
            found.setdefault(entry.key, []).append(path)
    return found


def held(spool: Path) -> set[Key]:
    return set(files(spool))


def quarantined(spool: Path) -> set[Key]:
    """What lies in quarantine and names its object, whole or not."""
    found = (objects.part10(path) for path in (spool / "quarantine").glob("*.dcm"))
    return {entry.key for entry in found if entry is not None}


def echo(port: int, seconds: float = 5.0) -> int:
    """Status of a C-ECHO on an association of its own; Lost where nobody answers."""
    with Scanner(port, [(VERIFICATION, IMPLICIT)], timeout=seconds, calling="ECHO") as scanner:
        return scanner.echo()


# --- what a person sees -----------------------------------------------------------------------------------------------


def alarms(gateway: Gateway) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = gateway.json("status")["alarms"]
    return found


def wait_alarm(gateway: Gateway, pattern: str, seconds: float = 30.0) -> dict[str, Any]:
    """The first alarm in `dcmgate status` whose key and text match."""
    def look() -> dict[str, Any] | None:
        return next((alarm for alarm in alarms(gateway) if re.search(pattern, f"{alarm['key']} {alarm['text']}")), None)

    return wait_until(look, seconds, f"an alarm that matches {pattern!r}", every=0.3)  # type: ignore[return-value]


def wait_no_alarm(gateway: Gateway, pattern: str, seconds: float = 30.0) -> None:
    wait_until(lambda: not any(re.search(pattern, f"{alarm['key']} {alarm['text']}") for alarm in alarms(gateway)), seconds,
               f"no alarm that matches {pattern!r}", every=0.3)


def wait_log(gateway: Gateway, pattern: str, seconds: float = 30.0) -> str:
    """The first line of any of the gateway's logs that matches."""
    def look() -> str:
        for path in gateway.folder.glob("*.log"):
            for line in path.read_text(errors="replace").splitlines():
                if re.search(pattern, line):
                    return line
        return ""

    return wait_until(look, seconds, f"a log line that matches {pattern!r}", every=0.05)


def refusal(gateway: Gateway, *arguments: str, status: int | tuple[int, ...]) -> str:
    """What a command that must fail says on standard error: one line, with its exit status (or one of them)."""
    statuses = (status,) if isinstance(status, int) else status
    done = subprocess.run([sys.executable, "-m", "appliance.cli.main", "--config", str(gateway.config), *arguments],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
                          cwd=Path(__file__).resolve().parents[2])
    assert done.returncode in statuses, f"{arguments}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    lines = [line for line in done.stderr.splitlines() if line.startswith("dcmgate: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


# --- time -------------------------------------------------------------------------------------------------------------


def start_hurried(gateway: Gateway, factor: float) -> None:
    """`dcmgate run` on a clock that is so many times as fast as time: back-off, read-back and retention in seconds."""
    with gateway.log().open("ab") as out:
        gateway.processes["run"] = subprocess.Popen(
            [sys.executable, "-c", "from tests.support.faults import hurried; hurried()", str(gateway.config), str(factor)],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=Path(__file__).resolve().parents[2], start_new_session=True)
    wait_log(gateway, '{"ready": "hurried"}')


def hurried() -> None:
    """What `start_hurried` runs: the stages of `dcmgate run` as it wires them."""
    from appliance.cli.services import ALL, Box
    from appliance.clock import SystemClock
    from appliance.telemetry import log

    class Hurried(SystemClock):
        def __init__(self, factor: float) -> None:
            self._factor = factor
            self._began = super().boot_ns()

        def boot_ns(self) -> int:
            return self._began + int((super().boot_ns() - self._began) * self._factor)

        def wait(self, event: threading.Event, seconds: float) -> bool:
            return event.wait(seconds / self._factor)

    log.set_up("info")
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: over.set())
    box = Box(sys.argv[1], ALL, Hurried(float(sys.argv[2])))
    box.start()
    print('{"ready": "hurried"}', flush=True)
    while not over.wait(1.0):       # a signal that comes just before a wait does not end it
        pass
    box.stop()


if __name__ == "__main__":
    server = _Server(*sys.argv[1:])
    print("mounted", flush=True)
    server.serve()
