"""The verdict for people at the scanners: green, yellow or red, and one sentence. No patient, no study, no title of anybody.

Red: what they send now is not taken in. Yellow: it is taken in and kept, and something is not as it should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from appliance.model import Alarm, Severity, SpaceState


class Colour(StrEnum):
    GREEN = "green"
    YELLOW = "yellow"
    RED = "red"


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of the box. `answers`: whether the receiver's process runs; `fault`: why spool or ledger cannot be read,
    or why the disk is out of intake, "" where neither is so; `owed`: objects that wait for a destination."""

    set_up: bool = True
    answers: bool = True
    fault: str = ""
    space: SpaceState = SpaceState.GREEN
    owed: int = 0
    down: int = 0
    alarms: Sequence[Alarm] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    colour: Colour
    sentence: str


def verdict(standing: Standing) -> Verdict:
    """The worst thing that is so; one sentence that says what it means for who sends."""
    if not standing.set_up:
        return Verdict(Colour.RED, "This gateway has not been set up yet.")
    if standing.fault:
        return Verdict(Colour.RED, "Images are not taken in: the gateway's store has a fault. Please keep them on the scanner.")
    if standing.space in (SpaceState.RED, SpaceState.BLACK):
        return Verdict(Colour.RED, "Images are not taken in: the gateway is full. Please keep them on the scanner.")
    if not standing.answers:
        return Verdict(Colour.RED, "Images are not taken in: the gateway is starting, or has a fault.")
    if standing.down:
        waits = "1 image waits" if standing.owed == 1 else f"{standing.owed} images wait"
        return Verdict(Colour.YELLOW, f"Images are taken in and kept; {waits} because an archive cannot be reached.")
    if standing.space is SpaceState.AMBER:
        return Verdict(Colour.YELLOW, "Images are taken in; the gateway is becoming full.")
    if any(alarm.severity is not Severity.NOTICE for alarm in standing.alarms):
        return Verdict(Colour.YELLOW, "Images are taken in and kept; the gateway has an alarm for whoever looks after it.")
    return Verdict(Colour.GREEN, "Images are taken in and delivered.")
