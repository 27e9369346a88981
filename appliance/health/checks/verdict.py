"""Verdict: what a check came to. Values, and how they go from one process to another."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from appliance.model import Alarm, Severity

NAME = "verdicts.json"


class State(StrEnum):
    GOOD = "good"
    POOR = "poor"            # a person should look at it
    BAD = "bad"
    UNKNOWN = "unknown"      # this box cannot say


SEVERITY = {State.POOR: Severity.WARNING, State.BAD: Severity.CRITICAL}


@dataclass(frozen=True, slots=True)
class Verdict:
    """`check` is one of `policy.escalation.RULES`; `evidence`: the figures it rests on, JSON values."""

    check: str
    state: State
    text: str = ""
    mend: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)


def alarm(verdict: Verdict) -> Alarm | None:
    """What a person should know, if anything."""
    severity = SEVERITY.get(verdict.state)
    return Alarm(f"check:{verdict.check}", severity, verdict.text, verdict.mend) if severity is not None else None


def write(folder: Path, verdicts: Sequence[Verdict]) -> None:
    """Publish. OSError is swallowed: nothing waits for this."""
    with suppress(OSError):
        beside = folder / f".{NAME}.{os.getpid()}"
        beside.write_text(json.dumps([asdict(each) for each in verdicts]) + "\n")
        beside.chmod(0o644)
        beside.rename(folder / NAME)


def read(folder: Path) -> list[Verdict]:
    """What was published last; nothing where that makes no sense."""
    try:
        found = json.loads((folder / NAME).read_text())
        return [Verdict(str(e["check"]), State(e["state"]), str(e["text"]), str(e["mend"]), dict(e["evidence"])) for e in found]
    except (OSError, ValueError, KeyError, TypeError):
        return []
