"""Which instruments the package has: read from their source, so that a broken one cannot take the driver along."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(__file__).resolve().parent

EXPECTED = ("bit_flips", "clocks", "full_disk", "fuzz", "hostile", "io_errors", "kills", "mutants", "network", "power_cuts",
            "simulation", "soak")
"""What the proof consists of: one that is not there any more is wanting, as one that did not run."""


ALONE = frozenset({"hostile", "network", "soak"})
"""They measure answers, memory or the rate of a line: they get the machine, one after the other, when all others are done."""

SPARE = frozenset({"fuzz"})
"""They compute and wait for nothing: at the lowest priority, beside the others from the beginning."""

LONGEST = ("kills", "io_errors", "power_cuts", "full_disk", "mutants", "simulation")
"""Who begins: so that no long one is left when all others are done."""


@dataclass(frozen=True, slots=True)
class Instrument:
    """A module with NAME, ABOUT, REQUIREMENTS and `run`. `exclusive`: one of ALONE, or it says EXCLUSIVE; `spare`: one of
    SPARE. `fault`: why it cannot run."""

    name: str
    module: Path
    about: str = ""
    requirements: tuple[str, ...] = ()
    exclusive: bool = False
    fault: str = ""
    spare: bool = False


def discover(package: Path = PACKAGE) -> list[Instrument]:
    """Every instrument in the folder, by name. A module that is no Python is one with a fault, whatever it was to be."""
    found = []
    for path in sorted(package.glob("*.py")):
        try:
            tree = ast.parse(path.read_text(), path.name)
        except SyntaxError as error:
            found.append(Instrument(path.stem, path, fault=f"{path.name}:{error.lineno}: {error.msg}"))
            continue
        constants = _constants(tree)
        runs = any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body)
        if isinstance(constants.get("NAME"), str) and runs:
            found.append(_instrument(path, constants))
    return sorted(found, key=lambda one: one.name)


def _instrument(module: Path, constants: dict[str, Any]) -> Instrument:
    about, requirements = constants.get("ABOUT", ""), constants.get("REQUIREMENTS", ())
    fault = ""
    if not isinstance(about, str) or not about:
        fault = "ABOUT must be one line of text"
    elif not requirements or not all(isinstance(one, str) for one in requirements):
        fault = "REQUIREMENTS must be a tuple of names, written out"
    name = constants["NAME"]
    return Instrument(name, module, str(about), () if fault else tuple(requirements),
                      name in ALONE or bool(constants.get("EXCLUSIVE", False)), fault, name in SPARE)


def in_order(chosen: Iterable[Instrument]) -> list[Instrument]:
    """As they begin: LONGEST first, those of ALONE last."""
    place = {name: number for number, name in enumerate(LONGEST)}
    return sorted(chosen, key=lambda one: (one.exclusive, not one.spare, place.get(one.name, len(place)), one.name))


def _constants(tree: ast.Module) -> dict[str, Any]:
    """The names in capitals that the module gives a literal to; other values are left out."""
    found: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            target, value = node.target, node.value
        else:
            continue
        if isinstance(target, ast.Name) and target.id.isupper():
            try:
                found[target.id] = ast.literal_eval(value)
            except ValueError:
                continue
    return found
