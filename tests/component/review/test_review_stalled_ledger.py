"""A commit of the ledger that the disk keeps waiting: callers are answered all the same, and nothing is forgotten after it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.clock import SystemClock
from appliance.dicom.part10 import HEAD, build_head, parse_head
from appliance.spool import intake as intake_module
from appliance.spool.ledger import Ledger
from tests.support import objects
from tests.support.acceptor import Box, ask, echo, receiving
from tests.support.scu import IMPLICIT, VERIFICATION, contexts_of
from tests.support.spools import accept, fresh, intake_of
from tests.support.waiting import wait_until

SECONDS = 5.0


@contextmanager
def stalled(intake: Any) -> Iterator[None]:
    """A transaction of the writing connection that is at its sync, and stays there."""
    ledger, inside, go = intake._ledger, threading.Event(), threading.Event()

    def commit() -> None:
        with ledger._lock:
            inside.set()
            go.wait(60)

    thread = threading.Thread(target=commit)
    thread.start()
    assert inside.wait(10)
    try:
        yield
    finally:
        go.set()
        thread.join(10)


def within(seconds: float, what: Any) -> Any:
    """What it returns; it must not take longer."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(what()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, "no answer"
    return found[0]


@pytest.fixture(params=[0, 1 << 30], ids=["disk", "quota"])
def box(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Box]:
    with receiving(tmp_path, size=request.param) as made:
        yield made


@pytest.mark.requirement("C-ECHO always answers")
def test_callers_are_answered_while_the_ledger_hangs(box: Box) -> None:
    """One that no [[peer]] names, too: whether a person admitted it is read beside whoever writes."""
    report = objects.sr(1)
    with stalled(box.intake):
        assert within(SECONDS, lambda: echo(box.port)) < SECONDS
        assert within(SECONDS, lambda: ask(box.port, [(VERIFICATION, IMPLICIT), *contexts_of([report])])) is None
        assert within(SECONDS, box.intake.room).free > 0


@pytest.mark.requirement("I2")
def test_an_owner_that_was_only_just_dying_is_recovered_without_another_start(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock outlives its last answer while the kernel closes its files; what it acknowledged must not wait for months."""
    spool = fresh(tmp_path / "spool")
    with intake_of(spool, ready=4) as first:
        made = accept(first, b"acknowledged")
        raw = spool.object_path(made.number).read_bytes()
    with Ledger.open(spool.ledger_path, SystemClock()) as ledger:
        owner = ledger.register_owner("receiver")
        number = ledger.grant(owner, 1)
    head = build_head(replace(parse_head(raw[:HEAD]), number=number, sop_instance=b"1.2.3.5"))
    spool.object_path(number).write_bytes(head + raw[HEAD:])
    monkeypatch.setattr(intake_module, "RECOVER_AGAIN", 300_000_000)
    dying = spool.lock_owner(owner)
    assert dying.held
    with intake_of(spool, ready=4) as intake:
        assert intake.recovery.adopted == 0
        dying.release()
        wait_until(lambda: intake._ledger.object(number) is not None, 10, "it is adopted")
        assert intake._ledger.open_numbers(owner) == []
        assert not intake.out_of_intake
    assert os.path.exists(spool.object_path(number))
