"""The first table of the hazards file again, under load: every attack on a running gateway while honest peers go on.

The gateway is the product as installed, in its three processes, with a limited
child that reads tags, a good destination (DCMTK's storescp) and two bad ones.
Beside every attack: DCMTK's echoscu and an echo of our own, each with the hard
deadline of one second; a scanner that stores without a break, and DCMTK's
storescu. Throughout, the memory of the whole (PSS) stays within 100 MB of what it
was under the honest load alone; within 30 s after, with the honest peers paused,
descriptors and threads are what they were. Whatever anybody was told success
for, attackers too, is judged at the end by the oracle.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.proof.figures import Budget, CannotRun, Figures
from tests.proof.hostile_attacks import ATTACKS
from tests.proof.hostile_rows import handler_and_link
from tests.proof.oracle import Entry, Journal, Verdict, judge, read_spool, read_store
from tests.support import badpeers, measure, objects, peers
from tests.support.acceptor import echo
from tests.support.gateway import Gateway, to_peer
from tests.support.scu import IMPLICIT, VERIFICATION, Lost, Scanner
from tests.support.waiting import wait_until

NAME = "hostile"
ABOUT = "every row of the hazards file under load, with real peers echoing and storing beside it"
REQUIREMENTS = (
    "hazard: silent socket", "hazard: incomplete PDU header", "hazard: one byte a second", "hazard: PDU length 0xFFFFFFFF",
    "hazard: P-DATA larger than negotiated", "hazard: fragments without end", "hazard: command set without end",
    "hazard: pipelined requests", "hazard: connects and closes", "hazard: idle associations",
    "hazard: more than 1,024 descriptors", "hazard: disconnect in mid-object", "hazard: empty SOP Instance UID",
    "hazard: hostile UIDs", "hazard: handler raises", "hazard: destination accepts, then stops reading",
    "hazard: destination never answers", "hazard: 170 storage classes × 45 syntaxes", "hazard: backlog",
    "hazard: 1,500 mutated inputs", "hazard: decompression bomb", "hazard: 2,000-deep sequence", "hazard: executable preamble",
    "hazard: speaks something else", "hazard: repeated A-ASSOCIATE-RQ", "hazard: peer stops reading",
    "hazard: time-outs are for lack of progress", "I8")

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
ECHO = 1.0
"""Seconds within which an echo is answered, whatever others do: a hard deadline of the product."""
MEMORY = 100 * MIB
BACK = 30.0
"""Seconds until descriptors and threads are what they were."""
PRODUCT_DEADLINE = 15.0
"""A silent peer is given 10 s, and 3 more to close: an attack of silence has to last longer to show that."""

ARRIVES = 120.0
"""Seconds until all that honest peers sent is at the good destination, bombs in front of it or not."""

LONG = {"silent_sockets": PRODUCT_DEADLINE, "one_byte_at_a_time": 35.0, "never_reads": 35.0}
"""Attacks whose whole run has to outlast a deadline of the product; all others last SECONDS."""
SECONDS = 10.0


@dataclass
class Measured:
    """What was seen beside one attack: a line of the state. Seconds, bytes above the baseline, and what went wrong."""

    attack: str
    version: str
    seed: int
    echoes: int = 0
    slowest: float = 0.0
    programs: int = 0
    slowest_program: float = 0.0
    growth: int = 0
    settled: float = 0.0
    stored: int = 0
    done: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Look:
    """A tree of processes at one moment. Descriptors of object files are left out: slots are made ahead of need."""

    memory: int
    files: int
    threads: int


def look(pids: list[int]) -> Look:
    files = threads = 0
    for pid in (member for root in pids for member in measure.tree(root)):
        with suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    files += "/objects/" not in os.readlink(f"/proc/{pid}/fd/{name}")
            threads += len(os.listdir(f"/proc/{pid}/task"))
    return Look(sum(measure.pss_bytes(pid) for pid in pids), files, threads)


class Honest:
    """The peers that have done nothing wrong: echoes by our own hand and by DCMTK's, a scanner, and DCMTK's storescu."""

    def __init__(self, port: int, journal: Journal, folder: Path, seed: int) -> None:
        self.port = port
        self.journal = journal
        self.folder = folder
        self.echoes: list[float] = []
        self.programs: list[float] = []
        self.failures: list[str] = []
        self.stored = 0
        self.own: list[Entry] = []
        self._seed = seed
        self._number = 0
        self._running = threading.Event()
        self._stop = threading.Event()
        self._busy = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._loop, args=(work,), name=work.__name__, daemon=True)
                         for work in (self._echo, self._echoscu, self._store, self._storescu)]

    def start(self) -> None:
        self._running.set()
        for thread in self._threads:
            thread.start()

    def pause(self) -> None:
        """No further work; what is under way ends first."""
        self._running.clear()
        wait_until(lambda: self._busy == 0, 60, "the honest peers have come to an end of what they were doing")

    def resume(self) -> None:
        self.echoes, self.programs, self.failures, self.stored = [], [], [], 0
        self._running.set()

    def end(self) -> None:
        self._stop.set()
        self._running.set()
        for thread in self._threads:
            thread.join(60)

    def _loop(self, work: Any) -> None:
        while not self._stop.is_set():
            self._running.wait()
            if self._stop.is_set():
                return
            with self._lock:
                self._busy += 1
            try:
                work()
            except Exception as error:  # noqa: BLE001 - whatever keeps an honest peer from its work is a finding
                self.failures.append(f"{work.__name__[1:]}: {type(error).__name__}: {error}"[:300])
                self._stop.wait(0.2)
            finally:
                with self._lock:
                    self._busy -= 1

    def _echo(self) -> None:
        self.echoes.append(echo(self.port))
        self._stop.wait(0.05)

    def _echoscu(self) -> None:
        begin = time.monotonic()
        done = subprocess.run([peers.program("echoscu"), "-to", "10", "-aec", "DCMGATE", "127.0.0.1", str(self.port)],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False,
                              env=peers.environment())
        self.programs.append(time.monotonic() - begin)
        if done.returncode:
            raise Lost(f"exit status {done.returncode}: {done.stderr[-200:]}")
        self._stop.wait(0.1)

    def _next(self) -> int:
        with self._lock:
            self._number += 1
            return self._number

    def _store(self) -> None:
        """An association with twenty images, as one series."""
        with Scanner(self.port, [(VERIFICATION, IMPLICIT), (objects.CT, objects.EXPLICIT)], calling="HONEST") as scanner:
            for _ in range(20):
                image = objects.ct(self._next(), ("honest", self._seed), side=128)
                self.journal.offer(image)
                status = scanner.store(image)
                if status:
                    raise Lost(f"status {status:04X}")
                self._stored(image)
                if not self._running.is_set():
                    return
                self._stop.wait(0.03)

    def _storescu(self) -> None:
        # Nothing with free text: DCMTK takes trailing spaces off a UT on its way, which is not what was written down here.
        made = [objects.ct(self._next(), ("honest", self._seed), side=64) for _ in range(5)]
        folder = self.folder / "storescu"
        files = peers.files_of(made, folder)
        for one in made:
            self.journal.offer(one)
        done = peers.storescu(self.port, files, folder)
        if done.returncode:
            raise Lost(f"exit status {done.returncode}: {done.stdout[-300:]}")
        for one in made:
            self._stored(one)
        self._stop.wait(0.3)

    def _stored(self, instance: objects.Instance) -> None:
        self.own.append(self.journal.acknowledge(instance))
        self.stored += 1


class Ground:
    """A running gateway, its destinations and its honest peers, and what all that costs when nobody attacks."""

    def __init__(self, gateway: Gateway, store: Path, honest: Honest, journal: Journal) -> None:
        self.gateway = gateway
        self.store = store
        self.honest = honest
        self.journal = journal
        self.pids = [gateway.pid(name) for name in gateway.processes]
        self.memory = 0
        self.quiet = Look(0, 0, 0)
        self.late = False
        self._files: dict[Path, str] = {}

    def warm_up(self, seconds: float) -> None:
        """The honest load alone, with a look at what it costs at most; then the quiet after it."""
        self.honest.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.memory = max(self.memory, look(self.pids).memory)
            time.sleep(0.2)
        self.honest.pause()
        time.sleep(5)                             # lingering associations of the forwarder end after two
        self.quiet = look(self.pids)

    def beside(self, attack: str, seconds: float, seed: int, version: str, *, settle: bool = True) -> Measured:
        """One attack, and what the others noticed of it. Without `settle`, what is left behind shows at a later one."""
        found = Measured(attack, version, seed)
        self.honest.resume()
        notes = self.gateway.folder / f"{attack}-{seed}.jsonl"
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.proof.hostile_attacks", attack, str(self.gateway.port), str(seconds), str(seed),
             str(notes)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        most = 0
        deadline = time.monotonic() + seconds + 120
        while process.poll() is None and time.monotonic() < deadline:
            most = max(most, look(self.pids).memory)
            time.sleep(0.2)
        process.kill()
        out, err = process.communicate()
        if process.returncode:
            found.failures.append(f"the attack itself ended with {process.returncode}: {err[-300:]}")
        else:
            found.done = json.loads(out)
        time.sleep(0.3)                           # an echo that was under way may still show that it was late
        if settle:
            try:
                self.honest.pause()
            except AssertionError as error:
                found.failures.append(str(error))
        self._compare(found, most)
        if settle:
            self._settle(found)
        theirs = Journal(notes)
        for entry in theirs.offered:
            self.journal.offer(entry)
        for entry in theirs.acknowledged:
            self.journal.acknowledge(entry)
        return found

    def _compare(self, found: Measured, most: int) -> None:
        """What the honest peers and the memory have to say."""
        honest = self.honest
        found.failures += honest.failures[:5]
        found.echoes, found.slowest = len(honest.echoes), round(max(honest.echoes, default=0), 3)
        found.programs, found.slowest_program = len(honest.programs), round(max(honest.programs, default=0), 3)
        found.stored, found.growth = honest.stored, most - self.memory
        if not honest.echoes or not honest.programs or not honest.stored:
            found.failures.append("an honest peer got nothing done")
        if max(found.slowest, found.slowest_program) > ECHO:
            found.failures.append(f"an echo took {found.slowest} s, DCMTK's {found.slowest_program} s")
        if found.growth > MEMORY:
            found.failures.append(f"memory grew by {found.growth >> 20} MiB")
        dead = [name for name, process in self.gateway.processes.items() if process.poll() is not None]
        if dead:
            found.failures.append(f"{', '.join(dead)} ended")

    def _settle(self, found: Measured) -> None:
        """Descriptors and threads, with nobody there any more."""
        begin = time.monotonic()
        try:
            wait_until(self._is_quiet, BACK, "descriptors and threads are back", every=0.2)
        except AssertionError:
            found.failures.append(f"after {BACK:g} s {look(self.pids)}, at first {self.quiet}")
        found.settled = round(time.monotonic() - begin, 1)

    def _is_quiet(self) -> bool:
        now = look(self.pids)
        return now.files <= self.quiet.files and now.threads <= self.quiet.threads

    def judge(self, seconds: float) -> Verdict:
        """The oracle's verdict, once the good destination has what the honest peers sent; it may refuse the others' objects."""
        expected = {entry.instance for entry in self.honest.own}
        late = ""
        try:
            wait_until(lambda: expected <= self._arrived(), seconds, "the honest peers' images arrive", every=0.5)
        except AssertionError:
            late = f"{len(expected - self._arrived())} images of honest peers had not arrived after {seconds:g} s"
        time.sleep(1)                             # the last file was there before its last byte
        for name in list(self.gateway.processes):
            try:
                self.gateway.stop(name)
            except AssertionError as error:
                late = str(error)[:500]
        # storescp cleans names that break the rules, and what mutated inputs stored is in no journal: only names that were
        # offered can be compared there. In the spool everything is as it was sent.
        names = {entry.instance for entry in self.journal.offered}
        there = [entry for entry in read_store(self.store) if entry.instance in names]
        verdict = judge(self.journal, {"storescp": there}, spool=self.gateway.spool, balance=self.gateway.balance(status=None))
        bad = [held.path.name for held in read_spool(self.gateway.spool) if not _harmless(held.path)]
        if bad:
            verdict.notes.append(f"a preamble that is not empty: {bad[:5]}")
            verdict.altered += len(bad)
        missing = set(self.honest.own) - set(there)
        if late or missing:
            verdict.notes.append(late or f"{len(missing)} images of honest peers did not arrive whole")
            self.late = True
        return verdict

    def _arrived(self) -> set[str]:
        """SOP Instance UIDs at the good destination. Each file is looked at once, when it names its object."""
        for path in self.store.iterdir():
            if path not in self._files and path.suffix not in (".log", ".cfg"):
                found = objects.part10(path)
                if found is not None:
                    self._files[path] = found.sop_instance
        return set(self._files.values())


def _harmless(path: Path) -> bool:
    """Whether nobody runs that file as a program (CVE-2019-11687)."""
    with path.open("rb") as file:
        return file.read(132) == bytes(128) + b"DICM"


@contextmanager
def ground(folder: Path, seed: int, *, warm_up: float) -> Iterator[Ground]:
    """The gateway with two receivers, its destinations and its peers, warm."""
    journal = Journal(folder / "journal.jsonl")
    with ExitStack() as stack:
        good = stack.enter_context(peers.storescp(folder / "store"))
        bad = [stack.enter_context(made()) for made in (badpeers.hung_after_accept, badpeers.silent_after_connect)]
        destinations = [to_peer(good), *({
            "id": f"bad{number}", "type": "dimse", "address": "127.0.0.1", "port": port, "called": "BAD", "required": False,
            "connect_seconds": 2.0, "progress_seconds": 2.0} for number, port in enumerate(bad))]
        everywhere = [good.kind, "bad0", "bad1"]
        gateway = stack.enter_context(Gateway(
            folder / "gateway", destinations, receivers=2, peers=[{"id": "scanner", "addresses": ["127.0.0.1"]}], rules=[
                {"id": "series", "match": {"SeriesDescription": "Series 1"}, "destinations": everywhere},
                {"id": "report", "match": {"modality": "SR", "PatientName": "*"}, "destinations": [good.kind]}]))
        gateway.start_stages()
        (folder / "honest").mkdir()
        honest = Honest(gateway.port, journal, folder / "honest", seed)
        stack.callback(honest.end)
        made = Ground(gateway, good.folder, honest, journal)
        made.warm_up(warm_up)
        yield made


def run(budget: Budget) -> Figures:
    """Every attack in turn on one gateway; a full run leaves out those that were run before on this version and seed."""
    try:
        peers.program("echoscu")
    except peers.NoPeer as error:
        raise CannotRun(str(error)) from error
    figures = Figures(NAME)
    notes = budget.state / "attacks.jsonl"
    known = [Measured(**json.loads(line)) for line in notes.read_text().splitlines()] if notes.exists() else []
    done = [] if budget.quick else [one for one in known if (one.version, one.seed) == (budget.version, budget.seed)]
    judged = budget.state / "judged.jsonl"
    counted: list[int] = []
    left = [attack for attack in ATTACKS if attack not in {one.attack for one in done}]
    end = time.monotonic() + budget.seconds if budget.seconds else float("inf")
    if left:
        with ground(budget.folder, budget.seed, warm_up=3.0 if budget.quick else 10.0) as made:
            for attack in left:
                if time.monotonic() > end:
                    figures.notes.append(f"{attack} and what follows: not in this run")
                    break
                found = made.beside(attack, 0.5 if budget.quick else LONG.get(attack, SECONDS), budget.seed, budget.version,
                                    settle=not budget.quick or attack == left[-1])
                budget.say(f"{attack}: slowest echo {found.slowest} s of {found.echoes}, {found.growth >> 20} MiB more,"
                           f" quiet after {found.settled} s; {found.done} {'; '.join(found.failures)}")
                done.append(found)
                with notes.open("a") as file:
                    file.write(json.dumps(asdict(found)) + "\n")
            begin = time.monotonic()
            verdict = made.judge(ARRIVES)
            budget.say(f"judged in {time.monotonic() - begin:.0f} s: {verdict.as_text()[:500]}; {verdict.delivered} delivered,"
                       f" {verdict.held} held, {verdict.set_aside} set aside")
            with judged.open("a") as file:
                file.write(json.dumps([budget.version, budget.seed, budget.quick, verdict.acknowledged, verdict.lost,
                                       verdict.altered, verdict.unaccounted]) + "\n")
            counted = [verdict.acknowledged, verdict.lost, verdict.altered, verdict.unaccounted]
            (figures.failures if made.late else figures.notes).extend(verdict.notes[:20])
    if not budget.quick:                          # what was acknowledged beside the attacks of earlier runs counts as well
        lines = [json.loads(line) for line in judged.read_text().splitlines()] if judged.exists() else []
        same = [line[3:] for line in lines if line[:3] == [budget.version, budget.seed, False]]
        counted = [sum(column) for column in zip(*same, strict=True)]
    if counted:
        figures.acknowledged, figures.lost, figures.altered, figures.unaccounted = counted
    if not budget.quick and time.monotonic() < end:
        figures.failures += handler_and_link(budget.folder / "rows", budget.say)
    _count(figures, done)
    return figures


def _count(figures: Figures, done: list[Measured]) -> None:
    figures.failures += [f"{one.attack}, seed {one.seed}: {failure}" for one in done for failure in one.failures]
    if done:
        figures.counts = {
            "attacks": len(done), "echoes": sum(one.echoes + one.programs for one in done),
            "slowest_echo_seconds": max(max(one.slowest, one.slowest_program) for one in done),
            "memory_growth_mb": round(max(one.growth for one in done) / 1e6, 1),
            "quiet_after_seconds": max(one.settled for one in done), "stored_beside": sum(one.stored for one in done),
            "hostile_inputs": sum(sum(one.done.values()) for one in done if one.attack == "mutated_inputs")}
