"""`dcmgate proxy password`: the user name and password that an HTTP proxy asks for, kept where only the service reads them."""

from __future__ import annotations

import argparse
import getpass
import sys
from typing import Any

from appliance.cli import exits
from appliance.cli.context import Site
from appliance.config.findings import did_you_mean
from appliance.errors import UsageError


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    proxy = commands.add_parser("proxy", help="passwords of HTTP proxies", parents=[common])
    verbs = proxy.add_subparsers(metavar="VERB", required=True, dest="verb")
    one = verbs.add_parser("password", help="keep user name and password of a proxy", parents=[common])
    one.add_argument("proxy", metavar="HOST:PORT", help="as a [[destination]] or [[tunnel]] names it")
    one.add_argument("--user", metavar="NAME", required=True, help="user name")
    one.set_defaults(run=password)


def password(site: Site, arguments: argparse.Namespace) -> int:
    """The password comes from the terminal, or is the first line of standard input: never an argument, which all can read."""
    from appliance.config import load
    from appliance.manage.generations import tag_problem
    from appliance.net.certstore import Writer
    from appliance.net.proxy import Proxy, unusable
    config = load.load(site.config_path, tag_problem=tag_problem)
    named = sorted({*(d.proxy for d in config.destinations), *(t.proxy for t in config.tunnels)} - {""})
    if arguments.proxy not in named:
        raise UsageError(f'no destination and no tunnel has the proxy "{arguments.proxy}"', mend=did_you_mean(
            arguments.proxy, named, "" if named else "write proxy = \"host:port\" there first"))
    proxy = Proxy(arguments.proxy, config.spool.state)
    word = getpass.getpass(f"password of {arguments.user} at {proxy.place}: ") if sys.stdin.isatty() else \
        sys.stdin.readline().rstrip("\r\n")
    line = f"{arguments.user}:{word}".encode()
    if problem := "has a colon in the user name" if ":" in arguments.user else unusable(line):
        raise UsageError(f"user name and password cannot be used: this {problem}", mend="Ask whoever runs the proxy.")
    Writer(config.spool.state).keep(proxy.file, line + b"\n")
    site.emit({"proxy": proxy.place, "file": str(proxy.file)})
    site.say(f"{proxy.file}: in force for the next connection")
    return exits.OK
