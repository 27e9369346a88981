"""What is promised and what threatens it: the files requirements.toml, hazards.toml and components.toml."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.proof.instruments import PACKAGE, ROOT

_HAZARD = re.compile(r"(?:hazard|threat|CVE class): (.+)")
_INVARIANT = re.compile(r"(I[1-9])\b")


@dataclass(frozen=True, slots=True)
class Requirement:
    """A promise: `name` as tests carry it, `page` where it is said, `plain` the same for everyone (I1 to I9 only)."""

    name: str
    page: str
    text: str
    plain: str = ""
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Hazard:
    """A row of a table of hazards. Each of `names` needs a proof of its own; `beyond` says why there can be none."""

    table: str
    does: str
    require: str
    serves: str
    names: tuple[str, ...]
    stock: str = ""
    beyond: str = ""
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Component:
    """Something of others in the product. `anomalies`: what, guard and proved (a name of the trace, or "")."""

    name: str
    kind: str
    use: str
    anomalies: tuple[dict[str, str], ...] = ()
    package: str = ""


@dataclass(frozen=True)
class Known:
    """All of it. `looked_at`: when the anomalies of components were last looked up (year-month)."""

    requirements: tuple[Requirement, ...]
    hazards: tuple[Hazard, ...]
    components: tuple[Component, ...] = ()
    looked_at: str = ""

    @cached_property
    def names(self) -> dict[str, str]:
        """Each spelling of a name → the name itself, hazards with "hazard: " before them."""
        spellings: dict[str, str] = {}
        for requirement in self.requirements:
            spellings.update(dict.fromkeys((requirement.name, *requirement.also), requirement.name))
        for hazard in self.hazards:
            spellings.update(dict.fromkeys((f"hazard: {name}" for name in hazard.also), f"hazard: {hazard.names[0]}"))
        for hazard in self.hazards:
            spellings.update({f"hazard: {name}": f"hazard: {name}" for name in hazard.names})
        return spellings

    def resolve(self, marker: str) -> str:
        """The name that a marker means; "" where it names nothing."""
        if marker in self.names:
            return self.names[marker]
        hazard = _HAZARD.fullmatch(marker)
        if hazard or f"hazard: {marker}" in self.names:
            return self.names.get(f"hazard: {hazard[1] if hazard else marker}", "")
        invariant = _INVARIANT.match(marker)
        return self.names.get(invariant[1], "") if invariant and marker[2:3] == ":" else ""


def load(folder: Path = PACKAGE) -> Known:
    """From the three files; a field that there is not is a TypeError that names it."""
    components = _read(folder / "components.toml")
    return Known(
        tuple(Requirement(**_tuples(one)) for one in _read(folder / "requirements.toml")["requirement"]),
        tuple(Hazard(**_tuples(one)) for one in _read(folder / "hazards.toml")["hazard"]),
        tuple(Component(**_tuples(one)) for one in components["component"]), components["looked_at"])


def locked(lock: Path = ROOT / "requirements.lock") -> dict[str, str]:
    """Package → version of a lock file."""
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", lock.read_text(), re.MULTILINE))


def _read(file: Path) -> dict[str, Any]:
    return tomllib.loads(file.read_text())


def _tuples(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
