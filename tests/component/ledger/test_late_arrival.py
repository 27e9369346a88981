"""An object that the ledger hears of late never goes out after what arrived later under its UID, unless a person says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.clock import ManualClock
from appliance.config.settings import Destination
from appliance.model import Custody, Fault, Outcome
from appliance.spool.rows import Parking
from tests.support.ledgers import Bench, custody

pytestmark = pytest.mark.requirement("I7")
PACS = Destination(id="pacs")


def two(tmp_path: Path, *, reboot: bool = False) -> tuple[Bench, Custody, int]:
    """A bench, the earlier object (its row is still owed), and the later one, accepted and routed."""
    bench = Bench(tmp_path)
    clock = bench.clock
    assert isinstance(clock, ManualClock)
    record = custody(bench.ledger, bench.ledger.grant(bench.owner, 1), "1.2", "before")
    clock.advance(0.2)
    if reboot:
        clock.reboot()
        bench.reopen()
    later = bench.take("1.2", "corrected", PACS)
    return bench, record, later


def adopt(bench: Bench, record: Custody) -> int:
    """A start-up finds it, and it is routed; its number."""
    bench.ledger.accepted([record])
    bench.route(record.number, PACS)
    return record.number


@pytest.mark.parametrize("reboot", [False, True])
def test_what_was_adopted_late_does_not_overwrite_what_came_after_it(tmp_path: Path, reboot: bool) -> None:
    bench, record, later = two(tmp_path, reboot=reboot)
    bench.send(later)
    earlier = adopt(bench, record)
    row = next(d for d in bench.ledger.deliveries(earlier))
    assert (row.state, row.reason) == ("held", "late")
    assert bench.queue() == []
    assert bench.ledger.release([earlier], "anna") == 1, "a person may want it there all the same"
    assert bench.queue() == [earlier]
    bench.check()
    bench.ledger.close()


def test_nor_does_it_go_after_what_came_later_and_still_waits(tmp_path: Path) -> None:
    bench, record, later = two(tmp_path)
    earlier = adopt(bench, record)
    assert bench.queue() == [later]
    assert bench.delivery(earlier) == "held"
    bench.ledger.close()


def test_what_came_later_and_was_given_up_holds_nothing_back(tmp_path: Path) -> None:
    bench, record, later = two(tmp_path)
    bench.ledger.discard([later], "anna", "wrong patient")
    assert bench.queue() == [] and adopt(bench, record) == record.number
    assert bench.queue() == [record.number]
    bench.ledger.close()


def test_what_came_earlier_and_what_is_the_same_are_no_matter(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first = bench.take("1.2", "x", PACS)
    bench.send(first)
    bench.clock.advance(1)  # type: ignore[attr-defined]
    second = bench.take("1.2", "y", PACS)
    assert bench.queue() == [second]
    bench.send(second)
    bench.clock.advance(1)  # type: ignore[attr-defined]
    third = bench.take("1.2", "y", PACS)
    assert bench.queue() == [third], "the same content once more is no other content"
    bench.ledger.close()


@pytest.mark.parametrize("sent", [True, False])
def test_what_came_later_by_its_twin_is_not_overwritten_either(tmp_path: Path, sent: bool) -> None:
    """X, then Y, whose row is owed, then X once more, for which the first X stands in: X is what came last."""
    bench = Bench(tmp_path)
    clock = bench.clock
    assert isinstance(clock, ManualClock)
    first = bench.take("1.2", "x", PACS)
    clock.advance(0.2)
    record = custody(bench.ledger, bench.ledger.grant(bench.owner, 1), "1.2", "y")
    clock.advance(0.2)
    again = bench.take("1.2", "x", PACS)
    assert bench.delivery(again) == "covered"
    if sent:
        bench.send(first)
    between = adopt(bench, record)
    row = next(d for d in bench.ledger.deliveries(between))
    assert (row.state, row.reason) == ("held", "late")
    bench.check()
    bench.ledger.close()


def test_a_twin_that_was_given_up_holds_nothing_back(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    clock = bench.clock
    assert isinstance(clock, ManualClock)
    first = bench.take("1.2", "x", PACS)
    clock.advance(0.2)
    record = custody(bench.ledger, bench.ledger.grant(bench.owner, 1), "1.2", "y")
    clock.advance(0.2)
    again = bench.take("1.2", "x", PACS)
    bench.ledger.discard([again], "anna", "wrong patient")
    assert adopt(bench, record) == record.number
    assert bench.delivery(record.number) == "held", "it waits for what came before it"
    bench.send(first)
    assert bench.queue() == [record.number]
    bench.ledger.close()


def test_a_queue_that_is_tried_again_does_not_send_what_was_overtaken(tmp_path: Path) -> None:
    """Parked, then overtaken by other content of its UID: `requeue --destination` goes on without it, its number sends it."""
    bench = Bench(tmp_path)
    first, other = bench.take("1.2", "x", PACS), bench.take("1.3", "x", PACS)
    bench.ledger.claim("pacs", [first, other])
    bench.ledger.outcomes("pacs", [Outcome(n, Fault.OBJECT, text="refused") for n in (first, other)],
                          {first: Parking("five tries"), other: Parking("five tries")})
    bench.clock.advance(1)  # type: ignore[attr-defined]
    later = bench.take("1.2", "corrected", PACS)
    bench.send(later)
    assert bench.ledger.requeue("pacs", "anna") == 1
    assert bench.queue() == [other] and bench.delivery(first) == "parked"
    assert bench.ledger.requeue([first], "anna") == 1
    assert bench.queue() == [other, first]
    bench.check()
    bench.ledger.close()
