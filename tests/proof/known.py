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
_INVARIANT = re.compile(r"(I[1-9]): .+")


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

    @cached_property
    def rows(self) -> dict[str, tuple[str, ...]]:
        """What a row of the hazards says is done → all its names."""
        return {f"hazard: {hazard.does}": tuple(f"hazard: {name}" for name in hazard.names) for hazard in self.hazards}

    def resolve(self, marker: str) -> tuple[str, ...]:
        """The names that a marker means: one; all of a row of the hazards that it quotes; () where it names nothing."""
        hazard, invariant = _HAZARD.fullmatch(marker), _INVARIANT.fullmatch(marker)
        for spelled in (marker, f"hazard: {hazard[1] if hazard else marker}", invariant[1] if invariant else ""):
            if spelled in self.names:
                return (self.names[spelled],)
            if spelled in self.rows:
                return self.rows[spelled]
        return ()


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
