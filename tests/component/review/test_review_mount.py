"""The spool's disk is unmounted under us (`umount -l`): the ledger's open files still work, yet no object is given up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.clock import ManualClock
from appliance.config.settings import Config, Destination
from appliance.errors import ObjectDamaged, SpoolFault
from appliance.forward.router import RoutingThread
from appliance.spool.buffers import Buffer
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from appliance.spool.reader import verify
from appliance.spool.recover import judge
from tests.support.spools import accept, fresh, intake_of


@contextmanager
def unmounted(spool: Spool) -> Iterator[None]:
    """Nothing but an empty folder where it was."""
    elsewhere = spool.path.with_name("elsewhere")
    spool.path.rename(elsewhere)
    spool.path.mkdir()
    try:
        yield
    finally:
        spool.path.rmdir()
        elsewhere.rename(spool.path)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return fresh(tmp_path / "spool")


@pytest.mark.requirement("I5")
def test_nothing_is_damaged_that_only_cannot_be_reached(spool: Spool) -> None:
    with intake_of(spool, ready=4) as intake:
        made = accept(intake)
    with unmounted(spool), pytest.raises(SpoolFault, match="not there any more"):
        verify(spool, made.number)
    assert verify(spool, made.number).digest == made.digest
    spool.object_path(made.number).unlink()
    with pytest.raises(ObjectDamaged):
        verify(spool, made.number)


@pytest.mark.requirement("Routing: what rules say of tags")
def test_nothing_is_routed_as_unreadable_that_only_cannot_be_reached(spool: Spool) -> None:
    clock = ManualClock()
    with intake_of(spool, ready=4) as intake:
        made = accept(intake)
    with Ledger.open(spool.ledger_path, clock) as ledger:
        config = Config(destinations=(Destination(id="pacs", default=True),), generation=1)
        router = RoutingThread(spool, ledger, clock, lambda: config)
        try:
            with unmounted(spool), pytest.raises(SpoolFault):
                router.step()
            row = ledger.object(made.number)
            assert row is not None and not row.routed
        finally:
            router.close()


@pytest.mark.requirement("I2")
def test_no_number_is_void_that_only_cannot_be_reached(spool: Spool) -> None:
    """It may be an object that was acknowledged; once void, its file would be swept away."""
    with unmounted(spool), pytest.raises(SpoolFault, match="not there any more"):
        judge(spool, 7, Buffer())
    assert judge(spool, 7, Buffer()).void == "never made"
