"""Ledgers and custody records for tests."""

from __future__ import annotations

from pathlib import Path

from blake3 import blake3

from appliance.clock import SECOND, Clock, ManualClock
from appliance.config.settings import Destination
from appliance.model import Custody, Outcome, Source
from appliance.spool.ledger import Ledger
from appliance.spool.rows import Confirmation, Routing

SOURCE = Source(listener="main", calling="CT1", called="GATE", raw_calling=b"CT1".ljust(16), raw_called=b"GATE".ljust(16),
                address="10.0.0.5", port=104, peer="ct1")
PACS = Destination(id="pacs")


def custody(ledger: Ledger, number: int, uid: str = "", content: str = "", *, syntax: str = "1.2.840.10008.1.2.1",
            length: int = 1000, source: Source = SOURCE) -> Custody:
    """A custody record of now; `uid` and `content` are made from the number unless given."""
    clock = ledger.clock
    return Custody(number, ledger.boot, clock.boot_ns(), clock.wall_ns(), b"1.2.840.10008.5.1.4.1.1.2",
                   (uid or f"1.2.3.{number}").encode(), syntax, length, blake3((content or f"{number}").encode()).digest(),
                   source)


class Bench:
    """A ledger with one owner, and the short ways of a test."""

    def __init__(self, folder: Path, clock: Clock | None = None) -> None:
        self.path = folder / "ledger.sqlite"
        self.clock = clock or ManualClock()
        self.ledger = Ledger.open(self.path, self.clock)
        self.owner = self.ledger.register_owner("receiver")

    def reopen(self) -> None:
        self.ledger.close()
        self.reopen_closed()

    def reopen_closed(self) -> None:
        self.ledger = Ledger.open(self.path, self.clock)
        self.owner = self.ledger.register_owner("receiver")

    def accept(self, uid: str = "", content: str = "", *, syntax: str = "1.2.840.10008.1.2.1", source: Source = SOURCE,
               length: int = 1000) -> int:
        """One accepted object; its number."""
        number = self.ledger.grant(self.owner, 1)
        self.ledger.accepted([custody(self.ledger, number, uid, content, syntax=syntax, source=source, length=length)])
        return number

    def route(self, number: int, *destinations: str | Destination, hold: bool = False, study: str = "") -> None:
        entries = [d if isinstance(d, Destination) else Destination(id=d) for d in destinations or (PACS,)]
        self.ledger.route([Routing(number, 1, ("r",), tuple(d.id for d in entries), hold=hold, study=study)], entries)

    def take(self, uid: str = "", content: str = "", *destinations: str | Destination, source: Source = SOURCE) -> int:
        """Accepted and routed."""
        number = self.accept(uid, content, source=source)
        self.route(number, *destinations)
        return number

    def send(self, number: int, destination: str = "pacs") -> None:
        assert self.ledger.claim(destination, [number]) == [number]
        self.ledger.outcomes(destination, [Outcome(number, None, 0)])

    def confirm(self, number: int, destination: str = "pacs") -> None:
        assert self.ledger.confirm([Confirmation(number, destination, "test")]) == 1

    def state(self, number: int) -> str:
        found = self.ledger.object(number)
        assert found is not None
        return str(found.state)

    def delivery(self, number: int, destination: str = "pacs") -> str:
        return next(str(d.state) for d in self.ledger.deliveries(number) if d.destination == destination)

    def queue(self, destination: str = "pacs") -> list[int]:
        return [q.number for q in self.ledger.load(destination)]

    def complete(self, number: int) -> bool:
        """Whether its file may be retired by age."""
        now = self.ledger.powered_on()
        return any(r.number == number for r in self.ledger.retirable(now + SECOND, 0, 1000))

    def check(self) -> None:
        """The chain is whole, and the events alone make the same tables."""
        assert self.ledger.verify_chain().whole
        assert self.ledger.differences() == []
