"""Destinations that exist only in a test, and lanes that are driven step by step on a manual clock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from appliance.clock import ManualClock
from appliance.config.settings import Destination
from appliance.errors import DcmgateError, DeliveryError
from appliance.forward.desk import Desk
from appliance.forward.lane import Lane
from appliance.forward.pace import Pace
from appliance.forward.transport import Emit
from appliance.model import Fault, Outcome, Priority
from appliance.policy import Finding
from appliance.spool.rows import Queued, Routing
from tests.support.ledgers import Bench, custody

Answer = Outcome | DcmgateError | None
"""What a site says to one object: an outcome, an error that breaks the association, None for "stored"."""


def fault(kind: Fault, text: str = "no", status: int | None = None) -> Callable[[Queued], Answer]:
    """Says the same of every object."""
    return lambda row: Outcome(row.number, kind, status, text)


@dataclass
class Site:
    """A destination. `answer` judges each object, `down` fails everything, `before` runs before each object is taken."""

    answer: Callable[[Queued], Answer] = lambda row: None
    down: DeliveryError | None = None
    before: Callable[[Queued], None] = lambda row: None
    stored: list[int] = field(default_factory=list)
    tried: list[int] = field(default_factory=list)
    echoes: int = 0
    connects: int = 0
    closes: int = 0
    times: list[int] = field(default_factory=list)
    blocked: threading.Event | None = None
    inside: threading.Event = field(default_factory=threading.Event)
    clock: ManualClock | None = None

    def break_down(self, kind: Fault = Fault.DESTINATION, text: str = "connection refused") -> None:
        self.down = DeliveryError(text, fault=str(kind))

    def touch(self) -> None:
        self.connects += 1
        if self.clock is not None:
            self.times.append(self.clock.boot_ns())
        if self.down is not None:
            raise self.down


class FakeTransport:
    """Keeps the promises of `transport.Transport` for a `Site`."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.aborted = threading.Event()
        self.moves: int | None = 0

    def send(self, batch: Sequence[Queued], emit: Emit) -> None:
        site = self.site
        site.touch()
        for row in batch:
            site.before(row)
            site.tried.append(row.number)
            if site.blocked is not None:
                site.inside.set()
                while not site.blocked.wait(0.02):
                    if self.aborted.is_set():
                        raise DeliveryError("aborted by us", fault="destination")
            answer = site.answer(row)
            if isinstance(answer, DeliveryError):
                emit(Outcome(row.number, Fault(answer.fault), answer.status, answer.message))
                raise answer
            if isinstance(answer, DcmgateError):
                raise answer
            if answer is None:
                site.stored.append(row.number)
                answer = Outcome(row.number, None, 0)
            if emit(answer):
                return

    def probe(self) -> Finding:
        self.site.echoes += 1
        try:
            self.site.touch()
        except DeliveryError as error:
            return Finding(Fault(error.fault), error.message)
        return Finding(None)

    def close(self) -> None:
        self.site.closes += 1

    def abort(self) -> None:
        self.aborted.set()


class Yard(Bench):
    """A ledger with desks and lanes, without threads. `random` is 1.0 unless set: every back-off is as long as it gets."""

    def __init__(self, folder: Path, clock: ManualClock | None = None) -> None:
        self.manual = clock or ManualClock()
        super().__init__(folder, self.manual)
        self.random = 1.0
        self.minute: int | None = 720
        self.of_day: Callable[[], int | None] = lambda: self.minute
        self.total = Pace(0, self.manual.boot_ns())
        self.sites: dict[str, Site] = {}
        self.desks: dict[str, Desk] = {}

    def desk(self, destination: str | Destination = "pacs") -> Desk:
        entry = Destination(id=destination) if isinstance(destination, str) else destination
        self.sites.setdefault(entry.id, Site(clock=self.manual))
        self.desks[entry.id] = Desk(entry, self.ledger, self.manual, self.total, lambda: self.random, lambda: self.of_day())
        return self.desks[entry.id]

    def lane(self, destination: str | Destination = "pacs") -> Lane:
        """A lane at the desk of that destination, which is made if there is none."""
        id = destination if isinstance(destination, str) else destination.id
        desk = self.desks.get(id) or self.desk(destination)
        lane = Lane(desk, lambda: FakeTransport(self.sites[id]), self.manual, f"lane {id} {len(desk._events)}")
        desk.join(lane.event)
        return lane

    def put(self, count: int = 1, *destinations: str, priority: Priority = Priority.ROUTINE, study: str = "s",
            length: int = 1000, hold: bool = False) -> list[int]:
        """Accepted and routed objects, in two transactions; desks are told."""
        first = self.ledger.grant(self.owner, count)
        numbers = list(range(first, first + count))
        self.ledger.accepted([custody(self.ledger, number, length=length) for number in numbers])
        to = destinations or ("pacs",)
        self.ledger.route([Routing(number, 1, (), to, priority, hold, study) for number in numbers],
                          [desk.destination for desk in self.desks.values()])
        self.tell()
        return numbers

    def tell(self) -> None:
        for desk in self.desks.values():
            desk.news()

    def turn(self, lane: Lane, steps: int = 1000) -> float:
        """Steps until the lane would wait; for how long, in seconds."""
        for _ in range(steps):
            pause = lane.guarded_step()
            assert pause is not None
            if pause > 0:
                return pause
        raise AssertionError("the lane never comes to rest")

    def live(self, lane: Lane, seconds: float) -> int:
        """Let that much time pass, the lane doing its work whenever it is due; the number of times it looked."""
        end = self.manual.boot_ns() + int(seconds * 1e9)
        looks = 0
        while True:
            pause = self.turn(lane)
            looks += 1
            left = (end - self.manual.boot_ns()) / 1e9
            if left <= 0:
                return looks
            # A nanosecond more, for what was lost between nanoseconds and seconds.
            self.manual.advance(min(pause, left) + 1e-9)

    def count_writes(self) -> list[int]:
        """From now on one entry for each transaction of the ledger."""
        writes: list[int] = []
        attempt = self.ledger._attempt

        def counted(work: Callable[..., object]) -> object:
            writes.append(1)
            return attempt(work)
        self.ledger._attempt = counted  # type: ignore[method-assign,assignment]
        return writes
