"""Canaries: a test object for each destination that wants them, one in flight at a time, through the whole path.

    due      no canary in flight, its time has come, routine images may be sent there now (hours)
    in       by the receiver's side door, over TCP, like a scanner's image: accepted, durable, routed
    there    the ledger says when the destination has it, by its declared proof

What a forwarder that ended had in flight is found again in the ledger. On
failure the canary is not taken in, which is said; the next one is tried after a pause.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from appliance.clock import SECOND, Clock
from appliance.config.settings import Config, Destination
from appliance.dicom import pdu, uids
from appliance.health.canary import Canary, is_late
from appliance.health.reach import FIRST, JITTER, MINUTE
from appliance.health.testobject import data_set, new_uid
from appliance.model import DeliveryState, ObjectState, Priority
from appliance.net import sidedoor, sockets
from appliance.policy import Failure, FailureKind, Rejected
from appliance.policy.canary import CALLING, SOP_CLASS, title_of
from appliance.probe.requestor import NoAnswer, Requestor
from appliance.schedule import hours, may_send
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from appliance.spool.rows import DeliveryRow
from appliance.telemetry.log import Log

SECONDS = 30.0
"""Longest time for one to be taken in."""

AGAIN, SOON = 60 * SECOND, 5 * SECOND
"""Pause after one was not taken in; so short while the box starts."""

STARTING = 60 * SECOND
"""For so long after the start it is no news that no receiver takes one in."""

THERE = {"status": (DeliveryState.SENT, DeliveryState.CONFIRMED), "readback": (DeliveryState.CONFIRMED,)}

log = Log("health")


class Canaries:
    """`round` again and again, from one thread."""

    def __init__(self, spool: Spool, clock: Clock, run: Path, random: Callable[[], float],
                 minute: Callable[[], int | None]) -> None:
        self._spool = spool
        self._clock = clock
        self._run = run
        self._random = random
        self._minute = minute
        self._ledger: Ledger | None = None
        self._lock = threading.Lock()
        self._known: dict[str, Canary] = {}
        self._settings: dict[str, Destination] = {}
        self._due: dict[str, int] = {}
        self._began_on: dict[str, int] = {}        # powered-on ns at which the one in flight began
        self._entering: set[str] = set()
        self._began = clock.boot_ns()

    def close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    def state(self) -> tuple[Canary, ...]:
        with self._lock:
            return tuple(self._known.values())

    # --- a round --------------------------------------------------------------------------------------------------------

    def round(self, config: Config) -> None:
        """Look where those in flight are, and begin those that are due. LedgerError."""
        wanted = {d.id: d for d in config.destinations if d.canary_minutes > 0}
        if not wanted and not self._settings:
            return
        if self._ledger is None:
            self._ledger = Ledger.open(self._spool.ledger_path, self._clock, read_only=True)
        self._configure(wanted)
        for id, destination in wanted.items():
            with self._lock:
                canary, entering = self._known[id], id in self._entering
            if canary.sent is not None and not entering:
                self._follow(destination, canary)
            elif not entering and self._due[id] <= self._clock.boot_ns() and self._open(destination):
                left = self._left(canary, self._clock.boot_ns())     # one of which it was not known whether it was taken in
                if left.sent is not None:
                    self._set(left)
                else:
                    self._begin(destination)

    def _configure(self, wanted: dict[str, Destination]) -> None:
        if wanted == self._settings:
            return
        now = self._clock.boot_ns()
        with self._lock:
            for id, destination in wanted.items():
                if id not in self._known:
                    self._known[id] = self._left(Canary(id), now)
                if self._settings.get(id) != destination:
                    self._due[id] = now + int(min(FIRST, destination.canary_minutes * MINUTE) * self._random())
            for id in self._known.keys() - wanted.keys():
                del self._known[id], self._due[id]
            self._settings = wanted

    def _left(self, canary: Canary, now: int) -> Canary:
        """With what is in flight and we do not know of: of a forwarder before us, or taken in without our hearing so."""
        assert self._ledger is not None
        id = canary.destination
        rows = self._ledger.canaries(id)
        if not rows:
            return canary
        began = self._began_on[id] = self._ledger.powered_on(rows[0].custody.boot, rows[0].custody.since_boot)
        return replace(canary, sent=now - (self._ledger.powered_on() - began), uid=rows[0].custody.uid_text, trouble="")

    def _open(self, destination: Destination) -> bool:
        """Whether routine images may be sent there now."""
        windows = [window for text in destination.hours if (window := hours(text)) is not None]
        return may_send(windows, self._minute() if windows else None, Priority.ROUTINE)

    def _follow(self, destination: Destination, canary: Canary) -> None:
        assert self._ledger is not None
        now, row = self._clock.boot_ns(), None
        found = self._ledger.objects_of_uid(canary.uid.encode("ascii"), 1)
        if found and found[0].state is ObjectState.DISCARDED:
            self._set(replace(canary, sent=None, uid="", late=False))
            return
        if found:
            row = next((d for d in self._ledger.deliveries(found[0].number) if d.destination == destination.id), None)
        on = self._arrived_on(destination, row)
        if on is None:
            late = is_late(canary, destination.canary_minutes, now) and self._open(destination)
            if late and not canary.late:
                log.warning("a test object has not arrived", destination=destination.id, uid=canary.uid)
            self._set(replace(canary, late=late))
            return
        seconds = max(0, on - self._began_on.get(destination.id, on)) / SECOND
        at = now - max(0, self._ledger.powered_on() - on)
        if canary.late:
            log.info("test objects arrive again", destination=destination.id, seconds=round(seconds, 1))
        self._due[destination.id] = at + self._pause(int(destination.canary_minutes * MINUTE))
        self._set(Canary(destination.id, at, seconds))

    def _arrived_on(self, destination: Destination, row: DeliveryRow | None) -> int | None:
        """Powered-on ns at which the destination had it, by its proof."""
        if row is None or row.state not in THERE.get(destination.proof, THERE["status"]):
            return None
        return row.confirmed_on if destination.proof == "readback" else row.sent_on

    def _pause(self, interval: int) -> int:
        return int(interval * (1 + JITTER * (2 * self._random() - 1)))

    def _set(self, canary: Canary) -> None:
        with self._lock:
            if canary.destination in self._known:
                self._known[canary.destination] = canary

    # --- in by the side door ----------------------------------------------------------------------------------------------

    def _begin(self, destination: Destination) -> None:
        assert self._ledger is not None
        uid, now = new_uid(), self._clock.boot_ns()
        self._began_on[destination.id] = self._ledger.powered_on()
        with self._lock:
            self._known[destination.id] = replace(self._known[destination.id], sent=now, uid=uid, late=False)
            self._entering.add(destination.id)
        threading.Thread(target=self._enter, args=(destination, uid), name=f"canary {destination.id}", daemon=True).start()

    def _enter(self, destination: Destination, uid: str) -> None:
        trouble = "a fault of the program: see the log"
        try:
            trouble = self._taken(destination, uid)
        except Exception:  # noqa: BLE001  top of the thread: the next one is due all the same
            log.crash("a test object could not be made", destination=destination.id)
        with self._lock:
            self._entering.discard(destination.id)
            canary = self._known.get(destination.id)
            if canary is None or canary.uid != uid:
                return
            if trouble:
                now = self._clock.boot_ns()
                early = now - self._began < STARTING      # the receiver is the last to come up
                self._due[destination.id] = now + min(SOON if early else AGAIN, int(destination.canary_minutes * MINUTE))
                canary = replace(canary, sent=None, uid="")
                trouble = "" if early else trouble
            self._known[destination.id] = replace(canary, trouble=trouble)
        if trouble:
            log.warning("a test object was not taken in", destination=destination.id, why=trouble)

    def _taken(self, destination: Destination, uid: str) -> str:
        """Why it was not taken in; empty where it was."""
        door = sidedoor.find(self._run)
        if door is None:
            return "no receiver runs"
        deadline = time.monotonic() + SECONDS
        data = data_set(uid, self._spool.uuid, destination.id, self._clock.wall_ns() if self._clock.trusted() else 0)
        try:
            with sockets.connect("127.0.0.1", door.port, SECONDS) as sock:
                return self._stored(Requestor(sock), door, title_of(destination.id), uid, data, deadline)
        except OSError as e:
            return f"the receiver cannot be reached: {e.strerror or e}"
        except NoAnswer as lost:
            return _in_words(lost)

    @staticmethod
    def _stored(requestor: Requestor, door: sidedoor.SideDoor, called: str, uid: str, data: bytes, deadline: float) -> str:
        requestor.associate(called, CALLING, [pdu.ProposedContext(1, SOP_CLASS, (uids.EXPLICIT_LE,))], deadline,
                            door.identity())
        context = next(iter(requestor.contexts.values()), None)
        if context is None:
            return "the receiver takes no Secondary Capture"
        status = requestor.store(context, uid, data, deadline)
        with suppress(OSError):
            requestor.release(min(deadline, time.monotonic() + 2.0))
        return "" if status == 0 else f"the receiver answers {status:04X}"


def _in_words(lost: NoAnswer) -> str:
    answer = lost.answer
    if isinstance(answer, Rejected):
        return "the receiver takes nothing in now: it is short of room, or its disk fails" if answer.result == 2 else \
            "the receiver refuses it"
    if isinstance(answer, Failure) and answer.kind is FailureKind.TIMEOUT:
        return "the receiver does not answer"
    return "the receiver broke it off"
