"""Worker: one process's share of the work: its Intake, its guard, its door, and a thread for each association.

The only process where there is one, else one of several behind the front.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance.clock import SECOND, Clock
from appliance.config.settings import LEGACY, Config
from appliance.dicom.pdu import AssociateRequest
from appliance.errors import DcmgateError
from appliance.net import kick
from appliance.net.secure import Identity
from appliance.net.tls import Contexts
from appliance.net.tlserrors import TlsError
from appliance.policy.admission import CALLING_NOT_RECOGNISED
from appliance.receive import selfecho
from appliance.receive.association import Association
from appliance.receive.door import Answer, Door
from appliance.receive.front import Arrival
from appliance.receive.guard import Guard, now_ns
from appliance.receive.limits import Limits
from appliance.receive.services import Registry, Storage, Verification
from appliance.spool.intake import Intake
from appliance.spool.latch import Mark
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from appliance.telemetry.log import Log

log = Log("receive")


@dataclass(frozen=True, slots=True)
class Report:
    """How a worker does: associations, whether all that wait for something other than the disk have moved, why no intake."""

    associations: int
    moving: bool
    out_of_intake: str


class _Book:
    """`door.Book`: asked on one connection, written on another."""

    def __init__(self, questions: Ledger, ledger: Ledger) -> None:
        self.admitted = questions.admitted
        self.knocked = ledger.knocked


class Worker:
    """`take` hands it sockets. `on_ended` is called with the ticket of each that is over, from any thread."""

    def __init__(self, spool: Spool, clock: Clock, run_dir: Path, limits: Limits, config: Config, *,
                 on_ended: Callable[[int], None], on_tick: Callable[[], None] = lambda: None, mark: Mark | None = None,
                 token: str = "") -> None:
        self.limits = limits
        self._token = token
        self.guard = Guard(limits, self._tick)
        self._on_tick = on_tick
        spool.latch.attach(run_dir, "receiver")
        self._latch = spool.latch
        self.ledger = Ledger.open(spool.ledger_path, clock, latch=spool.latch)
        # Whoever asks for an association is answered, however long the disk keeps the writing connection waiting.
        self.questions = Ledger.open(spool.ledger_path, clock, read_only=True)
        target = run_dir / kick.FORWARDER
        self.intake = Intake(spool, self.ledger, clock, on_accepted=lambda: kick.send(target), questions=self.questions,
                             mark=mark)
        self.door = Door(config, self.intake, _Book(self.questions, self.ledger), clock.wall_ns)
        self.registry = Registry(Verification(limits.drain), Storage(self.intake, limits.drain))
        self._on_ended = on_ended
        self._config = config
        self._contexts = Contexts(config.spool.state)
        self._associations: set[Association] = set()
        self._lock = threading.Lock()
        self._nobody = threading.Condition(self._lock)
        self._stopping = False
        self._pulse: int | None = None

    def start(self) -> None:
        """Open intake (recovery included). SpoolError, LedgerError."""
        try:
            self.intake.start()
        except DcmgateError:
            self.questions.close()
            self.ledger.close()
            raise
        self.door.start()
        self.guard.start()

    def _tick(self) -> None:
        self._latch.renew()
        self.door.tick()
        self._on_tick()

    def configure(self, config: Config) -> None:
        """Decide by that from now on; associations that are in stay in."""
        self._config = config
        self.door.config = config

    def take(self, sock: socket.socket, arrival: Arrival, ticket: int) -> bool:
        """Begin an association in a thread of its own; False where that cannot be, and the socket is still the caller's."""
        association = Association(self, sock, arrival, ticket)
        with self._lock:
            if self._stopping:
                return False
            self._associations.add(association)
        self.guard.watch(association)
        try:
            threading.Thread(target=association.run, name=f"association-{ticket}", daemon=True).start()
        except RuntimeError as e:
            log.error("no thread for an association", error=e)
            self._forget(association)
            return False
        return True

    def _forget(self, association: Association) -> None:
        self.guard.forget(association)
        with self._lock:
            self._associations.discard(association)
            if not self._associations:
                self._nobody.notify_all()

    def stop(self, drain: float) -> bool:
        """End idle associations now, others after their message, all after `drain` seconds. True if nothing was cut off."""
        with self._lock:
            self._stopping = True
            here = list(self._associations)
        for association in here:
            association.stop(at_once=False)
        if not self._wait(drain):
            for association in list(self._associations):
                association.stop(at_once=True)
        clean = self._wait(self.limits.closing + 1.0)
        clean = self.intake.stop() and clean
        self.door.stop()
        self.guard.stop()
        self.questions.close()
        self.ledger.close()
        return clean

    def _wait(self, seconds: float) -> bool:
        with self._lock:
            return self._nobody.wait_for(lambda: not self._associations, seconds)

    def report(self) -> Report:
        """For the tick: nothing in here may block."""
        return Report(len(self._associations), self.moving(), self.out_of_intake)

    def pulse(self) -> None:
        """The front has been heard, in the thread that takes sockets from it."""
        self._pulse = now_ns()

    def moving(self) -> bool:
        """Whether every thread that is not idle has moved lately, the disk's waits aside. Does not block."""
        heard = self._pulse is None or now_ns() - self._pulse <= 3 * int(self.limits.tick * SECOND)
        return heard and self.guard.moving() and (self._stopping or (self.door.alive and self.intake.error is None))

    @property
    def out_of_intake(self) -> str:
        """Why nothing is taken in; empty where something is. Does not block."""
        return self.intake.out_of_intake or self.door.stuck()

    # -- association.Host --------------------------------------------------------------------------------------------

    def secure(self, arrival: Arrival) -> ssl.SSLContext | None:
        """See `association.Host`."""
        if not arrival.secure:
            return None
        listener = next((entry for entry in self._config.listeners if entry.id == arrival.listener), None)
        if listener is None or listener.tls == "off":
            raise TlsError("off", f"[[listener]] {arrival.listener} has no TLS any more")
        return self._contexts.server(listener)

    def refused(self, arrival: Arrival, error: TlsError) -> None:
        """See `association.Host`."""
        if self._token and arrival.address in ("127.0.0.1", "::1"):
            log.debug("no TLS with ourselves", why=error.text)
            return
        self.door.refused(arrival, error.check, error.text)

    def secured(self, arrival: Arrival, calling: str, version: str, suite: str) -> None:
        """See `association.Host`."""
        if any(entry.id == arrival.listener and entry.tls == LEGACY for entry in self._config.listeners):
            self.door.by_legacy(arrival, calling, version, suite)

    def answer(self, arrival: Arrival, request: AssociateRequest, identity: Identity | None) -> Answer:
        """See `association.Host`."""
        if self._token:
            if selfecho.is_own(request, self._token):
                return Answer(None, "", idle_seconds=10.0, own=True)
            if selfecho.is_left_over(request, arrival.address):
                return Answer(CALLING_NOT_RECOGNISED, "the call of an earlier receiver to itself", own=True)
        return self.door.answer(arrival, request, identity.proven if identity is not None else frozenset())

    def max_pdu(self, listener: str) -> int:
        """See `association.Host`."""
        return next((entry.max_pdu for entry in self._config.listeners if entry.id == listener), 131072)

    def ended(self, association: Association) -> None:
        """See `association.Host`."""
        self._forget(association)
        self._on_ended(association.ticket)
