"""Troubles: what a desk remembers of objects that failed, no more of them than there is room for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

KNOWN_FAULTS = 4096
"""Objects whose faults are remembered; of more, the oldest are forgotten, and then tried a few times more."""


@dataclass(slots=True)
class Trouble:
    """What is remembered of an object that failed: since when (boot ns), and how often the association broke under it."""

    since: int
    broke: int = 0


class Troubles(dict[int, Trouble]):
    """By number. Not locked."""

    def add(self, more: Mapping[int, Trouble]) -> None:
        self.update(more)
        while len(self) > KNOWN_FAULTS:
            del self[next(iter(self))]
