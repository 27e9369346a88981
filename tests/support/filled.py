"""A spool filled by hand, without an intake: files and rows as the receivers leave them."""

from __future__ import annotations

from pathlib import Path

from blake3 import blake3

from appliance.clock import Clock, ManualClock
from appliance.config.settings import Destination
from appliance.dicom.part10 import build_head
from appliance.model import Custody, Outcome, Priority
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from appliance.spool.rows import Confirmation, Routing
from tests.support.ledgers import SOURCE


class Filled:
    """A spool, its ledger and an owner. Objects are small and their content follows from their number."""

    def __init__(self, folder: Path, clock: Clock | None = None, size: int = 0) -> None:
        self.clock = clock or ManualClock()
        self.spool = Spool.init(folder / "spool", size=size, clock=self.clock)
        self.ledger = Ledger.open(self.spool.ledger_path, self.clock)
        self.owner = self.ledger.register_owner("receiver")

    def close(self) -> None:
        self.ledger.close()

    def accept(self, count: int = 1, *, length: int = 1000, uid: str = "", content: bytes = b"") -> list[int]:
        """Objects with their files, accepted."""
        first = self.ledger.grant(self.owner, count)
        custodies = []
        for number in range(first, first + count):
            data = content or f"{number:08d}".encode() * (length // 8)
            custody = Custody(number, self.ledger.boot, self.clock.boot_ns(), self.clock.wall_ns(),
                              b"1.2.840.10008.5.1.4.1.1.2", (uid or f"1.2.3.{number}").encode(), "1.2.840.10008.1.2.1",
                              len(data), blake3(data).digest(), SOURCE)
            self.spool.object_path(number).write_bytes(build_head(custody) + data)
            custodies.append(custody)
        self.ledger.accepted(custodies)
        return list(range(first, first + count))

    def route(self, *destinations: str | Destination, hold: bool = False) -> None:
        entries = [d if isinstance(d, Destination) else Destination(id=d) for d in destinations or ("pacs",)]
        while rows := self.ledger.unrouted():
            self.ledger.route([Routing(row.number, 1, (), tuple(d.id for d in entries), Priority.ROUTINE, hold)
                               for row in rows], entries)

    def send(self, destination: str = "pacs") -> list[int]:
        """Everything that waits is sent."""
        sent: list[int] = []
        while queued := self.ledger.load(destination):
            numbers = self.ledger.claim(destination, [q.number for q in queued])
            self.ledger.outcomes(destination, [Outcome(n, None, 0) for n in numbers])
            sent += numbers
        return sent

    def confirm(self, destination: str = "pacs") -> None:
        while sent := self.ledger.to_confirm(destination):
            self.ledger.confirm([Confirmation(s.number, destination, "test") for s in sent])

    def complete(self, count: int = 1, **how: int) -> list[int]:
        """Objects that may be retired by age."""
        numbers = self.accept(count, **how)  # type: ignore[arg-type]
        self.route()
        self.send()
        self.confirm()
        return numbers

    def there(self, number: int) -> bool:
        return self.spool.object_path(number).exists()

    def state(self, number: int) -> str:
        found = self.ledger.object(number)
        assert found is not None
        return str(found.state)
