"""Degraded: a receiver for a box that can take nothing in: it needs no spool, no ledger and no process but its own.

C-ECHO is answered, so that a scanner's service screen says that the box is there;
whoever proposes storage is rejected as transient, local limit exceeded, and keeps
its images. Who may come in at all is decided as ever, by the configuration file.
Ports that cannot be had are tried again at each tick.
"""

from __future__ import annotations

import socket
import ssl
import threading
from itertools import count

from appliance.config.settings import Config, Listener
from appliance.dicom.negotiation import is_storage, unacceptable
from appliance.dicom.pdu import AssociateRequest, title_text
from appliance.net import sockets
from appliance.net.secure import Identity
from appliance.net.tls import Contexts
from appliance.net.tlserrors import TlsError
from appliance.policy import Verdict, admit
from appliance.receive.association import Association
from appliance.receive.door import LOCAL_LIMIT, Answer
from appliance.receive.front import Arrival, Bound, Front
from appliance.receive.guard import Guard
from appliance.receive.limits import Limits
from appliance.receive.places import Places
from appliance.receive.services import Registry, Verification
from appliance.telemetry.log import Log
from appliance.telemetry.notify import alive

log = Log("degraded")


class Degraded:
    """`start`, then `stop`, once. `why` is what the log says of each scanner that is turned away."""

    def __init__(self, config: Config, why: str, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.guard = Guard(self.limits, self._tick)
        self.registry = Registry(Verification(self.limits.drain))
        self._config = config
        self._why = why
        self._contexts = Contexts(config.spool.state)
        self._places = Places()
        self._places.configure(config.peers)
        self._front = Front(self.limits, self._take)
        self._given = sockets.inherited()
        self._bound: dict[tuple[str, str, int], Bound] = {}
        self._told: dict[tuple[str, str, int], str] = {}
        self._tickets = count(1)
        self._held: dict[int, tuple[str, str]] = {}
        self._associations: set[Association] = set()
        self._lock = threading.Lock()

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Answer on every port that can be had."""
        self._front.start()
        self._open_ports()
        self.guard.start()
        log.warning("degraded mode: nothing is taken in", why=self._why,
                    ports=" ".join(f"{bound.listener}:{bound.port}" for bound in self._bound.values()))

    def stop(self) -> None:
        """End at once: nobody has anything to finish here."""
        self._front.listen([])
        with self._lock:
            here = list(self._associations)
        for association in here:
            association.stop(at_once=True)
        self.guard.stop()
        self._front.stop()

    @property
    def addresses(self) -> list[tuple[str, str, int]]:
        """(listener id, address, port) of every open port."""
        return [(listener, address, bound.port) for (listener, address, _), bound in self._bound.items()]

    def _tick(self) -> None:
        self._open_ports()
        self._front.call(self._hear)

    def _hear(self) -> None:
        if self.guard.moving():
            alive("degraded")

    def _open_ports(self) -> None:
        new = False
        for listener in self._config.listeners:
            for port in listener.ports:
                key = listener.id, listener.address, port
                if key in self._bound:
                    continue
                try:
                    self._bound[key] = Bound(listener.id, sockets.listen(listener.address, port, self._given),
                                             secure=listener.tls != "off")
                    new = True
                except OSError as e:
                    why = e.strerror or str(e)
                    if self._told.get(key) != why:
                        log.error("cannot listen", listener=listener.id, address=listener.address, port=port, why=why)
                    self._told[key] = why
        if new:
            self._front.listen(self._bound.values())

    # -- the front's thread ------------------------------------------------------------------------------------------

    def _take(self, sock: socket.socket, arrival: Arrival) -> bool:
        listener = self._listener(arrival.listener)
        if listener is None or self._places.take(listener, arrival.address):
            return False
        ticket = next(self._tickets)
        association = Association(self, sock, arrival, ticket)
        with self._lock:
            self._held[ticket] = (listener.id, arrival.address)
            self._associations.add(association)
        self.guard.watch(association)
        try:
            threading.Thread(target=association.run, name=f"association-{ticket}", daemon=True).start()
        except RuntimeError:
            self.ended(association)
            return False
        return True

    def _listener(self, id: str) -> Listener | None:
        return next((listener for listener in self._config.listeners if listener.id == id), None)

    # -- association.Host --------------------------------------------------------------------------------------------

    def secure(self, arrival: Arrival) -> ssl.SSLContext | None:
        """See `association.Host`."""
        listener = self._listener(arrival.listener)
        return self._contexts.server(listener) if arrival.secure and listener is not None else None

    def refused(self, arrival: Arrival, error: TlsError) -> None:
        """See `association.Host`."""
        log.warning("no TLS with a caller", address=arrival.address, why=error.text)

    def secured(self, arrival: Arrival, calling: str, version: str, suite: str) -> None:
        """See `association.Host`."""

    def answer(self, arrival: Arrival, request: AssociateRequest, identity: Identity | None) -> Answer:
        """See `association.Host`."""
        calling, called = title_text(request.calling), title_text(request.called)
        code = unacceptable(request)
        if code is not None:
            return Answer(code, "protocol version or application context is not that of DICOM")
        listener = self._listener(arrival.listener)
        if listener is None:
            return Answer(LOCAL_LIMIT, "no such listener")
        proven = identity.proven if identity is not None else frozenset()
        found = admit(listener, self._config.peers, (), calling, called, arrival.address, proven)
        if found.verdict is Verdict.REJECT:
            return Answer((found.result, found.source, found.reason), found.text, found.peer_id)
        if any(is_storage(context.abstract) for context in request.contexts):
            log.warning("a scanner is turned away", calling=calling, address=arrival.address, why=self._why)
            return Answer(LOCAL_LIMIT, f"degraded mode: {self._why}", found.peer_id)
        return Answer(None, "", found.peer_id, idle_seconds=60.0)

    def max_pdu(self, listener: str) -> int:
        """See `association.Host`."""
        return 16384

    def ended(self, association: Association) -> None:
        """See `association.Host`."""
        self.guard.forget(association)
        with self._lock:
            self._associations.discard(association)
            held = self._held.pop(association.ticket, None)
        if held is not None:
            self._places.give_back(*held)
