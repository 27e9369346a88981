"""Lanes that die: another takes their place, and what they had claimed is not forgotten until the next start."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.config.settings import Config, Control, Destination, Limits
from appliance.errors import LedgerFault
from appliance.forward import engine, lane
from appliance.forward.engine import Forwarder
from appliance.model import Priority
from appliance.net import kick
from appliance.spool.layout import Spool
from appliance.spool.rows import Queued, Routing
from tests.support.lanes import Answer, FakeTransport, Site
from tests.support.ledgers import Bench, custody
from tests.support.waiting import wait_until


class Quiet:
    """Objects of these tests are routed when they are put in."""

    moved = 1 << 62

    def __init__(self, *_: object) -> None: ...
    def start(self) -> None: ...
    def stop(self, seconds: float) -> None: ...
    def kick(self) -> None: ...


class Works:
    """A forwarder with one destination; `making` is called for each transport that is made."""

    def __init__(self, folder: Path, run: Path) -> None:
        self.spool = Spool.init(folder / "spool", clock=SystemClock())
        self.bench = Bench(self.spool.path, SystemClock())
        self.run, self.site = run, Site()
        self.making: Callable[[], None] = lambda: None
        self.config = Config(control=Control(run=str(run)), destinations=(Destination(id="pacs", associations=1),),
                             generation=1)
        self.forwarder = Forwarder(lambda: self.config, self.spool, SystemClock(), run, transports=self.transport,
                                   random=lambda: 0.0)

    def transport(self, destination: Destination, spool: Spool, limits: Limits) -> FakeTransport:
        self.making()
        return FakeTransport(self.site)

    def put(self, count: int) -> list[int]:
        first = self.bench.ledger.grant(self.bench.owner, count)
        numbers = list(range(first, first + count))
        self.bench.ledger.accepted([custody(self.bench.ledger, number) for number in numbers])
        self.bench.ledger.route([Routing(number, 1, (), ("pacs",), Priority.ROUTINE, False, "s") for number in numbers])
        kick.send(self.run / kick.FORWARDER)
        return numbers

    def states(self, numbers: list[int]) -> set[str]:
        return {self.bench.delivery(n) for n in numbers}


@pytest.fixture
def works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Works]:
    monkeypatch.setattr(engine, "RoutingThread", Quiet)
    run = Path(tempfile.mkdtemp(prefix="dg-"))
    made = Works(tmp_path, run)
    yield made
    made.forwarder.stop(1.0)
    made.bench.ledger.close()
    shutil.rmtree(run)


@pytest.mark.requirement("a dead thread is replaced, and its work is done")
def test_a_lane_that_dies_is_replaced_and_its_window_is_sent(works: Works) -> None:
    """A fault of the program, and no descriptor left for another transport: nobody would have sent anything any more."""
    left = [1]

    def breaks(row: Queued) -> Answer:
        if left:
            left.pop()
            works.making = no_descriptor
            raise ZeroDivisionError("a bug")
        return None

    made: list[int] = []

    def no_descriptor() -> None:
        made.append(1)
        if len(made) < 4:
            raise OSError(errno.EMFILE, "too many open files")

    works.site.answer = breaks
    works.forwarder.start()
    numbers = works.put(6)
    wait_until(lambda: works.states(numbers) == {"sent"}, 30, "sent by another lane")
    assert len(made) == 4


@pytest.mark.requirement("a dead thread is replaced, and its work is done")
def test_a_destination_whose_lanes_cannot_be_made_yet_gets_them_later(works: Works) -> None:
    works.forwarder.start()
    made: list[int] = []

    def no_descriptor() -> None:
        made.append(1)
        if len(made) < 3:
            raise OSError(errno.EMFILE, "too many open files")

    works.making = no_descriptor
    with suppress(OSError):
        works.config = Config(control=works.config.control, destinations=(Destination(id="pacs", port=105),), generation=2)
    works.forwarder.reload()
    wait_until(lambda: len(made) >= 3, 30, "tried again")
    numbers = works.put(3)
    wait_until(lambda: works.states(numbers) == {"sent"}, 30, "sent")


@pytest.mark.requirement("a dead thread is replaced, and its work is done")
def test_what_a_leaving_lane_could_not_give_back_is_given_back_later(works: Works, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger fails just when the configuration changes: the claims must not wait for the next start of the forwarder."""
    monkeypatch.setattr(lane, "LAST_WRITES", 1)
    ledger_down = [True]

    def then_the_ledger_fails(row: Queued) -> None:
        works.site.before = lambda row: None
        ledger = works.forwarder._ledger
        assert ledger is not None
        real = ledger.outcomes

        def broken(*args: object) -> None:
            if ledger_down:
                raise LedgerFault("disk I/O error")
            real(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(ledger, "outcomes", broken)
        works.config = Config(control=works.config.control, destinations=(Destination(id="pacs", port=105),), generation=2)
        works.forwarder.reload()
        wait_until(lambda: not works.forwarder._places["pacs"].lanes or works.forwarder._leavers, 10, "it is to leave")

    works.site.before = then_the_ledger_fails
    works.forwarder.start()
    numbers = works.put(6)
    wait_until(lambda: any(each.owes for each in works.forwarder._leavers), 20, "a lane that ended with claims in hand")
    assert "sending" in works.states(numbers)
    ledger_down.clear()
    wait_until(lambda: works.states(numbers) == {"sent"}, 30, "given back, and sent")
