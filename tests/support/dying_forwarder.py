"""A forwarder in a process of its own that dies at once when it has one certain object in its hands.

    python -m tests.support.dying_forwarder SPOOL RUN NUMBER WINDOW
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


def main(spool: str, run: str, number: str, window: str) -> None:
    def answer(row: Queued) -> Answer:
        if row.number == int(number):
            os._exit(9)
        return None
    site = Site(answer=answer)
    config = Config(control=Control(run=run), destinations=(Destination(id="pacs", window=int(window)),))
    Forwarder(lambda: config, Spool.open(Path(spool)), SystemClock(), transports=lambda *_: FakeTransport(site)).start()
    threading.Event().wait(60)


if __name__ == "__main__":
    main(*sys.argv[1:])
