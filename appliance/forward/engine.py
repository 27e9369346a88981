"""Engine: the forwarder of a box. Routing on a thread, a desk for each destination, a lane for each association.

Looks at the ledger when kicked, and once a second all the same; at the
configuration then too. A new generation is taken up without a restart: settings
count from the next pick on, a lane that would change finishes its object first,
and what waits for a destination that is gone stays in the ledger, held, until
`requeue --to`.

On failure: the ledger's errors are met in each lane. Claims of a forwarder that
died are found at start; two deaths on one object park it.
"""

from __future__ import annotations

import fcntl
import os
import random
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from pathlib import Path

from appliance.clock import SECOND, Clock
from appliance.config.settings import Config, Destination, Limits
from appliance.errors import LedgerError, UsageError
from appliance.forward import health
from appliance.forward.desk import Desk
from appliance.forward.lane import Lane
from appliance.forward.pace import Pace
from appliance.forward.router import RoutingThread, minute_of_day
from appliance.forward.transport import Transport
from appliance.forward.underway import UnderWay
from appliance.forward.work import Condition
from appliance.model import number_text
from appliance.net import kick
from appliance.policy.handshakes import REFUSED_THERE, refused
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from appliance.spool.rows import Knock
from appliance.telemetry.log import Log
from appliance.telemetry.notify import alive

POLL_SECONDS = 1.0
"""A kick that was lost costs this much."""

LATE_SECONDS = 60.0
"""A thread of ours that has something to do and stands still for so long keeps the watchdog from being fed."""

PATIENCE = 2.0
"""A lane is given so many times what its destination is given (`connect_seconds` and `progress_seconds` together), and never
less than LATE_SECONDS: the transport ends a wait without progress by itself, so one that lasts longer is a hang of ours. A slow
line makes progress, and never comes to this."""

RECOUNT_SECONDS = 60.0
"""How often each desk compares what it knows with the ledger's count."""

ABORT_SECONDS = 5.0
"""What a lane has to end after it was cut off."""

LOCK = "forwarder.lock"

ConfigSource = Callable[[], Config]
"""Gives the configuration in force; the same object as long as it has not changed."""

TransportMaker = Callable[[Destination, Spool, Limits], Transport]

log = Log("forward")


Settings = tuple[Destination, int, float]
"""What a lane is made of: if any of it changes, new lanes take its place."""


def make_transport(destination: Destination, spool: Spool, limits: Limits, state: str = "",
                   refused: Callable[[Destination, str, str], None] = lambda destination, check, text: None) -> Transport:
    """The transport of a destination's type. `state` is the folder that the certificate store is in; `refused` is told of
    handshakes that failed."""
    if destination.type == "folder":
        from appliance.forward.folder import FolderTransport
        return FolderTransport(destination, spool)
    from appliance.forward.dimse import DimseTransport
    return DimseTransport(destination, spool, limits, state, refused=refused)


class _Place:
    """A desk and its lanes. `settings` is None while no configuration names the destination."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.settings: Settings | None = None
        self.limits = Limits()
        self.lanes: list[Lane] = []
        self.made = 0


class Forwarder:
    """`start`, then `stop`, once. One forwarder for each spool: a second one is refused."""

    def __init__(self, config_source: ConfigSource, spool: Spool, clock: Clock, run_dir: Path | None = None, *,
                 transports: TransportMaker | None = None, random: Callable[[], float] = random.random) -> None:
        self._source = config_source
        self._spool = spool
        self._clock = clock
        self._run = run_dir if run_dir is not None else Path(config_source().control.run)
        self._transports = transports or partial(make_transport, state=config_source().spool.state, refused=self._refused)
        self._random = random
        self._config: Config | None = None
        self._places: dict[str, _Place] = {}
        self._leavers: list[Lane] = []
        self._under_way = UnderWay(self._run)
        self._lock = threading.Lock()
        self._lock_file = -1
        self._ledger: Ledger | None = None
        self._watched: Ledger | None = None
        self._routed_in: Ledger | None = None
        self._routing: RoutingThread | None = None
        self._mailbox: kick.Mailbox | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._total = Pace(0, clock.boot_ns())
        self._head = -1
        self._recounted = clock.boot_ns()
        self._conditions: list[Condition] = []
        self._standing: dict[Lane, tuple[int | None, int]] = {}
        self._told_hung = False
        self.moved = clock.boot_ns()
        """Boot ns of the watching thread's last round."""

    # --- life -------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Recover, route and deliver. UsageError where another forwarder runs; LedgerError; OSError for the run folder."""
        self._take_lock()
        latch = self._spool.latch
        latch.attach(self._run, "forwarder")
        try:
            self._ledger = Ledger.open(self._spool.ledger_path, self._clock, latch=latch)
            self._watched = Ledger.open(self._spool.ledger_path, self._clock, latch=latch)
            self._routed_in = Ledger.open(self._spool.ledger_path, self._clock, latch=latch)
            self._recover(self._ledger)
            self._mailbox = kick.Mailbox(self._run / kick.FORWARDER)
            self._routing = RoutingThread(self._spool, self._routed_in, self._clock, self._source, self._routed)
            self._configure()
            self._routing.start()
        except BaseException:
            self._end_lanes(0.0)
            self._close()
            raise
        self._thread = threading.Thread(target=self._watch, name="forward", daemon=True)
        self._thread.start()

    def _recover(self, ledger: Ledger) -> None:
        """Give back what a forwarder that died had claimed; only what was under way counts as a crash."""
        for claims in self._under_way.left():
            ledger.unclaim(claims.destination, claims.innocent, "the forwarder stopped before its turn")
        for number, destination, parked in ledger.unclaim_after_crash():
            log.warning("was being sent when the forwarder ended", number=number_text(number), destination=destination,
                        parked=parked)
        self._under_way.open()

    def stop(self, drain: float = 10.0) -> bool:
        """End at the next instance boundary of each lane, after `drain` seconds in any case. True if nothing was cut off.

        What was not sent is given back, and waits. Blocks for `drain` and a few seconds at most.
        """
        self._stopping.set()
        kick.send(self._run / kick.FORWARDER)
        if self._thread is not None:
            self._thread.join(POLL_SECONDS + ABORT_SECONDS)
        if self._routing is not None:
            self._routing.stop(drain)
        clean = self._end_lanes(drain)
        self._close()
        return clean

    def _end_lanes(self, drain: float) -> bool:
        """Ask, wait, then cut off. True if nothing had to be cut off."""
        with self._lock:
            lanes = [lane for place in self._places.values() for lane in place.lanes] + self._leavers
        for lane in lanes:
            lane.leave()
        clean = self._wait_for(lanes, drain)
        if not clean:
            for lane in lanes:
                lane.abort()
            self._wait_for(lanes, ABORT_SECONDS)
        return clean

    @staticmethod
    def _wait_for(lanes: Collection[Lane], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        for lane in lanes:
            lane.wait_ended(max(deadline - time.monotonic(), 0))
        return all(lane.wait_ended(0) for lane in lanes)

    def _take_lock(self) -> None:
        self._run.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._lock_file = os.open(self._spool.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock_file)
            self._lock_file = -1
            raise UsageError(f"another forwarder works on {self._spool.path}", mend="stop it first") from error

    def _close(self) -> None:
        alive = [lane for place in self._places.values() for lane in place.lanes if not lane.wait_ended(0)]
        if self._mailbox is not None:
            self._mailbox.close()
        for ledger in (self._ledger, self._watched, self._routed_in):
            # A lane that does not end may still write; its connection is left to the end of the process.
            if ledger is not None and not (alive and ledger is self._ledger):
                ledger.close()
        if self._lock_file >= 0:
            os.close(self._lock_file)
            self._lock_file = -1

    # --- watching ---------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        mailbox = self._mailbox
        assert mailbox is not None
        while not self._stopping.is_set():
            try:
                self.look()
            except LedgerError as error:
                log.error("the ledger cannot be read", why=str(error))
            except Exception:  # noqa: BLE001  top of a stage's thread: what the lanes do goes on
                log.crash("fault of the program while watching")
            if not self.late(LATE_SECONDS, lanes=False) and not self.hung():
                alive("forwarder")
            mailbox.wait(POLL_SECONDS)

    def _refused(self, destination: Destination, check: str, text: str) -> None:
        """A handshake failed: counted beside those that failed at our own door."""
        knock = Knock("", refused(REFUSED_THERE, destination.id, check), f"{destination.address}:{destination.port}",
                      REFUSED_THERE, text)
        try:
            if self._ledger is not None:
                self._ledger.knocked([knock])
        except LedgerError as e:
            log.error("a failed handshake cannot be written down", destination=destination.id, error=e.message)

    def look(self) -> None:
        """One round: new configuration, new events, fail-over, condition. LedgerError, ConfigError."""
        self.moved = now = self._clock.boot_ns()
        self._configure()
        self._keep_manned()
        assert self._watched is not None and self._routing is not None
        head = self._watched.head()[0]
        if head != self._head:
            self._head = head
            self._routing.kick()
            for desk in self._desks():
                desk.news()
        self._fail_over()
        if now - self._recounted >= RECOUNT_SECONDS * SECOND:
            self._recounted = now
            for desk in self._desks():
                desk.recount()
        self._tell()

    def _desks(self) -> list[Desk]:
        with self._lock:
            return [place.desk for place in self._places.values() if place.settings is not None]

    def _routed(self, destinations: Collection[str]) -> None:
        """The routing thread has given these destinations something."""
        with self._lock:
            desks = [self._places[id].desk for id in destinations if id in self._places]
        for desk in desks:
            desk.news()

    def _fail_over(self) -> None:
        desks = {desk.id: desk for desk in self._desks()}
        for desk in desks.values():
            if desk.destination.failover and desk.breaker().tripped:
                desk.fail_over(desks.get(desk.destination.failover))

    def _tell(self) -> None:
        """Publish how the destinations fare, where that has changed; the keeper raises the alarms."""
        conditions = self.conditions()
        if conditions != self._conditions:
            self._conditions = conditions
            health.write(self._run, conditions)
            kick.send(self._run / kick.KEEPER)

    def conditions(self) -> list[Condition]:
        """How each destination fares now."""
        return [desk.condition() for desk in self._desks()]

    def traffic(self) -> dict[str, int]:
        """Boot ns at which each destination stored something last; those that did since the start."""
        return {desk.id: desk.stored_at for desk in self._desks() if desk.stored_at >= 0}

    def troubled(self) -> set[str]:
        """Destinations that attempts fail with now."""
        return {condition.destination for condition in self.conditions() if condition.state != "up"}

    def late(self, seconds: float, *, lanes: bool = True) -> list[str]:
        """Threads that have something to do and have not moved for so long: for the watchdog's ping.

        Without `lanes` there: one moves when an object is through, and a large one on a slow line may take a day, or the
        ledger keeps it (the disk does not gate the ping). See `hung`.
        """
        before = self._clock.boot_ns() - int(seconds * SECOND)
        with self._lock:
            looked_at = [lane for place in self._places.values() for lane in place.lanes] if lanes else []
        names = [lane.name for lane in looked_at if lane.busy and lane.moved < before]
        names += ["forward"] if self.moved < before else []
        return names + (["route"] if self._routing is not None and self._routing.moved < before else [])

    def hung(self) -> list[str]:
        """Lanes whose transport has made no progress for far longer than it allows its destination. Each call looks anew."""
        now = self._clock.boot_ns()
        with self._lock:
            looked_at = [(place.desk.destination, lane) for place in self._places.values() for lane in place.lanes]
        seen, names = {}, []
        for destination, lane in looked_at:
            moves = lane.moves
            before, since = self._standing.get(lane, (None, now))
            seen[lane] = moves, now if moves is None or moves != before else since
            limit = max(LATE_SECONDS, PATIENCE * (destination.connect_seconds + destination.progress_seconds))
            if now - seen[lane][1] > limit * SECOND:
                names.append(lane.name)
        self._standing = seen
        if names and not self._told_hung:
            log.error("nothing moves towards a destination, and its transport does not give up: the watchdog is fed no more",
                      lanes=", ".join(names))
        self._told_hung = bool(names)
        return names

    # --- configuration ----------------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Look at the configuration soon; it is looked at every second in any case."""
        kick.send(self._run / kick.FORWARDER)

    def _configure(self) -> None:
        """Take up the configuration in force, where it is not the one we work by."""
        config = self._source()
        if config is self._config:
            return
        with self._lock:
            self._total.change(config.limits.rate_bytes, self._clock.boot_ns())
            limits = config.limits
            wanted = {d.id: (d, limits.child_memory, limits.child_seconds) for d in config.destinations}
            for id, place in self._places.items():
                if place.settings is not None and wanted.get(id) != place.settings:
                    self._let_go(place)
            for id, settings in wanted.items():
                place = self._places.get(id) or self._open(settings[0])
                if place.settings is None:
                    self._man(place, settings, limits)
        log.info("configuration is in force", generation=config.generation, destinations=len(config.destinations))
        self._config = config

    def _open(self, destination: Destination) -> _Place:
        assert self._ledger is not None
        desk = Desk(destination, self._ledger, self._clock, self._total, self._random, partial(minute_of_day, self._clock))
        place = self._places[destination.id] = _Place(desk)
        return place

    def _let_go(self, place: _Place) -> None:
        """Its lanes end at the next instance boundary. What they give back waits at the desk."""
        for lane in place.lanes:
            lane.leave()
        self._leavers += place.lanes
        place.lanes = []
        place.settings = None

    def _man(self, place: _Place, settings: Settings, limits: Limits) -> None:
        place.settings, place.limits = settings, limits
        place.desk.configure(settings[0])
        place.desk.news()
        self._fill(place, settings[0])

    def _fill(self, place: _Place, destination: Destination) -> None:
        """Have as many lanes as it wants; those that cannot be made now are made at the next look."""
        maker = partial(self._transports, destination, self._spool, place.limits)
        while len(place.lanes) < (destination.associations if destination.type == "dimse" else 1):
            place.made += 1
            slot, note = self._under_way.take(destination.id)
            try:
                lane = Lane(place.desk, maker, self._clock, f"forward {destination.id} {place.made}", note, self._settled,
                            partial(self._under_way.give_back, slot))
                lane.start()
            except (OSError, RuntimeError) as error:
                self._under_way.give_back(slot)
                log.error("no lane can be made now", destination=destination.id, why=str(error))
                return
            place.lanes.append(lane)

    def _keep_manned(self) -> None:
        """Put others in the place of lanes that died, and give back what an ended one could not. LedgerError."""
        with self._lock:
            for place in self._places.values():
                died = [lane for lane in place.lanes if lane.wait_ended(0)]
                if died:
                    place.lanes = [lane for lane in place.lanes if lane not in died]
                    self._leavers += died
                    log.error("lanes have died; others take their place", destination=place.desk.id, lanes=len(died))
                if place.settings is not None:
                    self._fill(place, place.settings[0])
            ended = [lane for lane in self._leavers if lane.owes]
            self._leavers = [lane for lane in self._leavers if lane.owes or not lane.wait_ended(0)]
        for lane in ended:
            lane.give_back()

    def _settled(self) -> None:
        """Outcomes are durable: there may be something to confirm."""
        with suppress(OSError):
            kick.send(self._run / kick.KEEPER)
