"""Resets: why the machine started, from what it left behind (design, Watchdog chain). Pure.

A boot begins with a marker on the disk, and an orderly end takes it back. What
ended without one was cut off: by whom, the board's watchdog, a kernel's last
words or a note of our own say.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reset(StrEnum):
    FIRST = "first"            # nothing was ever kept here
    ORDERLY = "orderly"
    ESCALATION = "escalation"  # our own, for a fault
    PANIC = "panic"
    WATCHDOG = "watchdog"      # the board's: PID 1, or the kernel, stood still
    CUT = "cut"                # power, a button, or a manager that crashed
    UNKNOWN = "unknown"        # nothing can be kept here


@dataclass(frozen=True, slots=True)
class Traces:
    """`kept`: whether there is a disk to leave a marker on. `known`: whether a boot before was ever marked there.

    `running`: the marker of that boot is still there. `escalation`: the fault that we rebooted for. `panic`: the kernel's last
    words, one line. `board`: the board's watchdog says that it reset the machine; None: there is none that could say so.
    """

    kept: bool = True
    known: bool = False
    running: bool = False
    escalation: str = ""
    panic: str = ""
    board: bool | None = None


TEXTS = {
    Reset.FIRST: "the first boot of this system",
    Reset.ORDERLY: "an orderly reboot or power-off",
    Reset.ESCALATION: "a reboot of its own accord",
    Reset.PANIC: "the kernel panicked",
    Reset.WATCHDOG: "the board's watchdog: the system stood still",
    Reset.CUT: "cut off: the power went, somebody pressed reset, or the service manager crashed",
    Reset.UNKNOWN: "not known: nothing is kept from boot to boot",
}


def cause(traces: Traces) -> tuple[Reset, str]:
    """Why this boot began, and a sentence. A board that says so is believed, whatever the marker is: it cannot err."""
    reset = _cause(traces)
    more = {Reset.ESCALATION: traces.escalation, Reset.PANIC: traces.panic}.get(reset, "")
    return reset, TEXTS[reset] + (f": {more}" if more else "")


def _cause(traces: Traces) -> Reset:
    if traces.panic:
        return Reset.PANIC
    if traces.board:
        return Reset.WATCHDOG
    if traces.escalation:
        return Reset.ESCALATION
    if not traces.kept:
        return Reset.UNKNOWN
    if not traces.known:
        return Reset.FIRST
    return Reset.CUT if traces.running else Reset.ORDERLY
