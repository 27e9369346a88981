"""Reach: what is known of one destination by traffic, and when it is looked at again. Values and decisions, no effects.

A delivery proves as much as a C-ECHO. After a failure it is asked again soon;
three in a row, and the destination is down, with or without anything to send.
What a person has to mend (a title, a certificate) is said at the first.
Times are boot nanoseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from appliance.clock import SECOND
from appliance.model import Alarm, Severity
from appliance.probe.report import Report, State

MINUTE = 60 * SECOND

DOWN_AFTER = 3
"""Failures in a row; the same number trips the forwarder's breaker."""

AGAIN = 60 * SECOND
"""Pause after a failure, or the destination's own interval where that is shorter."""

FIRST = 20 * SECOND
"""The first look comes within so long after the start, so that a box with many destinations does not ask them all at once."""

JITTER = 0.2
"""Share by which intervals vary, so that boxes do not march in step."""

_CONFIGURATION = frozenset({"called_title", "calling_title", "rejected", "credentials", "no_password", "tls_where_plain",
                            "plain_where_tls"})


@dataclass(frozen=True, slots=True)
class Reach:
    """`by`: delivery, C-ECHO, association or "" ; `milliseconds` of that look. `hop`, `cause`, `text`, `mend`: of the last
    failure, empty where the last look went well; `since`: of the first failure in a row."""

    destination: str
    reached: int | None = None
    by: str = ""
    milliseconds: float = 0.0
    failures: int = 0
    since: int | None = None
    hop: str = ""
    cause: str = ""
    text: str = ""
    mend: str = ""
    configuration: bool = False

    @property
    def down(self) -> bool:
        return self.failures >= DOWN_AFTER


def delivered(reach: Reach, at: int) -> Reach:
    """Something was stored there at that time."""
    if reach.reached is not None and at <= reach.reached:
        return reach
    if reach.since is not None and at < reach.since:
        return replace(reach, reached=at, by="delivery", milliseconds=0.0)
    return Reach(reach.destination, at, "delivery")


def looked(reach: Reach, report: Report, at: int) -> Reach:
    """After a walk that ended at that time."""
    failed = report.failed
    if failed is None:
        service, association = report.hop("service"), report.hop("association")
        by = "C-ECHO" if service is not None and service.state is State.OK else \
            "association" if association is not None and association.state is State.OK else "connection"
        return Reach(reach.destination, at, by, report.milliseconds)
    ours = failed.name == "configuration" or failed.cause in _CONFIGURATION or bool(failed.facts.get("certificate"))
    return replace(reach, failures=reach.failures + 1, since=at if reach.since is None else reach.since, hop=failed.name,
                   cause=failed.cause, text=failed.text, mend=failed.mend, configuration=ours)


def pause(reach: Reach, minutes: float, random: float) -> int:
    """Nanoseconds until the next look after the one that came to this; `random` in [0, 1)."""
    interval = int(minutes * MINUTE)
    wanted = min(AGAIN, interval) if reach.failures else interval
    return int(wanted * (1 + JITTER * (2 * random - 1)))


def alarm(reach: Reach) -> Alarm | None:
    """What a person should know: of the kinds that the forwarder's own failures raise."""
    what = f"{reach.destination}: {reach.hop}: {reach.text}"
    if reach.failures and reach.configuration:
        return Alarm(f"destination-refuses:{reach.destination}", Severity.CRITICAL, what, reach.mend)
    if reach.down:
        return Alarm(f"destination-down:{reach.destination}", Severity.WARNING, f"{reach.destination} is down: {reach.hop}: "
                     f"{reach.text}", reach.mend)
    return None
