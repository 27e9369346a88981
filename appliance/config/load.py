"""From a TOML text to a checked `Config`, or to every reason why not.

Owns: reading the file and turning each value into what the table (`settings.py`)
says it is. What entries say of one another is judged by `checks.py`.
Promises: a `ConfigError` names file, line, key and a mend; `check` finds all of
them, `parse` raises the first and says how many there are. Nothing else is
raised, whatever the text.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import Field, fields
from pathlib import Path as FilePath
from typing import Any, ClassVar, Protocol

from appliance.config.checks import TagProblem, check_config, plausible_tag
from appliance.config.findings import Findings, did_you_mean
from appliance.config.lines import Path, find_lines
from appliance.config.page import example, page, render
from appliance.config.settings import (
    Alarms,
    Certificate,
    Config,
    Control,
    Destination,
    Limits,
    Listener,
    Logging,
    Network,
    Peer,
    Rule,
    Spool,
    Time,
    Tunnel,
    Update,
)
from appliance.errors import ConfigError

__all__ = ["LARGEST_FILE", "check", "example", "load", "page", "parse", "read", "render", "spool_path", "survivors"]

LARGEST_FILE = 1 << 20
"""Bytes; a longer file is not a configuration."""

LARGEST_INTEGER = (1 << 63) - 1


class Entry(Protocol):
    """What the classes of the table have in common."""

    table: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


LISTS: dict[str, type[Listener | Peer | Destination | Rule | Tunnel | Certificate]] = {
    c.table: c for c in (Listener, Peer, Destination, Rule, Tunnel, Certificate)}
SINGLES: dict[str, type[Spool | Alarms | Control | Limits | Update | Network | Time | Logging]] = {
    c.table: c for c in (Spool, Alarms, Control, Limits, Update, Network, Time, Logging)}
_ATTRIBUTE = {table: f"{table}s" for table in LISTS}
_EXAMPLE = "`dcmgate config example` shows a whole file"


def read(path: str) -> str:
    """The text of a configuration file; ConfigError where there is none that could be one."""
    try:
        with FilePath(path).open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise ConfigError("there is no such file", file=path, mend="`dcmgate config example` prints one to start from; "
                          "--config or DCMGATE_CONFIG names another place") from None
    except (OSError, ValueError) as e:
        raise ConfigError(f"cannot be read: {getattr(e, 'strerror', None) or e}", file=path,
                          mend="look at its owner and mode, or name another with --config") from None
    if len(raw) > LARGEST_FILE:
        raise ConfigError("is longer than 1 MiB", file=path, mend="this is not a configuration; " + _EXAMPLE)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = raw[:e.start].count(b"\n") + 1
        raise ConfigError("is not UTF-8 text", file=path, line=line, mend="save the file as UTF-8") from None


def load(path: str, generation: int = 0, *, tag_problem: TagProblem = plausible_tag) -> Config:
    """The configuration in a file. Raises ConfigError."""
    return parse(read(path), path, generation, tag_problem=tag_problem)


def parse(text: str, name: str, generation: int = 0, *, tag_problem: TagProblem = plausible_tag) -> Config:
    """The configuration in a text; `name` stands for the file in messages. Raises the first ConfigError, with the count."""
    config, errors = _build(text, name, generation, tag_problem)
    if errors:
        first, more = errors[0], len(errors) - 1
        count = f" ({more} more: `dcmgate config check` shows {'it' if more == 1 else 'them all'})" if more else ""
        raise ConfigError(first.message, file=first.file, line=first.line, key=first.key, mend=first.mend + count)
    return config


def check(text: str, name: str, *, tag_problem: TagProblem = plausible_tag) -> list[ConfigError]:
    """Everything that is wrong with a text, in the order of its lines; empty where it is a configuration.

    `tag_problem(name)` judges a tag in a rule: "" if there is such a tag, else a mend.
    """
    return _build(text, name, 0, tag_problem)[1]


def survivors(text: str) -> tuple[Spool, Control]:
    """`[spool]` and `[control]` of a text that may be bad: each setting that can be made out, defaults for the rest.

    With these a command finds the spool, and in it the last good generation.
    """
    try:
        document: Mapping[str, Any] = tomllib.loads(text)
    except (ValueError, RecursionError):
        document = _scan(text)
    findings = Findings("", {})
    return (_single(findings, Spool, document.get("spool", {})), _single(findings, Control, document.get("control", {})))


def spool_path(text: str) -> str:
    """Where the spool is, even if the rest of the text is bad."""
    return survivors(text)[0].path


_SCANNED = re.compile(r"""\s*(?:\[\s*(?P<table>[\w.-]+)\s*\]|(?P<key>[\w.-]+)\s*=\s*(?P<value>"[^"\\]*"|'[^']*'))"""
                      r"\s*(?:#.*)?")


def _scan(text: str) -> dict[str, dict[str, str]]:
    """The plain texts under plain headers, line by line, of something that is not TOML."""
    found: dict[str, dict[str, str]] = {}
    table = ""
    for line in text.splitlines():
        if match := _SCANNED.fullmatch(line):
            if match["table"]:
                table = match["table"]
            else:
                found.setdefault(table, {})[match["key"]] = match["value"][1:-1]
        elif line.lstrip().startswith("["):
            table = ""
    return found


# --- building ------------------------------------------------------------------------------------------------------------

def _build(text: str, name: str, generation: int, tag_problem: TagProblem) -> tuple[Config, list[ConfigError]]:
    try:
        document = tomllib.loads(text.removeprefix("\ufeff"))
    except ValueError as e:
        return Config(), [_syntax(text, name, str(e))]
    except RecursionError:
        return Config(), [ConfigError("is nested too deep", file=name, line=1, key="(file)", mend=_EXAMPLE)]
    findings = Findings(name, find_lines(text))
    _unknown_tables(findings, document)
    lists = {_ATTRIBUTE[table]: _entries(findings, kind, document.get(table, [])) for table, kind in LISTS.items()}
    singles = {table: _single(findings, kind, document.get(table, {})) for table, kind in SINGLES.items()}
    config = Config(**lists, **singles, generation=generation)  # type: ignore[arg-type]
    check_config(config, findings, tag_problem)
    return config, findings.sorted()


_PLACE = re.compile(r" \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$")


def _syntax(text: str, name: str, message: str) -> ConfigError:
    """A text that is not TOML, in the words of a person who has to mend it."""
    lines = text.splitlines() or [""]
    place = _PLACE.search(message)
    line = min(int(place["line"]), len(lines)) if place and place["line"] else len(lines)
    while line > 1 and not lines[line - 1].strip():
        line -= 1
    written = "".join(c if c.isprintable() else "?" for c in lines[line - 1].strip())[:60]
    if "overwrite" in message or "declare" in message or "Duplicate" in message:
        mend = "it stands twice; keep one. A further entry of a kind starts with its own [[...]] line"
    elif "Unclosed" in message or "Expected ']'" in message:
        mend = "a [ or a quote is not closed in this line or before it"
    elif "Illegal character" in message:
        mend = "a text ends in the line in which it began; a backslash is written twice"
    elif "Invalid value" in message or "Invalid statement" in message or "Expected" in message:
        mend = 'a line is key = value; texts stand in "quotes", true and false are small, numbers are bare'
    else:
        mend = _EXAMPLE
    what = _PLACE.sub("", message).rstrip(".")
    key = written.split("=", 1)[0].strip() or "(file)"
    return ConfigError(f"cannot be understood: {what}: in `{written}`" if written else f"cannot be understood: {what}",
                       file=name, line=line, key=key, mend=mend)


def _unknown_tables(findings: Findings, document: Mapping[str, Any]) -> None:
    known = [*LISTS, *SINGLES]
    for key, value in document.items():
        if key in known:
            continue
        if isinstance(value, (dict, list)) and not (isinstance(value, list) and not all(isinstance(v, dict) for v in value)):
            findings.wrong((key,), "there is no table of this name", did_you_mean(key, known))
        else:
            findings.wrong((key,), "this setting stands before any table", _home_of(key) or _EXAMPLE)


def _home_of(key: str, besides: str = "") -> str:
    homes = [f"[[{t}]]" for t, c in LISTS.items() if t != besides and key in c.__dataclass_fields__]
    homes += [f"[{t}]" for t, c in SINGLES.items() if t != besides and key in c.__dataclass_fields__]
    return f"it belongs below a line {' or '.join(homes)}" if homes else ""


def _entries(findings: Findings, kind: type[Any], value: object) -> tuple[Any, ...]:
    table = kind.table
    if not isinstance(value, list):
        mend = f"each entry starts with [[{table}]], with two brackets on each side"
        findings.wrong((table,), "there may be many of these, so it is an array of tables", mend)
        value = [value]
    entries = []
    for nth, item in enumerate(value):
        path: Path = (table, nth)
        if not isinstance(item, dict):
            findings.wrong(path, "an entry is a table", f"each entry starts with [[{table}]]")
            entries.append(kind())           # keeps the places of those after it
            continue
        name = item.get("id")
        if isinstance(name, str) and name:
            findings.ids[path] = name if name.isprintable() else f"[{nth + 1}]"
        entries.append(_entry(findings, path, kind, item))
    return tuple(entries)


def _single(findings: Findings, kind: type[Any], value: object) -> Any:
    path: Path = (kind.table,)
    if not isinstance(value, dict):
        findings.wrong(path, "there is only one of these, so it is a plain table", f"it starts with [{kind.table}]")
        value = next((v for v in value if isinstance(v, dict)), {}) if isinstance(value, list) else {}
    return _entry(findings, path, kind, value)


def _entry(findings: Findings, path: Path, kind: type[Any], table: Mapping[str, Any]) -> Any:
    known = {f.name: f for f in fields(kind)}
    for key in table:
        if key not in known:
            mend = did_you_mean(key, known, _home_of(key, kind.table))
            findings.wrong((*path, key), "there is no setting of this name here", mend)
    values: dict[str, Any] = {}
    for name, field in known.items():
        if name in table:
            values[name] = _value(findings, (*path, name), field, table[name])
        elif field.metadata["required"]:
            findings.wrong((*path, name), "is missing", f'give it, for example {name} = "{kind.table}1"')
            values[name] = ""
    return kind(**{name: value for name, value in values.items() if value is not None})


# --- one value -----------------------------------------------------------------------------------------------------------

def _value(findings: Findings, path: Path, field: Field[Any], value: object) -> Any:
    """The value as the table wants it; None after a finding."""
    kind = str(field.type)
    if field.name == "ports":
        return _ports(findings, path, value)
    if kind.startswith("tuple"):
        return _tuple(findings, path, field, kind[6:].split(",")[0], value)
    if kind.startswith("dict"):
        if isinstance(value, dict):
            return value
        findings.wrong(path, "must be a table", 'write for example match = { modality = "CT" }')
        return None
    return _scalar(findings, path, field, kind, value)


def _tuple(findings: Findings, path: Path, field: Field[Any], kind: str, value: object) -> tuple[Any, ...] | None:
    if not isinstance(value, list):
        findings.wrong(path, "must be a list", f"write it in brackets: {path[-1]} = [{_written(value, kind)}]")
        return None
    items = [_scalar(findings, (*path, nth), field, kind, item) for nth, item in enumerate(value)]
    return None if any(item is None for item in items) else tuple(items)


def _scalar(findings: Findings, path: Path, field: Field[Any], kind: str, value: object) -> Any:
    meta = field.metadata
    key = next(part for part in reversed(path) if isinstance(part, str))
    if kind == "str":
        if not isinstance(value, str):
            findings.wrong(path, "must be a text", f"write {key} = {_written(value, kind)}")
            return None
        if not value.isprintable():
            findings.wrong(path, "has a control character in it", "type it anew, without tabs and line ends")
            return None
        if meta["choices"] and value not in meta["choices"]:
            shown = [c or '""' for c in meta["choices"]]
            near = did_you_mean(value, [c for c in meta["choices"] if c], "it is one of " + ", ".join(shown))
            findings.wrong(path, f'"{value[:40]}" is not one of {", ".join(shown)}', near)
            return None
        return value
    if kind == "bool":
        if not isinstance(value, bool):
            findings.wrong(path, "must be true or false", f"write {key} = {'true' if value in ('true', 'yes', 1) else 'false'}")
            return None
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (kind == "int" and isinstance(value, float)):
        findings.wrong(path, "must be a whole number" if kind == "int" else "must be a number",
                       f"write {key} = {_written(value, kind)}")
        return None
    return _in_range(findings, path, meta, kind, value)


def _in_range(findings: Findings, path: Path, meta: Mapping[str, Any], kind: str, value: int | float) -> int | float | None:
    low, high, unit = meta["low"], meta["high"], f" {meta['unit']}" if meta["unit"] else ""
    if isinstance(value, float) and not math.isfinite(value):
        findings.wrong(path, "must be a finite number", "write a number that ends")
    elif abs(value) > LARGEST_INTEGER:
        findings.wrong(path, "this number is out of all bounds", f"at most {LARGEST_INTEGER if high is None else high}{unit}")
    elif low is not None and value < low:
        findings.wrong(path, f"{value} is too small",
                       f"at least {low}{unit}" + (f", at most {high}{unit}" if high is not None else ""))
    elif high is not None and value > high:
        findings.wrong(path, f"{value} is too large", f"at most {high}{unit}")
    else:
        return value if kind == "int" else float(value)
    return None


def _written(value: object, kind: str) -> str:
    """A wrong value as it might have been meant: for a mend, so never longer than a line."""
    if kind == "str":
        text = str(value) if isinstance(value, (int, float, str)) and not _enormous(value) else "..."
        return f'"{text[:40]}"' if text.isprintable() else '"..."'
    text = str(value).strip() if isinstance(value, (int, float, str)) and not _enormous(value) else ""
    if re.fullmatch(r"[0-9]{1,15}(\.0)?", text):
        return text.removesuffix(".0")
    if kind == "float" and re.fullmatch(r"[0-9]{1,15}\.[0-9]{1,6}", text):
        return text
    return "10"


def _enormous(value: object) -> bool:
    return isinstance(value, int) and abs(value) > LARGEST_INTEGER


def _ports(findings: Findings, path: Path, value: object) -> tuple[int, ...] | None:
    """A number, a list, or ranges such as "2104-2111"; sorted as given, each once."""
    mend = 'write ports = 11112, ports = [104, 11112] or ports = "2104-2111"; each from 1 to 65535'
    ports: list[int] = []
    for nth, item in enumerate(value if isinstance(value, list) else [value]):
        place = (*path, nth) if isinstance(value, list) else path
        if isinstance(item, int) and not isinstance(item, bool):
            low = high = item
        elif isinstance(item, str) and (match := re.fullmatch(r"\s*([0-9]{1,5})\s*(?:(?:-|\.\.)\s*([0-9]{1,5})\s*)?", item)):
            low = int(match[1])
            high = int(match[2] or match[1])
        else:
            findings.wrong(place, "is not a port or a range of ports", mend)
            return None
        if not 1 <= low <= 65535 or not 1 <= high <= 65535:
            findings.wrong(place, "a port is out of range", mend)
            return None
        if low > high:
            findings.wrong(place, f"the range {low}-{high} runs backwards", f'write "{high}-{low}"')
            return None
        if high - low >= 256:
            findings.wrong(place, f"{high - low + 1} ports are more than a listener can have", "at most 256 ports in a range")
            return None
        twice = [port for port in range(low, high + 1) if port in ports]
        if twice:
            findings.wrong(place, f"port {twice[0]} stands here twice", "name each port once")
            return None
        ports += range(low, high + 1)
    if not ports:
        findings.wrong(path, "names no port", mend)
        return None
    return tuple(ports)
