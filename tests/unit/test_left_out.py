"""What the product does not do, so that whole classes of faults cannot be: no shell, no XML, no codecs, no old libraries."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "appliance").rglob("*.py"))


def imported() -> Iterator[tuple[str, str]]:
    """(module of ours, full name of what it imports), those inside of functions as well."""
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            yield from ((str(module.relative_to(ROOT)), name) for name in names)


def called() -> Iterator[tuple[str, str, ast.Call]]:
    """(module of ours, last part of the name that is called, the call)."""
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                yield str(module.relative_to(ROOT)), name, node


def importing(pattern: str) -> list[tuple[str, str]]:
    return [(module, name) for module, name in imported() if re.match(pattern, name)]


def test_the_look_sees_what_is_imported():
    assert importing(r"apsw\b") and importing(r"appliance\.spool\.")


@pytest.mark.requirement("hazard: no pynetdicom.apps")
def test_pynetdicoms_programs_are_not_used():
    assert importing(r"pynetdicom\.apps\b") == []


@pytest.mark.requirement("hazard: no XML")
def test_no_xml_is_read():
    assert importing(r"(xml|lxml|defusedxml|html\.parser|plistlib)\b") == []


@pytest.mark.requirement("hazard: no codecs")
def test_no_pixels_are_decoded():
    assert importing(r"(pydicom\.(pixel|encaps|overlays)|PIL|numpy|cv2|gdcm|pylibjpeg|openjpeg|imagecodecs)") == []
    words = re.compile(r"pixel_array|\.decompress\(\)|handler_util")
    assert [str(module) for module in MODULES if words.search(module.read_text())] == []


@pytest.mark.requirement("hazard: no shell, no reverse DNS")
def test_nothing_goes_through_a_shell_or_asks_for_the_name_of_an_address():
    banned = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "eval", "exec",
              "socket.gethostbyaddr", "socket.getnameinfo", "socket.getfqdn"}
    assert [(module, name) for module, name in imported() if name in banned] == []
    assert [(module, ast.unparse(call.func)) for module, _, call in called() if ast.unparse(call.func) in banned] == []
    assert [module for module, _, call in called() for word in call.keywords if word.arg == "shell"] == []


@pytest.mark.requirement("hazard: bytes, not objects")
@pytest.mark.requirement("I3")
def test_no_object_is_ever_written_again_by_a_library():
    assert [(module, name) for module, name, _ in called() if name in ("dcmwrite", "save_as", "write_like_original")] == []


@pytest.mark.requirement("hazard: unauthenticated defaults")
def test_there_is_no_password_that_could_be_a_default():
    passwords = re.compile(r"""(password|passwd|secret)\w*\s*(:\s*str\s*)?=\s*["'][^"']+["']""", re.IGNORECASE)
    assert [str(module) for module in MODULES if passwords.search(module.read_text())] == []


FLOORS = {
    "apsw": "3.51.3",       # the WAL-reset bug of SQLite
    "pydicom": "3.0.2",     # CVE-2026-32711
    "pynetdicom": "3.0.4",  # what the hazards were measured with
}


@pytest.mark.requirement("hazard: floors of dependencies")
@pytest.mark.parametrize("name", FLOORS)
def test_releases_with_known_holes_are_excluded_and_the_lock_obeys(name: str):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"{name}>={FLOORS[name]}" in declared
    version = re.search(rf"^{name}==([\d.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert version and _numbers(version[1]) >= _numbers(FLOORS[name])


@pytest.mark.requirement("hazard: floors of dependencies")
def test_every_locked_package_has_its_hashes():
    text = (ROOT / "requirements.lock").read_text().replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    assert lines and [line for line in lines if "--hash=sha256:" not in line] == []


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
