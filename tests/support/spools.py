"""A spool with its ledger and intake, for tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.clock import Clock, SystemClock
from appliance.model import Custody, Source
from appliance.spool.intake import Intake
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger

SOURCE = Source(listener="main", calling="CT1", called="GATE", raw_calling=b"CT1".ljust(16), raw_called=b"GATE".ljust(16),
                address="127.0.0.1", port=104)
CT_CLASS = b"1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"


@contextmanager
def intake_of(spool: Spool, clock: Clock | None = None, *, start: bool = True, **settings: int | float) -> Iterator[Intake]:
    """A started intake, stopped at the end; its ledger is `intake.ledger`, closed at the end too."""
    with Ledger.open(spool.ledger_path, clock or SystemClock()) as ledger:
        intake = Intake(spool, ledger, clock or SystemClock(), **settings)  # type: ignore[arg-type]
        try:
            if start:
                intake.start()
            yield intake
        finally:
            intake.stop(10.0)


def accept(intake: Intake, data: bytes = b"data set", uid: bytes = b"1.2.3.4") -> Custody:
    """One instance, all the way to custody."""
    writer = intake.take()
    try:
        writer.write(data)
        return writer.finish(CT_CLASS, uid, EXPLICIT, SOURCE)
    finally:
        writer.abandon("test")


def files(spool: Spool) -> dict[int, int]:
    """Length of the file of every number that has one, by number."""
    return {number: os.stat(spool.object_path(number)).st_size for number in spool.object_numbers()}


def fresh(path: Path, size: int = 0) -> Spool:
    return Spool.init(path, size=size, clock=SystemClock())
