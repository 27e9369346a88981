"""The ledger: custody as appended events, and what follows from them.

Owns `ledger.sqlite`; nothing else opens it. The verbs are grouped by who uses
them: receivers (custody.py), router and forwarder (delivering.py), the keeper
(keeping.py), persons (persons.py); questions are in queries.py.

    ledger = Ledger.open(spool.path / "ledger.sqlite", clock)

On failure see core.py. A ledger that is lost is made again from the objects by
`rebuild`: that costs re-sends, never an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from appliance.clock import Clock
from appliance.errors import LedgerError
from appliance.model import Custody
from appliance.spool import events
from appliance.spool.core import Transaction, replay
from appliance.spool.custody import CustodyVerbs, grant_from, ranges
from appliance.spool.delivering import DeliveringVerbs
from appliance.spool.keeping import KeepingVerbs
from appliance.spool.persons import PersonVerbs
from appliance.spool.queries import Questions

REBUILD_BATCH = 4096


class Ledger(CustodyVerbs, DeliveringVerbs, KeepingVerbs, PersonVerbs, Questions):
    """One instance for each process, or thread; threads may share one, which then take turns."""

    def replay(self) -> None:
        """Make every derived table anew from the events."""
        self._write(lambda _: replay(self._db, self._db))


def rebuild(path: Path, clock: Clock, heads: Iterable[Custody], others: Iterable[int] = ()) -> Ledger:
    """A new ledger at `path` from the custody records of all objects: each is accepted again, and waits.

    `others` are numbers of files without a valid head: they are granted and stay
    open, so that the next start-up looks at them. A ledger that is still there must
    have been moved away. Boot ordinals go on above the largest in the records.
    """
    path = Path(path)
    if path.exists():
        raise LedgerError(f"{path} is still there", mend="Move it away: it is evidence.")
    ledger = Ledger._open(path, _Rebuilding(clock), create=True, read_only=False, checkpointer=False)
    owner = ledger.register_owner("rebuild")
    highest = ledger.boot
    remaining = iter(heads)
    while batch := list(islice(remaining, REBUILD_BATCH)):
        highest = max(highest, *(custody.boot for custody in batch))
        ledger._write(partial(_accept_again, batch, owner))
    ledger._write(partial(_grant_missing, sorted(set(others)), owner))
    ledger._write(partial(_begin_boot, highest + 1, clock.boot_id()))
    ledger.clock, ledger.boot = clock, highest + 1
    return ledger


class _Rebuilding:
    """The clock of a rebuild: a boot of its own, so that the real one can be numbered when all records were seen."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.boot_ns, self.wall_ns, self.trusted, self.wait = clock.boot_ns, clock.wall_ns, clock.trusted, clock.wait

    def boot_id(self) -> str:
        return f"rebuild before {self._clock.boot_id()}"


def _accept_again(batch: Sequence[Custody], owner: int, t: Transaction) -> None:
    _grant_missing([custody.number for custody in batch], owner, t)
    for custody in sorted(batch, key=lambda c: c.number):
        if t.row("SELECT 1 FROM open_numbers WHERE number = ?", (custody.number,)) is not None:
            t.event("accepted", custody.number, "", events.custody_body(custody))


def _grant_missing(numbers: Iterable[int], owner: int, t: Transaction) -> None:
    missing = []
    for number in numbers:
        last = t.row("SELECT first + count FROM grants WHERE first <= ? ORDER BY first DESC LIMIT 1", (number,))
        if last is None or last[0] <= number:
            missing.append(number)
    for first, count in ranges(missing):
        grant_from(t, first, count, owner)


def _begin_boot(ordinal: int, boot_id: str, t: Transaction) -> None:
    t.boot = ordinal
    t.append("boot", boot_id=boot_id, before=0)
