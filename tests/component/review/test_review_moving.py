"""Queues that are moved: in parts, and never what a person holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from appliance.config.settings import Destination
from appliance.spool import persons
from tests.support.lanes import Yard
from tests.support.ledgers import Bench


@pytest.mark.requirement("bounded debt")
def test_a_long_queue_is_moved_in_parts_so_that_receivers_get_their_turn(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persons, "MOVED_AT_ONCE", 4)
    bench = Bench(tmp_path)
    numbers = [bench.take("", "", "old") for _ in range(10)]
    twin = bench.take(f"1.2.3.{numbers[0]}", f"{numbers[0]}", "old")
    assert bench.delivery(twin, "old") == "covered"
    transactions: list[int] = []
    real = bench.ledger._write

    def counted(work: Any) -> Any:
        transactions.append(1)
        return real(work)

    monkeypatch.setattr(bench.ledger, "_write", counted)
    assert bench.ledger.requeue("old", "anna", to="new") == 10
    assert len(transactions) == 3
    assert bench.queue("old") == [] and sorted(bench.queue("new")) == numbers
    assert bench.delivery(twin, "new") == "covered"
    bench.ledger.hold(numbers, "anna", "look", "new")
    assert bench.ledger.requeue("new", "anna") == 10
    assert sorted(bench.queue("new")) == numbers
    bench.check()
    bench.ledger.close()


@pytest.mark.requirement("Delivery: fail-over")
def test_what_is_held_while_a_queue_fails_over_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person's hold between the look at the queue and its move is not undone by the move."""
    yard = Yard(tmp_path)
    desk = yard.desk(Destination(id="pacs", failover="other", failover_seconds=0))
    yard.desk("other")
    numbers = yard.put(3)
    yard.sites["pacs"].break_down()
    lane = yard.lane("pacs")
    yard.live(lane, 20)
    assert desk.breaker().tripped
    look = desk._still_waiting

    def then_a_person_comes(limit: int) -> Sequence[Any]:
        rows = look(limit)
        yard.ledger.hold(numbers[:1], "anna", "wrong patient")
        return rows

    monkeypatch.setattr(desk, "_still_waiting", then_a_person_comes)
    desk.fail_over(yard.desks["other"])
    assert [(d.destination, str(d.state)) for d in yard.ledger.deliveries(numbers[0])] == [("pacs", "held")]
    assert sorted(yard.queue("other")) == numbers[1:]
    yard.ledger.close()
