"""Duplicates, conflicts and twins, decided for each destination in the ledger's transaction (design, Space)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.config.settings import Destination
from appliance.model import Fault, Outcome
from appliance.spool.rows import Deferral, Parking
from tests.support.ledgers import SOURCE, Bench

pytestmark = pytest.mark.requirement("I9")
NEVER = Destination(id="pacs", resend="never")
HOLD = Destination(id="pacs", conflict="hold")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    found = Bench(tmp_path)
    yield found
    found.check()
    found.ledger.close()


def twins(bench: Bench, *destinations: str | Destination) -> tuple[int, int]:
    return bench.take("1.2", "x", *destinations), bench.take("1.2", "x", *destinations)


def test_a_twin_that_was_not_sent_yet_covers(bench: Bench) -> None:
    first, second = twins(bench)
    assert bench.queue() == [first]
    assert (bench.delivery(second), bench.state(second)) == ("covered", "duplicate")
    bench.send(first)
    assert bench.delivery(second) == "covered" and not bench.complete(second)
    bench.confirm(first)
    assert bench.state(second) == "duplicate" and bench.complete(second)


@pytest.mark.parametrize("state", ["held", "parked", "sending", "deferred"])
def test_a_twin_covers_in_whatever_way_it_was_not_sent(bench: Bench, state: str) -> None:
    first = bench.take("1.2", "x")
    if state == "held":
        bench.ledger.hold([first], "anna", "look")
    else:
        bench.ledger.claim("pacs", [first])
        if state != "sending":
            decision = Parking("no") if state == "parked" else Deferral(bench.clock.boot_ns() + 10**12)
            bench.ledger.outcomes_of("pacs", [first], decision)
    assert bench.delivery(first) == state
    assert bench.delivery(bench.take("1.2", "x")) == "covered"


@pytest.mark.requirement("conformance: duplicates")
@pytest.mark.parametrize("confirmed", [False, True])
def test_a_resend_of_what_was_sent_is_sent_again(bench: Bench, confirmed: bool) -> None:
    first = bench.take("1.2", "x")
    bench.send(first)
    if confirmed:
        bench.confirm(first)
    second = bench.take("1.2", "x")
    assert bench.queue() == [second]


def test_unless_the_destination_says_never(bench: Bench) -> None:
    first = bench.take("1.2", "x", NEVER)
    bench.send(first)
    second = bench.take("1.2", "x", NEVER)
    assert bench.queue() == [] and not bench.complete(second)
    bench.confirm(first)
    assert bench.complete(second)
    third = bench.take("1.2", "x", NEVER)
    assert bench.complete(third), "covered by what is confirmed already"


def test_what_was_sent_but_is_damaged_covers_nothing_that_comes_later(bench: Bench) -> None:
    first = bench.take("1.2", "x", NEVER)
    bench.send(first)
    bench.ledger.quarantine(first, "digest")
    second = bench.take("1.2", "x", NEVER)
    assert bench.queue() == [second], "nobody can send the first again, should the destination not have it"


def test_each_destination_decides_for_itself(bench: Bench) -> None:
    first = bench.take("1.2", "x", "a", "b")
    bench.send(first, "a")
    second = bench.take("1.2", "x", "a", "b", "c")
    assert [bench.delivery(second, d) for d in ("a", "b", "c")] == ["waiting", "covered", "waiting"]
    assert bench.state(second) == "waiting"


@pytest.mark.parametrize("change", [{"called": "OTHER"}, {"port": 2104}])
def test_another_called_title_or_port_routes_afresh(bench: Bench, change: dict[str, object]) -> None:
    first = bench.take("1.2", "x")
    number = bench.accept("1.2", "x", source=replace(SOURCE, **change))  # type: ignore[arg-type]
    bench.route(number)
    assert bench.queue() == [first, number]


def test_another_syntax_or_content_is_no_duplicate(bench: Bench) -> None:
    first = bench.take("1.2", "x", "a")
    other = bench.accept("1.2", "x", syntax="1.2.840.10008.1.2")
    bench.route(other, "a")
    third = bench.accept("1.3", "x")
    bench.route(third, "a")
    assert bench.queue("a") == [first, other, third]


# --- the twin is lost ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("how", ["quarantined", "discarded"])
@pytest.mark.parametrize("sent", [False, True])
def test_a_duplicate_stands_in_for_a_lost_twin(bench: Bench, how: str, sent: bool) -> None:
    first, second = twins(bench, NEVER)
    third = bench.take("1.2", "x", NEVER)
    if sent:
        bench.send(first)
    if how == "quarantined":
        assert bench.ledger.quarantine(first, "digest")
    else:
        assert bench.ledger.discard([first], "anna", "wrong patient") == [first]
    assert bench.queue() == [second], "one takes its place, and covers the other"
    assert bench.delivery(third) == "covered"
    bench.send(second)
    bench.confirm(second)
    assert bench.complete(second) and bench.complete(third)
    assert bench.state(first) == how


def test_a_lost_twin_that_was_confirmed_changes_nothing(bench: Bench) -> None:
    first, second = twins(bench)
    bench.send(first)
    bench.confirm(first)
    bench.ledger.quarantine(first, "digest")
    assert bench.queue() == [] and bench.complete(second)


def test_a_held_twin_hands_its_hold_on(bench: Bench) -> None:
    first, second = twins(bench)
    bench.ledger.hold([first], "anna", "wrong patient?")
    bench.ledger.quarantine(first, "digest")
    assert bench.queue() == [] and bench.delivery(second) == "held"


def test_a_twin_that_the_destination_does_not_have_after_all(bench: Bench) -> None:
    first, second = twins(bench)
    bench.send(first)
    bench.confirm(first)
    assert bench.complete(second)
    bench.ledger.unconfirm([(first, "pacs")], "read-back: missing")
    assert bench.queue() == [first] and not bench.complete(second) and not bench.complete(first)


# --- the twin is sent elsewhere -------------------------------------------------------------------------------------------

def test_a_twin_that_is_sent_again_makes_its_duplicates_wait_for_the_new_proof(bench: Bench) -> None:
    first, second = twins(bench)
    bench.send(first)
    bench.confirm(first)
    assert bench.complete(second)
    bench.ledger.requeue([first], "anna")
    assert bench.queue() == [first] and not bench.complete(second)


def test_a_twin_that_is_moved_takes_its_duplicates_along(bench: Bench) -> None:
    first, second = twins(bench, "old")
    bench.ledger.requeue([first], "anna", "new")
    assert bench.queue("old") == [] and bench.queue("new") == [first]
    assert bench.delivery(second, "new") == "covered"
    bench.send(first, "new")
    bench.confirm(first, "new")
    assert bench.complete(second)


def test_where_the_twin_is_a_duplicate_itself_both_rely_on_the_same_one(bench: Bench) -> None:
    first = bench.take("1.2", "x", "new")
    second = bench.take("1.2", "x", "old", "new")
    third = bench.take("1.2", "x", "old")
    bench.ledger.requeue([second], "anna", "new", "old")
    assert bench.queue("old") == [] and bench.queue("new") == [first]
    assert [d.twin for n in (second, third) for d in bench.ledger.deliveries(n)] == [first, first]


# --- same UID, other content ----------------------------------------------------------------------------------------------

@pytest.mark.requirement("conformance: duplicates")
def test_a_conflict_is_flagged_and_delivered_in_order_of_arrival(bench: Bench) -> None:
    first = bench.take("1.2", "x")
    second = bench.take("1.2", "y")
    third = bench.take("1.2", "z")
    row = bench.ledger.object(second)
    assert row is not None and row.flags == ("conflict",)
    assert bench.queue() == [first]
    bench.ledger.claim("pacs", [first])
    later = Deferral(bench.clock.boot_ns() + 1)
    bench.ledger.outcomes("pacs", [Outcome(first, Fault.DESTINATION, text="down")], {first: later})
    assert bench.queue() == [first], "also while the first is put off"
    bench.send(first)
    assert bench.queue() == [second]
    bench.ledger.claim("pacs", [second])
    bench.ledger.outcomes("pacs", [Outcome(second, Fault.OBJECT, text="refused")], {second: Parking("five tries")})
    assert bench.queue() == [third], "what is parked holds nothing back"


def test_a_conflict_may_be_held_for_a_person(bench: Bench) -> None:
    bench.take("1.2", "x", HOLD)
    second = bench.take("1.2", "y", HOLD)
    assert bench.delivery(second) == "held"
    assert bench.ledger.release([second], "anna") == 1
    assert bench.delivery(second) == "waiting"


def test_a_sender_that_uses_one_uid_for_everything_stays_cheap(bench: Bench) -> None:
    """Only the latest of them are compared."""
    for n in range(200):
        bench.take("1.2", f"content {n}")
    assert bench.ledger.counts().accepted == 200
    queue, sent = bench.queue(), 0
    while queue:
        for number in queue:
            bench.send(number)
            sent += 1
        queue = bench.queue()
    assert sent == 200
