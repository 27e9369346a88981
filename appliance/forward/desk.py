"""Desk: what one destination is owed, and how that destination fares; its lanes share it, nobody else does.

Owns: the order of what waits (numbers only, 16 bytes each; rows are read when
their turn comes), the breaker, the pace, and every word to the ledger about
this destination. Promises: an object is claimed by a durable row before it is
touched, each claim ends in an outcome or is given back, and nothing of another
destination is ever waited for, save the ledger's short transactions.

On failure of the ledger a verb raises LedgerError and nothing has changed here:
what was picked goes back to its place.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from appliance.clock import SECOND, Clock
from appliance.config.settings import Destination
from appliance.forward.deferrals import Deferrals, Deferred
from appliance.forward.further import Further
from appliance.forward.pace import Allowance, Pace
from appliance.forward.troubles import KNOWN_FAULTS, Trouble, Troubles
from appliance.forward.work import Batch, Condition, Offer, Pause, Probe, Result
from appliance.model import DeliveryState, Fault, Priority, number_text
from appliance.policy import canary, decide_after
from appliance.schedule import BREAKER_FAULTS, Backoff, Breaker, Gate, Place, Queue, fail_over
from appliance.spool.ledger import Ledger
from appliance.spool.rows import Decision, Deferral, Parking, Queued
from appliance.telemetry.log import Log

PAGE = 1024
"""Deliveries loaded in one query."""

PAGES_AT_ONCE = 4
"""Pages loaded before something is sent again: a long queue does not delay its own beginning."""

PACED_SECONDS = 10
"""Under a rate limit at most so many seconds' worth of objects are claimed at once."""

STREAK = 8
"""So many different objects refused in a row, with nothing stored in between, count as one fault of the destination."""

RECENT = 600 * SECOND
"""An object that fails alone: what was stored this long before its first fault, and so many tries for this long, park it."""

FAIL_OVER_BATCH = 256
"""Objects handed to the fail-over destination in one transaction."""

LONG_PAUSE = 3600.0
"""Seconds; a lane with nothing to wait for is woken by news."""

BACKOFF = Backoff()
STREAK_BACKOFF = Backoff(cap=60 * SECOND)

log = Log("forward")


class Desk:
    """One destination. Any thread may call."""

    def __init__(self, destination: Destination, ledger: Ledger, clock: Clock, total: Pace, random: Callable[[], float],
                 minute: Callable[[], int | None]) -> None:
        self.id = destination.id
        self._ledger = ledger
        self._clock = clock
        self._random = random
        self._lock = threading.Lock()
        self._events: list[threading.Event] = []
        self._queue = Queue()
        self._deferred = Deferrals()
        self._after = 0
        self._more = True
        self._breaker = Breaker()
        self._fault: Fault | None = None
        self._text = ""
        self.stored_at = -RECENT - 1
        self._refused: set[int] = set()      # different objects since the last one that was stored
        self._short: set[int] = set()        # the same, of those that were answered "out of resources"
        self._spared: set[int] = set()       # of those in hand: deferred alone, the destination goes on
        self._troubles = Troubles()
        self._claimed = 0
        self._allowance = Allowance(destination, total, minute, clock.boot_ns(), LONG_PAUSE)
        self._further = Further()
        self.destination = destination

    # --- settings ---------------------------------------------------------------------------------------------------------

    def configure(self, destination: Destination) -> None:
        """New settings: they count from the next pick on, and what was put off is tried at once."""
        with self._lock:
            self.destination = destination
            self._allowance.change(destination, self._clock.boot_ns())
            self._breaker = self._breaker.retry_now()
        self.wake()

    def join(self, event: threading.Event) -> None:
        """A lane that wants to be woken."""
        with self._lock:
            self._events.append(event)

    def leave(self, event: threading.Event) -> None:
        with self._lock:
            self._events.remove(event)
        self.wake()

    def wake(self) -> None:
        """Let every lane look again."""
        with self._lock:
            events = list(self._events)
        for event in events:
            event.set()

    def news(self) -> None:
        """The ledger has changed: there may be more to send."""
        with self._lock:
            self._more = True
        self.wake()

    # --- what waits -------------------------------------------------------------------------------------------------------

    def waiting(self) -> int:
        """Objects known to wait here, deferred ones included; not those that lanes have claimed."""
        with self._lock:
            return self._waiting()

    def _waiting(self) -> int:
        return len(self._queue) + len(self._deferred)

    def _load(self) -> None:
        """Take up what is new in the ledger's queue, some pages at a time."""
        for _ in range(PAGES_AT_ONCE):
            if not self._more:
                return
            rows = self._ledger.load(self.id, self._after, PAGE)
            now = self._clock.boot_ns()
            for row in rows:
                if row.until > now:
                    self._deferred.put(row, row.until, hard=row.faults > 0)
                else:
                    self._queue.add(row.number, row.priority, row.study, row.seq)
                self._after = row.seq
            self._more = len(rows) == PAGE

    def _take_up(self, due: Iterable[Deferred]) -> None:
        for one in due:
            self._queue.add(one.number, one.priority, one.study, one.seq)

    def recount(self) -> None:
        """Compare with the ledger's own count, and read the whole queue anew where something was missed."""
        with self._lock:
            if self._claimed or self._more or len(self._queue):
                return
            owed = self._ledger.counts().queue(self.id, DeliveryState.WAITING, DeliveryState.DEFERRED).count
            if owed <= self._waiting():
                return
            log.warning("objects were missed by their destination's queue; reading it anew", destination=self.id, owed=owed)
            self._deferred.clear()
            self._after, self._more = 0, True
        self.wake()

    # --- offers -----------------------------------------------------------------------------------------------------------

    def next(self, lane: str = "", *, above: Priority | None = None, probed: bool = False,
             claiming: Callable[[Sequence[int]], None] = lambda numbers: None) -> Offer:
        """What a lane does now. Claims what it hands out. LedgerError.

        `above`: only classes more urgent than that one, for a lane that has
        objects in hand. `probed`: this lane has just found the destination there.
        `claiming` is told the numbers before they are claimed.
        """
        with self._lock:
            now = self._clock.boot_ns()
            if above is None:
                self._further.asks(lane)
            gate = Gate.OPEN if probed else self._breaker.gate(now)
            if gate is Gate.SHUT or (gate is Gate.PROBE and above is not None):
                # What waits is not even read: a destination that is down would cost the others as much as one that works.
                return Pause(self._seconds_to(self._breaker.until, now))
            if self._more:
                self._load()
            self._take_up(self._deferred.due(now))
            if gate is Gate.PROBE:
                self._breaker = self._breaker.probe()
                return Probe()
            classes, pause = self._allowed(now)
            if above is not None:
                classes = [priority for priority in classes if priority < above]
            elif self._queue.highest(classes) is None:
                self._take_up(self._deferred.early(classes))
            objects = self._pick(classes, 1 if probed else self._share(lane, now), claiming)
            if objects:
                self._further.took(lane)
            else:
                pause = 0.0 if self._more else min(pause, self._next_due(now))
            more = self._further.wanted(now, len(self._queue))
        if objects and more:
            self.wake()
        return Batch(objects) if objects else Pause(pause)

    def _seconds_to(self, until: int, now: int) -> float:
        return LONG_PAUSE if until <= now else (until - now) / SECOND

    def _next_due(self, now: int) -> float:
        due = self._deferred.next_due()
        return LONG_PAUSE if due is None else max(due - now, 0) / SECOND

    def _share(self, lane: str, now: int) -> int:
        """A window, or less where the lanes would otherwise take the work from one another."""
        return min(self.destination.window, self._further.share(lane, now, len(self._queue)))

    def _allowed(self, now: int) -> tuple[list[Priority], float]:
        """The classes that may be sent now, and the seconds until that may change."""
        return self._allowance.classes(now)

    def _pick(self, classes: Sequence[Priority], limit: int, claiming: Callable[[Sequence[int]], None]) -> tuple[Queued, ...]:
        rate = self._allowance.rate
        most = rate * PACED_SECONDS if rate else None
        rows: list[Queued] = []
        length = 0
        try:
            while len(rows) < limit and (most is None or length <= most):
                place = self._queue.pick(classes)
                if place is None:
                    break
                row = self._row(place)
                if row is not None:
                    rows.append(row)
                    length += row.length
            numbers = [row.number for row in rows]
            claiming(numbers)
            claimed = set(self._ledger.claim(self.id, numbers))
        except BaseException:
            for row in rows:
                self._queue.add(row.number, row.priority, row.study, row.seq)
            raise
        self._claimed += len(claimed)
        return tuple(row for row in rows if row.number in claimed)

    def _row(self, place: Place) -> Queued | None:
        """The delivery at a place; None where it does not wait there any more: wherever else it waits, it has a new place."""
        try:
            found = self._ledger.load(self.id, place.seq - 1, 1)
        except BaseException:
            self._queue.add(place.number, place.priority, "", place.seq)
            raise
        return found[0] if found and found[0].seq == place.seq and found[0].number == place.number else None

    # --- between two objects ----------------------------------------------------------------------------------------------

    def interrupt(self, remaining: Sequence[Queued]) -> bool:
        """Whether a lane with these objects in hand stops at the instance boundary: to wait, or to let more urgent ones go."""
        if not remaining:
            return False
        with self._lock:
            if self._more:
                self._load()
            now = self._clock.boot_ns()
            classes, _ = self._allowed(now)
            if remaining[0].priority not in classes:
                return True
            highest = self._queue.highest(classes)
            return highest is not None and highest < min(row.priority for row in remaining)

    def hold_up(self, row: Queued) -> float:
        """Seconds until this object may go, as the breaker, windows of the day and rates stand; 0: now."""
        with self._lock:
            now = self._clock.boot_ns()
            if self._breaker.gate(now) is not Gate.OPEN:
                return LONG_PAUSE
            classes, pause = self._allowed(now)
            return 0.0 if row.priority in classes else pause

    # --- what became of it ------------------------------------------------------------------------------------------------

    def stored(self, row: Queued, lane: str = "") -> None:
        """An object is there (in memory; `settle` makes it durable): the gate opens for all lanes."""
        with self._lock:
            now = self._clock.boot_ns()
            self.stored_at = now
            self._refused.clear()
            self._short.clear()
            self._allowance.spend(now, row.length, row.priority)
            self._troubles.pop(row.number, None)
            opened = self._up()
            works = self._further.works(lane)
        if opened or works:
            self.wake()

    def ended(self, lane: str) -> None:
        """That lane has no association any more."""
        with self._lock:
            self._further.ended(lane)

    def crowded(self, lane: str, text: str) -> bool:
        """An association of that lane could not be had, or broke before it took anything: whether it was just one too many."""
        with self._lock:
            one_too_many = self._further.refused(lane, self._clock.boot_ns())
        if one_too_many:
            log.info("takes no further association", destination=self.id, why=text)
        return one_too_many

    def _up(self) -> bool:
        was, self._breaker = self._breaker, self._breaker.after_success()
        if was.faults:
            log.info("destination works again", destination=self.id, faults=was.faults)
        self._fault, self._text = None, ""
        return was is not self._breaker

    def refused(self, row: Queued, text: str) -> bool:
        """An object failed by its own fault. True where nothing else gets through either, and the lane should let go."""
        with self._lock:
            now = self._clock.boot_ns()
            self._troubles.setdefault(row.number, Trouble(now))
            another = row.number not in self._refused and len(self._refused) < KNOWN_FAULTS
            if another:
                self._refused.add(row.number)
            count = len(self._refused)
            stop = (another and count % STREAK == 0) or (count >= STREAK and self._breaker.probing)
            # Before a streak is full, any answer about an object means that the destination is not down.
            opened = not stop and count < STREAK and self._up()
            tripped = self._breaker.tripped
            if stop:
                self._breaker = self._breaker.after_fault(now, self._random(), STREAK_BACKOFF)
                self._fault, self._text = Fault.DESTINATION, f"{count} objects in a row were refused, the last: {text}"
        if stop and not tripped:
            log.warning("nothing gets through", destination=self.id, objects=count, why=text)
        if opened:
            self.wake()
        return stop

    def short(self, row: Queued, fault: Fault, text: str) -> bool:
        """The destination took no blame off itself for this object (A7xx). True where the lane should let go.

        An archive that is full says so to every object; one that says so to some
        and stores others (Orthanc does, of what it cannot read) is not down, and
        those some must not hold up the rest: they are deferred for longer and longer, each alone.
        """
        with self._lock:
            now = self._clock.boot_ns()
            self._short.add(row.number)
            works = not self._breaker.faults and now - self.stored_at <= RECENT
            if works and len(self._short) < BREAKER_FAULTS:
                self._spared.add(row.number)
                return False
        self.failed(fault, text)
        return True

    def failed(self, fault: Fault, text: str) -> None:
        """The destination did not take anything: back off."""
        with self._lock:
            now = self._clock.boot_ns()
            before, new = self._breaker, fault is not self._fault
            self._breaker = before.after_fault(now, self._random(), BACKOFF)
            self._fault, self._text = fault, text
            tripped = self._breaker.tripped and not before.tripped
            faults = self._breaker.faults
        if new or tripped:
            say = log.error if fault is Fault.CONFIGURATION else log.warning
            say("destination is down" if tripped else "attempt failed", destination=self.id, faults=faults, why=text)

    def there(self) -> None:
        """A probe succeeded and there is nothing to send: it works, unless it refused everything so far."""
        with self._lock:
            opened = False
            if len(self._refused) < STREAK:
                opened = self._up()
            else:
                later = self._clock.boot_ns() + STREAK_BACKOFF.delay(self._breaker.faults, self._random())
                self._breaker = replace(self._breaker, probing=False, until=later)
        if opened:
            self.wake()

    def unproved(self) -> None:
        """A probe ended without a verdict."""
        with self._lock:
            self._breaker = self._breaker.after_nothing()
        self.wake()

    def settle(self, results: Sequence[Result], rest: Sequence[Queued], reason: str = "") -> None:
        """Make what became of these claimed objects durable, and give `rest` back untouched. LedgerError: call again."""
        with self._lock:
            now = self._clock.boot_ns()
            decisions: dict[int, Decision] = {}
            troubles: dict[int, Trouble] = {}
            back: list[tuple[Queued, int, bool]] = [(row, 0, False) for row in rest]
            for result in results:
                row, fault = result.queued, result.outcome.fault
                if fault is None:
                    continue
                if not result.touched:
                    decisions[row.number] = Deferral(0, result.outcome.text)
                    back.append((row, 0, False))
                    continue
                trouble = self._troubles.get(row.number) or Trouble(now)
                decision, trouble = self._decide(result, trouble, now)
                decisions[row.number] = decision
                if isinstance(decision, Deferral):
                    troubles[row.number] = trouble
                    back.append((row, decision.until, fault is Fault.OBJECT or row.number in self._spared))
            self._ledger.outcomes(self.id, [result.outcome for result in results], decisions)
            self._ledger.unclaim(self.id, [row.number for row in rest], reason)
            self._claimed -= len(results) + len(rest)
            for result in results:
                self._troubles.pop(result.queued.number, None)
                self._spared.discard(result.queued.number)
            self._troubles.add(troubles)
            for row, until, hard in back:
                if until > now:
                    self._deferred.put(row, until, hard=hard)
                else:
                    self._queue.add(row.number, row.priority, row.study, row.seq)
        if back:
            self.wake()

    def _decide(self, result: Result, trouble: Trouble, now: int) -> tuple[Decision, Trouble]:
        row, outcome = result.queued, result.outcome
        if outcome.fault is not Fault.OBJECT:
            # What broke may have been this object's doing: others go first, for longer and longer; it is never given up.
            until = max(now, self._breaker.until) + BACKOFF.ceiling(trouble.broke + 1)
            return Deferral(until, outcome.text), Trouble(trouble.since, trouble.broke + 1)
        faults = row.faults + 1
        step = decide_after(outcome, faults, self._others_succeed(trouble, now), row.crashes)
        if step.state is DeliveryState.PARKED:
            log.error("object is parked", destination=self.id, number=number_text(row.number), why=step.reason)
            return Parking(step.reason), trouble
        return Deferral(now + BACKOFF.delay(faults, self._random()), step.reason), trouble

    def _others_succeed(self, trouble: Trouble, now: int) -> bool:
        """Whether this destination stores other objects meanwhile, so that the fault is the object's.

        Where it fails alone, with nothing else to send, what was stored shortly
        before speaks against it, once it was tried for a while.
        """
        if self.stored_at >= trouble.since:
            return True
        alone = len(self._refused) < STREAK and self.stored_at >= trouble.since - RECENT
        return alone and now - trouble.since >= RECENT

    def damaged(self, row: Queued, reason: str) -> None:
        """The object is not what was acknowledged: it is quarantined, and a twin steps in for it (I5)."""
        with self._lock:
            self._ledger.quarantine(row.number, reason)
            self._claimed -= 1
            self._more = True
        log.error("object is damaged", number=number_text(row.number), why=reason)

    # --- fail-over and condition --------------------------------------------------------------------------------------------

    def breaker(self) -> Breaker:
        with self._lock:
            return self._breaker

    def condition(self) -> Condition:
        """How the destination fares, for status and alarms."""
        with self._lock:
            if not self._breaker.faults:
                return Condition(self.id)
            state = "down" if self._breaker.tripped else "retrying"
            return Condition(self.id, state, self._fault, self._text, self._breaker.since)

    def fail_over(self, other: Desk | None) -> int:
        """Send what waits here to the fail-over destination, where its time has come. Returns how many objects went."""
        after = int(self.destination.failover_seconds * SECOND)
        other_breaker = None if other is None else other.breaker()
        moved = 0
        while other is not None:
            with self._lock:
                if not fail_over(self._breaker, self._clock.boot_ns(), after, other_breaker):
                    break
                if self._more:
                    self._load()
                self._take_up(self._deferred.soft())
                rows = self._still_waiting(FAIL_OVER_BATCH)
                if not rows:
                    break
                try:
                    # Not what a person holds just now: it stays where it is, and waits.
                    self._ledger.requeue([row.number for row in rows], "fail-over", to=other.id, source=self.id,
                                         states=(str(DeliveryState.WAITING), str(DeliveryState.DEFERRED)))
                except BaseException:
                    for row in rows:
                        self._queue.add(row.number, row.priority, row.study, row.seq)
                    raise
            moved += len(rows)
        if moved and other is not None:
            log.warning("fail-over", destination=self.id, to=other.id, objects=moved)
            other.news()
        return moved

    def _still_waiting(self, limit: int) -> list[Queued]:
        rows: list[Queued] = []
        canaries: list[Queued] = []              # they are for this destination alone
        while len(rows) < limit and (place := self._queue.pick()) is not None:
            if (row := self._row(place)) is not None:
                (canaries if canary.is_canary(row.source) else rows).append(row)
        for row in canaries:
            self._queue.add(row.number, row.priority, row.study, row.seq)
        return rows
