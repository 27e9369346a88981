"""`dcmgate config check|show|example` and `dcmgate reload`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from appliance.cli import exits
from appliance.cli.context import Site
from appliance.cli.text import plural


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    config = commands.add_parser("config", help="check, show or begin a configuration", parents=[common])
    verbs = config.add_subparsers(metavar="VERB", required=True, dest="verb")
    one = verbs.add_parser("check", help="name everything that is wrong with a file", parents=[common])
    one.add_argument("file", nargs="?", default="", metavar="FILE", help="another file than the site's")
    one.set_defaults(run=check)
    two = verbs.add_parser("show", help="the configuration in force, every setting said", parents=[common])
    two.add_argument("--file", action="store_true", help="what the file says, not what is in force")
    two.set_defaults(run=show)
    three = verbs.add_parser("example", help="a whole file with a sentence for each setting", parents=[common])
    three.set_defaults(run=example)
    five = verbs.add_parser("ports", help="the ports for scanners, as the system image wants them", parents=[common])
    five.add_argument("--sockets", metavar="FILE", default="", help="write a drop-in of dcmgate-receiver.socket")
    five.add_argument("--firewall", metavar="FILE", default="", help="write commands for nft -f")
    five.set_defaults(run=ports)
    four = commands.add_parser("reload", help="put the configuration file in force", parents=[common])
    four.set_defaults(run=reload)


def check(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.config import load
    from appliance.config.checks import remarks
    from appliance.manage.generations import tag_problem
    path = arguments.file or site.config_path
    text = load.read(path)
    errors = load.check(text, path, tag_problem=tag_problem)
    notes = [] if errors else remarks(load.parse(text, path))
    site.emit({"file": path, "good": not errors, "remarks": notes, "errors": [
        {"file": e.file, "line": e.line, "key": e.key, "error": e.message, "mend": e.mend} for e in errors]})
    for error in errors:
        site.say(str(error))
    for remark in notes:
        site.say(f"{path}: {site.warn('remark')}: {remark}")
    site.say(site.bad(f"{path}: {plural(len(errors), 'error')}") if errors
             else f"{path}: {site.good('good')}")
    return exits.FINDING if errors else exits.OK


def show(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.config import load
    from appliance.manage.generations import tag_problem
    if arguments.file:
        config = load.load(site.config_path, tag_problem=tag_problem)
    else:
        config = site.opened().config
    site.emit(asdict(config))
    site.say((f"# {site.config_path}" if arguments.file else f"# generation {config.generation}") + "\n" + load.render(config))
    return exits.OK


def ports(site: Site, arguments: argparse.Namespace) -> int:
    """Of the configuration in force; of the file where no spool says what that is."""
    from appliance.config import load
    from appliance.config.system import firewall, scanner_ports, sockets
    from appliance.errors import LedgerError, SpoolError
    from appliance.manage.generations import tag_problem
    try:
        config = site.opened().config
    except (SpoolError, LedgerError):
        config = load.load(site.config_path, tag_problem=tag_problem)
    found = scanner_ports(config)
    site.emit([{"address": address, "port": port} for address, port in found])
    for path, text in ((arguments.sockets, sockets(config)), (arguments.firewall, firewall(config))):
        if path:
            Path(path).write_text(text)
    for address, port in found:
        site.say(f"{address}:{port}")
    return exits.OK


def example(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.config import load
    site.emit({"example": load.example()})
    site.say(load.example().rstrip("\n"))
    return exits.OK


def reload(site: Site, arguments: argparse.Namespace) -> int:
    result = site.asking().call("reload")
    site.emit(result)
    site.say(f"generation {result['generation']} is in force" + ("" if result["changed"] else ": the file has not changed"))
    return exits.OK
