"""`dcmgate diagnose DESTINATION`: walks the way to a destination or through a tunnel, and says at which hop it ends.

It works whether or not the gateway runs, with the configuration in force, else
with the file. It writes nothing and sends no patient data.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from appliance.cli import exits
from appliance.cli.context import Site
from appliance.cli.text import safe
from appliance.config.findings import did_you_mean
from appliance.errors import LedgerError, SpoolError, UsageError

if TYPE_CHECKING:
    from appliance.config.settings import Config
    from appliance.probe.report import Hop, Report
    from appliance.probe.target import Target

WAITING = 2000
"""Objects of the queue that are looked at for what the destination has to take."""

SIGNS = {"ok": "✓", "warning": "!", "failed": "✗", "skipped": "·"}


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    one = commands.add_parser("diagnose", help="walk the way to a destination, and say at which hop it ends", parents=[common])
    one.add_argument("destination", metavar="DESTINATION", help="id of a [[destination]] or a [[tunnel]]")
    one.add_argument("--called", default="", metavar="TITLE", help="called AE title, where the entry leaves it to the scanner")
    one.add_argument("--calling", default="", metavar="TITLE", help="calling AE title, likewise")
    one.set_defaults(run=diagnose)


def diagnose(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.probe.walk import walk
    config, queue, running = _what_there_is(site, arguments.destination)
    target = _target(config, arguments, queue, running)
    pairs = list(dict.fromkeys((str(row.sop_class, "latin-1"), row.syntax) for row in queue))
    report = walk(target, config.spool.state, pairs=pairs, clocks=_clocks(config, target))
    site.emit(report.as_json())
    for line in lines(site, report):
        site.say(line)
    return exits.OK if report.failed is None else exits.FINDING


def _what_there_is(site: Site, id: str) -> tuple[Config, list[Any], bool]:
    """The configuration in force, what waits for that destination, and whether a gateway runs; of a spool that cannot be
    opened, the file alone."""
    from appliance.cli.services import locate
    from appliance.manage.generations import parse
    try:
        opened = site.opened()
        if opened.stale:
            site.note("dcmgate: the file has changed: `dcmgate reload` puts it in force, until then this is about what is")
        return opened.config, opened.ledger.load(id, 0, WAITING), opened.keeper_answers()
    except (SpoolError, LedgerError) as e:
        place = locate(site.config_path)
        if place.problem is not None:
            raise place.problem from None
        site.note(f"dcmgate: without the spool, by the file alone: {e.message}")
        return parse(place.text, site.config_path), [], False


def _target(config: Config, arguments: argparse.Namespace, queue: list[Any], running: bool) -> Target:
    from appliance.probe.target import of_destination, of_tunnel
    id = arguments.destination
    tunnel = config.tunnel(id)
    destination = config.destination(id)
    if destination is not None:
        last = queue[-1].source if queue else None
        return of_destination(destination, arguments.called or (last.called if last else ""),
                              arguments.calling or (last.calling if last else ""))
    if tunnel is not None:
        return of_tunnel(tunnel, through=running)
    known = [d.id for d in config.destinations] + [t.id for t in config.tunnels]
    raise UsageError(f'there is no destination and no tunnel "{id}"', mend=did_you_mean(id, known))


def _clocks(config: Config, target: Target) -> list[tuple[str, int, bool]]:
    """Servers that tell the time: that of the certificates' enrolment."""
    entry = config.certificate(target.entry.certificate) if target.entry is not None else None
    if entry is None or not entry.est_url:
        return []
    place = urlsplit(entry.est_url)
    return [(place.hostname, place.port or 443, True)] if place.hostname else []


def lines(site: Site, report: Report) -> list[str]:
    """How it looks to a person."""
    out = [f"{site.bold(safe(report.id))}  {safe(report.place)}"]
    for hop in report.hops:
        out += _hop(site, hop)
    failed = report.failed
    if failed is None:
        warned = sum(hop.state == "warning" for hop in report.hops)
        out.append(site.good(f"{safe(report.id)} answers") + (f", with {warned} remarks" if warned > 1 else
                                                            ", with a remark" if warned else ""))
    else:
        out.append(site.bad(f"the way to {safe(report.id)} ends at: {failed.name}"))
    return out


def _hop(site: Site, hop: Hop) -> list[str]:
    sign, state = SIGNS[hop.state], str(hop.state)
    style = {"ok": site.good, "warning": site.warn, "failed": site.bad, "skipped": site.dim}[state]
    digits = 1 if hop.milliseconds < 10 else 0
    spent = "" if state == "skipped" else f"{hop.milliseconds:.{digits}f} ms"
    out = [f"  {style(sign)} {hop.name:<13} {spent:>8}  {safe(hop.text)}"]
    indent = " " * 28
    if hop.mend:
        out.append(f"{indent}{site.bold('→')} {safe(hop.mend)}")
    for one in hop.facts.get("chain", ()):
        names = f", for {', '.join(one['names'])}" if one["names"] else ""
        out.append(site.dim(f"{indent}{safe(one['subject'])} by {safe(one['issuer'])}{safe(names)}"))
        out.append(site.dim(f"{indent}  {one['not_before']} to {one['not_after']}, {one['key']}, sha256:{one['sha256']}"))
    return out
