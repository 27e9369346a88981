"""Check `clock`: whether the wall clock may decide anything."""

from __future__ import annotations

from appliance.clock import Clock
from appliance.health.checks.verdict import State, Verdict


def look(clock: Clock) -> Verdict:
    if clock.trusted():
        return Verdict("clock", State.GOOD)
    return Verdict("clock", State.POOR, "the wall clock is wrong: rules by time of day do not apply",
                   "Set the time, or let the box reach a time server.")
