"""Which tests there are and which requirements they name, read from their source: no test is imported for it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.proof.instruments import ROOT


@dataclass(frozen=True, slots=True)
class MarkedTest:
    """A test function. `file` from the root of the tree; `names` as its markers spell them, those of the module included."""

    file: str
    function: str
    names: tuple[str, ...]

    @property
    def node(self) -> str:
        return f"{self.file}::{self.function}"

    @property
    def words(self) -> str:
        """What it says, as a person reads it."""
        return self.function.rpartition("::")[2].removeprefix("test_").replace("_", " ")


def tests(folder: Path = ROOT / "tests", root: Path = ROOT) -> list[MarkedTest]:
    """Every test function in the files `test_*.py` of the folder. A class's name stands before its functions', with "::"."""
    found = []
    for path in sorted(folder.rglob("test_*.py")):
        tree = ast.parse(path.read_text(), path.name)
        file = str(path.relative_to(root))
        whole = tuple(name for node in tree.body if _is_pytestmark(node) for name in _named(node))
        found += [MarkedTest(file, function, whole + names) for function, names in _functions(tree.body, "", ())]
    return found


def _functions(body: list[ast.stmt], before: str, inherited: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            names = inherited + tuple(name for part in (*node.decorator_list, *filter(_is_pytestmark, node.body))
                                      for name in _named(part))
            yield from _functions(node.body, f"{before}{node.name}::", names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"):
            yield before + node.name, inherited + tuple(name for part in node.decorator_list for name in _named(part))


def _is_pytestmark(node: ast.AST) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in node.targets)


def _named(node: ast.AST) -> Iterator[str]:
    """The names of each `pytest.mark.requirement(…)` in the expression; what is not written out names itself as code."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "requirement":
            for argument in call.args:
                is_text = isinstance(argument, ast.Constant) and isinstance(argument.value, str)
                yield str(argument.value) if is_text else f"<{ast.unparse(argument)}>"  # type: ignore[attr-defined]
