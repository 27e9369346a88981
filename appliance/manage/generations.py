"""Numbered generations of the configuration: a checked text in the ledger, the last good one in force.

A file becomes a generation only when nothing is wrong with it. Every stage
works from the latest generation, never from the file, so a bad file changes
nothing and a restart after it neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from appliance.config import load
from appliance.config.findings import did_you_mean
from appliance.config.settings import Config
from appliance.errors import ConfigError
from appliance.sandbox import dictionary
from appliance.telemetry.log import Log

_log = Log("config")


class Generations(Protocol):
    """What is needed of the ledger."""

    def publish(self, text: str, by: str) -> int:
        """Make the text the next generation."""

    def latest(self) -> tuple[int, str] | None:
        """The latest generation and its text."""

    def generation(self) -> int:
        """The number of the latest generation, 0 for none."""


@dataclass(frozen=True, slots=True)
class InForce:
    """A configuration in force; `changed` where this call put it in force."""

    config: Config
    changed: bool


def published(ledger: Generations) -> Config | None:
    """The latest generation; None where there is none yet. ConfigError where this release cannot read it."""
    latest = ledger.latest()
    return None if latest is None else parse(latest[1], f"generation {latest[0]}", latest[0])


def publish_file(ledger: Generations, path: str, by: str) -> InForce:
    """Check a file and put it in force; a text that is in force already is left alone. ConfigError, LedgerError."""
    return publish_text(ledger, load.read(path), path, by)


def publish_text(ledger: Generations, text: str, name: str, by: str) -> InForce:
    """As `publish_file`, for a text; `name` stands for the file in messages."""
    parse(text, name)
    latest = ledger.latest()
    changed = latest is None or latest[1] != text
    generation = latest[0] if latest is not None and not changed else ledger.publish(text, by)
    return InForce(parse(text, name, generation), changed)


class Source:
    """Gives the configuration in force to a stage: one small question to the ledger where nothing has changed.

    A generation that this release cannot read (a rollback of the program) leaves
    the one before it in force, and is logged once.
    """

    def __init__(self, ledger: Generations, first: Config) -> None:
        self._ledger = ledger
        self._config = first
        self._bad = 0

    def __call__(self) -> Config:
        generation = self._ledger.generation()
        if generation not in (0, self._bad, self._config.generation):
            try:
                self._config = published(self._ledger) or self._config
            except ConfigError as e:
                self._bad = generation
                _log.error("this release cannot read the latest configuration: the one before stays in force", error=str(e))
        return self._config


def parse(text: str, name: str, generation: int = 0) -> Config:
    """`load.parse` with the dictionary of PS3.6 at hand."""
    return load.parse(text, name, generation, tag_problem=tag_problem)


def problems(text: str, name: str) -> list[ConfigError]:
    """`load.check` with the dictionary of PS3.6 at hand."""
    return load.check(text, name, tag_problem=tag_problem)


# --- names of tags -------------------------------------------------------------------------------------------------------

def tag_problem(name: str) -> str:
    """Whether a rule may name this tag: "" for a number or a keyword of PS3.6, else a mend."""
    if _is_number(name) or dictionary.tag_of(name) is not None:
        return ""
    return did_you_mean(name, dictionary.keywords(), "it is no keyword of the standard; a private tag stands by its number")


def _is_number(name: str) -> bool:
    digits = name.replace(",", "").replace(" ", "").strip("()")
    return len(digits) == 8 and all(c in "0123456789abcdefABCDEF" for c in digits)
