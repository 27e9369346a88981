"""A sample of the instrument "io_errors", and that it can fail."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from tests.proof.io_errors_life import Stand, stand
from tests.support.faultfs import ALWAYS, Rule

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(150)]

FUSE = os.geteuid() == 0 and os.access("/dev/fuse", os.R_OK | os.W_OK)
needs_fuse = pytest.mark.skipif(not FUSE, reason="root and /dev/fuse are needed")

SYNC_FAILS = Rule("object", "sync", 9, errno.EIO)
"""That of the second object that comes in: the receiver's recovery has synced what it found before."""

IMPATIENT = """
import os
_fdatasync = os.fdatasync
def fdatasync(fd):
    try:
        _fdatasync(fd)
    except OSError:
        _fdatasync(fd)
os.fdatasync = fdatasync
"""

CARELESS = """
from appliance.spool.intake import Intake
Intake._close = lambda self, *_: None
"""

DEAF = """
from appliance.spool.latch import Latch
Latch.since = lambda self, mark: ""
"""

KEEPER_FAILS = Rule("object", "unlink", 1, errno.EIO)
"""Nobody but the keeper deletes."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("io")) as made:
        yield made


@needs_fuse
@pytest.mark.requirement("I6")
@pytest.mark.parametrize("rule", [
    SYNC_FAILS, Rule("object", "write", 5, errno.ENOSPC), Rule("object", "write", 3, short=0.5),
    KEEPER_FAILS, Rule("wal", "sync", 10, errno.EIO), Rule("object", "rename", 1, errno.ENOSPC, times=ALWAYS)], ids=str)
def test_one_fault_of_the_disk_costs_no_acknowledged_object(place: Stand, rule: Rule) -> None:
    outcome = place.live([rule], 1)
    assert outcome.hits, outcome.counts
    assert outcome.wrong == []
    assert outcome.verdict.holds, outcome.verdict.as_text()


@needs_fuse
@pytest.mark.requirement("I6")
def test_a_disk_that_goes_and_comes_back(place: Stand) -> None:
    outcome = place.gone(0.3, 1)
    assert outcome.wrong == []
    assert outcome.verdict.holds, outcome.verdict.as_text()


@needs_fuse
def test_an_error_of_the_keeper_alone_that_nobody_hears_of_is_found(place: Stand) -> None:
    place.gateway.breakage = DEAF
    try:
        outcome = place.live([KEEPER_FAILS], 2)
    finally:
        place.gateway.breakage = ""
    assert outcome.hits and outcome.elsewhere
    assert any("of another stage" in line for line in outcome.wrong), outcome.wrong


@needs_fuse
@pytest.mark.parametrize("breakage, told", [(IMPATIENT, "own call failed"), (CARELESS, "s after EIO at sync")],
                         ids=["the sync is tried again", "intake stays open"])
def test_the_instrument_can_fail(place: Stand, breakage: str, told: str) -> None:
    place.gateway.breakage = breakage
    try:
        outcome = place.live([SYNC_FAILS], 2)
    finally:
        place.gateway.breakage = ""
    assert any(told in line for line in outcome.wrong), outcome.wrong
    assert outcome.verdict.lost == (1 if breakage is IMPATIENT else 0), outcome.verdict.as_text()
