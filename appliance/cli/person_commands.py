"""`dcmgate hold|release|requeue|discard`: what a person decides on objects. Done by the keeper, in that person's name."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from appliance.cli import exits, selection
from appliance.cli.context import Site
from appliance.cli.text import plural
from appliance.errors import ControlError, UsageError


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    one = _parser(commands, common, "hold", "let objects wait until they are released", hold)
    one.add_argument("--reason", default="held by a person", metavar="TEXT", help="why, for whoever finds them held")
    _parser(commands, common, "release", "let held objects go on", release)
    three = _parser(commands, common, "requeue", "send again, or send to another destination", requeue)
    three.add_argument("--to", metavar="ID", help="another destination; without objects: the whole queue of --destination")
    four = _parser(commands, common, "discard", "give objects up; their files are deleted", discard)
    four.add_argument("--reason", required=True, metavar="TEXT", help="why: it stays in the ledger for good, with your name")
    four.add_argument("--yes", action="store_true", help="do not ask")


def _parser(commands: Any, common: argparse.ArgumentParser, name: str, text: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, parents=[common])
    selection.add_objects(parser)
    parser.add_argument("--study", metavar="STUDY", help="Study Instance UID, or the short name that `status` shows")
    parser.set_defaults(run=run)
    return parser


def _chosen(site: Site, arguments: argparse.Namespace, *, state: str = "") -> list[int]:
    """The numbers meant. UsageError where nothing is said, ControlError where nothing fits."""
    if not (arguments.numbers or arguments.uid or arguments.study or arguments.state or (state and arguments.destination)):
        raise UsageError("it is not said which objects", mend="give numbers, --study, --uid or --state")
    if state and not arguments.numbers and not arguments.state:
        arguments.state = state
    numbers = [row.number for row in selection.objects(site.opened(), arguments)]
    if not numbers:
        raise ControlError("no object fits", mend="`dcmgate list --objects` with the same criteria shows what does")
    return numbers


def _in_parts(site: Site, verb: str, numbers: list[int], **args: Any) -> list[Any]:
    from appliance.manage.verbs import in_parts
    args = {name: value for name, value in args.items() if value is not None}
    return [site.asking().call(verb, numbers=part, **args) for part in in_parts(numbers)]


def _told(site: Site, what: str, numbers: list[int], answers: list[Any]) -> int:
    count = sum(answer["deliveries"] for answer in answers)
    site.emit({"objects": len(numbers), "deliveries": count})
    site.say(f"{plural(count, 'delivery', 'deliveries')} of {plural(len(numbers), 'object')} {what}")
    return exits.OK


def hold(site: Site, arguments: argparse.Namespace) -> int:
    numbers = _chosen(site, arguments)
    return _told(site, "held", numbers,
                 _in_parts(site, "hold", numbers, reason=arguments.reason, destination=arguments.destination))


def release(site: Site, arguments: argparse.Namespace) -> int:
    numbers = _chosen(site, arguments, state="held")
    return _told(site, "released", numbers, _in_parts(site, "release", numbers, destination=arguments.destination))


def requeue(site: Site, arguments: argparse.Namespace) -> int:
    whole_queue = arguments.destination and not (arguments.numbers or arguments.uid or arguments.study or arguments.state)
    if whole_queue:
        args = {"queue": arguments.destination} | ({"to": arguments.to} if arguments.to else {})
        answer = site.asking().call("requeue", **args)
        site.emit(answer)
        where = f"moved to {arguments.to}" if arguments.to else "tried again"
        site.say(f"{plural(answer['deliveries'], 'delivery', 'deliveries')} of the queue of {arguments.destination} {where}")
        return exits.OK
    numbers = _chosen(site, arguments)
    return _told(site, "queued again", numbers,
                 _in_parts(site, "requeue", numbers, to=arguments.to, destination=arguments.destination))


def discard(site: Site, arguments: argparse.Namespace) -> int:
    numbers = _chosen(site, arguments)
    if not arguments.yes and not arguments.numbers:
        if not sys.stdin.isatty():
            raise UsageError(f"{len(numbers)} objects would be discarded", mend="add --yes where nobody can be asked")
        sys.stderr.write(f"{len(numbers)} objects will be given up and their files deleted. Type the count to go on: ")
        sys.stderr.flush()
        if sys.stdin.readline().strip() != str(len(numbers)):
            raise ControlError("nothing was discarded", mend="the count was not confirmed")
    discarded = [n for answer in _in_parts(site, "discard", numbers, reason=arguments.reason) for n in answer["discarded"]]
    site.emit({"discarded": discarded})
    site.say(f"{len(discarded)} of {plural(len(numbers), 'object')} discarded")
    return exits.OK
