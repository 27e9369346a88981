"""Escalation: how far a finding may go: keep the ping back, restart, one reboot, degraded mode (design, Watchdog chain).

    restart      the service manager's own, bounded; what comes here has spent it
    reboot       once per fault; the budget comes back after a day of powered-on time without that fault
    degraded     DICOM answers "out of resources", logs and alarms work
    without      the box goes on without that service, and tries it again now and then

What is outside the box (uplink, tunnel, cloud), a full disk, heat, wear and the clock never reboot anything: a reboot mends
none of them, and costs what is being received. A budget that cannot be kept off the suspect disk is no budget: then there is
no reboot either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

SECOND = 1_000_000_000

REBOOTS = 1
"""Reboots for one fault, until its budget comes back."""

PROBATION = 24 * 3600 * SECOND
"""Powered-on nanoseconds without the fault, after which its budget comes back."""


@dataclass(frozen=True, slots=True)
class Rule:
    """`gates`: it keeps the ping of its unit back. `reboots`: it may lead to a reboot, after bounded restarts."""

    gates: bool
    reboots: bool


RULES: Mapping[str, Rule] = {
    "accept": Rule(True, True),
    "echo": Rule(True, True),
    "workers": Rule(True, True),
    "spool": Rule(False, True),
    "space": Rule(False, False),
    "temperature": Rule(False, False),
    "wear": Rule(False, False),
    "clock": Rule(False, False),
    "uplink": Rule(False, False),
    "tunnel": Rule(False, False),
    "cloud": Rule(False, False),
}
"""By finding. What is not named here does neither."""

NEITHER = Rule(False, False)


def rule(finding: str) -> Rule:
    return RULES.get(finding, NEITHER)


class Disk(StrEnum):
    """What is known of the spool's file system."""

    GOOD = "good"
    FULL = "full"
    FAILED = "failed"
    ABSENT = "absent"          # not there since this boot: the boot was the try


class Step(StrEnum):
    """What is done."""

    NOTHING = "nothing"
    REBOOT = "reboot"
    ROLL_BACK = "roll back"    # a reboot that a slot on trial pays with one of its tries
    DEGRADED = "degraded"
    WITHOUT = "without"


@dataclass(frozen=True, slots=True)
class Spent:
    """What a fault has used of its budget. `owed`: powered-on nanoseconds without it that are still missing."""

    reboots: int = 0
    owed: int = 0


UNSPENT = Spent()


def charge(spent: Spent) -> Spent:
    """After one more reboot."""
    return Spent(spent.reboots + 1, PROBATION)


def credit(spent: Spent, elapsed: int) -> Spent:
    """After so many powered-on nanoseconds without the fault."""
    owed = spent.owed - max(elapsed, 0)
    return Spent(spent.reboots, owed) if owed > 0 else UNSPENT


@dataclass(frozen=True, slots=True)
class Facts:
    """`unit`: what could not be brought back (`receiver`, `forwarder`, `keeper`), or "spool" where its probe fails.

    `spent`: by fault; None where nothing can be kept off the suspect disk. `on_trial`:
    the slot has not been blessed yet. `finding`: it ended by itself and said why, a bad configuration for one.
    """

    unit: str
    disk: Disk = Disk.GOOD
    spent: Mapping[str, Spent] | None = None
    on_trial: bool = False
    finding: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """`fault` is what the budget is kept for."""

    step: Step
    fault: str
    why: str


TAKES_IN = ("receiver", "spool")
"""Without these nothing is taken in: then somebody has to tell the scanners so."""


def decide(facts: Facts) -> Decision:
    """What follows when restarts did not help."""
    bad_disk = facts.disk in (Disk.FAILED, Disk.ABSENT)
    fault = "spool" if bad_disk or facts.unit == "spool" else facts.unit
    last = Step.DEGRADED if fault in TAKES_IN else Step.WITHOUT
    if facts.unit == "spool" and facts.disk is Disk.GOOD:
        return Decision(Step.NOTHING, fault, "the disk answers")
    if facts.disk is Disk.FULL:
        return Decision(last, fault, "the disk is full: a reboot makes no room")
    if facts.disk is Disk.ABSENT:
        return Decision(last, fault, "the disk was not there at boot")
    if facts.finding and not bad_disk:
        return Decision(last, fault, "it says itself what is wrong, and a reboot does not mend that")
    if facts.on_trial and not bad_disk:
        return Decision(Step.ROLL_BACK, fault, "this system is on trial")
    if facts.spent is None:
        return Decision(last, fault, "nothing can be kept off the suspect disk, so a reboot could not be the last one")
    if facts.spent.get(fault, UNSPENT).reboots >= REBOOTS:
        return Decision(last, fault, "a reboot has not helped")
    return Decision(Step.REBOOT, fault, "the disk fails" if bad_disk else "restarts have not helped")
