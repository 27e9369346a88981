"""The product after a power cut, in the process that `power_cuts_judge` forked for it: start-up alone, or everything.

Here the gateway's code is used as its processes use it, and nothing is judged
but what only it can be asked: the balance, the ledger's own checks, the index.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import appliance.forward.engine
import appliance.receive.receiver  # noqa: F401 so that a forked child has all of it
from appliance.cli.services import ALL, Box, locate, open_for_work
from appliance.clock import SystemClock
from appliance.keeper import Keeper
from appliance.model import DeliveryState, ObjectState
from appliance.net import kick
from appliance.spool.balance import balance
from appliance.spool.index import Index, Query
from appliance.spool.intake import Intake
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from tests.proof.oracle import entry_of
from tests.support import objects
from tests.support.objects import Instance
from tests.support.scu import Scanner, contexts_of
from tests.support.spools import accept
from tests.support.waiting import wait_until

SETTLED_SECONDS = 40.0
"""Longest time until a gateway that has everything it needs has delivered what it holds."""

Position = Callable[[], int]


def start_up(config: Path, position: Position, count: int) -> dict[str, Any]:
    """What the stages do first: recovery, a round of the keeper, one more image (number `count` of its kind), and the end.

    Answers `acknowledged` (position, entry), `faults`, `balance` and what recovery came to.
    """
    clock = SystemClock()
    working = open_for_work(locate(str(config)), clock, publish=True)
    keeper = Keeper(working.source, working.spool, clock, told=lambda raised, ended: None)
    intake = Intake(working.spool, working.ledger, clock, ready=8)
    intake.start()
    working.ledger.unclaim_after_crash()
    # Before the keeper tidies up: a file may be missing only where a durable row had announced it (I4).
    faults = [f"at start: {wrong}" for wrong in balance(working.spool, working.ledger).discrepancies]
    keeper.round()
    faults += [f"alarm: {row.alarm.text}" for row in working.ledger.alarms()
               if row.alarm.key.startswith(("keeper-", "spool", "quarantine", "ledger-"))]
    if left := working.ledger.unfinished():
        faults.append(f"deletions of {len(left)} objects are not finished")
    held = {row.number for row in working.ledger.present(0, 1 << 20)}
    instance = objects.sr(count, "after the cut", patient=9000, size=5000)
    custody = accept(intake, b"".join(instance.parts), instance.sop_instance.encode())
    acknowledged = [(position(), astuple(entry_of(instance)))]
    if custody.number in held:
        faults.append(f"number {custody.number} is used twice")
    if not intake.stop(20):
        faults.append("intake does not end")
    keeper.stop()
    working.ledger.close()
    report = intake.recovery
    return {"acknowledged": acknowledged, "adopted": report.adopted, "remnants": report.remnants, "void": report.void,
            **_in_the_end(working.spool.path, faults)}


def go_on(config: Path, port: int, position: Position, count: int) -> dict[str, Any]:
    """The whole gateway, as `dcmgate run` is: a few more images come in, and it runs until all is delivered and confirmed."""
    box = Box(str(config), ALL)
    box.start()
    path = Path(box.config.spool.path)
    with Ledger.open(path / "ledger.sqlite", SystemClock()) as ledger:
        before = ledger.counts().accepted
        acknowledged = _sent(port, position, [*objects.ct_study(2, f"after {count}", patient=9100, side=200),
                                              objects.sr(1, f"after {count}", patient=9100)])

        def settled() -> bool:
            kick.send(Path(box.config.control.run) / kick.KEEPER)
            # What is for a person: killed twice at it before the power failed, or heard of after later content of its UID.
            if parked := ledger.stuck(DeliveryState.PARKED):
                ledger.requeue([row.number for row in parked], "test", states=("parked",))
            if late := [row.number for row in ledger.stuck(DeliveryState.HELD) if row.reason == "late"]:
                ledger.release(late, "test")
            counts = ledger.counts()
            open_still = counts.unrouted + counts.states[ObjectState.WAITING] + counts.states[ObjectState.SENT]
            return counts.accepted == before + len(acknowledged) and not open_still

        wait_until(settled, SETTLED_SECONDS, "everything is delivered and confirmed", every=0.05)
    box.stop()
    return {"acknowledged": acknowledged, "adopted": 0, "remnants": 0, "void": 0, **_in_the_end(path, [])}


def _sent(port: int, position: Position, instances: list[Instance]) -> list[tuple[int, tuple[Any, ...]]]:
    acknowledged = []
    with Scanner(port, contexts_of(instances)) as scanner:
        for instance in instances:
            if (status := scanner.store(instance)) != 0:
                raise AssertionError(f"status {status:04X} after the power cut")
            acknowledged.append((position(), astuple(entry_of(instance))))
    return acknowledged


def _in_the_end(path: Path, faults: list[str]) -> dict[str, Any]:
    """`balance`: what `dcmgate balance --deep --json` says, by the same code. `faults` more, of ledger and index."""
    spool = Spool.open(path)
    with Ledger.open(spool.ledger_path, SystemClock(), read_only=True) as ledger:
        if not ledger.verify_chain().whole:
            faults.append("the ledger's chain is broken")
        faults += [f"ledger: {line}" for line in ledger.quick_check(full=True)]
        if (counts := ledger.counts()).open:
            faults.append(f"{counts.open} of {counts.granted} numbers are open still")
        faults += _index_faults(spool, ledger)
        found = balance(spool, ledger, deep=True)
    return {"faults": faults, "balance": {
        "granted": found.granted, "free": found.free, "in_flight": found.in_flight, "void": found.void,
        "accepted": found.accepted, "derived": found.derived, "unaccounted": found.unaccounted,
        "discrepancies": [str(wrong) for wrong in found.discrepancies],
        **{str(state): found.states.get(state, 0) for state in ObjectState}}}


def _index_faults(spool: Spool, ledger: Ledger) -> list[str]:
    """What people search by is sound however it was cut off. It may lack the latest, and the router's audit adds that."""
    with Index.open(spool.index_path) as index:
        index.search(Query())
        known = index.numbers(0, 1 << 62)
        faults = [f"index: {line}" for (line,) in index._select("PRAGMA integrity_check") if line != "ok"]
        stray = [number for number in known if ledger.object(number) is None]
    if stray:
        faults.append(f"the index knows {len(stray)} objects that nobody accepted")
    return faults
