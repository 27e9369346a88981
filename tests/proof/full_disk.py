"""Full disk: somebody else takes the room to a random byte, or the inodes, while scanners send; then gives it back.

A round: scanners fill a small ext4 from green by amber and red to black, and hear
when it is too much; at a random moment somebody else takes what is left, down to
a random number of bytes (or of inodes), in some rounds everything is killed and
started then; echoes answer throughout. The archive comes, the room comes back,
and without a hand images are taken in again. All that was acknowledged is at the
archive.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.proof.figures import Budget, CannotRun, Figures
from tests.proof.io_errors_life import ANSWER_SECONDS, Sender
from tests.proof.oracle import Journal, balance_of, judge, read_store
from tests.support import faults, objects, peers
from tests.support.faults import MIB, REJECTED_FULL, Disk
from tests.support.gateway import Gateway, to_peer
from tests.support.objects import Instance
from tests.support.peers import Destination, NoPeer
from tests.support.scu import Lost
from tests.support.waiting import Late, free_port, wait_until

NAME = "full_disk"
ABOUT = "room and inodes run out at a random point: the four states, A700, echoes, and recovery without a hand"
REQUIREMENTS = ("I1", "I2", "design: Space")

ROUNDS = 60
QUICK_ROUNDS = 3
AT_ONCE = 2
"""Rounds for each core: most of one is waiting for a person's patience, and for an alarm."""

SIZE = 64
INODES = 1100
"""Room for the spool's folders and a few hundred slots."""

FULL = ("A700", REJECTED_FULL)
ORDER = ("green", "amber", "red", "black")
SMALLEST = 20_000
"""Bytes: when not even such an object is taken in, the disk is full."""

RECOVERS_SECONDS = 60.0
ECHO_SECONDS = 5.0


def need_disks() -> None:
    """CannotRun where no file system can be made."""
    if os.geteuid() != 0 or not os.access("/dev/loop-control", os.R_OK | os.W_OK):
        raise CannotRun("root and loop devices are needed: the disk that is filled is a file system of its own")
    if shutil.which("mkfs.ext4", path="/usr/sbin:/sbin") is None:
        raise CannotRun("mkfs.ext4 is missing: e2fsprogs is not installed")


def run(budget: Budget) -> Figures:
    need_disks()
    found = Figures(NAME)
    counts: Counter[str] = Counter()
    began = time.monotonic()

    def one(number: int) -> Round | None:
        seed = budget.seed * 1000 + number
        if budget.seconds and time.monotonic() - began > budget.seconds:
            return None
        kind = ("bytes", "inodes", "restart")[number % 3]
        tried = Round(budget.folder / f"round{number}", kind, seed)
        try:
            tried.run()
        except NoPeer as error:
            raise CannotRun(str(error)) from error
        except (AssertionError, OSError) as error:
            tried.wrong.append(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
        shutil.rmtree(tried.folder, ignore_errors=True)
        budget.say(f"round {number + 1}, {kind}: {' > '.join(tried.states)}; {tried.verdict.acknowledged} acknowledged")
        return tried

    with ThreadPoolExecutor(budget.cores if budget.quick else AT_ONCE * budget.cores) as pool:
        for tried in pool.map(one, range(QUICK_ROUNDS if budget.quick else ROUNDS)):
            if tried is None:
                continue
            counts.update(tried.counts)
            counts["cases"] += 1
            for name in ("acknowledged", "lost", "altered", "unaccounted"):
                setattr(found, name, getattr(found, name) + getattr(tried.verdict, name))
            found.failures += [f"round {tried.kind}, seed {tried.seed}: {line}" for line in tried.wrong]
    found.counts = {**counts, "seeds": counts["cases"]}
    return found


class Round:
    """One disk, filled once. `wrong`: each a sentence; `states`: as a person saw them, in order."""

    def __init__(self, folder: Path, kind: str, seed: int) -> None:
        self.folder = folder
        self.kind = kind
        self.dice = random.Random(seed)
        self.seed = seed
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.states: list[str] = []
        self.journal = Journal()
        self.verdict = judge([], {})
        self._made = 0
        self._largest = 4_000_000
        self._somebody = False

    def run(self) -> None:
        port = free_port()
        absent = to_peer(Destination("pacs", "PACS", port, Path()), connect_seconds=1.0)
        with ExitStack() as stack:
            disk = stack.enter_context(faults.file_system(self.folder / "spool", SIZE, INODES if self.kind == "inodes" else 0))
            site = stack.enter_context(Gateway(self.folder, [absent], spool={"keep_min_hours": 0.0}).make())
            site.start()
            self._fill(site, disk)
            pacs = stack.enter_context(peers.storescp(self.folder / "pacs", port=port, profile=False))
            self._recover(site, disk)
            self._settle(site, pacs)

    # filling

    def _fill(self, site: Gateway, disk: Disk) -> None:
        """Until nothing more is taken in, with somebody else's part in it at a random moment, or without.

        The scanner's association has been open since green: those are cut off last.
        """
        moment = "green" if self.kind == "inodes" else self.dice.choice(("", *ORDER[:3]))
        after = self.dice.randrange(12)
        open_since_green = Sender(site.port, self.journal)
        while self._largest > SMALLEST and self._made < 500:
            if self._made >= after and (moment == "green" or self._look(site) == moment):
                moment, self._somebody = "", True
                self._take_the_rest(disk)
            heard = self._send(open_since_green, self._next())
            if self._made % 4 == 0 or heard in FULL:
                self._look(site)
            if heard in FULL:
                self._largest //= 4        # what is smaller may still fit
            elif heard != "0000":
                self.wrong.append(f"heard {heard}")
        open_since_green.close()
        if self._largest > SMALLEST:
            self.wrong.append("500 objects, and never full")
        self._look(site)
        # What is left may be less than the smallest object needs and yet above the black reserve: A700, and red.
        if not self._somebody and tuple(self.states) not in (ORDER, ORDER[:3]):
            self.wrong.append(f"not by amber and red to black, but {self.states}")
        heard = self._send(Sender(site.port, self.journal), self._next(small=False))
        if heard != REJECTED_FULL and self.states[-1] in ("red", "black"):
            self.wrong.append(f"a new association at {self.states[-1]}: heard {heard}")
        self._echo(site)
        if self.kind == "restart":
            site.kill()
            self.counts["restarts"] += 1
            try:
                site.start()
            except AssertionError:
                self.wrong.append(f"a full disk keeps it from starting: {site.log_tail(400)[-400:]}")
                site.processes.pop("run", None)
                return
            self._echo(site)
        alarms = [alarm["key"] for alarm in site.json("status")["alarms"]]
        with suppress(Late):
            wait_until(lambda: "space" in [alarm["key"] for alarm in site.json("status")["alarms"]], 25, every=0.5)
            alarms.append("space")
        if "space" not in alarms:
            self.wrong.append(f"nobody is told that it is full: {alarms}")

    def _take_the_rest(self, disk: Disk) -> None:
        """Leave so many bytes, or inodes, and no more."""
        if self.kind == "inodes":
            left = self.dice.randrange(0, 100)
            folder = disk.mount / "somebody"
            folder.mkdir()
            for number in range(max(0, os.statvfs(disk.mount).f_favail - left)):
                with suppress(OSError):
                    (folder / f"{number}").touch()
            return
        left = self.dice.choice([0, self.dice.randrange(0, 2 * MIB), self.dice.randrange(0, 12 * MIB)])
        free = os.statvfs(disk.mount)
        size = free.f_bavail * free.f_frsize - left
        with (disk.mount / "somebody").open("wb") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, max(size, 1))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def _next(self, small: bool | None = None) -> Instance:
        """A size of its own for each, so that the last that fits ends at any byte."""
        self._made += 1
        if self.kind == "inodes" and small is not False:
            return objects.sr(self._made, self.seed, size=2_000)
        return objects.sr(self._made, self.seed, size=self.dice.randrange(self._largest // 8, self._largest))

    def _send(self, sender: Sender, instance: Instance) -> str:
        sender.send([instance])
        told = sender.told[-1]
        self.counts["offered"] += 1
        self.counts["refused"] += told.heard != "0000"
        if told.ended - told.began > ANSWER_SECONDS:
            self.wrong.append(f"{told.ended - told.began:.0f} s until {told.heard}")
        return told.heard

    def _look(self, site: Gateway) -> str:
        state = str(site.json("status")["state"])
        if not self.states or self.states[-1] != state:
            self.states.append(state)
        return state

    def _echo(self, site: Gateway) -> None:
        began = time.monotonic()
        try:
            status = faults.echo(site.port, ECHO_SECONDS)
        except Lost as error:
            self.wrong.append(f"no echo: {error}")
            return
        self.counts["echoes"] += 1
        if status or time.monotonic() - began > ECHO_SECONDS:
            self.wrong.append(f"echo: {status:04X} after {time.monotonic() - began:.1f} s")

    # recovering

    def _recover(self, site: Gateway, disk: Disk) -> None:
        """The room comes back; nobody touches the gateway."""
        somebody = disk.mount / "somebody"
        if somebody.is_dir():
            shutil.rmtree(somebody)
        else:
            somebody.unlink(missing_ok=True)
        if "run" not in site.processes:
            site.start()
        again, sender = self._next(), Sender(site.port, self.journal)
        try:
            wait_until(lambda: self._send(sender, again) == "0000", RECOVERS_SECONDS, "images are taken in", every=0.5)
            wait_until(lambda: self._look(site) in ("green", "amber"), RECOVERS_SECONDS, "room again", every=0.5)
            self.counts["recovered"] += 1
        except Late as error:
            self.wrong.append(f"it does not recover by itself: {error}")
        sender.close()

    def _settle(self, site: Gateway, pacs: Destination) -> None:
        expected = set(self.journal.acknowledged)
        try:
            wait_until(lambda: expected <= set(self._arrived(pacs)), 60, "all is delivered", every=0.3)
            site.wait_settled(30)
        except AssertionError as error:
            self.wrong.append(str(error).splitlines()[0])
        if site.stop():
            self.wrong.append("it did not end well")
        self.verdict = judge(self.journal, {"pacs": read_store(pacs.folder)}, spool=site.spool,
                             balance=balance_of(site.spool, self.folder, "--deep"))
        if not self.verdict.holds:
            self.wrong.append(self.verdict.as_text()[:500])

    def _arrived(self, pacs: Destination) -> Sequence[object]:
        try:
            return read_store(pacs.folder)
        except (ValueError, OSError):      # a file that is being written
            return []
