"""One round of one contestant, and the rounds of a case: everybody in turn, the order moved on by one each time."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.contestants import Contestant
from tests.bench.sending import NotSent, Sent, send
from tests.support import objects
from tests.support.measure import Device, PeakMemory, cpu_seconds, pss_bytes, tree
from tests.support.objects import Instance
from tests.support.peers import program
from tests.support.waiting import wait_until

SETTLE = 0.4
"""Seconds after the last answer in which whatever was put off still counts as processor time (ledger rows, exits)."""


class Refused(Exception):
    """The bench has nothing to report that could be believed."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Load:
    """What is sent in a case: `count` objects of `kind` over `k` associations."""

    kind: str
    k: int
    count: int

    @property
    def name(self) -> str:
        return f"{self.kind}_k{self.k}"

    def instances(self, seed: object, share: float = 1.0) -> list[Instance]:
        """Fresh UIDs for every seed; each association gets at least one."""
        count = max(self.k, int(self.count * share))
        return [KINDS[self.kind](number, (self.name, seed)) for number in range(1, count + 1)]


KINDS: dict[str, Callable[[int, object], Instance]] = {
    "ct": objects.ct,
    "sr": objects.sr,
    "dx": objects.dx,
    "mf": objects.multiframe,
}


@dataclass(frozen=True)
class Round:
    """What one round of one contestant came to."""

    images_per_second: float
    megabytes_per_second: float
    cpu_seconds_per_gigabyte: float
    answer_p50_ms: float
    answer_p99_ms: float
    written_per_byte: float
    flushes_per_image: float


@dataclass
class Result:
    """All rounds of one contestant in one case."""

    name: str
    syncs: str
    rounds: list[Round] = field(default_factory=list)
    pss_megabytes: float = 0.0
    notes: list[str] = field(default_factory=list)

    def median(self, figure: str) -> float:
        return statistics.median(getattr(r, figure) for r in self.rounds) if self.rounds else float("nan")


def play(contestant: Contestant, load: Load, seed: object, device: Device, *, max_send: int = 131072,
         sender: Callable[[Contestant, Sequence[Instance]], Sent] | None = None) -> Round:
    """One timed round; the disk is quiet before, and what is still in the page cache afterwards counts as written."""
    instances = load.instances(seed, contestant.share)
    contestant.ready(len(instances))
    os.sync()
    cpu, written, flushes = sum(map(cpu_seconds, contestant.pids)), device.written(), device.flushes()
    if sender is None:
        sent = send(contestant.port, instances, load.k, bare=contestant.bare, late=contestant.late, max_send=max_send)
    else:
        sent = sender(contestant, instances)
    seconds = sent.seconds if contestant.sink is None else arrival(contestant, sent)
    flushed = device.flushes() - flushes
    time.sleep(SETTLE)
    cpu = sum(map(cpu_seconds, contestant.pids)) - cpu
    os.sync()
    round_ = Round(sent.images / seconds, sent.bytes / seconds / 1e6, cpu / (sent.bytes / 1e9), sent.answer(0.5) * 1000,
                   sent.answer(0.99) * 1000, (device.written() - written) / sent.bytes, flushed / sent.images)
    contestant.clear()
    return round_


def arrival(contestant: Contestant, sent: Sent) -> float:
    """Seconds from the first byte to the moment at which the sink had the last byte of the last image."""
    assert contestant.sink is not None
    folder = contestant.sink.folder

    def files() -> list[os.DirEntry[str]]:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.endswith((".log", ".cfg"))]

    def all_there() -> bool:
        if contestant.process.poll() is not None:
            raise NotSent(f"{contestant.name} ended")
        return len(files()) >= sent.images

    try:
        wait_until(all_there, 300, f"{sent.images} images at the sink of {contestant.name}", every=0.05)
    except AssertionError as error:
        raise NotSent(str(error)) from None
    return max(entry.stat().st_mtime for entry in files()) - sent.began


def compare(names: Sequence[str], contestants: Sequence[Contestant], load: Load, rounds: int, device: Device) -> list[Result]:
    """A warm-up, the timed rounds in turn, and a last one in which memory is sampled and the bytes are compared."""
    results = [Result(name, contestant.syncs) for name, contestant in zip(names, contestants, strict=True)]
    alive = list(range(len(results)))

    def lose(index: int, error: Exception) -> None:
        say(f"  {results[index].name}: {error}")
        results[index].notes.append(f"failed: {error}")
        alive.remove(index)

    for number in range(-1, rounds):
        order = alive[number % max(1, len(alive)):] + alive[:number % max(1, len(alive))]
        for index in order:
            small = Load(load.kind, load.k, max(load.k, load.count // 4)) if number < 0 else load
            try:
                played = play(contestants[index], small, number, device)
            except (NotSent, AssertionError, OSError) as error:
                lose(index, error)
                continue
            if number >= 0:
                results[index].rounds.append(played)
        if number >= 0:
            say(f"  {load.name} round {number + 1}/{rounds}: " + ", ".join(
                f"{results[i].name} {results[i].rounds[-1].images_per_second:.0f}/s" for i in alive))
    for index in list(alive):
        try:
            inspect(contestants[index], results[index], load)
        except (NotSent, OSError) as error:
            lose(index, error)
    return results


class Memory(PeakMemory):
    """Of all processes of a contestant at once."""

    def __init__(self, contestant: Contestant) -> None:
        super().__init__(contestant.process.pid, every=0.02)
        self._pids = contestant.pids

    def look(self) -> None:
        self.peak = max(self.peak, sum(map(pss_bytes, self._pids)))


def inspect(contestant: Contestant, result: Result, load: Load) -> None:
    """Memory and bytes, in a round that is not timed."""
    instances = load.instances("inspected", contestant.share)
    contestant.ready(len(instances))
    memory = Memory(contestant)
    sent = send(contestant.port, instances, load.k, bare=contestant.bare, late=contestant.late, beside=lambda: memory)
    if contestant.sink is not None:
        arrival(contestant, sent)
    result.pss_megabytes = memory.peak / 1e6
    time.sleep(SETTLE)
    wanted = {("", "", key[2]) if contestant.bare else key for key in (instance.key for instance in instances)}
    missing = wanted - set(contestant.keys())
    if missing:
        text = f"{len(missing)} of {len(wanted)} data sets are not byte for byte what was sent"
        if contestant.bare or contestant.name.startswith("dcmgate"):
            raise Refused(f"{result.name}: {text}")
        result.notes.append(text)
    contestant.clear()


def best(contestants: dict[str, Contestant], load: Load, device: Device) -> str:
    """Which of the ways of being the limit is the fastest in this case (median of three rounds)."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(3):
        for name, contestant in contestants.items():
            rates[name].append(play(contestant, load, ("calibration", number), device).images_per_second)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    say("  limit: " + ", ".join(f"{name} {rate:.0f}/s" for name, rate in medians.items()))
    return max(medians, key=lambda name: medians[name])


# --- is anything synced at all? ---------------------------------------------------------------------------------------


def check_flushes(results: Sequence[Result], load: Load) -> None:
    """Refused unless the disk flushed for every image of those that claim so.

    Syncs of k associations that meet are one flush of the disk, so with several
    associations at once a k-th is asked for; `check_syncs` then counts the calls.
    """
    for result in results:
        if result.syncs == "each image" and result.rounds:
            least = min(r.flushes_per_image for r in result.rounds)
            if least < 0.99 / load.k:
                raise Refused(f"{result.name}, {load.name}: the disk flushed only {least:.2f} times an image; this disk or "
                              "this file system does not flush, so no figure of durable intake means anything here. "
                              "BENCH_DIR names a folder on another disk")


def check_syncs(contestant: Contestant, load: Load, log: Path) -> float:
    """Syncs an image as strace counts them in a small round; Refused below one."""
    instances = Load(load.kind, load.k, 64).instances("traced")
    contestant.ready(len(instances))
    with Trace([pid for each in contestant.pids for pid in tree(each)], log):
        send(contestant.port, instances, load.k, bare=contestant.bare)
    calls = len(re.findall(r"\b(?:fdatasync|fsync)\(", log.read_text()))
    contestant.clear()
    if calls < len(instances):
        raise Refused(f"{contestant.name}: {calls} syncs for {len(instances)} images")
    return calls / len(instances)


class Trace:
    """strace on every process of a tree, from the moment that it sees all of them."""

    def __init__(self, pids: Sequence[int], log: Path) -> None:
        self._command = [program("strace"), "-f", "-e", "trace=fsync,fdatasync", "-o", str(log)]
        for pid in pids:
            self._command += ["-p", str(pid)]
        self._pids = set(pids)

    def __enter__(self) -> Trace:
        self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        waiting = set(self._pids)
        for line in self._process.stderr:
            waiting -= {int(pid) for pid in re.findall(r"Process (\d+) attached", line)}
            if not waiting:
                break
        else:
            raise Refused("strace could not attach")
        self._drain = threading.Thread(target=self._process.stderr.read, daemon=True)
        self._drain.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._drain.join(5)
