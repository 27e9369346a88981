"""A ledger that is made again uses no number twice, not even one whose object lies in quarantine."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.retire import Retirer
from appliance.spool import quarantine
from appliance.spool.ledger import Ledger
from appliance.spool.rebuild import rebuild
from tests.support.spools import accept, fresh, intake_of


@pytest.mark.requirement("numbers are used once")
def test_what_lies_in_quarantine_keeps_its_number(tmp_path: Path) -> None:
    """Else a new object would get it, and be moved over the old one, or take it along when it is retired."""
    spool, clock = fresh(tmp_path / "spool"), SystemClock()
    with intake_of(spool, ready=4) as intake:
        accept(intake, b"whole")
        damaged = accept(intake, b"damaged")
    with Ledger.open(spool.ledger_path, clock) as ledger:
        assert ledger.quarantine(damaged.number, "digest is wrong")
        quarantine.put(spool, damaged.number, "digest is wrong")
        Retirer(spool, ledger).sweep()
    assert max(spool.object_numbers()) < damaged.number
    kept = quarantine.path(spool, damaged.number).read_bytes()
    rebuild(spool, clock)
    with intake_of(spool, ready=4) as intake:
        numbers = [accept(intake, b"new", b"1.%d" % n).number for n in range(8)]
        assert damaged.number not in numbers
        assert intake._ledger.verify_chain().whole
    assert [e.number for e in quarantine.entries(spool)] == [damaged.number]
    assert quarantine.path(spool, damaged.number).read_bytes() == kept
