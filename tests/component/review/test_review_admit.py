"""Whom a person admits, at the door and in the router: the same caller, however the person spelled its address."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config.settings import Config, Destination, Listener
from appliance.manage.verbs import Desk, handlers, no_reload
from appliance.model import Attributes, Source
from appliance.policy import Verdict, admit
from appliance.route import compile
from tests.support.ledgers import Bench, custody
from tests.support.spools import fresh


@pytest.mark.requirement("what a person admits is delivered")
@pytest.mark.parametrize("spelled", ["2001:DB8:0:0::1", "2001:db8::1"])
def test_an_address_spelled_otherwise_is_neither_refused_nor_held(tmp_path: Path, spelled: str) -> None:
    spool = fresh(tmp_path / "spool")
    bench = Bench(spool.path)
    listener = Listener(id="lan", unknown="hold")
    config = Config(listeners=(listener,), destinations=(Destination(id="pacs", default=True),), generation=1)
    verbs = handlers(Desk(spool, bench.ledger, lambda: config, no_reload, lambda: None))
    verbs["admit"]("anna", {"title": "CT9", "address": spelled})
    admitted = {(a.title, a.address) for a in bench.ledger.admitted()}
    assert admit(listener, (), admitted, "CT9", "GATE", "2001:db8::1").verdict is Verdict.ACCEPT
    source = Source(listener="lan", calling="CT9", called="GATE", address="2001:db8::1", port=104)
    decision = compile(config).route(custody(bench.ledger, 1, source=source), Attributes(), None, admitted)
    assert not decision.hold
    bench.ledger.close()
