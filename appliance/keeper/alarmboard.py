"""The board of alarms: what is in force, with a pause before an alarm ends, so that a flapping line is one alarm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from appliance.clock import SECOND, Clock
from appliance.errors import LedgerError
from appliance.model import Alarm
from appliance.spool.ledger import Ledger

QUIET_NS = 60 * SECOND
"""An alarm ends when its finding was gone for so long; also after a start, when not everything is known yet."""

Told = Callable[[Sequence[Alarm], Sequence[Alarm]], None]


class Board:
    """`show` the findings of now; `told` hears what rose and what ended, whether or not the ledger can keep it."""

    def __init__(self, ledger: Ledger, clock: Clock, told: Told) -> None:
        self._ledger = ledger
        self._clock = clock
        self._told = told
        self._gone: dict[str, int] = {}
        self._kept: dict[str, Alarm] = {}      # in the ledger, when it was written last
        self._early: dict[str, Alarm] = {}     # told, and not in the ledger: a disk that fails is what people must hear of

    def show(self, findings: Iterable[Alarm]) -> None:
        """Write the alarms in force. LedgerError: what rose was told all the same, the next call makes up for the rest."""
        wanted = {alarm.key: alarm for alarm in findings}
        try:
            raised, ended = self._write(wanted)
        except LedgerError:
            known = {**self._kept, **self._early}
            new = {key: alarm for key, alarm in sorted(wanted.items()) if _rises(alarm, known.get(key))}
            self._early.update(new)
            if new:
                self._told(list(new.values()), [])
            raise
        early, self._early = self._early, {}
        raised = [alarm for alarm in raised if _rises(alarm, early.get(alarm.key))]
        ended += [alarm for key, alarm in early.items() if key not in wanted]
        if raised or ended:
            self._told(raised, ended)

    def _write(self, wanted: dict[str, Alarm]) -> tuple[list[Alarm], list[Alarm]]:
        """Into the ledger, with those that only just went; `wanted` has them too afterwards."""
        now = self._clock.boot_ns()
        for row in self._ledger.alarms():
            key = row.alarm.key
            if key in wanted:
                self._gone.pop(key, None)
            elif now - self._gone.setdefault(key, now) < QUIET_NS:
                wanted[key] = row.alarm
        raised, ended = self._ledger.set_alarms([wanted[key] for key in sorted(wanted)])
        for alarm in ended:
            self._gone.pop(alarm.key, None)
        self._kept = dict(wanted)
        return raised, ended


def _rises(alarm: Alarm, known: Alarm | None) -> bool:
    return known is None or known.severity is not alarm.severity
