"""`dcmgate peers` and `admit`: who sent, who knocked and was refused or held, and who was let in by a person."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from appliance.cli import exits, tls_counts
from appliance.cli.context import Site
from appliance.cli.text import safe, table, when
from appliance.model import escape
from appliance.policy.handshakes import LEGACY, REFUSED, REFUSED_THERE, read

if TYPE_CHECKING:
    from appliance.spool.rows import Knock


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    peers = commands.add_parser("peers", help="who sent, who knocked, who was let in", parents=[common])
    peers.set_defaults(run=seen)
    verbs = peers.add_subparsers(metavar="VERB", dest="verb")
    one = verbs.add_parser("seen", help="who sent, and who knocked (the default)", parents=[common])
    one.set_defaults(run=seen)
    two = verbs.add_parser("admitted", help="who was let in by a person", parents=[common])
    two.set_defaults(run=admitted)
    for parser in (verbs.add_parser("admit", help="let a caller in that no [[peer]] names", parents=[common]),
                   commands.add_parser("admit", help="the same as `peers admit`", parents=[common])):
        parser.add_argument("title", metavar="TITLE", help='calling AE title as `peers` shows it; "" for a blank one')
        parser.add_argument("address", metavar="ADDRESS", help="address it calls from")
        parser.set_defaults(run=admit)


def seen(site: Site, arguments: argparse.Namespace) -> int:
    ledger = site.opened().ledger
    arrivals, knocks = ledger.arrivals(), ledger.knocks(without=(LEGACY, REFUSED_THERE))
    old, there = ledger.knocks(1000, only=[LEGACY]), ledger.knocks(only=[REFUSED_THERE])
    site.emit({"sent": [{"source": a.source, "peer": a.peer, "objects": a.count, "last": a.last_wall} for a in arrivals],
               "knocked": [_knock(k) for k in knocks], "legacy": tls_counts.callers(old),
               "refused_there": [{"destination": found.entry, "check": found.check, **_knock(k)} for k in there
                                 if (found := read(k.verdict, k.called)) is not None]})
    site.say(table(("SENT", "PEER", "OBJECTS", "LAST"),
                   [[safe(a.source), a.peer or "-", str(a.count), when(a.last_wall)] for a in arrivals], right=(2,))
             if arrivals else "nobody has sent anything yet")
    if knocks:
        site.say()
        site.say(table(("KNOCKED", "CALLED", "ADDRESS", "TIMES", "LAST", "ANSWER", "WHY"),
                       [[*_titles(k), k.address, str(k.count), when(k.last_wall), k.verdict, safe(k.text)]
                        for k in knocks], right=(3,), columns=site.columns))
    if there:
        site.say()
        site.say(table(("TLS FAILED WITH", "ADDRESS", "TIMES", "LAST", "WHY"),
                       [[found.entry, k.address, str(k.count), when(k.last_wall), safe(k.text)] for k in there
                        if (found := read(k.verdict, k.called)) is not None], right=(2,), columns=site.columns))
    if old:
        site.say()
        site.say(table(("CAME BY legacy", "ADDRESS", "LISTENER", "VERSION", "SUITE", "NEEDED IT", "TIMES", "LAST"),
                       tls_counts.legacy_rows(old), right=(6,), columns=site.columns))
    first = next((k for k in knocks if k.verdict not in ("accept", REFUSED)), None)
    if first is not None:
        site.say(site.dim(f'to let one in: dcmgate admit "{escape(first.title)}" {first.address}, or write a [[peer]] for it'))
    return exits.OK


def _knock(k: Knock) -> dict[str, Any]:
    return {"title": k.title, "called": k.called, "address": k.address, "verdict": k.verdict, "text": k.text,
            "count": k.count, "first": k.first_wall, "last": k.last_wall}


def _titles(knock: Knock) -> tuple[str, str]:
    """Both titles; there are none yet where TLS failed."""
    return ("-", "-") if knock.verdict == REFUSED else (_title(knock.title), _title(knock.called))


def _title(title: str) -> str:
    return f'"{safe(title)}"'


def admitted(site: Site, arguments: argparse.Namespace) -> int:
    found = site.opened().ledger.admitted()
    site.emit({"admitted": [{"title": a.title, "address": a.address, "by": a.by, "wall": a.wall} for a in found]})
    site.say(table(("TITLE", "ADDRESS", "BY", "SINCE"), [[_title(a.title), a.address, a.by, when(a.wall)] for a in found])
             if found else "nobody was let in by a person")
    return exits.OK


def admit(site: Site, arguments: argparse.Namespace) -> int:
    result = site.asking().call("admit", title=arguments.title, address=arguments.address)
    site.emit(result)
    site.say(f'"{result["title"]}" at {result["address"]} is let in')
    return exits.OK
