"""The structure of the package: layers, sizes, who may delete, how errors are caught."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "appliance").rglob("*.py"))


def test_every_module_imports_only_from_the_layers_below_it():
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_is_about_one_noun_and_says_so(module: Path):
    text = module.read_text()
    assert text.count("\n") <= 500, "a module is about one noun: split it"
    assert ast.get_docstring(ast.parse(text)), "the first lines say what the module owns"


def _deletes(module: Path) -> bool:
    """Whether the module calls os.unlink, os.remove, os.rmdir, shutil.rmtree or Path.unlink (a set has `remove`, too)."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            name = node.func.attr
            if name in ("unlink", "rmtree", "removedirs") or (owner == "os" and name in ("remove", "rmdir")):
                return True
    return False


MAY_DELETE = {
    "appliance/retire.py": "I4: the only one that deletes objects",
}
MAY_DELETE_OTHER_FILES: dict[str, str] = {
    "appliance/manage/box.py": "the recovery key, once a person has written it down; a request for a reset that was taken",
    "appliance/watchdog/budget.py": "a variable in the board's memory, of a restart that has done what it was for",
    "appliance/net/sidedoor.py": "the wish for a way in, which its gate takes back",
    "appliance/update/fetch.py": "parts of a release that is not the one any more, or is not what its list says",
    "appliance/update/lend.py": "the copies that were lent the last time",
    "appliance/update/install.py": "the UKI of a trial that begins again, and what a power cut left half written beside it",
    "appliance/update/records.py": "the record of a trial that is over",
    "appliance/update/service.py": "requests that were taken up",
    "appliance/net/certstore.py": "keys and certificates that newer ones have replaced, and requests that are done",
    "appliance/spool/index.py": "the index: disposable, made again from the objects",
    "appliance/spool/quarantine.py": "remnants that no acknowledgement ever named, once the same UID has been acknowledged",
}


@pytest.mark.requirement("I4")
def test_only_retire_deletes():
    found = {str(m.relative_to(ROOT)) for m in MODULES if _deletes(m)}
    allowed = {**MAY_DELETE, **MAY_DELETE_OTHER_FILES}
    assert found - set(allowed) == set()


def test_a_broad_except_raises_again_or_gives_its_reason():
    weak = []
    for module in MODULES:
        lines = module.read_text().splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if not isinstance(node, ast.ExceptHandler):
                continue
            broad = node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException"))
            again = isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None
            if broad and not again and not re.search(r"#\s*(noqa: BLE001\s+)?\w{3}", lines[node.lineno - 1]):
                weak.append(f"{module.relative_to(ROOT)}:{node.lineno}: {lines[node.lineno - 1].strip()}")
    assert weak == []


def test_nothing_names_a_machine_or_a_registry():
    hosts = re.compile(r"//[\w.-]*(debian|pypi|python-?hosted|npm)[\w-]*\.(org|com)\b|(?<![\w.$}])/(work|farm)/\w")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split("\n")
    bad = []
    for name in filter(None, listed):
        path = ROOT / name
        if path == Path(__file__) or not path.is_file():
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        bad += [f"{name}:{n}" for n, line in enumerate(text.splitlines(), 1) if hosts.search(line)]
    assert bad == []
