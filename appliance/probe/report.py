"""Report: what was found at each hop. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class State(StrEnum):
    OK = "ok"
    WARNING = "warning"        # it works, and a person should know something
    FAILED = "failed"
    SKIPPED = "skipped"        # not reached, or not asked for


@dataclass(frozen=True, slots=True)
class Hop:
    """One hop. `cause` is a word for what is wrong, for good (`refused`, `wrong_name` …); `text` a sentence, `mend` what a
    person does about it. `facts` are values for JSON."""

    name: str
    state: State
    text: str = ""
    cause: str = ""
    mend: str = ""
    milliseconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """The whole walk. `place` is host:port."""

    id: str
    place: str
    hops: tuple[Hop, ...]
    milliseconds: float = 0.0

    @property
    def failed(self) -> Hop | None:
        """The hop at which the way ends; None where it leads through."""
        return next((hop for hop in self.hops if hop.state is State.FAILED), None)

    def hop(self, name: str) -> Hop | None:
        return next((hop for hop in self.hops if hop.name == name), None)

    def as_json(self) -> dict[str, Any]:
        """For `--json`: times in milliseconds."""
        failed = self.failed
        return {
            "id": self.id, "place": self.place, "reached": failed is None, "failed": failed.name if failed else "",
            "cause": failed.cause if failed else "", "milliseconds": round(self.milliseconds, 1),
            "hops": [{"hop": hop.name, "state": str(hop.state), "milliseconds": round(hop.milliseconds, 1), "text": hop.text,
                      "cause": hop.cause, "mend": hop.mend, "facts": dict(hop.facts)} for hop in self.hops]}


class Broken(Exception):
    """The way ends here. `hop` is the hop's name where it is another than the one that was being looked at."""

    def __init__(self, cause: str, text: str, mend: str = "", *, facts: Mapping[str, Any] | None = None, hop: str = "") -> None:
        super().__init__(text)
        self.cause = cause
        self.text = text
        self.mend = mend
        self.facts = dict(facts or {})
        self.hop = hop
