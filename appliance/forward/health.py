"""Health: how each destination fares, for the keeper's alarms and for `status`; a small file in `[control] run`.

Written when something changes, by renaming, so that a reader sees all of it or
the one before. It is no custody: a missing or unreadable file means "nothing known".
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from appliance.forward.work import Condition
from appliance.model import Alarm, Fault, Severity

NAME = "forwarder.json"


def write(run: Path, conditions: Sequence[Condition]) -> None:
    """Publish the conditions. OSError is swallowed: no image may wait for this."""
    with suppress(OSError):
        beside = run / f".{NAME}.{os.getpid()}"
        beside.write_text(json.dumps([{
            "destination": c.destination, "state": c.state, "fault": None if c.fault is None else str(c.fault), "text": c.text,
            "since": c.since} for c in conditions]) + "\n")
        beside.rename(run / NAME)


def read(run: Path) -> list[Condition]:
    """The conditions published last; empty where there are none, or where they make no sense."""
    try:
        return [Condition(str(entry["destination"]), str(entry["state"]), Fault(entry["fault"]) if entry["fault"] else None,
                          str(entry["text"]), entry["since"]) for entry in json.loads((run / NAME).read_text())]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def alarms(conditions: Sequence[Condition]) -> list[Alarm]:
    """What a person should know: a configuration fault at once, a destination that is down."""
    found = []
    for condition in conditions:
        what, _, mend = condition.text.rpartition(" — ")
        if condition.fault is Fault.CONFIGURATION:
            found.append(Alarm(f"destination-refuses:{condition.destination}", Severity.CRITICAL, what or condition.text, mend))
        elif condition.state == "down":
            found.append(Alarm(f"destination-down:{condition.destination}", Severity.WARNING,
                               f"{condition.destination} is down: {what or condition.text}", mend))
    return found
