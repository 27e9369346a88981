"""A destination that is down: what waits for it is not touched, not even read, until it may be tried again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.forward.work import Pause
from appliance.model import Fault
from appliance.schedule import BREAKER_FAULTS
from tests.support.lanes import Yard


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    made = Yard(tmp_path)
    yield made
    made.ledger.close()


@pytest.mark.requirement("Goal 3: one dead destination costs the others nothing")
def test_what_comes_for_a_destination_that_is_down_is_not_read(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, lane = yard.desk(), yard.lane()
    reads: list[int] = []
    load = yard.ledger.load

    def counted(*arguments: Any) -> Any:
        reads.append(1)
        return load(*arguments)

    monkeypatch.setattr(yard.ledger, "load", counted)
    for _ in range(BREAKER_FAULTS):
        desk.failed(Fault.DESTINATION, "connection refused")
    yard.put(5)
    offer = desk.next()
    assert isinstance(offer, Pause)
    assert offer.seconds > 0 and not reads
    yard.manual.advance(offer.seconds + 1e-9)
    assert yard.turn(lane) > 0
    assert yard.sites["pacs"].stored and reads
