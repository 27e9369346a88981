"""Health: whether the receivers take anything in, for the keeper's alarms; a small file in `[control] run`.

Written when something changes, by renaming. It is no custody: a missing or
unreadable file means "nothing known".
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

NAME = "receiver.json"


@dataclass(frozen=True, slots=True)
class Condition:
    """`out_of_intake`: why the disk is out of intake, empty where it is not. `problems`: ports that cannot be opened."""

    out_of_intake: str = ""
    problems: tuple[str, ...] = ()


def write(run: Path, out_of_intake: str, problems: Sequence[str]) -> None:
    """Publish. OSError is swallowed: no association may wait for this."""
    with suppress(OSError):
        beside = run / f".{NAME}.{os.getpid()}"
        beside.write_text(json.dumps({"out_of_intake": out_of_intake, "problems": list(problems)}) + "\n")
        beside.rename(run / NAME)


def read(run: Path) -> Condition:
    """What was published last."""
    try:
        found = json.loads((run / NAME).read_text())
        return Condition(str(found["out_of_intake"]), tuple(str(problem) for problem in found["problems"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Condition()
