"""What a proof finds out about objects that were sent, and how patiently it is asked again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from appliance.clock import SECOND
from appliance.spool.rows import Sent

PAUSES = (2, 30, 120, 600, 3600)
"""Seconds before each look for an object: many archives take things in long after they said so. After the last
one it is not there, and is sent again."""

LONGEST_PAUSE = 86400
"""Seconds. An object that was sent again in vain is looked for at doubled pauses, up to this."""


class Verdict(StrEnum):
    PRESENT = "present"        # proved
    MISSING = "missing"        # the destination answered, and does not have it
    UNKNOWN = "unknown"        # this object cannot be proved in this way: it stays `sent`


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found out about one object, with one line that says how."""

    number: int
    verdict: Verdict
    text: str


class Unavailable(Exception):
    """The destination could not be asked: says nothing of any object."""


class Proof(Protocol):
    """One way to ask one destination. For one thread."""

    def look(self, sent: Sequence[Sent]) -> list[Evidence]:
        """Evidence for each, in any order, within a bounded time; `Unavailable` where the destination cannot be asked now."""

    def close(self) -> None:
        """Let go of what is only needed while there is something to look for."""


def pause(tries: int, cycles: int) -> int | None:
    """Nanoseconds before look number `tries` (0: the first); None when it is time to send again.

    `cycles`: how often this object was sent again already because it was missing.
    """
    if tries >= len(PAUSES):
        return None
    return min(PAUSES[tries] << min(cycles, 32), LONGEST_PAUSE) * SECOND
