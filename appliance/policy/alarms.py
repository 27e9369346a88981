"""Alarms that follow from values: a queue that grows old, a scanner that is silent for longer than its habit.

A habit is a histogram of the gaps between a scanner's associations or objects,
in powered-on time (so a box that was off has not seen a silent scanner):
bucket n counts gaps of 2**n to 2**(n+1) seconds. Nights and weekends are gaps like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from appliance.model import Alarm, Severity

SECOND = 1_000_000_000
MINUTE = 60 * SECOND

BUCKETS = 24
"""Gaps from 1 s to half a year."""

HABIT_LEARNED = 16
"""So many gaps make a habit; before, nobody is called silent."""

HABIT_FULL = 4096
"""Above so many, all counts are halved: habits change."""


def bucket(gap: int) -> int:
    """The bucket of a gap in nanoseconds."""
    return min(max(gap // SECOND, 1).bit_length() - 1, BUCKETS - 1)


def learn(habit: Sequence[int], gap: int) -> tuple[int, ...]:
    """The habit with one more gap (nanoseconds) in it; always `BUCKETS` long."""
    counts = [*habit[:BUCKETS], *([0] * (BUCKETS - len(habit)))]
    if sum(counts) >= HABIT_FULL:
        # Rounded up, so that a rare but regular gap, such as a weekend, is not forgotten by being halved.
        counts = [(count + 1) // 2 for count in counts]
    counts[bucket(gap)] += 1
    return tuple(counts)


def habit_of(gaps: Iterable[int]) -> tuple[int, ...]:
    """The habit that these gaps (nanoseconds) make."""
    habit: tuple[int, ...] = (0,) * BUCKETS
    for gap in gaps:
        habit = learn(habit, gap)
    return habit


def silence(habit: Sequence[int], minimum: int) -> int | None:
    """Nanoseconds after which this scanner is called silent; None while its habit is not known.

    A quarter above the longest kind of gap that happened at least twice, so one
    holiday is no habit; never below `minimum` (nanoseconds).
    """
    if sum(habit) < HABIT_LEARNED:
        return None
    regular = [n for n, count in enumerate(habit) if count >= 2]
    longest = (2 << regular[-1]) * SECOND if regular else 0
    return max(minimum, longest * 5 // 4)


def silence_alarm(peer: str, habit: Sequence[int], gap: int, minimum: int) -> Alarm | None:
    """The alarm for a peer that has sent nothing for `gap` nanoseconds of powered-on time, or None."""
    limit = silence(habit, minimum)
    if limit is None or gap <= limit:
        return None
    return Alarm(f"silent:{peer}", Severity.WARNING, f"{peer} has sent nothing for {span(gap)}; it never was silent this long",
                 "Look whether the scanner runs and whether its send queue is stuck.")


def backlog(oldest: int, levels: Sequence[float]) -> Severity | None:
    """How bad it is that the oldest undelivered object has that age (nanoseconds). `levels` are minutes, ascending."""
    reached = sum(oldest >= level * MINUTE for level in levels)
    return list(Severity)[min(reached, len(Severity)) - 1] if reached else None


def backlog_alarm(destination: str, waiting: int, oldest: int, levels: Sequence[float]) -> Alarm | None:
    """The alarm for a destination where `waiting` objects are owed, the oldest for `oldest` nanoseconds, or None."""
    severity = backlog(oldest, levels) if waiting > 0 else None
    if severity is None:
        return None
    objects = "1 object waits" if waiting == 1 else f"{waiting} objects wait"
    return Alarm(f"backlog:{destination}", severity, f"{objects} for {destination}, the oldest for {span(oldest)}",
                 f"`dcmgate status` says what {destination} answers.")


def parked_alarm(destination: str, count: int, reason: str) -> Alarm | None:
    """The alarm for objects that were parked, or None. `reason` is that of the latest."""
    if count <= 0:
        return None
    objects = "1 object is" if count == 1 else f"{count} objects are"
    return Alarm(f"parked:{destination}", Severity.WARNING, f"{objects} parked for {destination}: {reason}",
                 f"Mend the cause, then `dcmgate requeue {destination}`; or send elsewhere with `--to`.")


def removed_alarm(destination: str, count: int) -> Alarm | None:
    """The alarm for objects owed to a destination that no configuration names any more, or None."""
    if count <= 0:
        return None
    objects = "1 object is" if count == 1 else f"{count} objects are"
    return Alarm(f"removed:{destination}", Severity.WARNING,
                 f"{objects} held for {destination}, which is not configured any more",
                 f"`dcmgate requeue {destination} --to` another destination, or discard them.")


def span(nanoseconds: int) -> str:
    """A duration as a person says it: 45 s, 12 min, 3 h, 2 d 5 h."""
    seconds = max(nanoseconds, 0) // SECOND
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min"
    if seconds < 172800:
        return f"{seconds // 3600} h"
    days, rest = divmod(seconds, 86400)
    return f"{days} d {rest // 3600} h" if rest >= 3600 else f"{days} d"
