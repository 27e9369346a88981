"""The keeper: one thread that goes its round every ten seconds, and more for confirming, scrub, certificates and control.

    round    powered-on time, WAL, retire, quarantine, configuration file, witness, alarms

Each task of the round is alone: one that fails becomes an alarm, is tried again
at the next round, and keeps no other from its turn. `round` may be called by
itself (tests live through months that way). Only one keeper works on a spool:
its control socket is its claim.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random

from appliance.clock import SECOND, Clock
from appliance.config.settings import Config
from appliance.confirm import Confirmer
from appliance.disks.found import disk_alarms
from appliance.errors import ConfigError, DcmgateError, LedgerError
from appliance.forward import health as forwarding
from appliance.health import published
from appliance.health.checks import verdict
from appliance.keeper import findings
from appliance.keeper.alarmboard import Board, Told
from appliance.keeper.certificates import Certificates
from appliance.keeper.renewal import Renewals
from appliance.keeper.scrub import Scrubber
from appliance.keeper.witness import Witness
from appliance.manage.control import ControlServer
from appliance.manage.generations import InForce
from appliance.manage.verbs import Desk, handlers, no_reload
from appliance.model import Alarm, ObjectState, SpaceState
from appliance.net import kick
from appliance.policy import Space
from appliance.policy.handshakes import LEGACY
from appliance.receive import health as receiving
from appliance.retire import Retirer
from appliance.spool import ballast, quarantine
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from appliance.spool.space import held, measure
from appliance.telemetry.alarms import Notifier
from appliance.telemetry.log import Log
from appliance.telemetry.notify import alive
from appliance.tunnel.watch import Watch
from appliance.update.alarms import alarms as update_alarms
from appliance.update.records import Records

ROUND_SECONDS = 10.0
LEAST_SECONDS = 1.0
"""Pause between two rounds however often the keeper is kicked."""

CHECKPOINT_SECONDS = 30.0
SWEEP_SECONDS = 600.0
WITNESS_SECONDS = 600.0
CONFIGURATION_SECONDS = 60.0
REMNANTS_SECONDS = 86400.0

STARTING_SECONDS = 60.0
"""So long after its start the keeper does not miss a forwarder."""

STUCK_SECONDS = 900.0
"""A confirming thread that has not moved for so long is an alarm. It never keeps the watchdog from being fed: a folder on a
mount that hangs is one destination's trouble, and to start again would end the intake of all for nothing."""

BY_FILE = "configuration file"

WATCH = Path("/run/dcmgate-watch")
"""Where `dcmgate watch` tells what it finds; on the system image only."""

_log = Log("keeper")


class Keeper:
    """`start`, `stop`; `reload` looks at the configuration file at once.

    `config` gives the configuration in force, `reload(by)` puts the file in force
    (ConfigError: nothing changed). `told` hears of alarms that rise or end; mail
    and webhooks unless given.
    """

    def __init__(self, config: Callable[[], Config], spool: Spool, clock: Clock, run: Path | None = None, *,
                 reload: Callable[[str], InForce] = no_reload, told: Told | None = None, random: Random | None = None) -> None:
        self._config = config
        self._spool = spool
        self._clock = clock
        self._run = Path(config().control.run) if run is None else run
        self._reload = reload
        self._notifier: Notifier | None = None
        self._told = told
        self._stop = threading.Event()
        self._mailbox: kick.Mailbox | None = None
        self._control: ControlServer | None = None
        self._threads: list[threading.Thread] = []
        self._done_at: dict[str, int] = {}
        self._faults: dict[str, Alarm] = {}
        self._bad_file: Alarm | None = None
        self._settings = config().alarm
        self._aside = 0
        self._generation = 0
        self._began = clock.boot_ns()
        self.moved = self._began
        self.ledger = Ledger.open(spool.ledger_path, clock, checkpointer=True, latch=spool.latch)
        self.confirmer = Confirmer(spool, self.ledger, clock, config, self._kick_forwarder)
        self.retirer = Retirer(spool, self.ledger)
        self.scrubber = Scrubber(spool, self.ledger, clock, random or Random())
        self._witness = Witness(Path(config().spool.state), spool.uuid)
        self._witness_agrees = True
        self._certificates = Certificates(clock, self._run)
        self._renewals = Renewals(config, clock, random or Random())
        self.tunnels = Watch(config, clock, self._run)
        self._updates = Records()
        self._board = Board(self.ledger, clock, self._tell)

    # -- life ----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """ControlError where another keeper works on this spool, OSError where the run folder cannot be used."""
        with ExitStack() as undo:
            undo.callback(self.stop)
            if self._told is None:
                self._notifier = Notifier()
            self._spool.latch.attach(self._run, "keeper")
            desk = Desk(self._spool, self.ledger, self._config, self._reload_by_person, self._kick_forwarder)
            control = ControlServer(self._run, handlers(desk))
            control.start()
            self._control = control
            self._mailbox = kick.Mailbox(self._run / kick.KEEPER)
            self._witness_agrees = self._witness.agrees(self.ledger)
            self.confirmer.start()
            for name, work in (("keeper", self._work), ("scrub", lambda: self.scrubber.run(self._stop))):
                thread = threading.Thread(target=work, name=name, daemon=True)
                thread.start()
                self._threads.append(thread)
            # Not waited for in the end: it may be in the middle of a request, and the store is never half written.
            threading.Thread(target=self._renewals.run, args=(self._stop,), name="certificates", daemon=True).start()
            undo.pop_all()

    def stop(self, seconds: float = 10.0) -> bool:
        """End all threads; False if one did not end in that time."""
        self._stop.set()
        kick.send(self._run / kick.KEEPER)
        if self._control is not None:
            self._control.stop()
            self._control = None
        clean = self.confirmer.stop(seconds)
        for thread in self._threads:
            thread.join(seconds)
            clean = clean and not thread.is_alive()
        self._threads.clear()
        if clean:
            self._task("witness", self._keep_witness)    # so that a ledger which is put back while nothing runs is noticed
        if self._mailbox is not None:
            self._mailbox.close()
            self._mailbox = None
        if self._notifier is not None:
            self._notifier.stop()
            self._notifier = None
        self.ledger.close()
        return clean

    def reload(self) -> None:
        """Look at the configuration now rather than at the next round."""
        self._done_at.pop("configuration", None)
        kick.send(self._run / kick.KEEPER)

    def late(self, seconds: float = STUCK_SECONDS) -> list[str]:
        """Destinations whose confirming thread has not moved for so long."""
        before = self._clock.boot_ns() - int(seconds * SECOND)
        return [id for id, at in self.confirmer.moved().items() if at < before]

    def dead(self) -> list[str]:
        """Threads of ours that have ended without being told to: only a new keeper has them again. Not those that wait."""
        names = [thread.name for thread in self._threads if not thread.is_alive()]
        names += [f"confirm-{id}" for id in self.confirmer.dead()]
        return names + (["control"] if self._control is not None and not self._control.alive else [])

    def _work(self) -> None:
        mailbox = self._mailbox
        assert mailbox is not None
        while not self._stop.is_set():
            try:
                self.round()
            except Exception:  # noqa: BLE001  top of the keeper's thread: an unforeseen fault must not end retention and alarms
                _log.crash("a round failed")
            if not self.dead():
                alive("keeper")
            if self._clock.wait(self._stop, LEAST_SECONDS):
                return
            if mailbox.wait(ROUND_SECONDS - LEAST_SECONDS):
                self.confirmer.kick()

    # -- the round -----------------------------------------------------------------------------------------------------

    def round(self) -> None:
        """Everything that is due. A task that fails is an alarm."""
        self.moved = self._clock.boot_ns()
        self._task("time", self.ledger.tick)
        self._task("finish", self._finish)
        self._task("retire", self._retire)
        self._task("sweep", lambda: self.retirer.sweep(), every=SWEEP_SECONDS)
        self._task("remnants", lambda: self.retirer.drop_remnants(), every=REMNANTS_SECONDS)
        self._task("quarantine", self._put_aside)
        self._task("configuration", self._look_at_file, every=CONFIGURATION_SECONDS)
        self._task("confirm", self._follow)
        self._task("witness", self._keep_witness, every=WITNESS_SECONDS)
        self._task("tunnels", self.tunnels.step)
        self._task("checkpoint", lambda: self.ledger.checkpoint(), every=CHECKPOINT_SECONDS)
        self._task("alarms", lambda: self._board.show(self.findings()))

    def _task(self, name: str, work: Callable[[], object], *, every: float = 0.0) -> None:
        """Do it where it is due. A fault is an alarm until it went well."""
        now = self._clock.boot_ns()
        last = self._done_at.get(name)
        if last is not None and now - last < int(every * SECOND):
            return
        try:
            work()
        except DcmgateError as error:
            if name not in self._faults:
                _log.error("a task of the keeper fails", task=name, error=str(error))
            self._faults[name] = findings.fault_alarm(name, error)
            return
        except Exception as error:  # noqa: BLE001  top of the task: an unforeseen fault of one must not end retention or alarms
            _log.crash("a task of the keeper failed", task=name)
            self._faults[name] = findings.fault_alarm(name, DcmgateError(f"{type(error).__name__}: {error}",
                                                                         mend="Report it with the log."))
            return
        self._done_at[name] = now
        if self._faults.pop(name, None) is not None:
            _log.info("a task of the keeper works again", task=name)

    def _finish(self) -> None:
        done = self.retirer.finish()
        if done:
            _log.info("deletions that a crash or a fault had left open are finished", objects=done)

    def room(self) -> Space:
        """The room there is now. SpoolFault, LedgerError."""
        return measure(self._spool, *held(self.ledger))

    def _retire(self) -> None:
        """What may go, goes; where there is room again, the ballast is laid down again."""
        done = self.retirer.step(self._config().spool, lambda: self.room().state)
        if done:
            _log.info("retired", objects=done)
        if self.room().state is SpaceState.GREEN and not ballast.is_there(self._spool.path):
            try:
                self._spool.fill_ballast()
            except OSError as error:
                raise self._spool.failed(error, "cannot lay the ballast down again") from error

    def _put_aside(self) -> None:
        """The files of what was found damaged while it was sent: the forwarder wrote the row, and moves nothing."""
        count = self.ledger.counts().states[ObjectState.QUARANTINED]
        if count == self._aside:
            return
        for row in self.ledger.quarantined(count):
            if self._spool.object_path(row.number).exists():
                reasons = [json.loads(e.body)["reason"] for e in self.ledger.history(row.number) if e.kind == "quarantined"]
                quarantine.put(self._spool, row.number, reasons[-1])
        self._aside = count

    def _keep_witness(self) -> None:
        self._witness_agrees = self._witness.agrees(self.ledger)
        if self._witness_agrees:
            self._witness.keep(self.ledger)

    # -- configuration -------------------------------------------------------------------------------------------------

    def _look_at_file(self) -> None:
        """A changed, good file is put in force; a bad one becomes an alarm, and the last good generation stays."""
        if self._reload is no_reload:
            return
        try:
            result = self._reload(BY_FILE)
        except ConfigError as error:
            alarm = findings.configuration_alarm(error, self._config().generation)
            if alarm != self._bad_file:
                _log.error("the configuration file is bad", error=str(error))
            self._bad_file = alarm
            return
        self._bad_file = None
        if result.changed:
            _log.info("configuration is in force", generation=result.config.generation)
            self._kick_forwarder()

    def _reload_by_person(self, by: str) -> InForce:
        result = self._reload(by)
        self._done_at.pop("configuration", None)
        kick.send(self._run / kick.KEEPER)
        return result

    def _follow(self) -> None:
        """Confirm by the configuration in force."""
        generation = self._config().generation
        if generation != self._generation and self._threads:
            self.confirmer.configure()
        self._generation = generation

    # -- alarms --------------------------------------------------------------------------------------------------------

    def findings(self) -> list[Alarm]:
        """What a person should know, now; where spool or ledger cannot be read, that, and what is known without them."""
        try:
            return list(self._findings())
        except DcmgateError as error:
            return [findings.fault_alarm("spool", error), *self._faults.values(), *self._stage_findings()]

    def _findings(self) -> Iterator[Alarm]:
        config, counts, now = self._config(), self.ledger.counts(), self.ledger.powered_on()
        yield from self._faults.values()
        if self._bad_file is not None:
            yield self._bad_file
        yield from findings.space_alarms(self.room())
        yield from findings.custody_alarms(counts)
        yield from findings.orphan_alarms(counts, config)
        yield from findings.backlog_alarms(self.ledger.backlog(), now, config.alarm, config)
        yield from findings.silence_alarms(self.ledger.arrivals(), now, config.alarm, config)
        yield from self.confirmer.alarms()
        yield from (findings.stuck_alarm(id) for id in self.late())
        yield from findings.legacy_alarms(config, self.ledger.knocks(1000, only=[LEGACY]), self._clock.wall_ns())
        yield from self._certificates.alarms(config)
        yield from self._renewals.alarms(config)
        yield from self.tunnels.alarms()
        yield from disk_alarms()
        yield from self._stage_findings()
        yield from update_alarms(self._updates, by_person=config.update.approval == "person")
        if not self._witness_agrees:
            yield findings.rolled_back_alarm(str(self._witness.path))
        if not self._clock.trusted():
            yield findings.clock_alarm()

    def _stage_findings(self) -> Iterator[Alarm]:
        """What the other processes say of themselves."""
        if kick.listens(self._run / kick.FORWARDER):
            said = forwarding.alarms(forwarding.read(self._run))
            yield from said
            yield from published.alarms(self._run, said)
        elif self._threads and self._clock.boot_ns() - self._began > STARTING_SECONDS * SECOND:
            yield findings.forwarder_alarm()
        yield from findings.check_alarms(verdict.read(WATCH))
        receiver = receiving.read(self._run)
        if receiver.out_of_intake:
            yield findings.intake_alarm(receiver.out_of_intake)
        if receiver.problems:
            yield findings.ports_alarm(receiver.problems)

    def _tell(self, raised: Sequence[Alarm], ended: Sequence[Alarm]) -> None:
        if self._told is not None:
            self._told(raised, ended)
        elif self._notifier is not None:
            with suppress(LedgerError):      # of a ledger that cannot be read, people hear by what was in force before
                self._settings = self._config().alarm
            self._notifier.notify(self._settings, raised, ended)

    def _kick_forwarder(self) -> None:
        kick.send(self._run / kick.FORWARDER)
