"""One simulated box: two receivers, a forwarder and a keeper on one disk, with scanners, destinations, persons and a clock.

Everything happens in one thread, in an order that `dice` and the caller decide,
so that a seed says all of it. The stages are the product's own objects; see
`simulation_process` for what they are cut off from.
"""

from __future__ import annotations

import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import apsw

from appliance.clock import SECOND
from appliance.config.settings import Destination
from appliance.confirm import confirmer, query
from appliance.confirm.query import QueryProof
from appliance.errors import DcmgateError, LedgerError, SandboxError, SpoolError
from appliance.forward import dimse, router, underway
from appliance.forward.engine import Forwarder
from appliance.forward.lane import Lane
from appliance.keeper.keeper import Keeper
from appliance.receive.services import Storage
from appliance.spool import balance as balancing
from appliance.spool import schema
from appliance.spool.intake import Intake
from appliance.spool.latch import Latch
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from tests.proof.simulation_box import (
    HOUR,
    KEEP_MIN_HOURS,
    MAX_DEBT,
    SITES,
    TERMS,
    Holder,
    NoIndex,
    Receiver,
    Sender,
    Setting,
    configuration,
)
from tests.proof.simulation_disk import Disk, SimFcntl, SimOs, SimPath
from tests.proof.simulation_hooks import Hooks
from tests.proof.simulation_oracle import Oracle
from tests.proof.simulation_process import Crash, Idle, Process, SimClock, SimThread, Stage, unheard
from tests.proof.simulation_sites import SimAssociation, SimChild, SimFinder, SimWay, Site

T = TypeVar("T")

MOST_TURNS = 400
"""Turns of a lane that is to end: more than any takes unless it spins."""


class World(Hooks):
    """See the module. Use as a context: while it is entered, the product's stages run on the simulation."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        self.folder = folder
        self.setting = setting
        self.dice = random.Random(setting.dice)
        self.clock = SimClock()
        self.current: Process | None = None
        self.blackout = False
        self.sites = {name: Site(name, setting.keeps_first) for name in SITES}
        self.oracle = Oracle(TERMS, int(KEEP_MIN_HOURS * HOUR))
        self.generation = 1
        self.without: set[str] = set()
        self.config = configuration(folder, setting)
        self.ledger_faults: list[apsw.Error] = []
        self.ledger_lazy = False
        self.slow_seconds = 0.0
        self.faults = 0                              # I/O errors that anybody met while writing
        self.steps = 0
        self.maintaining = False
        self.receivers: list[Receiver | None] = [None, None]
        self.sender: Sender | None = None
        self.holder: Holder | None = None
        self.stage = Stage()
        self.eyes: apsw.Connection | None = None

    # --- life of the world -----------------------------------------------------------------------------------------------

    def __enter__(self) -> World:
        for name in ("spool", "run", "state"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / "run").mkdir(parents=True)
        self.spool = Spool.init(self.folder / "spool", clock=self.clock)
        self.spool.quarantine = SimPath(self.spool.quarantine)
        self.disk = Disk([self.spool.objects, self.spool.quarantine], self, total=self.setting.total,
                         takes_direct=self.setting.takes_direct)
        self._begin_stage()
        self.keep_copy()
        for index in range(len(self.receivers)):
            self.start_receiver(index)
        self.start_sender()
        self.start_holder()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes():
            self.bury(process)
        if self.eyes is not None:
            self.eyes.close()
        self.stage.close()

    def _begin_stage(self) -> None:
        stage, sim_os = self.stage, SimOs(self.disk)
        stage.disk(sim_os, SimFcntl(self.disk))
        stage.threads(self)
        stage.ledger(self.effect, self._ledger_fault)
        stage.program_faults(self.oracle.unforeseen)
        stage.exchange(balancing, "SHARDS", 1)       # no other has a file: numbers stay small here
        stage.exchange(underway, "SLOTS", 8)
        stage.exchange(dimse, "Association", partial(SimAssociation, self))
        stage.exchange(confirmer, "QueryProof", partial(_query_proof, self))
        stage.exchange(query, "Way", SimWay)
        stage.exchange(confirmer, "Random", lambda: random.Random(self.setting.dice))
        stage.exchange(confirmer.Confirmer, "_locate", lambda _, numbers: self.locate(numbers))
        stage.exchange(router, "Child", SimChild)
        stage.exchange(Keeper, "findings", lambda _: [])   # alarms are no custody
        stage.exchange(router, "Indexing", NoIndex)
        plain = schema.connect

        def connect(path: Path, **how: bool) -> apsw.Connection:
            db = plain(path, **how)
            if not how.get("read_only") and db.execute("PRAGMA synchronous").get < 2:
                self.ledger_lazy = True
            return db
        stage.exchange(schema, "connect", connect)

    def _ledger_fault(self) -> apsw.Error | None:
        error = self.ledger_faults.pop(0) if self.ledger_faults else None
        self.faults += isinstance(error, apsw.IOError)
        return error

    def processes(self) -> list[Process]:
        found = [receiver.process for receiver in self.receivers if receiver is not None]
        found += [each.process for each in (self.sender, self.holder) if each is not None]
        return found

    # --- threads ----------------------------------------------------------------------------------------------------------

    def run_beside(self, seconds: float) -> float:
        receiver = next(r for r in self.receivers if r is not None and r.process is self.current)
        return self._maintain(receiver, seconds)

    def join(self, thread: SimThread) -> None:
        owner = thread.owner
        if self.current is None or self.current.dead:
            return
        if isinstance(owner, Intake):
            before, self.maintaining = self.maintaining, True
            with suppress(Idle):
                thread.target()
                thread.alive = False
            self.maintaining = before
        elif isinstance(owner, Lane):
            for _ in range(MOST_TURNS):
                if self._lane_turn(owner) is None:
                    return
        else:
            thread.alive = False

    def _die(self, process: Process) -> None:
        process.dead = True
        if self.sender is not None and process is self.sender.process:
            notes = self.folder / "run" / underway.NAME
            self._notes = notes.read_bytes() if notes.exists() else b""
            self._forgive_unsettled()

    def _forgive_unsettled(self) -> None:
        """Each of them may be sent once more, to whoever gets it next: alike ones as often as they were stored at one place."""
        times = Counter(self.oracle.unsettled)
        for content in {content for _, content in times}:
            self.oracle.forgiven([content], max(count for (_, other), count in times.items() if other == content))
        self.oracle.unsettled.clear()

    # --- processes --------------------------------------------------------------------------------------------------------

    def act(self, process: Process, work: Callable[[], T]) -> T | None:
        """Let a process do something; None where it died of it."""
        before, self.current = self.current, process
        try:
            return work()
        except Crash:
            self.current = before
            self.bury(process)
            return None
        finally:
            self.current = before

    def bury(self, process: Process) -> None:
        """A process is gone, and with it everything in its memory."""
        if not process.dead:
            self._die(process)
        before, self.current = self.current, None
        for index, receiver in enumerate(self.receivers):
            if receiver is not None and receiver.process is process:
                self.receivers[index] = None
        if self.sender is not None and self.sender.process is process:
            forwarder, self.sender = self.sender.forwarder, None
            for ledger in (forwarder._ledger, forwarder._watched, forwarder._routed_in):
                process.ledgers.append(ledger)
            if forwarder._mailbox is not None:
                forwarder._mailbox.close()
            if self._notes:
                (self.folder / "run" / underway.NAME).write_bytes(self._notes)
        if self.holder is not None and self.holder.process is process:
            process.ledgers.append(self.holder.keeper.ledger)
            self.holder = None
        for ledger in process.ledgers:
            with unheard():
                ledger.close()
        self.disk.close_all(process)
        self.current = before

    _notes = b""

    def _spool_of(self, process: Process) -> Spool:
        """The spool as that process has it open: they share files, and of the latch its page in the run folder."""
        spool = copy(self.spool)
        spool.latch = Latch()
        spool.latch.attach(self.folder / "run", process.name)
        return spool

    def start_receiver(self, index: int, fuse: int | None = None) -> None:
        """A receiver's start, with its recovery; it may die of it, or be refused by the disk."""
        process = Process(f"receiver {index}")
        process.fuse = fuse
        process.faults = self.faults
        spool = self._spool_of(process)

        def start() -> None:
            ledger = Ledger.open(spool.ledger_path, self.clock, latch=spool.latch)
            process.ledgers.append(ledger)
            intake = Intake(spool, ledger, self.clock, ready=2, max_debt=MAX_DEBT)
            self.receivers[index] = Receiver(process, ledger, intake, Storage(intake, 1 << 20))
            self.maintaining = True
            try:
                intake.start()
            finally:
                self.maintaining = False
        try:
            self.act(process, start)
        except (SpoolError, LedgerError):
            self.bury(process)

    def start_sender(self, fuse: int | None = None) -> None:
        process = Process("forwarder")
        process.fuse = fuse
        spool = self._spool_of(process)
        forwarder = Forwarder(lambda: self.config, spool, self.clock, self.folder / "run", random=self.dice.random)
        self.sender = Sender(process, forwarder)
        try:
            self.act(process, forwarder.start)
        except DcmgateError:
            self.bury(process)

    def start_holder(self, fuse: int | None = None) -> None:
        process = Process("keeper")
        process.fuse = fuse
        spool = self._spool_of(process)

        def start() -> None:
            keeper = Keeper(lambda: self.config, spool, self.clock, self.folder / "run", told=lambda raised, ended: None,
                            random=random.Random(self.setting.dice))
            self.holder = Holder(process, keeper)
            keeper.confirmer.start()
            keeper._threads.append(threading.current_thread())    # a keeper without any follows no new configuration
        try:
            self.act(process, start)
        except DcmgateError:
            self.bury(process)

    def start_all(self) -> None:
        """Whatever is not there, starts; so does a receiver that is out of intake."""
        for index, receiver in enumerate(self.receivers):
            if receiver is not None and receiver.intake.out_of_intake:
                self.bury(receiver.process)
            if self.receivers[index] is None:
                self.start_receiver(index)
        if self.sender is None:
            self.start_sender()
        if self.holder is None:
            self.start_holder()

    # --- turns ------------------------------------------------------------------------------------------------------------

    def maintain(self, receiver: Receiver) -> float:
        """The maintenance thread of a receiver; seconds until it has more to do."""
        return self.act(receiver.process, lambda: self._maintain(receiver, 3600.0)) or 0.0

    def _maintain(self, receiver: Receiver, seconds: float) -> float:
        thread = receiver.intake._thread
        if thread is None or not thread.is_alive():
            return seconds
        before, self.maintaining = self.maintaining, True
        try:
            thread.target()  # type: ignore[attr-defined]
        except Idle as idle:
            return seconds if idle.seconds is None else min(idle.seconds, seconds)
        finally:
            self.maintaining = before
        thread.alive = False  # type: ignore[attr-defined]
        return seconds

    def lane_turn(self, lane: Lane) -> float | None:
        """One step of a lane; seconds until the next, None where it has ended."""
        sender = self.sender
        assert sender is not None
        return self.act(sender.process, lambda: self._lane_turn(lane))

    def _lane_turn(self, lane: Lane) -> float | None:
        sender = self.sender
        assert sender is not None
        lane.event.clear()
        pause = lane.guarded_step()
        if not any(each._results for each in sender.lanes()):
            self.oracle.unsettled.clear()
        if pause is None:
            lane._transport.close()
            lane.desk.leave(lane.event)
            if not lane._hand and not lane._results:
                lane._on_ended()
            lane._thread.alive = False  # type: ignore[attr-defined]
            return None
        sender.due[lane] = self.clock.boot_ns() + int(pause * SECOND) + 1
        return pause

    def lane_is_due(self, lane: Lane) -> bool:
        assert self.sender is not None
        return lane.event.is_set() or self.clock.boot_ns() >= self.sender.due.get(lane, 0)

    def watch(self) -> None:
        """The forwarder's watching thread."""
        if self.sender is not None:
            with suppress(LedgerError):
                self.act(self.sender.process, self.sender.forwarder.look)

    def route(self) -> bool:
        """The routing thread; whether there was anything to do."""
        if self.sender is None:
            return False
        thread = self.sender.forwarder._routing
        assert thread is not None
        with suppress(LedgerError, SpoolError, SandboxError):
            return bool(self.act(self.sender.process, thread.step))
        return False

    def confirm(self, name: str) -> int:
        """The confirming thread of one destination; how much changed."""
        holder = self.holder
        runner = None if holder is None else holder.keeper.confirmer._runners.get(name)
        if holder is None or runner is None:
            return 0
        with suppress(DcmgateError):
            changed = self.act(holder.process, runner.watch.step) or 0
            return changed
        return 0

    def keep(self) -> None:
        """The keeper's round."""
        if self.holder is not None:
            self.holder.round_at = self.clock.boot_ns() + 10 * SECOND
            self.act(self.holder.process, self.holder.keeper.round)

    # --- ends -------------------------------------------------------------------------------------------------------------

    def reconfigure(self) -> None:
        """A new generation of the configuration is in force."""
        self.generation += 1
        self.config = configuration(self.folder, self.setting, self.generation, self.without)

    def power_cut(self) -> None:
        """The power fails, and comes back."""
        for process in self.processes():
            self.bury(process)
        self._forgive_unsettled()
        if self.ledger_lazy:
            self.blind()
            for kind in ("", "-wal", "-shm"):
                Path(f"{self.spool.ledger_path}{kind}").unlink(missing_ok=True)
            shutil.copy(self.folder / "ledger.copy", self.spool.ledger_path)
        self.disk.cut(self.dice)
        self._new_boot()

    def reboot(self) -> None:
        """An orderly restart of the box."""
        for receiver in list(self.receivers):
            if receiver is not None:
                self.act(receiver.process, partial(receiver.intake.stop, 5.0))
        if self.sender is not None:
            self.act(self.sender.process, partial(self.sender.forwarder.stop, 5.0))
        for process in self.processes():
            self.bury(process)
        self.disk.settle()
        self._new_boot()

    def _new_boot(self) -> None:
        self.blackout = False
        self._notes = b""
        shutil.rmtree(self.folder / "run")
        (self.folder / "run").mkdir()
        self.clock.reboot()

    def blind(self) -> None:
        """Let go of the ledger's file."""
        if self.eyes is not None:
            self.eyes.close()
            self.eyes = None

    def keep_copy(self) -> None:
        """A ledger that is not synced has on the platter what a checkpoint brought there: here, what was there at the start."""
        shutil.copy(self.spool.ledger_path, self.folder / "ledger.copy")

    def unaccounted(self, *, deep: bool = False) -> list[str]:
        """What the product's own balance says."""
        with Ledger.open(self.spool.ledger_path, self.clock, read_only=True) as ledger:
            found = balancing.balance(self.spool, ledger, deep=deep)
        return [str(each) for each in found.discrepancies] or ([] if found.balanced else ["unaccounted"])


def _query_proof(world: World, destination: Destination, locate: Any, **others: Any) -> QueryProof:
    return QueryProof(destination, locate, SimFinder(world), **others)  # type: ignore[arg-type]
