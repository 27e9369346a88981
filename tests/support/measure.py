"""What a tree of processes costs: processor time, memory, bytes and flushes of the disk."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

TICK = 1 / os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """The process and all its descendants; those that ended since are left out."""
    try:
        process = psutil.Process(pid)
        return [pid, *(child.pid for child in process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pid: int) -> float:
    """User and system time of the tree, of children that were waited for as well."""
    total = 0
    for member in tree(pid):
        try:
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(field) for field in fields[11:15])
    return total * TICK


def pss_bytes(pid: int) -> int:
    """Summed proportional set size of the tree (smaps_rollup): shared pages are counted once in all."""
    total = 0
    for member in tree(pid):
        try:
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


class PeakMemory:
    """Looks at the summed PSS while a `with` block runs; `peak` is the largest seen, `at` what the peak was made of."""

    def __init__(self, pid: int, every: float = 0.05) -> None:
        self.peak = 0
        self.samples = 0
        self.at: dict[str, int] = {}
        self._pid = pid
        self._every = every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peak-memory")

    def look(self) -> None:
        now = pss_bytes(self._pid)
        self.samples += 1
        if now > self.peak:
            self.peak = now
            self.at = {f"{member}": pss_bytes_of(member) for member in tree(self._pid)}

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            self.look()

    def __enter__(self) -> PeakMemory:
        self.look()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self.look()


def pss_bytes_of(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


@dataclass(frozen=True)
class Device:
    """The block devices under a folder, by their folders in /sys."""

    names: tuple[str, ...]

    def written(self) -> int:
        """Bytes written since boot."""
        return sum(self._field(name, 6) for name in self.names) * 512

    def flushes(self) -> int:
        """Cache flushes completed since boot; those that the block layer merged count once."""
        return sum(self._field(name, 15) for name in self.names)

    def _field(self, name: str, index: int) -> int:
        fields = Path(f"/sys/block/{name}/stat").read_text().split()
        return int(fields[index]) if index < len(fields) else 0


def device_of(folder: Path) -> Device | None:
    """The disks that hold a folder; None where none can be told (tmpfs, overlay, network)."""
    number = os.stat(folder).st_dev
    link = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not link.exists():
        source = _mount_source(number)
        if source is None or not Path(source).exists():
            return None
        number = os.stat(source).st_rdev
        link = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
        if not link.exists():
            return None
    return Device(tuple(sorted(set(_disks(link.resolve())))))


def _mount_source(number: int) -> str | None:
    wanted = f"{os.major(number)}:{os.minor(number)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] == wanted:
            return fields[fields.index("-") + 2]
    return None


def _disks(folder: Path) -> list[str]:
    """A partition's disk; a mapped device's disks below it."""
    if (folder / "partition").exists():
        folder = folder.parent
    below = list((folder / "slaves").iterdir()) if (folder / "slaves").is_dir() else []
    return [disk for lower in below for disk in _disks(lower.resolve())] if below else [folder.name]
