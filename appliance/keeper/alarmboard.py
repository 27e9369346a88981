"""The board of alarms: what is in force, with a pause before an alarm ends, so that a flapping line is one alarm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from appliance.clock import SECOND, Clock
from appliance.model import Alarm
from appliance.spool.ledger import Ledger

QUIET_NS = 60 * SECOND
"""An alarm ends when its finding was gone for so long; also after a start, when not everything is known yet."""

Told = Callable[[Sequence[Alarm], Sequence[Alarm]], None]


class Board:
    """`show` the findings of now; `told` hears what rose and what ended."""

    def __init__(self, ledger: Ledger, clock: Clock, told: Told) -> None:
        self._ledger = ledger
        self._clock = clock
        self._told = told
        self._gone: dict[str, int] = {}

    def show(self, findings: Iterable[Alarm]) -> None:
        """Write the alarms in force. LedgerError: then nothing was told, and the next call makes up for it."""
        now = self._clock.boot_ns()
        wanted = {alarm.key: alarm for alarm in findings}
        for row in self._ledger.alarms():
            key = row.alarm.key
            if key in wanted:
                self._gone.pop(key, None)
            elif now - self._gone.setdefault(key, now) < QUIET_NS:
                wanted[key] = row.alarm
        raised, ended = self._ledger.set_alarms([wanted[key] for key in sorted(wanted)])
        for alarm in ended:
            self._gone.pop(alarm.key, None)
        if raised or ended:
            self._told(raised, ended)
