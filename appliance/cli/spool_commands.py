"""`dcmgate spool init|check|adopt|migrate|rebuild`: the folder that everything is kept in."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cli import exits
from appliance.cli.context import Site
from appliance.cli.text import plural, size
from appliance.errors import SpoolRefused

if TYPE_CHECKING:
    from appliance.cli.services import Place


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    spool = commands.add_parser("spool", help="make, check or mend the spool", parents=[common])
    verbs = spool.add_subparsers(metavar="VERB", required=True, dest="verb")
    for name, text, run in (
            ("init", "make the spool that the configuration names; never over something that is there", init),
            ("check", "identity, room, ledger, files; 1 if anything is wrong", check),
            ("adopt", "expect the spool that is there now, on purpose", adopt),
            ("migrate", "bring an older format to that of this release", migrate),
            ("rebuild", "make a lost ledger anew from the objects; costs re-sends, never an image", rebuild)):
        one = verbs.add_parser(name, help=text, parents=[common])
        one.set_defaults(run=run)
        if name == "check":
            one.add_argument("--digests", action="store_true", help="also read every object and check its digest")
            one.add_argument("--deep", action="store_true", help="also make the ledger's tables anew, and compare")


def _place(site: Site) -> Place:
    """The configuration as far as it goes; a file that is not there at all is the error."""
    from appliance.cli.services import locate
    place = locate(site.config_path)
    if place.problem is not None and not place.text:
        raise place.problem
    return place


def init(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.clock import SystemClock
    from appliance.manage.control import this_user
    from appliance.manage.generations import publish_text
    from appliance.spool.layout import Spool, remember_uuid
    from appliance.spool.ledger import Ledger
    place = _place(site)
    if place.problem is not None:
        raise place.problem
    clock = SystemClock()
    spool = Spool.init(Path(place.spool.path), size=place.spool.size, clock=clock)
    remember_uuid(Path(place.spool.state), spool.uuid)
    with Ledger.open(spool.ledger_path, clock) as ledger:
        publish_text(ledger, place.text, place.path, this_user())
    site.emit({"path": str(spool.path), "uuid": spool.uuid, "format": spool.version})
    site.say(f"{spool.path}: made, format {spool.version}, uuid {spool.uuid}")
    return exits.OK


def adopt(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.spool.layout import Spool, expected_uuid, remember_uuid
    place = _place(site)
    if place.spool.uuid:
        raise SpoolRefused(f"[spool] uuid in {place.path} decides which spool is expected", mend="change it there")
    before = expected_uuid(place.spool)
    spool = Spool.open(Path(place.spool.path))
    remember_uuid(Path(place.spool.state), spool.uuid)
    site.emit({"path": str(spool.path), "uuid": spool.uuid, "before": before})
    instead = f", not {before}" if before and before != spool.uuid else ""
    site.say(f"{spool.path}: {spool.uuid} is expected from now on{instead}")
    return exits.OK


def migrate(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.spool.layout import FORMAT
    from appliance.spool.layout import migrate as run
    place = _place(site)
    old = run(Path(place.spool.path))
    site.emit({"path": place.spool.path, "from": old, "to": FORMAT})
    site.say(f"{place.spool.path}: " + (f"format {old} is now {FORMAT}" if old != FORMAT else f"has format {FORMAT} already"))
    return exits.OK


def check(site: Site, arguments: argparse.Namespace) -> int:
    """Everything that can be looked at is looked at, whatever is found on the way."""
    from appliance.cli.services import locate
    from appliance.clock import SystemClock
    from appliance.spool.check import check as look
    from appliance.spool.layout import expected_uuid
    place = locate(site.config_path)
    if place.problem is not None and not place.text:
        raise place.problem
    expected = expected_uuid(place.spool)
    report = look(Path(place.spool.path), SystemClock(), expected_uuid=expected, digests=arguments.digests, deep=arguments.deep)
    problems = [str(problem) for problem in report.problems]
    if expected is None and report.uuid:
        problems.insert(0, "no uuid is expected: any spool would do — `dcmgate spool adopt` takes this one")
    if place.problem is not None:
        problems.insert(0, f"configuration: {place.problem}")
    found = report.balance
    site.emit({"path": place.spool.path, "uuid": report.uuid, "format": report.version, "good": not problems,
               "problems": problems, "found": report.found, "events": report.events, "quarantine": report.in_quarantine,
               "remnants": report.remnants, "digested": report.digested, "digested_bytes": report.digested_bytes,
               "unaccounted": found.unaccounted if found else None})
    site.say(f"{place.spool.path}: uuid {report.uuid or 'unknown'}, format {report.version or 'unknown'}")
    if found is not None:
        site.say(f"{report.events} events, {found.accepted} objects accepted, {found.files} files, "
                 f"unaccounted {found.unaccounted}")
    if report.in_quarantine:
        site.say(f"{report.in_quarantine} files in quarantine, {report.remnants} of them never acknowledged")
    if arguments.digests:
        site.say(f"{report.digested} digests checked, {size(report.digested_bytes)}")
    for problem in problems:
        site.say(site.bad(problem))
    site.say(site.bad(plural(max(len(problems), report.found), "problem")) if problems else site.good("good"))
    return exits.FINDING if problems else exits.OK


def rebuild(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.cli.services import open_spool
    from appliance.clock import SystemClock
    from appliance.keeper.witness import Witness
    from appliance.manage.control import SOCKET, is_answering, this_user
    from appliance.manage.generations import publish_text
    from appliance.spool.ledger import Ledger
    from appliance.spool.rebuild import rebuild as make
    place = _place(site)
    spool = open_spool(place)
    if is_answering(Path(place.control.run) / SOCKET):
        raise SpoolRefused(f"{spool.path} is in use: a keeper answers", mend="stop all of Dcmgate first")
    clock = SystemClock()
    report = make(spool, clock)
    with Ledger.open(spool.ledger_path, clock) as ledger:
        if place.problem is None:
            publish_text(ledger, place.text, place.path, this_user())
        Witness(Path(place.spool.state), spool.uuid).keep(ledger)     # another ledger than was seen, on purpose
    site.emit({"path": str(spool.ledger_path), "accepted": report.accepted, "open": len(report.open),
               "moved": str(report.moved) if report.moved else None})
    if report.moved is not None:
        site.say(f"{report.moved}: what was there, kept as evidence")
    site.say(f"{spool.ledger_path}: made anew from {report.accepted} objects, which wait for delivery again; "
             f"{len(report.open)} other files are judged when the receiver starts")
    return exits.OK
