"""Work: what a desk offers its lanes, what they bring back, and how a destination fares."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.model import Fault, Outcome
from appliance.spool.rows import Queued


@dataclass(frozen=True, slots=True)
class Batch:
    """Objects that were claimed for this lane, in the order in which they go."""

    objects: tuple[Queued, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """The lane asks the destination whether it is there, then takes one object."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing to do for so many seconds, unless there is news."""

    seconds: float


Offer = Batch | Probe | Pause


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of one object. `touched` is False where the attempt failed before its turn, and it only bears witness."""

    queued: Queued
    outcome: Outcome
    touched: bool = True


@dataclass(frozen=True, slots=True)
class Condition:
    """How a destination fares. `state` is up, retrying (faults, not tripped) or down; `since` is boot ns of the first fault."""

    destination: str
    state: str = "up"
    fault: Fault | None = None
    text: str = ""
    since: int | None = None
