"""Scrub: every object that is held is read again now and then: damage is found while a twin or the scanner still has it.

A damaged object goes to quarantine, and a duplicate that it covered takes its
place. What cannot be read for a reason of ours (SpoolFault) is left alone.
"""

from __future__ import annotations

import threading
from collections import deque
from random import Random

from appliance.clock import SECOND, Clock
from appliance.dicom.part10 import HEAD
from appliance.errors import DcmgateError, ObjectDamaged
from appliance.model import number_text
from appliance.spool import quarantine, reader
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from appliance.spool.rows import ObjectRow
from appliance.telemetry.log import Log

ROUND_SECONDS = 14 * 86400.0
"""The whole spool is read once in two weeks."""

LEAST_RATE = 65536.0
MOST_RATE = 8e6
"""Bounds of the rate of reading, bytes a second: delivery comes first."""

RETRY_SECONDS = 300.0

_log = Log("scrub")


class Scrubber:
    """`step` reads one object and says how long to pause. `run` does so on a thread of its own until `stop` is set."""

    def __init__(self, spool: Spool, ledger: Ledger, clock: Clock, random: Random) -> None:
        self._spool = spool
        self._ledger = ledger
        self._clock = clock
        self._random = random
        self._queue: deque[ObjectRow] = deque()
        self._after = -1
        self.moved = clock.boot_ns()
        self.damaged = 0

    def step(self) -> float:
        """Read the next object; seconds to pause. SpoolFault, LedgerError."""
        self.moved = self._clock.boot_ns()
        row = self._next()
        if row is None:
            return RETRY_SECONDS
        began = self._clock.boot_ns()
        self.look(row)
        counts = self._ledger.counts()
        rate = min(MOST_RATE, max(LEAST_RATE, counts.held_bytes / ROUND_SECONDS))
        spent = (self._clock.boot_ns() - began) / SECOND
        return max(0.01, (HEAD + row.custody.length) / rate - spent)

    def look(self, row: ObjectRow) -> bool:
        """Read one object; False where it is damaged, and now in quarantine."""
        try:
            reader.verify(self._spool, row.number, row.custody)
        except ObjectDamaged as error:
            # The row says no where it is being retired just now: then the file may well be gone.
            if self._ledger.quarantine(row.number, error.message):
                quarantine.put(self._spool, row.number, error.message)
                self.damaged += 1
                _log.error("a held object is damaged", number=number_text(row.number), error=error.message)
                return False
        return True

    def _next(self) -> ObjectRow | None:
        """The next object by number, round and round. The first is any: a box that restarts daily gets everywhere too."""
        if not self._queue:
            if self._after < 0:
                self._after = self._random.randrange(1 + self._ledger.counts().granted)
            rows = self._ledger.present(self._after, 64) or self._ledger.present(0, 64)
            self._queue.extend(row for row in rows if row.state != "quarantined")
            self._after = rows[-1].number if rows else 0
        return self._queue.popleft() if self._queue else None

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set."""
        pause = 1.0
        while not self._clock.wait(stop, pause):
            try:
                pause = self.step()
            except DcmgateError as error:
                _log.error("cannot read objects again now", error=str(error))
                pause = RETRY_SECONDS
            except Exception:  # noqa: BLE001  top of the thread: scrubbing is the least of the keeper's tasks
                _log.crash("scrubbing failed")
                pause = RETRY_SECONDS
