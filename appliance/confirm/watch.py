"""Watches: what one destination has to prove, when it is looked at, and what follows."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Protocol

from appliance.clock import SECOND, Clock
from appliance.config.settings import Destination
from appliance.confirm.proof import PAUSES, Evidence, Proof, Unavailable, Verdict, pause
from appliance.model import Alarm, Severity, number_text
from appliance.policy.canary import is_canary
from appliance.schedule import Backoff
from appliance.spool.ledger import Ledger
from appliance.spool.rows import Confirmation, Sent
from appliance.telemetry.log import Log

BATCH = 256
MOST_PENDING = 50_000
"""Objects of one destination that are kept in mind at once; more wait in the ledger."""

UNKNOWN_SECONDS = 3600
"""An object that the proof cannot speak of is asked for again after this."""

_DAY = 86400 * SECOND

log = Log("confirm")


class Watch(Protocol):
    """For one thread, but for `alarms`."""

    def step(self) -> int:
        """Look at what is due, a bounded part; how many deliveries changed. LedgerError."""

    def wait(self) -> float:
        """Seconds until something known is due; 0: there is more to do now."""

    def alarms(self) -> list[Alarm]: ...

    def close(self) -> None: ...


class ByTime:
    """Proof `status`: what was sent so many powered-on days ago counts as confirmed."""

    def __init__(self, destination: Destination, ledger: Ledger, clock: Clock) -> None:
        self._destination = destination
        self._ledger = ledger
        self._age = int(destination.status_days * _DAY)
        self._more = False
        self._seen = (-1, 0)

    def step(self) -> int:
        canaries = self._canaries() if self._destination.canary_minutes > 0 else 0
        due = self._ledger.to_confirm(self._destination.id, BATCH, until=self._ledger.powered_on() - self._age)
        self._more = len(due) == BATCH
        text = f"status: stored {self._destination.status_days:g} days ago, and not heard otherwise"
        return canaries + self._ledger.confirm([Confirmation(each.number, self._destination.id, text) for each in due])

    def _canaries(self) -> int:
        """A test object has done all it is for when it was stored."""
        if self._seen < (0, 0):
            self._seen = (self._ledger.powered_on() - _DAY, 0)
        found: list[Confirmation] = []
        while rows := self._ledger.to_confirm(self._destination.id, BATCH, after=self._seen):
            self._seen = (rows[-1].sent_on, rows[-1].number)
            found += [Confirmation(row.number, self._destination.id, "status: a canary, stored")
                      for row in rows if is_canary(row.source)]
        return self._ledger.confirm(found)

    def wait(self) -> float:
        if self._more:
            return 0.0
        first = self._ledger.to_confirm(self._destination.id, 1)
        return max(0.0, (first[0].sent_on + self._age - self._ledger.powered_on()) / SECOND) if first else float("inf")

    def alarms(self) -> list[Alarm]:
        return []

    def close(self) -> None:
        """Nothing is open."""


@dataclass(slots=True)
class _Pending:
    sent: Sent
    tries: int = 0
    cycles: int = -1
    """How often it was sent again in vain before; -1: not asked for yet."""


class ByEvidence:
    """Proof `readback`: an object is confirmed when it was found, and sent again when it was missed often enough."""

    def __init__(self, destination: Destination, ledger: Ledger, clock: Clock, proof: Proof, random: Random) -> None:
        self._destination = destination
        self._ledger = ledger
        self._clock = clock
        self._proof = proof
        self._random = random
        self._pending: dict[int, _Pending] = {}
        self._due: list[tuple[int, int]] = []        # (powered-on ns, number)
        self._after = (-1, 0)
        self._more = True
        self._backoff = Backoff()
        self._failures = 0
        self._not_before = 0                         # boot ns: the destination cannot be asked before
        self._trouble = ""
        self._missed: set[int] = set()

    def close(self) -> None:
        self._proof.close()

    def step(self) -> int:
        now = self._clock.boot_ns()
        self._load()
        if now < self._not_before:
            return 0
        on = self._ledger.powered_on()
        batch: dict[int, _Pending] = {}
        while self._due and self._due[0][0] <= on and len(batch) < BATCH:
            number = heapq.heappop(self._due)[1]
            if number in self._pending:
                batch[number] = self._pending[number]
        if not batch:
            if not self._due or self._due[0][0] > on + 60 * SECOND:
                self._proof.close()                  # a child that has nothing to do for a while
            return 0
        try:
            found = {e.number: e for e in self._proof.look([p.sent for p in batch.values()])}
            changed = self._settle(batch, found, on)
        except Unavailable as error:
            self._later(batch, on)
            self._failed(str(error), now)
            return 0
        except BaseException:
            self._later(batch, on)                   # nothing became durable for sure: they are looked for again
            raise
        if self._failures:
            log.info("the destination can be asked again", destination=self._destination.id)
        unknown = [e.text for e in found.values() if e.verdict is Verdict.UNKNOWN]
        self._failures, self._trouble = 0, unknown[0] if len(unknown) == len(batch) else ""
        return changed

    def _later(self, numbers: Iterable[int], due: int) -> None:
        for number in numbers:
            heapq.heappush(self._due, (due, number))

    def wait(self) -> float:
        blocked = max(0.0, (self._not_before - self._clock.boot_ns()) / SECOND)
        if self._more and len(self._pending) < MOST_PENDING:
            return blocked
        first = (self._due[0][0] - self._ledger.powered_on()) / SECOND if self._due else float("inf")
        return max(blocked, first, 0.0)

    def alarms(self) -> list[Alarm]:
        found = []
        if missed := len(self._missed):
            found.append(Alarm(
                f"readback-missing:{self._destination.id}", Severity.WARNING,
                f"{self._destination.id} said that it stored {missed} objects, and does not have them",
                "Look into the archive's log; the objects are kept here and are sent again."))
        if self._trouble:
            found.append(Alarm(
                f"readback-unavailable:{self._destination.id}", Severity.WARNING,
                f"{self._destination.id} cannot be asked what it has: {self._trouble}",
                "Allow queries (C-FIND, Study Root) there, or give another `proof`. Nothing is deleted meanwhile."))
        return found

    def _load(self) -> None:
        """Take up what was sent since the last look."""
        while len(self._pending) < MOST_PENDING:
            rows = self._ledger.to_confirm(self._destination.id, BATCH, after=self._after)
            for row in rows:
                self._pending[row.number] = _Pending(row)
                heapq.heappush(self._due, (row.sent_on + (pause(0, 0) or 0), row.number))
                self._after = (row.sent_on, row.number)
            self._more = len(rows) == BATCH
            if not self._more:
                return

    def _failed(self, text: str, now: int) -> None:
        if not self._failures:
            log.warning("the destination cannot be asked what it has", destination=self._destination.id, error=text)
        self._failures += 1
        self._trouble = text
        self._not_before = now + self._backoff.delay(self._failures, self._random.random())

    def _settle(self, batch: dict[int, _Pending], found: dict[int, Evidence], on: int) -> int:
        present: list[Confirmation] = []
        gone: list[tuple[int, str]] = []
        again: list[tuple[int, int]] = []            # (powered-on ns, number)
        missed: list[_Pending] = []
        for number, pending in batch.items():
            evidence = found.get(number) or Evidence(number, Verdict.UNKNOWN, "nothing was said of it")
            if evidence.verdict is Verdict.PRESENT:
                present.append(Confirmation(number, self._destination.id, evidence.text))
            elif evidence.verdict is Verdict.UNKNOWN:
                again.append((on + UNKNOWN_SECONDS * SECOND, number))
            elif (after := self._next_pause(pending)) is None:
                gone.append((number, self._destination.id))
                log.warning("the destination does not have what it said it stored: it is sent again",
                            number=number_text(number), destination=self._destination.id, evidence=evidence.text)
            else:
                again.append((on + after, number))
                missed.append(pending)
        changed = self._ledger.confirm(present)
        changed += self._ledger.unconfirm(gone, f"read-back: missing after {len(PAUSES)} looks")
        # Only what is durable counts: where the ledger failed, all of them are due as before.
        for due, number in again:
            heapq.heappush(self._due, (due, number))
        for pending in missed:
            pending.tries += 1
        for number in [c.number for c in present] + [number for number, _ in gone]:
            del self._pending[number]
        self._missed.difference_update(c.number for c in present)
        self._missed.update(number for number, _ in gone)
        return changed

    def _next_pause(self, pending: _Pending) -> int | None:
        """Nanoseconds until the look after this one; None where this was the last."""
        if pending.cycles < 0:
            pending.cycles = sum(e.kind == "unconfirmed" and e.destination == self._destination.id
                                 for e in self._ledger.history(pending.sent.number))
        return pause(pending.tries + 1, pending.cycles)
