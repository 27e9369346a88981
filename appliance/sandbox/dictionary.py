"""The data dictionary of PS3.6, from pydicom's tables but without importing pydicom.

The two tables are plain modules; loaded on their own they cost 2 MB each and
3 ms, the package 20 MB. Each is loaded when first asked for.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from appliance.errors import SandboxError


def load() -> None:
    """Load the public table now, before limits on files apply."""
    _public()


def vr_of(tag: int, creator: str) -> str:
    """VR of a tag, `UN` where no table knows it; two joined by " or " where the data set decides (PS3.6 6)."""
    element = tag & 0xFFFF
    if element == 0:
        return "UL"
    if tag >> 16 & 1:
        return _private_vr(tag, creator)
    main, repeaters = _public()
    entry = main.get(tag) or next((entry for bits, mask, entry in repeaters if tag & mask == bits), None)
    return str(entry[0]) if entry and entry[0] != "NONE" else "UN"


def tag_of(keyword: str) -> int | None:
    """The tag of a keyword (`SeriesDescription`); None where the standard has none, or it is one of a repeating group."""
    return keywords().get(keyword)


@cache
def keywords() -> dict[str, int]:
    """Every keyword of PS3.6 with its tag."""
    return {str(entry[4]): tag for tag, entry in _public()[0].items() if entry[4]}


def _private_vr(tag: int, creator: str) -> str:
    group, element = tag >> 16, tag & 0xFFFF
    if 0x10 <= element <= 0xFF:
        return "LO"
    block = _private().get(creator) if creator else None
    if not block:
        return "UN"
    for key in (f"{group:04X}{element:04X}", f"{group:04X}xx{element & 0xFF:02X}", f"{group >> 8:02X}xxxx{element & 0xFF:02X}"):
        if key in block:
            return str(block[key][0])
    return "UN"


@cache
def _public() -> tuple[dict[int, Any], list[tuple[int, int, Any]]]:
    module = _table("_dicom_dict")
    repeaters = [(int(key.replace("x", "0"), 16), int("".join("0" if c == "x" else "F" for c in key), 16), entry)
                 for key, entry in module.RepeatersDictionary.items()]
    return module.DicomDictionary, repeaters


@cache
def _private() -> dict[str, dict[str, Any]]:
    tables: dict[str, dict[str, Any]] = _table("_private_dict").private_dictionaries
    return tables


def _table(name: str) -> Any:
    package = importlib.util.find_spec("pydicom")
    if package is None or not package.submodule_search_locations:
        raise SandboxError("pydicom is not installed", mend="reinstall Dcmgate with its dependencies")
    path = Path(package.submodule_search_locations[0]) / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise SandboxError(f"pydicom has no table {name}", mend="install the pydicom that requirements.lock names")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
