"""Canaries in the ledger: counted like any object, no study and no scanner, never sent elsewhere, gone as soon as confirmed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.clock import SECOND
from appliance.config.settings import Destination
from appliance.confirm.watch import ByTime
from appliance.model import ObjectState
from appliance.policy.canary import CALLING, FLAG, LISTENER, title_of
from appliance.spool.rows import Routing
from tests.support.ledgers import SOURCE, Bench

PACS = Destination(id="pacs", called="PACS", calling="GATE", canary_minutes=5.0)
DAY = 86_400 * SECOND


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.ledger.close()


def canary(bench: Bench, uid: str = "2.25.1") -> int:
    source = replace(SOURCE, listener=LISTENER, calling=CALLING, called=title_of("pacs"), peer="")
    number = bench.accept(uid, uid, source=source)
    bench.ledger.route([Routing(number, 1, (), ("pacs",), flags=(FLAG,), study="0123456789abcdef")], [PACS])
    return number


@pytest.mark.requirement("canary: proven by arrival")
def test_it_is_counted_and_is_no_study_and_no_scanner(bench: Bench) -> None:
    canary(bench)
    counts = bench.ledger.counts()
    assert counts.accepted == 1 and counts.flags == {FLAG: 1}
    assert bench.ledger.studies() == [] and bench.ledger.arrivals() == []
    assert bench.ledger.differences() == []


@pytest.mark.requirement("canary: an alarm where it does not arrive")
def test_what_is_in_flight_is_found_again(bench: Bench) -> None:
    assert bench.ledger.canaries("pacs") == []
    image, test = bench.take(), canary(bench)
    assert [row.number for row in bench.ledger.canaries("pacs")] == [test] and bench.ledger.canaries("other") == []
    bench.send(image)
    bench.send(test)
    assert bench.ledger.canaries("pacs") == []


@pytest.mark.requirement("canary: never routed by the site's rules")
def test_nobody_sends_it_elsewhere(bench: Bench) -> None:
    image, test = bench.take(), canary(bench)
    assert bench.ledger.requeue([image, test], "jane", to="other") == 1
    assert bench.ledger.requeue("pacs", "jane", to="other") == 0
    assert [d.destination for d in bench.ledger.deliveries(test)] == ["pacs"]
    assert bench.ledger.requeue([test], "jane") == 1             # again to where it belongs


@pytest.mark.requirement("canary: proven by arrival")
def test_it_is_confirmed_and_retired_at_once_and_images_are_not(bench: Bench) -> None:
    image, test = bench.take(), canary(bench)
    bench.send(image)
    bench.send(test)
    assert ByTime(PACS, bench.ledger, bench.clock).step() == 1
    on = bench.ledger.powered_on() + SECOND
    assert [row.number for row in bench.ledger.retirable(on, DAY)] == [test]
    assert bench.ledger.retiring([image, test]) == [test]
    bench.ledger.retired([test])
    found = bench.ledger.object(test)
    assert found is not None and found.state is ObjectState.RETIRED and bench.ledger.counts().flags == {}
    assert bench.ledger.retirable(on, DAY) == [] and bench.ledger.differences() == []
