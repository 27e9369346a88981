"""`dcmgate tunnel ID`: makes the configuration of a tunnel and becomes stunnel, so that no interpreter stays in memory.

It needs neither spool nor keeper: what a tunnel carries is wanted whatever the
disk does. The configuration in force counts where it can be read, else the file.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from appliance.cli import exits
from appliance.cli.context import Site
from appliance.config.findings import did_you_mean
from appliance.errors import CertificateError, ConfigError, LedgerError, SpoolError, UsageError

if TYPE_CHECKING:
    from appliance.config.settings import Config, Tunnel
    from appliance.tunnel.place import Place
    from appliance.tunnel.setup import Setup


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    one = commands.add_parser("tunnel", help="run a tunnel: make its configuration and become stunnel", parents=[common])
    one.add_argument("id", metavar="ID", help="id of a [[tunnel]]")
    what = one.add_mutually_exclusive_group()
    what.add_argument("--print", action="store_true", help="show its configuration, and have stunnel check it")
    what.add_argument("--reload", action="store_true", help="have the one that runs take up what has changed")
    what.add_argument("--pin", metavar="FILE", default="", help="keep the other end's certificate, which has one of the pins")
    one.set_defaults(run=tunnel)


def tunnel(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.tunnel import program
    from appliance.tunnel.place import Place
    from appliance.tunnel.setup import Maker, masked
    plain = not (arguments.print or arguments.reload or arguments.pin)
    try:
        config = _config(site)
    except ConfigError as e:
        if plain:
            _as_before(site, arguments.id, e)
        raise
    entry = _entry(config, arguments.id)
    if arguments.pin:
        return _pin(site, config, entry, Path(arguments.pin))
    run = Path(config.control.run)
    run.mkdir(mode=0o750, parents=True, exist_ok=True)
    place = Place(run, entry.id)
    if plain:
        _fetch(site, config, entry)
    setup = Maker(config.spool.state, run).setup(entry)
    program.check(setup)
    running = place.running()
    if arguments.print:
        site.emit({"tunnel": entry.id, "configuration": masked(setup.text), "pid": running.pid if running else 0})
        site.say(masked(setup.text).rstrip("\n"))
        return exits.OK
    if arguments.reload:
        if running is None:
            raise UsageError(f"tunnel {entry.id} does not run", mend="Start it: there is nothing to take up.")
        place.take_up(running, setup)
        site.emit({"tunnel": entry.id, "pid": running.pid})
        site.say(f"tunnel {entry.id}: taken up by process {running.pid}; connections that are up stay")
        return exits.OK
    _become(place, setup)


def _become(place: Place, setup: Setup, *, new: bool = True) -> NoReturn:
    from appliance.tunnel import program
    claim = place.claim()
    listening = program.listen(setup)
    if new:
        place.write(setup)
    place.sign(claim, os.getpid(), setup)
    program.become(place.configuration, listening, claim)


def _as_before(site: Site, id: str, error: ConfigError) -> None:
    """A bad file, and nobody who says what is in force: what it ran by last stays. Returns where there is nothing."""
    from appliance.cli.services import locate
    from appliance.tunnel.place import Place
    place = Place(Path(locate(site.config_path).control.run), id)
    last = place.last()
    if last is not None:
        site.note(f"dcmgate: the configuration is bad, tunnel {id} goes by its last one: {error}")
        _become(place, last, new=False)


def _config(site: Site) -> Config:
    """That in force, as far as spool and ledger can be read; else the file. ConfigError."""
    from appliance.config import load
    from appliance.manage.generations import tag_problem
    try:
        return site.opened().config
    except (SpoolError, LedgerError, OSError):
        return load.load(site.config_path, tag_problem=tag_problem)


def _entry(config: Config, id: str) -> Tunnel:
    for entry in config.tunnels:
        if entry.id == id:
            return entry
    known = [entry.id for entry in config.tunnels]
    raise UsageError(f'there is no [[tunnel]] "{id}"',
                     mend=did_you_mean(id, known) if known else f'write a [[tunnel]] with id = "{id}"')


def _wanted(entry: Tunnel) -> list[str]:
    from appliance.config.secure import fingerprint
    return [fingerprint(pin) for pin in entry.pins]


def _fetch(site: Site, config: Config, entry: Tunnel) -> None:
    """Where no pinned certificate is known yet: from the server itself, if it shows one that has the fingerprint."""
    from appliance.tunnel import pins
    from appliance.tunnel.through import learn
    if not entry.pins or entry.side != "client" or pins.of(Path(config.spool.state), _wanted(entry)):
        return
    try:
        learn(entry, config.spool.state)
    except (OSError, CertificateError) as e:      # CertificateError: this user may not write there, and the keeper will
        site.note(f"dcmgate: the pinned certificate of {entry.connect} cannot be fetched: {e}")


def _pin(site: Site, config: Config, entry: Tunnel, path: Path) -> int:
    from appliance.tunnel import pins
    if not entry.pins:
        raise UsageError(f"[[tunnel]] {entry.id} has no pins", mend="Write the fingerprint in its `pins` first.")
    der = pins.from_file(path, _wanted(entry))
    new = pins.keep(Path(config.spool.state), der, _wanted(entry))
    site.emit({"tunnel": entry.id, "new": new})
    site.say(f"{path}: " + ("kept; the tunnel takes it up within ten seconds" if new else "is known already"))
    return exits.OK
