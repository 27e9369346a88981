"""What people read of the configuration, all made from the table: the example, `config show`, and the page of the manual.

    python -m appliance.config.page > appliance/man/configuration.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import Field, fields
from typing import Any

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

KINDS: tuple[type[Any], ...] = (Listener, Peer, Destination, Rule, Tunnel, Certificate, Spool, Alarms, Control, Limits,
                                Update, Network, Time, Logging)
"""In the order of an image's way."""

_SEVERAL = (Listener, Peer, Destination, Rule, Tunnel, Certificate)

_SHOWN_ONLY = (Tunnel, Certificate)
"""Of these the example shows an entry as a remark: a site that has none must not get one."""

_EXAMPLE: dict[str, dict[str, Any]] = {
    "listener": {"id": "scanners", "ports": [104, 11112], "titles": ["DCMGATE"]},
    "peer": {"id": "ct1", "addresses": ["192.168.10.0/24"], "titles": ["CT1"]},
    "destination": {"id": "pacs", "default": True, "address": "pacs.example.org", "port": 11112, "called": "PACS"},
    "rule": {"id": "stroke-ct", "match": {"calling": "CT1", "modality": "CT", "StudyDescription": ["*STROKE*", "*TRAUMA*"]},
             "destinations": ["pacs"], "priority": "trauma"},
    "tunnel": {"id": "worklist", "listen": "127.0.0.1:11113", "connect": "ris.example.org:2762", "certificate": "box"},
    "certificate": {"id": "box", "names": ["gateway.example.org"]},
}

_HEADINGS = {
    "listener": "Ports on which scanners are answered. There may be many.",
    "peer": "A scanner or other sender that is known. There may be many; the first that fits counts.",
    "destination": "Where images are delivered. There may be many.",
    "rule": "Which images go where. There may be many; every one that matches adds its destinations, unless one says last.",
    "tunnel": "A port carried over mutual TLS, for what is not storage: worklist, query, HL7. There may be many.",
    "certificate": "A key of this box, its certificate, and the authorities whose certificates it trusts. There may be many.",
    "spool": "Where images are kept until every destination has them.",
    "alarm": "Who is told of alarms. `dcmgate status` and the log always show them.",
    "control": "How the commands reach the running gateway.",
    "limits": "Bounds of the whole box.",
    "update": "Where new versions of the system come from, and when the box may take them.",
    "network": "Which side is where, for the firewall of the system image. Without the image it says nothing.",
    "time": "Where the system image has the time from. Without the image it says nothing.",
    "log": "Where the system image sends its journal. Without the image it says nothing.",
}

_INTRODUCTION = """\
Dcmgate reads one TOML file, `/etc/dcmgate/dcmgate.toml` unless `--config` or `DCMGATE_CONFIG` names another.
`dcmgate config example` prints one with every setting, and `dcmgate config check` names everything that is wrong with file,
line, key and mend. A running keeper looks at the file once a minute, and `dcmgate reload` lets it do so at once. A bad file
never takes a running gateway down: the last good one stays in force, and an alarm says so. This page is made from the table
in `appliance/config/settings.py`.

Only a `[[listener]]` and a `[[destination]]` with `default = true` are needed. An `id` is the name of its entry for good:
the ledger refers to it, so a changed id is a new entry, and what waits for the old one is held until `dcmgate requeue --to`.
"""

_CONDITIONS = """\
### What `match` can ask for

All conditions of a `match` must hold. `calling` and `called` are AE titles, `address` an address or subnet, `port` the port
of ours, `listener` and `peer` ids, `modality`, `sop_class` (its UID), `station` and `body_part` what the image says,
`hours` times of day (unknown, and so not matching, while the clock is not trusted). Any other tag stands by its keyword
(`SeriesDescription`) or its number (`"0008,103E"`). A value is a text with `*` and `?`, a number, a range `"3..7"`, or a
list of such, any of which may fit. `all` and `any` are lists of tables and `not` is one:

```toml
[[rule]]
id = "night-without-reports"
match = { hours = "19:00-06:30", any = [{ modality = "CT" }, { modality = "MR" }], not = { SeriesDescription = "*SCOUT*" } }
destinations = ["pacs"]
```

A condition on a tag of an image that cannot be read is *unknown*: the rule does not match, and the default destinations
get the image, always. `dcmgate route explain FILE` says which rule takes a file, and why the others do not.
"""


# --- TOML ----------------------------------------------------------------------------------------------------------------

def toml_value(value: Any) -> str:
    """A value in TOML. Raises TypeError for what no setting can hold."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        inside = ", ".join(f"{_key(key)} = {toml_value(item)}" for key, item in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    raise TypeError(f"no setting holds a {type(value).__name__}")


def _text(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'


def _key(key: str) -> str:
    return key if key and key.isascii() and key.replace("-", "").replace("_", "").isalnum() else _text(key)


def render(config: Config) -> str:
    """A whole configuration as TOML, every setting said: `parse` makes the same one of it."""
    entries: tuple[Any, ...] = (*config.listeners, *config.peers, *config.destinations, *config.rules, *config.tunnels,
                                *config.certificates)
    singles: tuple[Any, ...] = (config.spool, config.alarm, config.control, config.limits, config.update, config.network,
                                config.time, config.log)
    return "\n".join([*(f"[[{entry.table}]]\n{_settings(entry)}" for entry in entries),
                      *(f"[{single.table}]\n{_settings(single)}" for single in singles)])


def _settings(entry: Any) -> str:
    return "".join(f"{f.name} = {toml_value(getattr(entry, f.name))}\n" for f in fields(entry))


# --- the example ---------------------------------------------------------------------------------------------------------

def example() -> str:
    """A whole file with a sentence for each setting; those that start with `#` show their default and change nothing."""
    lines = ["# Configuration of Dcmgate: see `man dcmgate-configuration`, or `dcmgate config check` for what is wrong.",
             "# A line that starts with # and a name shows a default: take the # away to change it. Where the header of an",
             "# entry is a remark too, there is none: take the \"# \" of the header and of what it needs away to have one."]
    for kind in KINDS:
        remark = "# " if kind in _SHOWN_ONLY else ""
        lines += ["", f"# {_HEADINGS[kind.table]}", remark + (f"[[{kind.table}]]" if kind in _SEVERAL else f"[{kind.table}]")]
        given = _EXAMPLE.get(kind.table, {})
        for field in fields(kind):
            lines += [f"# {line}" for line in _wrapped(_sentence(field))]
            shown = field.name in given
            value = toml_value(given[field.name] if shown else _default(field))
            lines.append(f"{remark or ('' if shown else '#')}{field.name} = {value}")
    return "\n".join(lines) + "\n"


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if callable(field.default_factory) else field.default


def _sentence(field: Field[Any]) -> str:
    meta = field.metadata
    extra = []
    if meta["choices"]:
        extra.append("one of " + ", ".join(toml_value(choice) for choice in meta["choices"]))
    if span := _span(field):
        extra.append(span)
    if meta["unit"]:
        extra.append(f"in {meta['unit']}")
    return str(meta["text"]) + (f" ({'; '.join(extra)})" if extra else "")


def _span(field: Field[Any]) -> str:
    low, high = field.metadata["low"], field.metadata["high"]
    if low is not None and high is not None:
        return f"{low} to {high}"
    return f"at least {low}" if low is not None else ""


def _wrapped(text: str, width: int = 110) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > width:
            yield line
            line = word
        else:
            line = f"{line} {word}" if line else word
    yield line


# --- the page of the manual ----------------------------------------------------------------------------------------------

def page() -> str:
    """`appliance/man/configuration.md`, as Markdown."""
    parts = ["# dcmgate-configuration(5) — every setting", "", _INTRODUCTION]
    for kind in KINDS:
        several = kind in _SEVERAL
        parts += [f"## `{'[[' if several else '['}{kind.table}{']]' if several else ']'}`", "", _HEADINGS[kind.table], "",
                  "| setting | type | default | meaning |", "| --- | --- | --- | --- |"]
        parts += [f"| `{f.name}` | {_type(f)} | {_shown(f)} | {_cell(_sentence(f))} |" for f in fields(kind)]
        parts.append("")
        if kind is Rule:
            parts.append(_CONDITIONS)
    parts += ["## Example", "", "What `dcmgate config example` prints.", "", "```toml", example().rstrip(), "```", ""]
    return "\n".join(parts)


def _type(field: Field[Any]) -> str:
    if field.name == "ports":
        return "ports"
    names = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}
    kind = str(field.type)
    if kind.startswith("tuple"):
        return f"list of {names[kind[6:].split(',')[0]]}s"
    return names.get(kind, "table")


def _shown(field: Field[Any]) -> str:
    if field.metadata["required"]:
        return "must be given"
    return f"`{toml_value(_default(field))}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(page())
