"""`dcmgate spool check`: everything that can be said of a spool without changing it.

Folder, identity, ledger, chain, balance; on request also the digest of every
object. Nothing is mended here: each finding says what a person does about it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from appliance.clock import Clock
from appliance.errors import LedgerError, ObjectDamaged, SpoolError
from appliance.model import ObjectState
from appliance.spool import quarantine
from appliance.spool.balance import Balance, balance
from appliance.spool.layout import BALLAST, SHARDS, Spool, read_identity
from appliance.spool.ledger import Ledger
from appliance.spool.reader import verify

PAGE_OF_OBJECTS = 1000

NAMED = 1000
"""At most so many problems are named; all are counted."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and what a person does about it."""

    what: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.what} — {self.mend}" if self.mend else self.what


@dataclass(slots=True)
class Report:
    """`problems` is empty where all is well; `found` counts them all. `digested` objects of `digested_bytes` were read."""

    uuid: str = ""
    version: int = 0
    problems: list[Problem] = field(default_factory=list)
    found: int = 0
    balance: Balance | None = None
    events: int = 0
    digested: int = 0
    digested_bytes: int = 0
    remnants: int = 0
    in_quarantine: int = 0

    @property
    def sound(self) -> bool:
        return self.found == 0

    def add(self, what: str, mend: str = "") -> None:
        self.found += 1
        if len(self.problems) < NAMED:
            self.problems.append(Problem(what, mend))


def check(path: Path, clock: Clock, *, expected_uuid: str | None = None, digests: bool = False, deep: bool = False,
          stop: Callable[[], bool] = lambda: False) -> Report:
    """Look at the spool in that folder. Raises nothing of ours: what cannot be looked at is a problem in the report.

    `digests` reads every object held; `deep` makes the ledger's tables again and
    compares them; `stop` is asked between objects. It may run beside the receivers.
    """
    report = Report()
    path = Path(path)
    try:
        spool = _folder(path, expected_uuid, report)
        with Ledger.open(spool.ledger_path, clock, read_only=True) as ledger:
            _ledger(spool, ledger, report, deep=deep)
            if digests:
                _digests(spool, ledger, report, stop)
    except (SpoolError, LedgerError) as e:
        report.add(e.message, e.mend)
    return report


def _folder(path: Path, expected_uuid: str | None, report: Report) -> Spool:
    identity = read_identity(path)
    report.uuid, report.version = str(identity["uuid"]), int(identity["format"])
    missing = [f"{shard:02x}" for shard in range(SHARDS) if not (path / "objects" / f"{shard:02x}").is_dir()]
    if missing:
        report.add(f"folders are missing in objects: {', '.join(missing[:8])}{' …' if len(missing) > 8 else ''}",
                   "Look for what removed them; intake cannot use these numbers.")
    spool = Spool.open(path, expected_uuid)
    with suppress(FileNotFoundError):
        if os.stat(spool.ballast_path).st_blocks * 512 >= BALLAST:
            return _quarantine(spool, report)
    report.add("the ballast was given up", "Free some space: the keeper lays it down again.")
    return _quarantine(spool, report)


def _quarantine(spool: Spool, report: Report) -> Spool:
    for entry in quarantine.entries(spool):
        report.in_quarantine += 1
        report.remnants += entry.remnant
    return spool


def _ledger(spool: Spool, ledger: Ledger, report: Report, *, deep: bool) -> None:
    for line in ledger.quick_check(full=deep):
        report.add(f"the ledger's file: {line}", "Stop everything and run `dcmgate spool rebuild`.")
    chain = ledger.verify_chain()
    report.events = chain.rows
    for _, what in chain.breaks:
        report.add(f"the ledger's chain: {what}", "Somebody or something changed the ledger: keep it as evidence.")
    report.balance = balance(spool, ledger, deep=deep)
    for discrepancy in report.balance.discrepancies:
        report.add(str(discrepancy), "See `dcmgate show` for what happened to that object." if discrepancy.number else "")
    report.found += max(0, report.balance.unaccounted - len(report.balance.discrepancies))


def _digests(spool: Spool, ledger: Ledger, report: Report, stop: Callable[[], bool]) -> None:
    """Read every object that is held (I5); one that was retired or moved meanwhile is none of our business."""
    after = 0
    while rows := ledger.present(after, PAGE_OF_OBJECTS):
        for row in rows:
            after = row.number
            if stop():
                return
            if row.state in (ObjectState.QUARANTINED, ObjectState.DISCARDED):
                continue
            try:
                custody = verify(spool, row.number, row.custody)
            except ObjectDamaged as e:
                now = ledger.object(row.number)
                if now is not None and now.file == 0 and now.state is not ObjectState.QUARANTINED:
                    report.add(e.message, "The keeper's scrub moves it to quarantine; ask the scanner to send it again.")
                continue
            report.digested += 1
            report.digested_bytes += custody.length
