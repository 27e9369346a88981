"""Canary: what is known of the test objects towards one destination. Values and decisions, no effects.

One is in flight at a time. "Arrived" is what the destination's declared proof
says: stored (`status`), or found there (`readback`). Times are boot nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.clock import SECOND
from appliance.model import Alarm, Severity

LATE = 300 * SECOND
"""A canary that has not arrived after this is an alarm, or after the destination's own interval where that is shorter."""


@dataclass(frozen=True, slots=True)
class Canary:
    """`arrived`: when the last one did, and `seconds` how long it took. `sent`: since when one is in flight, None where none
    is; `trouble`: why one could not be taken in here. `late`: the one in flight should have arrived."""

    destination: str
    arrived: int | None = None
    seconds: float = 0.0
    sent: int | None = None
    uid: str = ""
    trouble: str = ""
    late: bool = False


def is_late(canary: Canary, minutes: float, now: int) -> bool:
    return canary.sent is not None and now - canary.sent > min(LATE, int(minutes * 60 * SECOND))


def alarm(canary: Canary) -> Alarm | None:
    key, to = f"canary:{canary.destination}", canary.destination
    if canary.trouble:
        return Alarm(key, Severity.WARNING, f"the test object for {to} is not taken in here: {canary.trouble}",
                     "Scanners may meet the same: look at the receiver and its log.")
    if canary.late:
        return Alarm(key, Severity.WARNING, f"a test object for {to} has not arrived there",
                     f"`dcmgate diagnose {to}` says why.")
    return None
