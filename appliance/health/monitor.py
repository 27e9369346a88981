"""Monitor: the stage that looks after the destinations' health, in the process of the forwarder.

    traffic      what the forwarder has stored there counts as much as a C-ECHO
    canaries     test objects through the whole path, for destinations that want them
    look         a walk by `probe`: at its time, or while the forwarder has trouble with the destination, to name the hop
    publish      `health.json`, which keeper and `status` read

Each look runs in a thread of its own, one at a time for each destination, and
bounded by the walk: a destination that hangs keeps nobody else waiting.
"""

from __future__ import annotations

import random as chance
import threading
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from appliance.clock import SECOND, Clock
from appliance.config.settings import Config, Destination
from appliance.errors import LedgerError
from appliance.health import published
from appliance.health.canaries import Canaries
from appliance.health.reach import FIRST, Reach, delivered, looked, pause
from appliance.net import kick
from appliance.probe.report import Report
from appliance.probe.target import of_destination
from appliance.probe.walk import walk
from appliance.telemetry.log import Log

ROUND_SECONDS = 1.0
TROUBLE_PAUSE = 300 * SECOND
"""While the forwarder itself tries in vain, so often is it looked at which hop fails."""

Traffic = Callable[[], Mapping[str, int]]
"""Boot time (ns) of what was stored last, by destination."""

Troubled = Callable[[], Collection[str]]
"""Destinations that the forwarder has trouble with."""

log = Log("health")


class Monitor:
    """`start`, then `stop`, once. `walker` is `probe.walk` unless given (tests)."""

    def __init__(self, config: Callable[[], Config], clock: Clock, run: Path, traffic: Traffic, troubled: Troubled, *,
                 canaries: Canaries | None = None, walker: Callable[[Destination, str], Report] | None = None,
                 random: Callable[[], float] = chance.random) -> None:
        self._config = config
        self._clock = clock
        self._run = run
        self._traffic = traffic
        self._troubled = troubled
        self._canaries = canaries
        self._walker = walker or _walk
        self._random = random
        self._lock = threading.Lock()
        self._reaches: dict[str, Reach] = {}
        self._settings: dict[str, Destination] = {}
        self._due: dict[str, int] = {}
        self._looking: set[str] = set()
        self._looked_at: dict[str, int] = {}
        self._known_trouble: set[str] = set()
        self._told: object = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    # --- life -----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread = threading.Thread(target=self._watch, name="health", daemon=True)
        self._thread.start()

    def stop(self) -> bool:
        """A look that is under way ends by itself, and says nothing any more."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(10)
        ended = self._thread is None or not self._thread.is_alive()
        if ended and self._canaries is not None:
            self._canaries.close()
        return ended

    def _watch(self) -> None:
        while not self._stopping.is_set():
            try:
                self.round()
            except Exception:  # noqa: BLE001  top of the thread: what is delivered goes on
                log.crash("a look at the destinations' health failed")
            self._clock.wait(self._stopping, ROUND_SECONDS)

    # --- a round --------------------------------------------------------------------------------------------------------

    def round(self) -> None:
        """Take in what was delivered, begin the looks that are due, publish."""
        self._configure()
        now, traffic, troubled = self._clock.boot_ns(), self._traffic(), self._troubled()
        for id, destination in self._settings.items():
            with self._lock:
                before = self._reaches[id]
                at = traffic.get(id, -1)
                if at >= 0 and (reach := delivered(before, at)) is not before:
                    self._reaches[id] = reach
                    self._due[id] = max(self._due[id], at + pause(reach, destination.echo_minutes, self._random()))
                elif id in troubled and (id not in self._known_trouble or now - self._looked_at.get(id, 0) >= TROUBLE_PAUSE):
                    self._due[id] = min(self._due[id], now)      # the forwarder fails: which hop is it?
                begin = self._due[id] <= now and id not in self._looking
                if begin:
                    self._looking.add(id)
                    self._looked_at[id] = now
            if begin:
                self._begin(destination)
        self._known_trouble = set(troubled)
        if self._canaries is not None:
            try:
                self._canaries.round(self._config())
            except LedgerError as error:
                log.error("test objects are not looked after", why=error.message)
        self._publish()

    def _configure(self) -> None:
        """Those of the configuration in force that want it; what changed is looked at anew."""
        wanted = {d.id: d for d in self._config().destinations if d.type == "dimse" and d.echo_minutes > 0}
        if wanted == self._settings:
            return
        now = self._clock.boot_ns()
        with self._lock:
            for id, destination in wanted.items():
                if self._settings.get(id) != destination:
                    self._reaches[id] = Reach(id)
                    self._due[id] = now + int(min(FIRST, destination.echo_minutes * 60 * SECOND) * self._random())
            for id in self._settings.keys() - wanted.keys():
                del self._reaches[id], self._due[id]
            self._settings = wanted

    def _begin(self, destination: Destination) -> None:
        try:
            threading.Thread(target=self._look, args=(destination,), name=f"look {destination.id}", daemon=True).start()
        except RuntimeError as error:
            log.error("no thread for a look", destination=destination.id, why=str(error))
            self._looking.discard(destination.id)

    def _look(self, destination: Destination) -> None:
        try:
            self.take(destination, self._walker(destination, self._config().spool.state))
        except Exception:  # noqa: BLE001  top of the thread: the next look is due as ever
            log.crash("a look at a destination failed", destination=destination.id)
            with self._lock:
                self._due[destination.id] = self._clock.boot_ns() + TROUBLE_PAUSE
        finally:
            with self._lock:
                self._looking.discard(destination.id)

    def take(self, destination: Destination, report: Report) -> None:
        """What a look came to."""
        now = self._clock.boot_ns()
        troubled = destination.id in self._troubled()
        with self._lock:
            if self._settings.get(destination.id) != destination or self._stopping.is_set():
                return
            before = self._reaches[destination.id]
            after = self._reaches[destination.id] = looked(before, report, now)
            wait = pause(after, destination.echo_minutes, self._random())
            self._due[destination.id] = now + (max(wait, TROUBLE_PAUSE) if troubled and after.failures else wait)
        if after.failures == 1 or (before.failures and not after.failures) or after.cause != before.cause:
            say = log.warning if after.failures else log.info
            say("a destination is not reached" if after.failures else "a destination is reached", destination=destination.id,
                hop=after.hop, cause=after.cause, why=after.text, by=after.by)

    def _publish(self) -> None:
        with self._lock:
            state = tuple(self._reaches.values()), self._canaries.state() if self._canaries is not None else ()
        if state != self._told:
            self._told = state
            published.write(self._run, *state)
            kick.send(self._run / kick.KEEPER)


def _walk(destination: Destination, state: str) -> Report:
    return walk(of_destination(destination), state, deep=False)
