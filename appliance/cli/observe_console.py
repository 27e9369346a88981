"""What the console shows: name, addresses, titles, state, the last alarms, and that an image has a test key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from appliance.cli.text import cut, plural, safe, size, when
from appliance.config.settings import Config
from appliance.policy.verdict import Colour, Verdict

CLEAR = "\x1b[2J\x1b[H"
ALARMS = 6
_INK = {Colour.GREEN: "\x1b[1;37;42m", Colour.YELLOW: "\x1b[1;30;43m", Colour.RED: "\x1b[1;37;41m"}
_PLAIN = "\x1b[0m"


def console(host: str, version: str, addresses: Sequence[tuple[str, str]], config: Config | None,
            facts: Mapping[str, Any] | None, verdict: Verdict, *, notices: Sequence[str] = (), wall: int = 0,
            columns: int = 80) -> list[str]:
    """Lines, none longer than the screen is wide; the second one is the verdict. No patient data: everybody can read it."""
    lines = [f"Dcmgate {version}   {host}   {when(wall)}", f" {str(verdict.colour).upper()}  {verdict.sentence}", ""]
    lines += [f"{name:<12} {address}" for name, address in addresses] or ["no address"]
    if config is not None:
        lines.append("")
        for listener in config.listeners:
            titles = ", ".join(listener.titles) or "any title"
            secure = "" if listener.tls == "off" else f" (TLS, {listener.tls})"
            lines.append(f"{'listens':<12} {titles}  port {', '.join(map(str, listener.ports))}{secure}")
    if facts is not None:
        for told in facts["destinations"]:
            owed = f", {plural(told['owed'], 'object')} owed" if told["owed"] else ""
            lines.append(f"{'sends to':<12} {told['destination']}: {told['state']}{owed}")
        lines.append(f"{'store':<12} {facts['state']}, {size(facts['free'])} of {size(facts['total'])} free, "
                     f"{plural(facts['held_objects'], 'object')} kept")
        alarms = facts["alarms"]
        lines += ["", f"{plural(len(alarms), 'alarm')}" if alarms else "no alarms"]
        lines += [f"{alarm['severity']:<12} {safe(alarm['text'])}" for alarm in alarms[-ALARMS:]]
    lines += ["", *notices] if notices else []
    return [cut(line, columns) for line in lines]


def coloured(lines: Sequence[str], colour: Colour) -> str:
    """What is written to the terminal: the screen anew."""
    second = f"{_INK[colour]}{lines[1]}{_PLAIN}"
    return CLEAR + "\r\n".join([lines[0], second, *lines[2:]]) + "\r\n"
