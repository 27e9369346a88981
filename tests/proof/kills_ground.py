"""Where kills are made in numbers: the real stages on a real spool, each a fork of this process that has imported
everything, so that a start costs milliseconds instead of half a second.

A stage is `dcmgate receiver|forwarder|keeper|run` by its own `main`, on real
sockets, with a real scanner in front and two destinations behind: DCMTK's
storescp, and an archive folder. Two things differ from the product: pauses
(between two rounds of the keeper, before a read-back) are short, and the tags
are read without the limited child, which is a process of its own and would cost
a new interpreter for each start. The whole-process rounds have both.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

import appliance
import appliance.cli.main as command_line
from appliance.clock import SystemClock
from appliance.confirm import confirmer, proof
from appliance.errors import DcmgateError
from appliance.forward import router
from appliance.keeper import keeper
from appliance.model import Attributes, DeliveryState
from appliance.sandbox import child as limited_child
from appliance.sandbox import dictionary
from appliance.sandbox.parent import Place
from appliance.spool.ledger import Ledger
from appliance.spool.rows import Counts
from tests.proof.oracle import Journal, Verdict, entry_of, judge, read_archive, read_store
from tests.support import objects, peers
from tests.support.gateway import Gateway, to_folder, to_peer
from tests.support.objects import Instance
from tests.support.peers import Destination
from tests.support.scu import Lost, Scanner, contexts_of
from tests.support.syscalls import BEFORE, Victim, living
from tests.support.waiting import Late, wait_until

UNSENT = (DeliveryState.WAITING, DeliveryState.SENDING, DeliveryState.DEFERRED, DeliveryState.HELD)
PARKED = (DeliveryState.PARKED,)
PATIENCE = 30.0
"""Seconds for one run of a stage; one takes about a tenth of a second."""


@dataclass(frozen=True, slots=True)
class Course:
    """What is killed: the stages of one process, what they find, and when they are done with it."""

    name: str
    stage: str
    template: str
    scanners: int
    done: str


COURSES = {path.name: path for path in (
    Course("accept", "receiver", "empty", 2, "acknowledged"),
    Course("deliver", "forwarder", "accepted", 0, "sent"),
    Course("retire", "keeper", "sent", 0, "gone"),
    Course("run", "run", "empty", 2, "gone"),
)}


def workload() -> list[list[Instance]]:
    """What two scanners send: small, large (more than a buffer), odd; the second one repeats one of the first."""
    first = [objects.sr(1, "kills", size=2000), objects.ct(1, "kills", side=800), objects.ct(2, "kills", side=64)]
    second = [objects.ct(3, "kills", side=128), objects.private(1, "kills"), first[0]]
    return [first, second]


class InProcess:
    """Stands for `sandbox.parent.Child`: the same reader, without the process."""

    def __init__(self, memory: int, seconds: float) -> None:
        dictionary.load()

    def once(self, batch: list[Place], wanted: frozenset[int]) -> list[Attributes]:
        return self.tags(batch, wanted)

    def tags(self, batch: list[Place], wanted: frozenset[int]) -> list[Attributes]:
        answers: list[bytes] = []
        request = {"wanted": sorted(wanted), "objects": [place[1:] for place in batch]}
        limited_child.tags(request, [place[0] for place in batch], answers.append)
        return [Attributes(readable=False) if item is None else Attributes({int(tag): text for tag, text in item.items()})
                for item in json.loads(answers[0])]

    def close(self) -> None:
        """Nothing runs."""


def hurry() -> None:
    """Pauses of this process and its forks are short from now on."""
    setattr(router, "Child", InProcess)  # noqa: B010
    whole = command_line.parser()
    command_line.parser = lambda _argv=None: whole
    keeper.ROUND_SECONDS, keeper.LEAST_SECONDS = 0.06, 0.01
    keeper.CHECKPOINT_SECONDS = keeper.SWEEP_SECONDS = keeper.REMNANTS_SECONDS = keeper.WITNESS_SECONDS = 0.0
    confirmer.POLL_SECONDS = 0.02
    proof.PAUSES = (0, 0, 0, 0, 1)


class Copier:
    """Makes folders what their templates are. An empty folder that nothing was put into since is not looked into again."""

    def __init__(self) -> None:
        self._empty: dict[str, int] = {}

    def copy(self, source: str, target: str) -> None:
        """`target` becomes what `source` is. The ballast, which is never written to, is left as it is."""
        with suppress(FileNotFoundError):
            if self._empty.get(target) == os.stat(target).st_mtime_ns:
                return
        os.makedirs(target, exist_ok=True)
        wanted = {entry.name: entry for entry in os.scandir(source)}
        with os.scandir(target) as there:
            for entry in there:
                if entry.name not in wanted:
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path)
                    else:
                        os.unlink(entry.path)
        for name, entry in wanted.items():
            at = os.path.join(target, name)
            if entry.is_dir(follow_symlinks=False):
                self.copy(entry.path, at)
            elif not (name == "ballast" and os.path.exists(at) and os.stat(at).st_size == entry.stat().st_size):
                shutil.copyfile(entry.path, at)
        if wanted:
            self._empty.pop(target, None)
        else:
            self._empty[target] = os.stat(target).st_mtime_ns


@dataclass(slots=True)
class Run:
    """One run of a stage. `call`: where it was killed ("" for a moment in time, or not at all)."""

    killed: bool
    call: str
    calls: list[str]
    status: int
    late: bool
    seconds: float


class NotBegun(AssertionError):
    """A case that could not begin, for what the one before it left behind: nothing is known of it."""


def _associated(child: str) -> str:
    """With whom that child of storescp has its association."""
    with suppress(psutil.Error):
        ends = [(each.laddr, each.raddr) for each in psutil.Process(int(child)).net_connections("tcp") if each.raddr]
        others = [(each.pid, each.status) for each in psutil.net_connections("tcp") if (each.raddr, each.laddr) in ends]
        return f"{child} {ends}, held by {others}"
    return f"{child} is gone"


class Ground:
    """One gateway with its surroundings, put back to one of its templates for each case. For one process with one thread."""

    def __init__(self, folder: Path, pacs: Destination) -> None:
        self.folder = folder
        self.pacs = pacs
        self.gateway = Gateway(folder / "gateway", [
            to_peer(pacs, linger_seconds=0.0, connect_seconds=5.0, progress_seconds=20.0),
            to_folder(folder / "archive")], receivers=1, spool={"keep_min_hours": 0.0, "keep_max_days": 0.0})
        self._copier = Copier()
        self.journal_path = folder / "journal"
        self.log = folder / "log"
        self.log.touch()
        self.workload = workload()
        self.entries = {instance.sop_instance: entry_of(instance) for part in self.workload for instance in part}

    def prepare(self) -> None:
        """Make the templates by the stages' own work. AssertionError where that does not go well."""
        self.gateway.make()
        self._keep("empty")
        for path, template in (("accept", "accepted"), ("deliver", "sent")):
            run = self.run(COURSES[path])
            assert run.status == 0, self.said()
            self._keep(template)
        shutil.rmtree(self.gateway.run)

    def _parts(self) -> dict[str, Path]:
        return {"spool": self.gateway.spool, "state": self.gateway.folder / "state", "archive": self.folder / "archive",
                "store": self.pacs.folder}

    def _keep(self, name: str) -> None:
        folder = self.folder / "templates" / name
        folder.mkdir(parents=True)
        for part, path in self._parts().items():
            shutil.copytree(path, folder / part, symlinks=True)
        (folder / "journal").write_bytes(self.journal_path.read_bytes() if self.journal_path.exists() else b"")

    def restore(self, name: str) -> None:
        """Everything as that template has it. Nothing may be running."""
        self._await_storescp()
        folder = self.folder / "templates" / name
        for part, path in self._parts().items():
            self._copier.copy(str(folder / part), str(path))
        self.journal_path.write_bytes((folder / "journal").read_bytes())
        shutil.rmtree(self.gateway.run, ignore_errors=True)
        self.gateway.run.mkdir()
        self.log.write_bytes(b"")

    def _await_storescp(self) -> None:
        """Until it has no association (a child each): of one that broke off it deletes the half of an object that it has."""
        assert self.pacs.process is not None
        children = Path(f"/proc/{self.pacs.process.pid}/task/{self.pacs.process.pid}/children")
        try:
            wait_until(lambda: not children.read_text(), 20, "storescp has ended its associations", every=0.001)
        except Late as error:
            raise NotBegun(f"{error}: {'; '.join(map(_associated, children.read_text().split()))}") from None

    # --- runs -------------------------------------------------------------------------------------------------------------

    def run(self, path: Course, *, at: int = 0, where: str = BEFORE, asking: bool = False, after: float = -1.0,
            trace: bool = False) -> Run:
        """One run of a path, killed at call number `at` (`asking`: counted over all calls), or after so many seconds, or
        let be."""
        victim = Victim(lambda: self.stage(path.stage), beside=lambda pid: self._helpers(path, pid), seconds=PATIENCE,
                        asking=asking)
        begin = time.monotonic()
        end = victim.kill_after(after if after >= 0 else 2 * PATIENCE) if not at and not trace else victim.watch(at, where)
        return Run(end.killed, end.call, end.calls, end.status, end.late, time.monotonic() - begin)

    def stage(self, name: str) -> int:
        """In a fork: `dcmgate NAME`, to its end."""
        out = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(out, 1)
        os.dup2(out, 2)
        return command_line.main(["--config", str(self.gateway.config), "--json", name, "--log", "info"])

    def command(self, *arguments: str) -> Any:
        """A command of `dcmgate` with --json, in a fork; its answer."""
        answer = self.folder / "answer"
        pid = os.fork()
        if pid == 0:
            status = 101
            try:
                out = os.open(answer, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(out, 1)
                os.dup2(os.open(self.log, os.O_WRONLY | os.O_APPEND), 2)
                status = command_line.main(["--config", str(self.gateway.config), "--json", *arguments])
            finally:
                os._exit(status)
        os.waitpid(pid, 0)
        return json.loads(answer.read_bytes())

    def _helpers(self, path: Course, victim: int) -> list[int]:
        said = self.log.stat().st_size
        done = {entry.instance for entry in Journal(self.journal_path).acknowledged}
        helpers = [self._fork(partial(self._send, n, victim)) for n in range(path.scanners)
                   if any(i.sop_instance not in done for i in self.workload[n])]
        return [*helpers, self._fork(partial(self._observe, path.done, victim, said))]

    @staticmethod
    def _fork(work: Callable[[], bool]) -> int:
        """A helper beside the victim; True: all that was to be done is done."""
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            status = 0 if work() else 1
        finally:
            os._exit(status)

    # --- what helpers do ----------------------------------------------------------------------------------------------------

    def _send(self, scanner: int, victim: int) -> bool:
        """Send what was not acknowledged yet, each object until it was, as long as anybody may listen."""
        journal = Journal(self.journal_path)
        done = [entry.instance for entry in journal.acknowledged]
        todo = [i for i in self.workload[scanner] if i.sop_instance not in done]
        connection: Scanner | None = None
        for instance in todo:
            journal.offer(self.entries[instance.sop_instance])
            while True:
                try:
                    if connection is None:
                        connection = Scanner(self.gateway.port, contexts_of(self.workload[scanner]),
                                             calling=f"SCANNER{scanner}", timeout=PATIENCE).open()
                    if connection.store(instance) == 0:
                        journal.acknowledge(self.entries[instance.sop_instance])
                        break
                except Lost:
                    connection = None
                    if not living(victim):
                        return False
                    time.sleep(0.002)
        if connection is not None:
            connection.release()
        return True

    def _observe(self, done: str, victim: int, said: int) -> bool:
        """Until the gateway is done with everything; what two crashes have parked is let go on, as a person does.

        `said`: length of the log before this run.
        """
        while living(victim) and b'{"ready": ' not in self.log.read_bytes()[said:]:
            time.sleep(0.003)
        wanted = {i.sop_instance for part in self.workload for i in part}
        with ExitStack() as stack:
            ledger: Ledger | None = None
            while living(victim):
                acknowledged = Journal(self.journal_path).acknowledged
                if wanted <= {entry.instance for entry in acknowledged}:
                    if done == "acknowledged":
                        return True
                    with suppress(DcmgateError):
                        if ledger is None:
                            ledger = stack.enter_context(Ledger.open(self.gateway.spool / "ledger.sqlite", SystemClock(),
                                                                     read_only=True))
                        if self._settled(ledger.counts(), len(acknowledged), done):
                            return True
                time.sleep(0.006)
        return False

    def _settled(self, counts: Counts, acknowledged: int, done: str) -> bool:
        if self._deliveries(counts, PARKED):
            self.command("requeue", "--state", "parked")
            return False
        if counts.accepted < acknowledged or counts.unrouted or self._deliveries(counts, UNSENT):
            return False
        return done == "sent" or counts.held_objects == 0

    @staticmethod
    def _deliveries(counts: Counts, states: Iterable[DeliveryState]) -> int:
        return sum(queue.count for (_, state), queue in counts.queues.items() if state in states)

    # --- the judge ----------------------------------------------------------------------------------------------------------

    def judge(self, *, balance: bool) -> Verdict:
        """What the sender's notes, the two stores, the spool and (where nothing runs) the balance say together."""
        self._await_storescp()
        found = self.command("balance", "--deep") if balance else None
        return judge(Journal(self.journal_path), {"storescp": read_store(self.pacs.folder),
                                                  "archive": read_archive(self.folder / "archive")},
                     spool=self.gateway.spool, balance=found)

    def said(self, size: int = 2000) -> str:
        return self.log.read_text(errors="replace")[-size:]


def import_all() -> None:
    """So that no fork has to look for a module."""
    for module in pkgutil.walk_packages(appliance.__path__, "appliance."):
        importlib.import_module(module.name)


@contextmanager
def ground(folder: Path) -> Iterator[Ground]:
    """A ground with its storescp, ready. It forks: this process must have one thread."""
    import_all()
    hurry()
    with peers.storescp(folder / "storescp", profile=False) as pacs:
        found = Ground(folder, pacs)
        try:
            found.prepare()
            gc.collect()
            gc.freeze()
            yield found
        finally:
            shutil.rmtree(found.gateway.run, ignore_errors=True)
