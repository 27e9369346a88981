"""A scripted life of some instances on a disk that fails on purpose: the real stages, a real archive, and a sender's notes.

Every life begins with the same spool: a receiver was killed there, three
instances were acknowledged and have no row in the ledger yet, and one slot holds
nonsense. Keeper, forwarder and receiver start and recover; objects come in that
take each way to the disk (through the page cache, around it, more than one
buffer), one is broken off, one comes twice; all is delivered, confirmed and
deleted. Then the disk is healed, everything starts again, what was refused is
sent once more, and the books are closed.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from appliance.net import kick
from tests.proof.oracle import Journal, Verdict, judge, read_store
from tests.support import objects, peers
from tests.support.faultfs import ALWAYS, FaultFolder, Hit, Rule, fault_folder
from tests.support.gateway import STAGES, Gateway, Table, to_peer
from tests.support.objects import Instance
from tests.support.peers import Destination
from tests.support.scu import IMPLICIT, VERIFICATION, Lost, Scanner, contexts_of
from tests.support.waiting import Late, wait_until
from tests.support.warm import Nursery, nursery

ANSWER_SECONDS = 25.0
"""The product's deadline from the last byte to a status, an abort or a closed connection (I1)."""

QUIET_AFTER = 1.0
"""Seconds after an I/O error from which no success may be heard any more (I6)."""

IO_ERRORS = (errno.EIO, errno.EROFS)
FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT)

WRITING = frozenset({"create", "write", "sync", "rename", "truncate", "unlink"})
CUSTODY = frozenset({"object", "folder", "ledger", "wal", "shm"})
"""What a receiver writes on its way to a success."""

LEDGER = frozenset({"ledger", "wal", "shm"})
"""Without a word of the ledger nothing starts: it has the ballast to be written on a full disk."""

ECHO_SECONDS = 5.0
"""Longest wait for an echo beside a failing disk."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a sender heard of one object, and when (CLOCK_MONOTONIC). `heard`: a status in hex, or what broke."""

    instance: Instance
    began: float
    ended: float
    heard: str


@dataclass(slots=True)
class Outcome:
    """What one life came to. `wrong`: each a sentence; `elsewhere`: successes long after an error that forwarder or keeper met
    while the receiver ran, which began at `receiving`."""

    hits: list[Hit] = field(default_factory=list)
    stages: dict[int, str] = field(default_factory=dict)
    told: list[Told] = field(default_factory=list)
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    verdict: Verdict = field(default_factory=Verdict)
    wrong: list[str] = field(default_factory=list)
    elsewhere: int = 0
    receiving: float = 0.0
    slowest: float = 0.0


def script(seed: object) -> list[Instance]:
    """Each way to the disk at least once, and one object twice."""
    first = objects.sr(1, seed, size=6_000)
    return [first, objects.ct(2, seed, side=64), objects.ct(3, seed), objects.sr(4, seed, size=2_500_000), first,
            objects.ct(5, seed, side=300), objects.sr(6, seed, size=1_100_000)]


def late(seed: object) -> list[Instance]:
    """What comes after the trouble."""
    return [objects.ct(11, seed, side=96), objects.sr(12, seed, size=9_000)]


class Sender:
    """One scanner, one object after the other, and its notes."""

    def __init__(self, port: int, journal: Journal, calling: str = "SCANNER") -> None:
        self._port = port
        self._calling = calling
        self._journal = journal
        self._scanner: Scanner | None = None
        self.told: list[Told] = []

    def send(self, instances: Sequence[Instance]) -> list[Told]:
        """All of them, in order, on one association as long as it lives; `told` grows by what is returned."""
        before = len(self.told)
        contexts = contexts_of([objects.sr(1), objects.ct(1)])
        for instance in instances:
            self._journal.offer(instance)
            began = time.monotonic()
            try:
                if self._scanner is None:
                    self._scanner = Scanner(self._port, contexts, calling=self._calling,
                                            timeout=ANSWER_SECONDS + 10).open()
                heard = f"{self._scanner.store(instance):04X}"
            except Lost as error:
                self._scanner = None
                heard = str(error)
            self.told.append(Told(instance, began, time.monotonic(), heard))
            if heard == "0000":
                self._journal.acknowledge(instance)
        return self.told[before:]

    def break_off(self, instance: Instance) -> None:
        """Half an object, then the line is dead."""
        with suppress(Lost, OSError):
            scanner = Scanner(self._port, contexts_of([instance]), timeout=5).open()
            views = scanner.prepare(instance)
            scanner.sock.sendmsg(views[:len(views) * 2 // 3])
            scanner.close()

    def close(self) -> None:
        if self._scanner is not None:
            self._scanner.release()
            self._scanner = None


class Broken(Gateway):
    """A gateway whose stages are forks of `nursery`; unless its processes run `breakage` (Python source) first: so an
    instrument shows that it can fail."""

    breakage = ""

    def __init__(self, nursery: Nursery, folder: Path, destinations: Sequence[Table], *, spool: Table) -> None:
        self._nursery = nursery
        super().__init__(folder, destinations, spool=spool)

    def launch(self, *names: str) -> None:
        if self.breakage:
            super().launch(*names)
            return
        for name in names:
            log = self.log(name)
            log.touch()
            self._logged[name] = log.stat().st_size
            self.processes[name] = self._nursery.start(     # type: ignore[assignment]
                ["--config", str(self.config), "--json", name], log)

    def command(self, *arguments: str, status: int | None = 0, seconds: float = 120.0) -> str:
        found, said, complained = self._nursery.run(["--config", str(self.config), *arguments], self.folder / "answer", seconds)
        if status is not None and found != status:
            raise AssertionError(f"dcmgate {' '.join(arguments)}: exit status {found}\n{said}\n{complained}")
        return said

    def _environment(self) -> dict[str, str]:
        found = super()._environment()
        place = self.folder / "breakage"
        place.mkdir(exist_ok=True)
        (place / "sitecustomize.py").write_text(self.breakage)
        found["PYTHONPATH"] = f"{place}:{found['PYTHONPATH']}"
        return found


class Stand:
    """One gateway on one failing disk, for one life after the other."""

    def __init__(self, folder: Path, disk: FaultFolder, pacs: Destination, nursery: Nursery) -> None:
        self.disk = disk
        self.pacs = pacs
        self.folder = folder
        spool = disk.mount / "spool"
        self.gateway = Broken(nursery, folder / "site", [to_peer(pacs, connect_seconds=2.0)],
                              spool={"path": spool, "keep_min_hours": 0.0, "keep_max_days": 0.0, "size": 0})
        self.gateway.spool = spool
        self._template = folder / "template"
        self._before: list[Instance] = [objects.sr(1, "before", size=8_000), objects.ct(2, "before", side=200),
                                        objects.ct(3, "before")]
        self._make()

    def _make(self) -> None:
        """The spool that every life begins with."""
        self.gateway.make()
        self.gateway.start("receiver")
        sender = Sender(self.gateway.port, Journal())
        sender.send(self._before)
        sender.close()
        assert [told.heard for told in sender.told] == ["0000"] * len(self._before)
        self.gateway.kill("receiver")
        slots = sorted((self.disk.backing / "spool" / "objects").glob("*/*.dcm"))
        slots[-1].write_bytes(objects.noise(20_000, 7))
        shutil.copytree(self.disk.backing / "spool", self._template / "spool")
        shutil.copytree(self.folder / "site" / "state", self._template / "state")

    def begin(self) -> Journal:
        """The spool and the archive as they were; the journal of what is in the spool."""
        site = self.folder / "site"
        shutil.rmtree(self.disk.backing / "spool", ignore_errors=True)
        shutil.rmtree(site / "state", ignore_errors=True)
        for log in site.glob("*.log"):
            log.unlink()
        # What was preallocated must stay so: cp keeps the ballast's blocks.
        subprocess.run(["cp", "-a", "--sparse=never", self._template / "spool", self.disk.backing / "spool"], check=True,
                       timeout=60)
        shutil.copytree(self._template / "state", site / "state")
        self.disk.forget()
        self.pacs.clear()
        journal = Journal()
        for instance in self._before:
            journal.offer(instance)
            journal.acknowledge(instance)
        return journal

    def live(self, rules: Sequence[Rule], seed: object) -> Outcome:
        """One life with these rules from its first call on."""
        outcome = Outcome()
        journal = self.begin()
        self.disk.plan(rules)
        sender = Sender(self.gateway.port, journal)
        try:
            if self._start_all(outcome):
                self._day(sender, journal, seed)
            outcome.hits = self.disk.hits()
            if "receiver" not in self.gateway.processes and all(hit.error in FULL_ERRORS and hit.where not in LEDGER
                                                                for hit in outcome.hits):
                outcome.wrong.append("no receiver, and no echo: a full disk is no reason not to start")
            if outcome.hits and "receiver" in self.gateway.processes:
                rest = outcome.hits[-1].at + QUIET_AFTER + 0.05 - time.monotonic()
                if rest > 0:
                    threading.Event().wait(rest)
                sender.send(late(seed))
                self._echo(outcome)
        finally:
            self._end(outcome, sender)
        return self._judged(outcome, sender, journal)

    def slow(self, seconds: float, seed: object) -> Outcome:
        """A life in which, from the first object on, every write and every sync takes so long. Then the disk is quick again."""
        outcome = Outcome()
        journal = self.begin()
        self.disk.plan([])
        sender = Sender(self.gateway.port, journal)
        try:
            assert self._start_all(outcome), outcome.wrong
            self.disk.plan([Rule("*", op, times=ALWAYS, delay=seconds) for op in ("write", "sync")])
            scanner = threading.Thread(target=sender.send, args=(script(seed)[:4],), daemon=True)
            scanner.start()
            end = time.monotonic() + max(3.0, 1.5 * seconds)
            while time.monotonic() < end or (seconds >= ANSWER_SECONDS and scanner.is_alive()):
                self._echo(outcome)
                scanner.join(0.5)
            outcome.hits = self.disk.hits()
            self.disk.plan([])
            scanner.join(60)
            self._goes_on(outcome, Sender(self.gateway.port, journal), late(seed)[:1])
        finally:
            self._end(outcome, sender)
        return self._judged(outcome, sender, journal)

    def gone(self, seconds: float, seed: object) -> Outcome:
        """A life in which the disk is away for so long, and back. Intake stays closed, and what is held goes out.

        Held is what has its row in the ledger; what was acknowledged in the last moment before is adopted at the restart.
        """
        outcome = Outcome()
        journal = self.begin()
        self.disk.plan([])
        sender = Sender(self.gateway.port, journal)
        try:
            assert self._start_all(outcome), outcome.wrong
            self._archive(signal.SIGSTOP)
            sender.send(script(seed)[:3])
            held = len(journal)
            wait_until(lambda: self.gateway.balance()["accepted"] == held, 20, "rows for all", every=0.1)
            with self.disk.gone():
                began = time.monotonic()
                sender.send(script(seed)[3:])
                self._echo(outcome)
                threading.Event().wait(max(0.0, began + seconds - time.monotonic()))
                gone = time.monotonic()
            self._archive(signal.SIGCONT)
            sender.send(late(seed))
            outcome.wrong += [f"success {told.ended - began:.1f} s after the disk went" for told in sender.told
                              if told.heard == "0000" and told.ended > began]
            at_least = set(journal.acknowledged)
            try:
                wait_until(lambda: at_least <= set(read_store(self.pacs.folder)), 40, "what is held goes out", every=0.2)
            except Late as error:
                outcome.wrong.append(f"the disk was back for {time.monotonic() - gone:.0f} s: {error}")
        finally:
            self._archive(signal.SIGCONT)
            self._end(outcome, sender)
        return self._judged(outcome, sender, journal)

    def _archive(self, number: signal.Signals) -> None:
        """Let the archive answer nothing (SIGSTOP), or go on (SIGCONT)."""
        assert self.pacs.process is not None
        os.killpg(self.pacs.process.pid, number)

    def _goes_on(self, outcome: Outcome, sender: Sender, instances: Sequence[Instance]) -> None:
        """A disk that was only slow is used again without a hand."""
        try:
            wait_until(lambda: sender.send(instances)[-1].heard == "0000", 40, "images are taken in", every=0.5)
        except Late as error:
            outcome.wrong.append(f"the disk is quick again: {error}")
        sender.close()

    def _end(self, outcome: Outcome, sender: Sender) -> None:
        """The stages end on the bad disk; then it is healed."""
        try:
            sender.close()
            outcome.counts = self.disk.counts()
            outcome.hits = self.disk.hits() or outcome.hits
            self._stop_all(outcome)
        finally:
            self.disk.plan([])
            for name in list(self.gateway.processes):
                self.gateway.kill(name)

    def _judged(self, outcome: Outcome, sender: Sender, journal: Journal) -> Outcome:
        outcome.told = list(sender.told)
        outcome.slowest = max((told.ended - told.began for told in outcome.told), default=0.0)
        outcome.wrong += breaches(outcome)
        outcome.elsewhere = elsewhere(outcome)
        if outcome.elsewhere:
            outcome.wrong.append(f"{outcome.elsewhere} successes {QUIET_AFTER:g} s or more after an error of another stage")
        self.close_books(outcome, journal, [told.instance for told in outcome.told if told.heard != "0000"])
        return outcome

    def _start_all(self, outcome: Outcome) -> bool:
        """Start the stages as systemd would: one that ends at once is started once more. Whether the receiver runs."""
        for name in ("keeper", "forwarder", "receiver"):
            for _ in range(2):
                try:
                    self.gateway.start(name)
                    outcome.stages[self.gateway.pid(name)] = name
                    outcome.receiving = time.monotonic()      # its recovery has looked at the disk by now
                    break
                except Late as error:
                    outcome.wrong.append(f"{name} hangs at its start: {error}")
                    self.gateway.kill(name)
                    break
                except AssertionError:
                    status = self.gateway.processes.pop(name).wait(10)
                    if status not in (1, 3):
                        outcome.wrong.append(f"{name} ended at its start with exit status {status}")
        return "receiver" in self.gateway.processes

    def _day(self, sender: Sender, journal: Journal, seed: object) -> None:
        instances = script(seed)
        sender.send(instances[:3])
        broken = self.disk.counts().get(("object", "truncate"), 0)
        sender.break_off(objects.sr(9, seed, size=3_000_000))
        with suppress(Late):   # given up by the receiver: what comes next is alone with the disk
            wait_until(lambda: self.disk.counts().get(("object", "truncate"), 0) > broken, 0.5)
        sender.send(instances[3:])
        wanted = len({entry.instance for entry in journal.acknowledged})
        hits = len(self.disk.hits())
        patience = 1.0 if hits else 20.0      # a slow machine, too, comes to the calls of deliver and retire

        def over(done: bool) -> bool:
            return done or len(self.disk.hits()) > hits

        with suppress(Late):   # what does not get on because of the fault is looked at when the disk is healed
            wait_until(lambda: over(len(self.pacs.files()) >= wanted), patience, every=0.05)
            kick.send(self.gateway.run / kick.KEEPER)   # confirmed at the next look, then deleted
            wait_until(lambda: over(not self._held()), patience, every=0.05)

    def _held(self) -> int:
        """Files in the objects' folders that are not empty."""
        found = 0
        for path in (self.disk.backing / "spool" / "objects").glob("*/*.dcm"):
            with suppress(FileNotFoundError):   # deleted just now
                found += path.stat().st_size > 0
        return found

    def _echo(self, outcome: Outcome) -> None:
        began = time.monotonic()
        try:
            with Scanner(self.gateway.port, [(VERIFICATION, IMPLICIT)], timeout=ECHO_SECONDS) as scanner:
                status = scanner.echo()
        except Lost as error:
            outcome.wrong.append(f"no echo: {error}")
            return
        if status or time.monotonic() - began > ECHO_SECONDS:
            outcome.wrong.append(f"echo: status {status:04X} after {time.monotonic() - began:.1f} s")

    def _stop_all(self, outcome: Outcome) -> None:
        for name in [name for name in STAGES if name in self.gateway.processes]:
            died = self.gateway.processes[name].poll()
            if died is not None:
                self.gateway.processes.pop(name)
                outcome.wrong.append(f"{name} died: exit status {died}")
                continue
            try:
                self.gateway.stop(name)
            except AssertionError as error:
                outcome.wrong.append(str(error).splitlines()[0])

    def close_books(self, outcome: Outcome, journal: Journal, again: Sequence[Instance]) -> None:
        """The disk is healed: start, send again what was refused, deliver everything, and judge."""
        gateway = self.gateway
        for log in gateway.folder.glob("*.log"):
            if b"Traceback" in log.read_bytes():
                outcome.wrong.append(f"{log.stem}: {_raised(log)}")
        try:
            gateway.start("run")
            sender = Sender(gateway.port, journal)
            sender.send(again)
            sender.close()
            refused = [told.heard for told in sender.told if told.heard != "0000"]
            if refused:
                outcome.wrong.append(f"on the healed disk: {refused}")
            gateway.wait_settled(30, accepted=len(journal), states=("waiting",))
            if gateway.stop("run"):
                outcome.wrong.append("on the healed disk: `dcmgate run` did not end well")
        except AssertionError as error:
            outcome.wrong.append("on the healed disk: " + "; ".join(str(error).splitlines()[:3]))
        finally:
            for name in list(gateway.processes):
                gateway.kill(name)
        outcome.verdict = judge(journal, {"pacs": read_store(self.pacs.folder)}, spool=self.disk.backing / "spool",
                                balance=gateway.json("balance", "--deep", status=None))


def breaches(outcome: Outcome) -> list[str]:
    """What was promised and not kept, by the sender's watch and the disk's: own errors, errors before, and the deadline."""
    found = []
    own = [hit for hit in outcome.hits if outcome.stages.get(hit.pid) == "receiver" and hit.error]
    for told in outcome.told:
        if told.ended - told.began > ANSWER_SECONDS:
            found.append(f"{told.ended - told.began:.1f} s until {told.heard}")
        if told.heard != "0000":
            continue
        for hit in own:
            what = f"{errno.errorcode[hit.error]} at {hit.op} of {hit.path}"
            if hit.where == "object" and hit.op in ("write", "sync", "truncate") and told.began <= hit.at <= told.ended:
                found.append(f"success although its own call failed: {what}")
            if _shuts(hit) and hit.at + QUIET_AFTER < told.ended:
                found.append(f"success {told.ended - hit.at:.1f} s after {what}")
    return found


def _shuts(hit: Hit) -> bool:
    """Whether that is an I/O error on the write path."""
    return hit.error in IO_ERRORS and hit.op in WRITING and hit.where in CUSTODY


def elsewhere(outcome: Outcome) -> int:
    """Successes later than that after an I/O error that forwarder or keeper met."""
    others = [hit for hit in outcome.hits if outcome.stages.get(hit.pid) in ("forwarder", "keeper") and _shuts(hit)
              and hit.at > outcome.receiving]
    return sum(told.heard == "0000" and any(hit.at + QUIET_AFTER < told.ended for hit in others) for told in outcome.told)


def _raised(log: Path) -> str:
    """The exception that nobody foresaw, and where."""
    text = log.read_text(errors="replace")
    traceback = text[text.index("Traceback"):].splitlines()
    last = next((line for line in traceback if line and not line.startswith((" ", "Traceback"))), "?")
    place = [line.strip() for line in traceback[:60] if line.lstrip().startswith("File ") and "appliance" in line]
    return f"{last} — {place[-1] if place else ''}"


@contextmanager
def stand(folder: Path, starts: Nursery | None = None) -> Iterator[Stand]:
    """A gateway whose spool lies on a disk that fails on purpose, with an archive beside it. `starts`: for several of them."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        disk = stack.enter_context(fault_folder(folder / "disk", folder / "backing"))
        pacs = stack.enter_context(peers.storescp(folder / "pacs", profile=False))
        made = Stand(folder, disk, pacs, starts or stack.enter_context(nursery()))
        with made.gateway:
            yield made

