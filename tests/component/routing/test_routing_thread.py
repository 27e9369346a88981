"""The routing thread: every accepted object gets a durable routing row, whatever it is, and the index follows."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from blake3 import blake3

from appliance.clock import ManualClock
from appliance.config.settings import Config, Destination, Limits, Listener, Rule
from appliance.dicom.part10 import build_head
from appliance.errors import LedgerFault, SandboxError
from appliance.forward import router as routing
from appliance.forward.router import RoutingThread
from appliance.model import Attributes, Custody, DeliveryState, Priority
from appliance.sandbox.parent import Place
from appliance.spool import index as ix
from appliance.spool.index import Index, Query, study_key
from appliance.spool.ledger import Ledger
from tests.support import corpus, spools
from tests.support.waiting import wait_until

CONFIG = Config(
    listeners=(Listener(id="main"),),
    destinations=(Destination(id="pacs", default=True), Destination(id="stroke", required=False), Destination(id="night")),
    rules=(Rule(id="by-tag", match={"StudyDescription": "*stroke*"}, destinations=("stroke",), priority="trauma"),
           Rule(id="by-title", match={"calling": "CT1"}, destinations=("night",))),
    limits=Limits(child_memory=64 << 20, child_seconds=5.0), generation=7)


def data_set(n: int = 1, description: bytes = b"Head") -> bytes:
    study = b"1.2.3.%d" % n
    return corpus.pieces([
        (0x00080005, b"CS", b"ISO_IR 100"), (0x00080020, b"DA", b"20260102"), (0x00080060, b"CS", b"CT"),
        (0x00081030, b"LO", description), (0x00100010, b"PN", b"M\xfcller^J\xf6rg"), (0x00100020, b"LO", b"P-%d" % n),
        (0x0020000D, b"UI", study), (0x0020000E, b"UI", study + b".1"), (0x7FE00010, b"OW", bytes(2000))])


class Box:
    """A spool with its intake, ledger and a routing thread that is not started."""

    def __init__(self, path: Path, config: Config = CONFIG) -> None:
        self.clock = ManualClock()
        self.config = config
        self.spool = spools.fresh(path / "spool")
        self.ledger = Ledger.open(self.spool.ledger_path, self.clock)
        self.told: list[Collection[str]] = []
        self.router = self.new_router()
        self._owner = self.ledger.register_owner("test")

    def new_router(self) -> RoutingThread:
        return RoutingThread(self.spool, self.ledger, self.clock, lambda: self.config, self.told.append)

    def accept(self, data: bytes, address: str = spools.SOURCE.address, syntax: str = spools.EXPLICIT) -> Custody:
        number = self.ledger.grant(self._owner, 1)
        custody = Custody(number, self.ledger.boot, self.clock.boot_ns(), self.clock.wall_ns(), spools.CT_CLASS,
                          b"1.2.3.%d" % number, syntax, len(data), blake3(data).digest(),
                          replace(spools.SOURCE, address=address))
        self.spool.object_path(number).write_bytes(build_head(custody) + data)
        self.ledger.accepted([custody])
        return custody

    def deliveries(self, custody: Custody) -> dict[str, DeliveryState]:
        return {d.destination: d.state for d in self.ledger.deliveries(custody.number)}

    def row(self, custody: Custody):  # type: ignore[no-untyped-def]
        return self.ledger.object(custody.number)

    def drain(self) -> None:
        while self.router.step():
            pass

    def index(self) -> Index:
        return Index.open(self.spool.index_path, read_only=True)

    def close(self) -> None:
        self.router.stop()
        self.ledger.close()


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    yield box
    box.close()


def test_objects_go_where_the_rules_say(box: Box) -> None:
    plain, stroke = box.accept(data_set(1)), box.accept(data_set(2, b"Stroke protocol"))
    assert box.router.step()
    assert box.deliveries(plain) == {"night": DeliveryState.WAITING}
    assert box.deliveries(stroke) == {"stroke": DeliveryState.WAITING, "night": DeliveryState.WAITING}
    row = box.row(stroke)
    assert (row.generation, row.rules, row.priority) == (7, ("by-tag", "by-title"), Priority.TRAUMA)
    assert row.study == study_key("1.2.3.2")
    assert {d.destination: d.required for d in box.ledger.deliveries(stroke.number)} == {"stroke": False, "night": True}
    assert box.told == [frozenset({"night", "stroke"})]
    assert box.ledger.unrouted() == []
    with box.index() as index:
        assert [i.patient_name for i in index.search(Query(patient_id="P-2"))] == ["Müller^Jörg"]


@pytest.mark.requirement("routing: an unreadable object goes by its association and to the defaults, flagged")
@pytest.mark.parametrize("data", [b"garbage, no data set at all", corpus.nested(2000), b""], ids=["garbage", "deep", "empty"])
def test_unreadable_objects(box: Box, data: bytes) -> None:
    good, bad = box.accept(data_set(1, b"Stroke")), box.accept(data)
    box.drain()
    assert set(box.deliveries(bad)) == {"night", "pacs"}
    assert box.row(bad).flags == ("unreadable",)
    assert box.row(bad).study == ""
    assert set(box.deliveries(good)) == {"stroke", "night"}
    with box.index() as index:
        assert index.numbers(0, 1 << 60) == {good.number, bad.number}


def test_a_file_that_is_gone_blocks_nothing(box: Box) -> None:
    gone, good = box.accept(data_set(1)), box.accept(data_set(2))
    box.spool.object_path(gone.number).unlink()
    box.drain()
    assert set(box.deliveries(gone)) == {"night", "pacs"}
    assert set(box.deliveries(good)) == {"night"}


@pytest.mark.requirement("I8")
def test_the_child_may_die_at_any_time(box: Box) -> None:
    first = box.accept(data_set(1))
    box.drain()
    assert box.router._child is not None
    os.kill(box.router._child.pid, signal.SIGKILL)
    second = box.accept(data_set(2, b"Stroke"))
    box.drain()
    assert set(box.deliveries(first)) == {"night"}
    assert set(box.deliveries(second)) == {"stroke", "night"}, "its tags were read by another child"


class Mortal:
    """A child that dies of every object with BOMB in it; `reads` are the sizes of what it was asked for."""

    reads: ClassVar[list[int]] = []
    starts = 1

    def __init__(self, memory: int, seconds: float) -> None:
        """Takes what the real one does."""

    def once(self, batch: list[Place], wanted: frozenset[int]) -> list[Attributes] | None:
        self.reads.append(len(batch))
        bad = [b"BOMB" in os.pread(descriptor, length, offset) for descriptor, offset, length, _ in batch]
        return None if any(bad) else [Attributes({})] * len(batch)

    def tags(self, batch: list[Place], wanted: frozenset[int]) -> list[Attributes]:
        return self.once(batch, wanted) or [Attributes(readable=False)] * len(batch)

    def close(self) -> None:
        """There is no process."""


def test_objects_that_the_child_dies_of_delay_only_their_senders(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "Child", Mortal)
    Mortal.reads.clear()
    bombs = [box.accept(b"BOMB%d" % n, "10.0.0.66") for n in range(20)]
    good = [box.accept(data_set(n), "10.0.0.1") for n in range(200)]
    also = [box.accept(b"BOMB again", "10.0.0.67")]
    for _ in range(5):
        box.router.step()
    assert not any(row.custody.source.address == "10.0.0.1" for row in box.ledger.unrouted(300))
    assert len([row for row in box.ledger.unrouted(300) if row.number in {b.number for b in bombs}]) >= 15
    late = box.accept(data_set(1), "10.0.0.1")
    box.router.step()
    assert box.row(late).routed, "who comes while they have their turns does not wait behind them"
    box.drain()
    assert all("unreadable" in box.row(one).flags for one in bombs + also) and box.ledger.unrouted() == []
    assert not any("unreadable" in box.row(one).flags for one in [*good, late])
    assert not box.router._costly


def test_an_address_that_sends_good_objects_again_is_like_all_others(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "Child", Mortal)
    Mortal.reads.clear()
    box.accept(b"BOMB", "10.0.0.66")
    for n in range(100):
        box.accept(data_set(n), "10.0.0.66")
    box.drain()
    assert box.ledger.unrouted() == []
    assert Mortal.reads[:8] == [64, 1, 1, 2, 4, 8, 16, 32] and not box.router._costly


def test_no_child_to_be_had_costs_two_tries_and_no_more(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoChild:
        def __init__(self, memory: int, seconds: float) -> None: ...
        def close(self) -> None: ...
        def once(self, batch: object, wanted: object) -> object:
            raise SandboxError("cannot be started")

    monkeypatch.setattr(routing, "Child", NoChild)
    custody = box.accept(data_set(1, b"Stroke"))
    with pytest.raises(SandboxError):
        box.router.step()
    assert box.deliveries(custody) == {}
    assert box.router.step()
    assert set(box.deliveries(custody)) == {"night", "pacs"}
    assert box.row(custody).flags == ("unreadable",)


def test_nothing_is_routed_nowhere(box: Box) -> None:
    box.config = replace(CONFIG, destinations=(), rules=(), generation=8)
    custody = box.accept(data_set(1))
    box.drain()
    assert box.deliveries(custody) == {}
    assert len(box.ledger.unrouted()) == 1
    box.config = replace(CONFIG, generation=9)
    box.drain()
    assert set(box.deliveries(custody)) == {"night"}
    assert box.row(custody).generation == 9


def test_an_unknown_caller_on_a_holding_listener_waits_for_a_person(box: Box) -> None:
    box.config = replace(CONFIG, listeners=(Listener(id="main", unknown="hold"),))
    held = box.accept(data_set(1))
    box.drain()
    assert set(box.deliveries(held).values()) == {DeliveryState.HELD}
    box.ledger.admit("CT1", "127.0.0.1", "root")
    free = box.accept(data_set(2))
    box.drain()
    assert set(box.deliveries(free).values()) == {DeliveryState.WAITING}


@pytest.mark.requirement("a full disk or a lock in the ledger costs time, no routing")
def test_a_failing_ledger_changes_nothing_and_is_tried_again(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    custody = box.accept(data_set(1))
    route = Ledger.route
    fails = [True]

    def failing(self: Ledger, *args: object) -> None:
        if fails.pop() if fails else False:
            raise LedgerFault("disk full")
        route(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Ledger, "route", failing)
    with pytest.raises(LedgerFault):
        box.router.step()
    assert len(box.ledger.unrouted()) == 1
    box.drain()
    assert set(box.deliveries(custody)) == {"night"}


def test_the_thread_goes_on_after_a_failure_and_ends_when_told(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    step = RoutingThread.step
    failures: list[Exception] = [LedgerFault("once"), ValueError("twice")]

    def failing(self: RoutingThread) -> bool:
        if failures:
            raise failures.pop()
        return step(self)

    monkeypatch.setattr(RoutingThread, "step", failing)
    custody = box.accept(data_set(1))
    box.router.start()
    wait_until(lambda: box.deliveries(custody), 20)
    assert box.router.stop()
    assert not any(t.name == "route" for t in threading.enumerate())


def test_a_kick_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "POLL_SECONDS", 600.0)
    box = Box(tmp_path)
    try:
        box.clock.wait = lambda event, seconds: event.wait(seconds)  # type: ignore[method-assign]
        box.router.start()
        custody = box.accept(data_set(1))
        box.router.kick()
        wait_until(lambda: box.deliveries(custody), 20)
    finally:
        box.close()


# --- the index --------------------------------------------------------------------------------------------------------


def test_a_missing_index_is_made_again_from_the_objects(box: Box) -> None:
    numbers = {box.accept(data_set(i)).number for i in range(3)}
    numbers.add(box.accept(b"garbage").number)
    box.drain()
    with box.index() as index:
        assert index.complete
    box.router.close()
    ix.remove(box.spool.index_path)
    box.router = box.new_router()
    box.drain()
    with box.index() as index:
        assert index.complete
        assert index.numbers(0, 1 << 60) == numbers
        assert len(index.search(Query(patient_id="P-2"))) == 1


def test_what_a_power_cut_took_from_the_index_comes_back_and_what_is_gone_goes(box: Box) -> None:
    kept, lost = box.accept(data_set(1)), box.accept(data_set(2))
    box.drain()
    box.router.close()
    with Index.open(box.spool.index_path) as index:
        index.drop([lost.number])
        index.add([(424242, index_attributes("retired long ago"))])
        assert index.complete
    box.router = box.new_router()
    box.drain()
    with box.index() as index:
        assert index.numbers(0, 1 << 60) == {kept.number, lost.number}
        assert index.search(Query(patient_id="retired*")) == []


def index_attributes(patient: str):  # type: ignore[no-untyped-def]
    return Attributes({ix.PATIENT_ID: patient, ix.STUDY_UID: "9.9", ix.SERIES_UID: "9.9.1"})


def test_an_index_deleted_under_our_feet_is_made_again(box: Box) -> None:
    custody = box.accept(data_set(1))
    box.drain()
    ix.remove(box.spool.index_path)
    box.clock.advance(120)
    box.drain()
    with box.index() as index:
        assert index.complete and index.numbers(0, 1 << 60) == {custody.number}


def test_an_index_that_fails_costs_no_routing(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.spool.index_path.mkdir()
    custody = box.accept(data_set(1))
    box.drain()
    assert set(box.deliveries(custody)) == {"night"}
    box.spool.index_path.rmdir()
    box.clock.advance(120)
    box.drain()
    with box.index() as index:
        assert index.numbers(0, 1 << 60) == {custody.number}


def test_an_object_retired_while_the_index_was_read_does_not_come_back(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    custody = box.accept(data_set(1))
    box.drain()
    box.router.close()
    ix.remove(box.spool.index_path)
    box.router = box.new_router()
    read = box.router._indexing._read

    def retired_meanwhile(rows, wanted):  # type: ignore[no-untyped-def]
        found = read(rows, wanted)
        box.ledger.discard([custody.number], "root", "test")
        assert box.ledger.retiring([custody.number]) == [custody.number]
        return found

    box.router._indexing._read = retired_meanwhile
    box.drain()
    with box.index() as index:
        assert index.numbers(0, 1 << 60) == set()
