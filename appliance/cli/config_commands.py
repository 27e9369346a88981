"""`dcmgate config check|show|example` and `dcmgate reload`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cli import exits
from appliance.cli.context import Site
from appliance.cli.text import plural

if TYPE_CHECKING:
    from appliance.config.settings import Config


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
    five = verbs.add_parser("ports", help="the ports for scanners", parents=[common])
    five.set_defaults(run=ports)
    six = verbs.add_parser("system", help="what the system image takes of it: ports, firewall, tunnels, time, log",
                           parents=[common])
    six.add_argument("folder", metavar="FOLDER", help="where the files are written")
    six.set_defaults(run=system)
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


def _in_force(site: Site) -> Config:
    """The configuration in force; the file where no spool says what that is."""
    from appliance.config import load
    from appliance.errors import LedgerError, SpoolError
    from appliance.manage.generations import tag_problem
    try:
        return site.opened().config
    except (SpoolError, LedgerError):
        return load.load(site.config_path, tag_problem=tag_problem)


def ports(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.config.system import scanner_ports
    found = scanner_ports(_in_force(site))
    site.emit([{"address": address, "port": port} for address, port in found])
    for address, port in found:
        site.say(f"{address}:{port}")
    return exits.OK


def system(site: Site, arguments: argparse.Namespace) -> int:
    """A file that says nothing is empty."""
    from appliance.config import system as made
    config, folder = _in_force(site), Path(arguments.folder)
    texts = {"ports": made.sockets(config), "firewall.nft": made.firewall(config), "tunnels": made.tunnels(config),
             "dcmgate.sources": made.time_sources(config), "journal-upload.conf": made.log_forwarding(config)}
    for name, text in texts.items():
        (folder / name).write_text(text)
    site.emit({"files": [str(folder / name) for name in texts]})
    site.say("\n".join(str(folder / name) for name in texts))
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
