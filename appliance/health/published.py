"""Published: what the monitor knows, for the keeper's alarms and for `status`; a small file in `[control] run`.

Written by renaming, whenever something changes. It is no custody: a missing or
unreadable file means "nothing known".
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from appliance.health.canary import Canary
from appliance.health.canary import alarm as canary_alarm
from appliance.health.reach import Reach
from appliance.health.reach import alarm as reach_alarm
from appliance.model import Alarm

NAME = "health.json"


def write(run: Path, reaches: Sequence[Reach], canaries: Sequence[Canary]) -> None:
    """OSError is swallowed: nothing waits for this."""
    with suppress(OSError):
        beside = run / f".{NAME}.{os.getpid()}"
        beside.write_text(json.dumps({"reaches": [asdict(each) for each in reaches],
                                      "canaries": [asdict(each) for each in canaries]}) + "\n")
        beside.rename(run / NAME)


def read(run: Path) -> tuple[dict[str, Reach], dict[str, Canary]]:
    """By destination; empty where there is nothing, or what makes no sense."""
    try:
        found = json.loads((run / NAME).read_text())
        return ({entry["destination"]: Reach(**entry) for entry in found["reaches"]},
                {entry["destination"]: Canary(**entry) for entry in found["canaries"]})
    except (OSError, ValueError, KeyError, TypeError):
        return {}, {}


def alarms(run: Path, said: Sequence[Alarm] = ()) -> list[Alarm]:
    """Those that follow; `said`: what the forwarder says of the same destinations already, which is the better word."""
    reaches, canaries = read(run)
    known = {alarm.key for alarm in said}
    found = [*map(reach_alarm, reaches.values()), *map(canary_alarm, canaries.values())]
    return [alarm for alarm in found if alarm is not None and alarm.key not in known]
