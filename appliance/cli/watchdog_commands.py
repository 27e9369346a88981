"""`dcmgate watch|degraded|escalate|boot`: the upper links of the watchdog chain. The service manager runs them; a person may.

None of them opens spool or ledger: they are for the time when these are what fails.
"""

from __future__ import annotations

import argparse
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cli import exits
from appliance.cli.context import Site
from appliance.errors import UsageError

if TYPE_CHECKING:
    from appliance.config.settings import Config
    from appliance.health.checks import State, Verdict

RUN = Path("/run/dcmgate-watch")
HOUR = 3_600_000_000_000


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    one = commands.add_parser("watch", help="look after the box itself: disk, heat, wear, memory, clock", parents=[common])
    _folder(one)
    one.set_defaults(run=watch)
    one = commands.add_parser("degraded", help="tell scanners that nothing is taken in; needs no spool", parents=[common])
    one.add_argument("--why", default="", metavar="TEXT", help="the reason, for log and alarm (default: the escalation's)")
    one.set_defaults(run=degraded)
    one = commands.add_parser("escalate", help="what follows where restarts of a service do not help", parents=[common])
    one.add_argument("unit", metavar="SERVICE", nargs="?", default="",
                     help="receiver, forwarder, keeper, or spool where its disk fails")
    one.add_argument("--again", action="store_true", help="some time has passed: try it once more, if its disk is there")
    one.add_argument("--healthy", type=float, default=0.0, metavar="HOURS",
                     help="nothing is escalated: so many hours have passed without a fault, and give budgets back")
    one.set_defaults(run=escalate)
    one = commands.add_parser("boot", help="why this boot began", parents=[common])
    one.add_argument("--begin", action="store_true", help="find it out, and mark this boot as running")
    one.add_argument("--end", action="store_true", help="this boot ends in order")
    one.set_defaults(run=boot)


def _folder(one: argparse.ArgumentParser) -> None:
    one.add_argument("--folder", type=Path, default=RUN, metavar="FOLDER", help=f"for what it finds (default: {RUN})")


def _until_told() -> threading.Event:
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    return over


def watch(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.clock import SystemClock
    from appliance.telemetry import log
    from appliance.telemetry.alarms import Notifier
    from appliance.telemetry.notify import expect, notify
    from appliance.watchdog import escalate as escalation
    from appliance.watchdog.watch import Watch
    log.set_up("info")
    over = _until_told()
    watched = _Watched(site.config_path)
    expect("watch")
    notifier = Notifier()

    def tell(why: str, begins: bool) -> None:
        alarm = escalation.alarm(why)
        notifier.notify(_file(site).alarm, [alarm] if begins else [], [] if begins else [alarm])

    one = Watch(arguments.folder, SystemClock(), watched.look, watched.show, lambda: escalation.told()[1], tell)
    one.start()
    notify(READY=1)
    over.wait()
    notify(STOPPING=1)
    one.stop()
    notifier.stop()
    return exits.OK


class _Watched:
    """The spool and light of the configuration. A box that is set up while this runs is looked after from then on, without
    a restart: from when its spool has been made, which takes a while."""

    def __init__(self, config_path: str) -> None:
        self._config_path = config_path
        self._read()
        self._set_up = bool(self._place.text)

    def _read(self) -> None:
        from appliance.cli.services import locate
        from appliance.health.checks import spool as spool_check
        from appliance.watchdog.led import Light
        self._place = locate(self._config_path)
        self._light = Light(self._place.control.led)
        self._spool = Path(self._place.spool.path)
        self._probe = spool_check.Probe(self._spool)

    def show(self, worst: State, second: int) -> None:
        self._light.show(worst, second)

    def look(self) -> Verdict | None:
        from appliance.health.checks import spool as spool_check
        if not self._set_up:
            self._read()
            self._set_up = bool(self._place.text) and self._is_there(hangs=False)
            if not self._set_up:
                return None
        return self._probe.look() if self._is_there(hangs=True) else spool_check.absent()

    def _is_there(self, hangs: bool) -> bool:
        """`hangs`: what a disk that does not answer counts as; of one that is there the probe says so."""
        from appliance.health.checks import spool as spool_check
        from appliance.watchdog.budget import within
        try:
            return within(lambda: spool_check.is_there(self._spool))
        except OSError:
            return hangs


def degraded(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.receive.degraded import Degraded
    from appliance.telemetry import log
    from appliance.telemetry.notify import expect, notify
    from appliance.watchdog import escalate as escalation
    log.set_up("info")
    over = _until_told()
    config = _file(site)
    why = arguments.why or escalation.told()[1] or "somebody started it by hand"
    expect("degraded")
    one = Degraded(config, why)
    one.start()
    notify(READY=1, STATUS=f"degraded mode: {why}"[:200])
    over.wait()
    notify(STOPPING=1)
    one.stop()
    return exits.OK


def _file(site: Site) -> Config:
    """The configuration of the file: the one in force lies in the ledger. A file that is bad leaves its listeners out."""
    from appliance.cli.services import locate
    from appliance.config.settings import Config
    from appliance.manage import generations
    place = locate(site.config_path)
    if place.problem is None:
        return generations.parse(place.text, place.path)
    site.note(f"dcmgate: the configuration file is bad, and what is in force cannot be read: {place.problem}")
    return Config(spool=place.spool, control=place.control)


def escalate(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.cli.services import locate
    from appliance.telemetry import log
    from appliance.watchdog import escalate as escalation
    log.set_up("info")
    if arguments.healthy > 0 and not arguments.unit:
        ongoing = escalation.told()[0]
        escalation.healthy(escalation.budget(escalation.Places(Path())), int(arguments.healthy * HOUR), [ongoing])
        return exits.OK
    unit = str(arguments.unit).removeprefix("dcmgate-").removesuffix(".service")
    if unit not in (*escalation.UNITS, "spool"):
        raise UsageError(f'"{arguments.unit}" is nothing that is escalated',
                         mend=f"one of: {', '.join(escalation.UNITS)}, spool")
    places = escalation.Places(Path(locate(site.config_path).spool.path))
    machine = escalation.Real()
    if arguments.again:
        tried = escalation.again(unit, places, machine)
        site.emit({"service": unit, "tried": tried})
        return exits.OK
    decision = escalation.escalate(unit, places, machine, escalation.budget(places))
    site.emit({"service": unit, "step": str(decision.step), "fault": decision.fault, "why": decision.why})
    site.say(f"{unit}: {decision.step}: {decision.why}")
    return exits.OK


def _other_start(site: Site) -> str:
    """What is to be said where the box has restarted so that its TPM gives the key."""
    from appliance.disks.found import boot_found
    from appliance.watchdog import again
    try:
        return again.TOLD if again.settle(boot_found()) else ""
    except OSError as error:
        site.say(f"a TPM that does not give the disk's key gets no other start: {error}")
        return ""


def boot(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.watchdog import boots
    if arguments.end:
        boots.end()
        return exits.OK
    told = boots.begin(remark=_other_start(site)) if arguments.begin else boots.read()
    if told is None:
        raise UsageError("nothing is known of this boot", mend="only the system image keeps it")
    site.emit({"boot": told.number, "reset": told.reset, "text": told.text})
    site.say(f"boot {told.number}: {told.text}")
    return exits.OK
