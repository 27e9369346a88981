"""A forwarder in a process of its own that dies at once when it has one certain object in its hands.

    python -m tests.support.dying_forwarder SPOOL RUN NUMBER WINDOW [ASSOCIATIONS [PASSED ...]]

With a second association it dies when another object is under way on that one,
and says which: none of those that are PASSED.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from appliance.clock import SystemClock
from appliance.config.settings import Config, Control, Destination
from appliance.forward.engine import Forwarder
from appliance.spool.layout import Spool
from appliance.spool.rows import Queued
from tests.support.lanes import Answer, FakeTransport, Site


def main(spool: str, run: str, number: str, window: str, associations: str = "1", *passed: str) -> None:
    first: list[int] = []                        # the lane that goes ahead
    beside = threading.Event()

    def answer(row: Queued) -> Answer:
        lane = threading.get_ident()
        if not first:
            first.append(lane)
        if row.number == int(number):
            os._exit(9 if associations == "1" or beside.wait(20) else 8)
        if lane != first[0] and str(row.number) not in passed:
            print(row.number, flush=True)
            beside.set()
            threading.Event().wait(60)
        return None
    site = Site(answer=answer)
    config = Config(control=Control(run=run), destinations=(
        Destination(id="pacs", window=int(window), associations=int(associations)),))
    Forwarder(lambda: config, Spool.open(Path(spool)), SystemClock(), transports=lambda *_: FakeTransport(site)).start()
    threading.Event().wait(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
