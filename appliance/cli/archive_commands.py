"""`dcmgate archive init FOLDER`: the marker without which a folder destination refuses to write."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from appliance.cli import exits
from appliance.cli.context import Site


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    archive = commands.add_parser("archive", help="make the folder of a folder destination", parents=[common])
    verbs = archive.add_subparsers(metavar="VERB", required=True, dest="verb")
    one = verbs.add_parser("init", help="mark a folder as an archive; made where it is missing", parents=[common])
    one.add_argument("folder", metavar="FOLDER", help="an empty folder, or one that does not exist yet")
    one.set_defaults(run=init)


def init(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.net.archive import init as make
    folder = Path(arguments.folder).absolute()
    uuid = make(folder)
    site.emit({"path": str(folder), "uuid": uuid})
    site.say(f'{folder}: is an archive now; name it as path of a [[destination]] with type = "folder"')
    return exits.OK
