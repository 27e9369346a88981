"""Questions that the disk may keep: nobody waits longer than he wants to, and nobody queues behind one that hangs."""

from __future__ import annotations

import threading
import time

import pytest

from appliance.errors import LedgerFault, SpoolFault
from appliance.receive.asking import Asker


def test_an_answer_and_an_error_are_those_of_the_question() -> None:
    asker = Asker()
    asker.start()
    assert asker.ask(lambda: 7, 10) == 7

    def fail() -> int:
        raise LedgerFault("disk I/O error")

    with pytest.raises(LedgerFault, match="disk I/O error"):
        asker.ask(fail, 10)
    assert asker.ask(lambda: 8, 10) == 8
    asker.stop()


@pytest.mark.requirement("hazard: a disk that hangs")
def test_a_question_that_hangs_keeps_nobody() -> None:
    asker = Asker()
    asker.start()
    back = threading.Event()
    with pytest.raises(SpoolFault, match="does not answer"):
        asker.ask(lambda: back.wait(60), 0.05)
    begin = time.monotonic()
    for _ in range(100):
        with pytest.raises(SpoolFault, match="does not answer"):
            asker.ask(lambda: 1, 0.05)
    assert time.monotonic() - begin < 60 * 0.05   # at once, and not one after the other
    back.set()
    assert asker.ask(lambda: 9, 10) == 9
    asker.stop()
