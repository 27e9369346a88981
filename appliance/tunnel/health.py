"""Health: how each tunnel fares, for `status` and the alarms; a small file in `[control] run`, replaced in one step."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from appliance.model import Alarm, Severity

NAME = "tunnels.json"


class State(StrEnum):
    UNKNOWN = "unknown"        # not looked at yet
    UP = "up"                  # something went through it when it was last looked at
    RETRYING = "retrying"      # it failed once, and is looked at again soon
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Condition:
    """One tunnel. `hop` is where it ends, `cause` a word for it; `text` and `mend` as in alarms. `since`: in this state,
    `checked`: looked at last, both wall ns. `milliseconds`: how long the exchange took. `stale`: why it runs by an older
    setup than the configuration and the certificate store say, `stale_mend` what mends that."""

    tunnel: str
    state: State = State.UNKNOWN
    hop: str = ""
    cause: str = ""
    text: str = ""
    mend: str = ""
    since: int = 0
    checked: int = 0
    milliseconds: float = 0.0
    pid: int = 0
    stale: str = ""
    stale_mend: str = ""


def write(run: Path, conditions: Sequence[Condition]) -> None:
    """Publish them. OSError is swallowed: nothing waits for this."""
    with suppress(OSError):
        beside = run / f".{NAME}.{os.getpid()}"
        beside.write_text(json.dumps([asdict(condition) for condition in conditions]) + "\n")
        beside.rename(run / NAME)


def read(run: Path) -> list[Condition]:
    """Those published last; empty where there are none, or where they make no sense."""
    try:
        return [Condition(**{**entry, "state": State(entry["state"])}) for entry in json.loads((run / NAME).read_text())]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def alarms(conditions: Sequence[Condition]) -> list[Alarm]:
    """Tunnels that are down, and such as cannot take up what has changed."""
    return [*(Alarm(f"tunnel-down:{c.tunnel}", Severity.WARNING, f"tunnel {c.tunnel} is down at {c.hop}: {c.text}", c.mend)
              for c in conditions if c.state is State.DOWN),
            *(Alarm(f"tunnel-stale:{c.tunnel}", Severity.WARNING,
                    f"tunnel {c.tunnel} goes on by what it had, what is new cannot be taken up: {c.stale}", c.stale_mend)
              for c in conditions if c.stale)]
