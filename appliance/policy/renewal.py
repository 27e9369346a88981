"""When a certificate is renewed and a revocation list fetched, and how long to wait after a failure. Pure functions.

What is due by date is decided by the wall clock, and only where it is trusted;
how long to wait is counted in powered-on time (I7). Times are nanoseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance.model import Severity
from appliance.policy.certificates import DAY, SECOND, Facts, covers, typed, window

HOUR = 3600 * SECOND
MINUTE = 60 * SECOND

FIRST_PAUSE = MINUTE
LONGEST_PAUSE = 6 * HOUR
SHORTEST_PAUSE = 5 * SECOND
"""After a failure: a minute, doubled each time, six hours at most; sooner where little time is left."""

LONGEST_WAIT = DAY
"""Whatever a server says by Retry-After."""

LIST_PERIOD = 6 * HOUR
LIST_LEAST = 10 * MINUTE
"""A list is fetched this often, or when half of what was left of it has passed; never more often than the second."""


@dataclass(frozen=True, slots=True)
class Tries:
    """What became of trying: `failures` since it last went well, and of the last one the step, why and the mend. `tried`,
    `good` and `again` are wall-clock labels for people, 0: never. `waits`: the other end has said that it is under way."""

    failures: int = 0
    step: str = ""
    why: str = ""
    mend: str = ""
    tried: int = 0
    good: int = 0
    again: int = 0
    waits: bool = False


def life(leaf: Facts) -> int:
    return max(0, leaf.not_after - leaf.not_before)


def renewed_from(leaf: Facts, renew_days: float) -> int:
    """When its renewal becomes due."""
    return leaf.not_after - window(life(leaf), renew_days)


def due(leaf: Facts | None, names: Sequence[str], renew_days: float, now: int) -> str:
    """Why a certificate is to be enrolled now; empty where it need not be."""
    if leaf is None:
        return "there is none"
    if now >= renewed_from(leaf, renew_days):
        return "it is time to renew it"
    missing = [name for name in names if not covers(leaf.names, typed(name))]
    return f"it does not carry {', '.join(missing)}" if missing else ""


def pause(failures: int, room: int, share: float) -> int:
    """How long to wait after the nth failure in a row. `room` is the whole time there is for trying (0: no end), of which an
    eighth is the most; `share` in [0, 1) spreads it over its upper half."""
    longest = min(LONGEST_PAUSE, room // 8) if room > 0 else LONGEST_PAUSE
    whole = max(SHORTEST_PAUSE, min(longest, FIRST_PAUSE << min(max(0, failures - 1), 20)))
    return whole // 2 + int(whole // 2 * share)


def asked_for(seconds: float) -> int:
    """How long to wait where the server names it (Retry-After), within reason."""
    return min(LONGEST_WAIT, max(SHORTEST_PAUSE, int(seconds * SECOND)))


def severity(leaf: Facts | None, renew_days: float, now: int) -> Severity:
    """How loud a renewal that fails is: critical where there is no certificate, or two thirds of the time for it are over."""
    if leaf is None or now >= leaf.not_after - window(life(leaf), renew_days) // 3:
        return Severity.CRITICAL
    return Severity.WARNING


def list_pause(next_update: int, now: int, share: float) -> int:
    """How long a revocation list that has just been fetched is good for."""
    left = (next_update - now) // 2 if next_update else LIST_PERIOD
    whole = max(LIST_LEAST, min(LIST_PERIOD, left))
    return whole - int(whole // 10 * share)
