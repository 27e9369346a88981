"""Routing thread of the forwarder: from "accepted" to "who gets it", and the index on the way.

Owns: the limited child that reads tags, the compiled rules, the writing end of
the index. Promises: every accepted object is routed, one durable row each, with
the generation of the configuration that it used; whatever an object is, or does
to the child, it goes to the default destinations at least (design, Routing).
An address whose objects the child did not survive delays its own objects only:
they have their turns beside those of all others, one address after the other.

On failure of the ledger nothing has changed and the batch is tried again later.
A child that cannot be started costs two tries, then tags are *unknown*. The
index may fail as it likes: it is made again.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from appliance.clock import SECOND, Clock
from appliance.config.settings import Config
from appliance.dicom.part10 import HEAD
from appliance.errors import LedgerError, SandboxError, SpoolError, SpoolFault
from appliance.forward.indexing import Indexing
from appliance.model import Attributes, number_text
from appliance.route import STUDY_UID, Router, compile
from appliance.sandbox import dictionary
from appliance.sandbox.parent import Child, Place
from appliance.spool.index import study_key
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from appliance.spool.rows import ObjectRow, Routing
from appliance.telemetry.log import Log

BATCH = 64
"""Objects routed in one transaction: one round trip of the child."""

POLL_SECONDS = 1.0
"""A kick that was lost costs this much."""

OTHERS_FIRST = 3
"""After the turn of an address whose objects cost much, all others have so many times as long, if they have anything."""

RETRY_SECONDS = (1.0, 30.0)
"""First and longest pause after a failure of the ledger or of the child."""

_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Failures to open that say nothing of the object."""

Read = Callable[[Sequence[ObjectRow], frozenset[int]], list[Attributes] | None]

log = Log("route")


def minute_of_day(clock: Clock) -> int | None:
    """Local time in minutes since midnight; None while the clock is not trusted (I7)."""
    if not clock.trusted():
        return None
    local = time.localtime(clock.wall_ns() // SECOND)
    return local.tm_hour * 60 + local.tm_min


class RoutingThread:
    """Routes what the ledger has unrouted. `config` gives the configuration in force, `on_routed` is told the destinations.

    Start it once; `kick` says that there may be something. `step` is one round,
    for tests and for the thread.
    """

    def __init__(self, spool: Spool, ledger: Ledger, clock: Clock, config: Callable[[], Config],
                 on_routed: Callable[[Collection[str]], None] = lambda ids: None) -> None:
        self._spool = spool
        self._ledger = ledger
        self._clock = clock
        self._config = config
        self._on_routed = on_routed
        self._router: Router | None = None
        self._compiled: Config | None = None
        self._child: Child | None = None
        self._indexing = Indexing(spool, ledger, clock, self._read)
        self._childless = 0
        self._costly: dict[str, int] = {}      # address: how many of its objects are read in its next turn
        self._turn_at = 0                      # boot ns of that, where others have something
        self._kicked = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.moved = clock.boot_ns()

    # --- thread -----------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="route", daemon=True)
        self._thread.start()

    def kick(self) -> None:
        """There may be something to route. From any thread."""
        self._kicked.set()

    def stop(self, seconds: float = 10.0) -> bool:
        """End the thread; what it was routing is either durable or not begun. False if it did not end in that time."""
        self._stopping = True
        self._kicked.set()
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return False
        self.close()
        return True

    def close(self) -> None:
        """Let go of the child and the index."""
        if self._child is not None:
            self._child.close()
        self._indexing.close()

    def _run(self) -> None:
        pause = 0.0
        while not self._stopping:
            try:
                busy = self.step()
                pause = 0.0
                if not busy:
                    self._clock.wait(self._kicked, POLL_SECONDS)
                    self._kicked.clear()
                continue
            except (LedgerError, SpoolError, SandboxError) as error:
                log.error("cannot route now", error=str(error))
            except Exception:  # noqa: BLE001 - top of the stage: objects wait, routing goes on
                log.crash("routing failed")
            pause = min(max(RETRY_SECONDS[0], pause * 2), RETRY_SECONDS[1])
            self._clock.wait(self._kicked, pause)
            self._kicked.clear()

    # --- one round --------------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Route one batch, or bring the index one step further; whether there was anything to do. LedgerError, SpoolFault."""
        self.moved = self._clock.boot_ns()
        router, config = self._rules()
        if config.destinations:
            rows = self._ledger.unrouted(BATCH, but=self._costly)
            if rows:
                self._route_together(rows, router, config)
            if self._costly and (not rows or self._clock.boot_ns() >= self._turn_at):
                self._turn(router, config)
                return True
            if rows:
                return True
        return self._indexing.step(router.wanted)

    def _rules(self) -> tuple[Router, Config]:
        config = self._config()
        if self._router is None or config is not self._compiled:
            limits = self._compiled.limits if self._compiled else None
            self._router, self._compiled = compile(config, dictionary.tag_of), config
            if self._child is not None and config.limits != limits:
                self._child.close()
                self._child = None
        return self._router, config

    def _route_together(self, rows: Sequence[ObjectRow], router: Router, config: Config) -> None:
        """Whoever they are from, in one go; if the child does not survive that, those of each address by themselves."""
        found = self._or_unknown(rows, self._once, router.wanted)
        if found is not None:
            self._route(rows, found, router, config)
            return
        of: dict[str, list[ObjectRow]] = {}
        for row in rows:
            of.setdefault(row.custody.source.address, []).append(row)
        for address, mine in of.items():
            found = self._or_unknown(mine, self._once, router.wanted) if len(of) > 1 else None
            if found is None:
                log.warning("objects cost the limited child too much: their sender's have turns of their own", address=address)
                self._costly[address] = 1
            else:
                self._route(mine, found, router, config)

    def _turn(self, router: Router, config: Config) -> None:
        """Some objects of one address; one at a time for as long as each costs much, more and more where they do not."""
        address, count = next(iter(self._costly.items()))
        del self._costly[address]
        rows = self._ledger.unrouted(count, of=address)
        if not rows:
            return
        began = self._clock.boot_ns()
        found = self._or_unknown(rows, self._once if count > 1 else self._twice, router.wanted)
        if found is not None:
            self._route(rows, found, router, config)
        spent = self._clock.boot_ns() - began
        self._turn_at = began + (1 + OTHERS_FIRST) * spent
        dear = found is None or spent > config.limits.child_seconds * SECOND / 2 or not all(each.readable for each in found)
        if dear or 2 * count <= BATCH:
            self._costly[address] = 1 if dear else 2 * count       # behind all others

    def _route(self, rows: Sequence[ObjectRow], attributes: Sequence[Attributes], router: Router, config: Config) -> None:
        minute = minute_of_day(self._clock)
        admitted = {(a.title, a.address) for a in self._ledger.admitted()} \
            if any(listener.unknown == "hold" for listener in config.listeners) else ()
        routings = []
        for row, found in zip(rows, attributes, strict=True):
            decision = router.route(row.custody, found, minute, admitted)
            routings.append(Routing(
                number=row.number, generation=router.generation, rules=decision.rules, destinations=decision.destinations,
                priority=decision.priority, hold=decision.hold, study=study_key(found.values.get(STUDY_UID, "")),
                flags=decision.flags))
        self._ledger.route(routings, config.destinations)
        self._on_routed(frozenset(id for routing in routings for id in routing.destinations))
        self._indexing.add([(row.number, found) for row, found in zip(rows, attributes, strict=True)])

    def _or_unknown(self, rows: Sequence[ObjectRow], read: Read, wanted: frozenset[int]) -> list[Attributes] | None:
        """What the objects say of themselves; all unknown where no child could be had twice; None as `read` says."""
        try:
            found = read(rows, wanted)
        except SandboxError as error:
            self._childless += 1
            if self._childless < 2:
                raise
            log.error("no limited child: routing without tags", error=str(error), objects=len(rows))
            return [Attributes(readable=False)] * len(rows)
        self._childless = 0
        for row, attributes in zip(rows, found or (), strict=found is not None):
            if not attributes.readable:
                log.warning("object cannot be read: it goes by its association, and to the defaults",
                            number=number_text(row.number))
        return found

    def _once(self, rows: Sequence[ObjectRow], wanted: frozenset[int]) -> list[Attributes] | None:
        """Attributes of the rows in their order; None where the child did not survive them. Fails as `_read`."""
        return self._ask(rows, lambda child, places: child.once(places, wanted))

    def _twice(self, rows: Sequence[ObjectRow], wanted: frozenset[int]) -> list[Attributes] | None:
        return self._read(rows, wanted)

    def _read(self, rows: Sequence[ObjectRow], wanted: frozenset[int]) -> list[Attributes]:
        """Attributes of the rows in their order, each object tried twice at most. SandboxError where no child can be had,
        SpoolFault where no descriptor."""
        return self._ask(rows, lambda child, places: child.tags(places, wanted)) or []

    def _ask(self, rows: Sequence[ObjectRow], ask: Callable[[Child, list[Place]], list[Attributes] | None]
             ) -> list[Attributes] | None:
        if self._child is None:
            limits = (self._compiled or self._config()).limits
            self._child = Child(limits.child_memory, limits.child_seconds)
        found: list[Attributes | None] = [None] * len(rows)
        places: list[Place] = []
        at: list[int] = []
        try:
            for i, row in enumerate(rows):
                try:
                    descriptor = self._spool.open_object(row.number)
                except OSError as error:
                    if error.errno in _OURS or not self._spool.is_there():
                        raise SpoolFault(f"cannot open object {number_text(row.number)}: {error.strerror}") from None
                    found[i] = Attributes(readable=False)  # whoever sends it finds out why, and quarantines it
                    continue
                places.append((descriptor, HEAD, row.custody.length, row.custody.transfer_syntax))
                at.append(i)
            answers = ask(self._child, places)
            if answers is None:
                return None
            for i, attributes in zip(at, answers, strict=True):
                found[i] = attributes
        finally:
            for place in places:
                with suppress(OSError):
                    os.close(place[0])
        return [attributes or Attributes(readable=False) for attributes in found]
