"""`dcmgate route explain FILE`: which rule takes an object and why, for a file, or for an object by its number."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cli import exits
from appliance.cli.context import Site
from appliance.cli.text import safe
from appliance.errors import HeadError, UsageError
from appliance.model import Attributes, Custody, Source

if TYPE_CHECKING:
    from appliance.config.settings import Config
    from appliance.route import Decision
    from appliance.sandbox.parent import Place


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    route = commands.add_parser("route", help="explain where an object goes", parents=[common])
    verbs = route.add_subparsers(metavar="VERB", required=True, dest="verb")
    one = verbs.add_parser("explain", help="which rule takes an object and why", parents=[common])
    one.add_argument("what", metavar="FILE|NUMBER", help="any Part 10 file, or the number of an object")
    for name, text in (("calling", "calling AE title"), ("called", "called AE title"), ("address", "address it comes from"),
                       ("listener", "id of the listener"), ("peer", "id of the peer")):
        one.add_argument(f"--{name}", metavar="TEXT", help=f"suppose this {text}")
    one.add_argument("--port", type=int, metavar="PORT", help="suppose this port of ours")
    one.add_argument("--time", metavar="HH:MM", help="suppose this time of day (default: now)")
    one.add_argument("--file", action="store_true", help="by the rules of the configuration file, not those in force")
    one.set_defaults(run=explain)


def explain(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.route import compile
    from appliance.sandbox import dictionary
    config = _config(site, arguments)
    router = compile(config, dictionary.tag_of)
    fd, custody, offset, recorded = _object(site, arguments)
    try:
        attributes = _attributes(config, (fd, offset, custody.length, custody.transfer_syntax), router.wanted)
    finally:
        os.close(fd)
    admitted = set() if arguments.file else {(a.title, a.address) for a in site.opened().ledger.admitted()}
    decision = router.route(custody, attributes, _minute(arguments.time), admitted)
    _tell(site, config, custody, attributes, decision, recorded)
    return exits.OK


def _config(site: Site, arguments: argparse.Namespace) -> Config:
    if arguments.file:
        from appliance.config import load
        from appliance.manage.generations import parse
        return parse(load.read(site.config_path), site.config_path)
    return site.opened().config


def _object(site: Site, arguments: argparse.Namespace) -> tuple[int, Custody, int, str]:
    """A descriptor, the custody record (of a foreign file: one made up), the offset of the data set, what was recorded."""
    from appliance.cli import selection
    from appliance.cli.files import look
    from appliance.dicom.part10 import HEAD, parse_head
    path = Path(arguments.what)
    recorded = ""
    if not path.exists() and len(arguments.what) <= 16 and all(c in "0123456789abcdefABCDEF" for c in arguments.what):
        row = selection.numbered(site.opened(), [arguments.what])[0]
        fd, custody, offset = site.opened().spool.open_object(row.number), row.custody, HEAD
        rules = ", ".join(row.rules) or "no rule, so the defaults"
        recorded = f"generation {row.generation}: {rules}" if row.routed else "not yet"
    else:
        with path.open("rb") as opened:
            try:
                custody, offset = parse_head(opened.read(HEAD)), HEAD
            except HeadError:
                file = look(path)
                custody = Custody(0, 0, 0, 0, file.sop_class, file.sop_instance, file.syntax, file.length, b"", Source())
                offset = file.offset
            fd = os.dup(opened.fileno())
    return fd, _supposed(site, custody, arguments), offset, recorded


def _supposed(site: Site, custody: Custody, arguments: argparse.Namespace) -> Custody:
    """The custody record with what the command line supposes of the association; the peer follows from it."""
    from dataclasses import replace
    given = {name: value for name in ("calling", "called", "address", "listener", "peer", "port")
             if (value := getattr(arguments, name)) is not None}
    return replace(custody, source=replace(custody.source, **given)) if given else custody


def _attributes(config: Config, place: Place, wanted: frozenset[int]) -> Attributes:
    """Read by the limited child, as the forwarder does: the file may be hostile."""
    from appliance.sandbox.parent import Child
    with Child(config.limits.child_memory, config.limits.child_seconds) as child:
        return child.tags([place], wanted)[0]


def _minute(text: str | None) -> int | None:
    from appliance.clock import SystemClock
    if text is None:
        import time
        now = time.localtime()
        return now.tm_hour * 60 + now.tm_min if SystemClock().trusted() else None
    hour, _, minute = text.partition(":")
    if not (hour.isdigit() and minute.isdigit() and len(minute) == 2 and int(hour) < 24 and int(minute) < 60):
        raise UsageError(f'"{text}" is no time of day', mend="for example 19:30")
    return int(hour) * 60 + int(minute)


def _tell(site: Site, config: Config, custody: Custody, attributes: Attributes, decision: Decision, recorded: str) -> None:
    source = custody.source
    site.emit({"rules": list(decision.rules), "destinations": list(decision.destinations),
               "priority": decision.priority.name.lower(), "hold": decision.hold, "flags": list(decision.flags),
               "why": list(decision.why), "generation": config.generation, "recorded": recorded})
    site.say(f"calling {_quoted(source.calling)}, called {_quoted(source.called)}, address {_quoted(source.address)}, "
             f"port {source.port}, listener {_quoted(source.listener)}, peer {_quoted(source.peer)}")
    if not attributes.readable:
        site.say(site.warn("the data set cannot be read: conditions on tags are unknown, and the defaults get it too"))
    for line in decision.why:
        rule, _, why = line.partition(": ")
        site.say(f"  {site.good(rule) if rule in decision.rules else rule}: {safe(why)}")
    if not config.rules:
        site.say("  there are no rules: the defaults get everything")
    site.say(f"→ {', '.join(decision.destinations)}, priority {decision.priority.name.lower()}" +
             (", held until a person releases it" if decision.hold else ""))
    if recorded:
        site.say(site.dim(f"as routed, {recorded}"))


def _quoted(text: str) -> str:
    return f'"{safe(text)}"'
