"""What the gateway costs during the soak: memory, descriptors, threads, ledger; and whether any of it grows."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support import measure

MB = 1e6


@dataclass(frozen=True, slots=True)
class Sample:
    """All stages, `at` seconds after the begin. Sizes in bytes; `wal`: the ledger's log; ready slots are no `descriptors`."""

    at: float
    pss: int
    descriptors: int
    threads: int
    ledger: int
    wal: int


def look(pids: Iterable[int], spool: Path, at: float) -> Sample:
    """One sample of these processes and all their children."""
    pss = descriptors = threads = 0
    for pid in pids:
        for member in family(pid):
            pss += measure.pss_bytes_of(member)
            with suppress(OSError):
                threads += len(os.listdir(f"/proc/{member}/task"))
                descriptors += sum(not _is_slot(member, fd, spool) for fd in os.listdir(f"/proc/{member}/fd"))
    return Sample(at, pss, descriptors, threads, _size(spool / "ledger.sqlite"), _size(spool / "ledger.sqlite-wal"))


def family(pid: int) -> list[int]:
    """The process, its descendants, and those of its session that have lost their parent (workers whose nursery was killed)."""
    found = dict.fromkeys(measure.tree(pid))
    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == pid:
                found.update(dict.fromkeys(measure.tree(process.pid)))
    return list(found)


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _is_slot(pid: int, fd: str, spool: Path) -> bool:
    """A descriptor of a slot that is ready, or has an object under way: there are as many as the intake wants."""
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}").startswith(f"{spool}/objects/")
    except OSError:
        return True     # closed meanwhile


class Watch(threading.Thread):
    """Looks every few seconds, unless `blind` is set (a stage is being killed or started)."""

    def __init__(self, pids: Callable[[], Sequence[int]], spool: Path, every: float) -> None:
        super().__init__(name="watch", daemon=True)
        self.stop = threading.Event()
        self.blind = threading.Event()
        self.samples: list[Sample] = []
        self._pids, self._spool, self._every = pids, spool, every
        self._began = time.monotonic()

    @property
    def now(self) -> float:
        return time.monotonic() - self._began

    def run(self) -> None:
        while not self.stop.wait(self._every):
            if not self.blind.is_set():
                sample = look(self._pids(), self._spool, self.now)
                if not self.blind.is_set():
                    self.samples.append(sample)


def slope(samples: Sequence[Sample], value: Callable[[Sample], float], bucket: float = 30.0) -> float:
    """Growth of a value per hour: the median of all slopes (Theil, Sen) between the least values of each `bucket` seconds.

    The least, because what is under way comes and goes; a leak stays.
    """
    least: dict[int, tuple[float, float]] = {}
    for sample in samples:
        key, found = int(sample.at / bucket), (value(sample), sample.at)
        least[key] = min(least.get(key, found), found)
    points = [(at, low) for low, at in least.values()]
    slopes = [(high - low) / (later - at) for n, (at, low) in enumerate(points) for later, high in points[n + 1:] if later > at]
    return statistics.median(slopes) * 3600 if slopes else 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share of all lies; 0 of nothing."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else 0.0


def verdict(growth: float, before: Sample, after: Sample, peak: float, limits: Mapping[str, float]) -> list[str]:
    """What is wrong with memory, descriptors and threads.

    `growth` in bytes an hour; `before` and `after` are of the gateway when idle; `peak` in bytes is its most in between.
    """
    wrong = []
    if "growth_mb" in limits and growth / MB > limits["growth_mb"]:
        wrong.append(f"memory grows by {growth / MB:.0f} MB an hour, more than {limits['growth_mb']:.0f}")
    for when, found in (("in the end", after.pss), ("at its peak", peak)):
        if (found - before.pss) / MB > limits["memory_mb"]:
            wrong.append(f"memory is {found / MB:.0f} MB {when}, it was {before.pss / MB:.0f}")
    for what in ("descriptors", "threads"):
        first, last = getattr(before, what), getattr(after, what)
        if last > first + limits[what]:
            wrong.append(f"{last} {what} in the end, there were {first}")
    return wrong
