"""`dcmgate update`: what runs, what is offered, and installing it. The service and the gate of the image call it, too."""

from __future__ import annotations

import argparse
import json
import os
import pwd
import subprocess
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from appliance.cli import exits
from appliance.cli.context import Site
from appliance.cli.text import safe, size, table, when
from appliance.errors import DcmgateError, UsageError

if TYPE_CHECKING:
    from appliance.config.settings import Config
    from appliance.policy.update import Installed, Release
    from appliance.update.fetch import Tell

WAIT_SECONDS = 7200.0
LOOK_SECONDS = 1.0
MOUNT_STICK = "/usr/lib/dcmgate/libexec/update-stick"
STAYS = 75
"""Exit status of the gate where it does not open and a reboot leads nowhere."""


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    update = commands.add_parser("update", help="versions of the system: status, check, install, approve", parents=[common])
    update.set_defaults(run=status)
    verbs = update.add_subparsers(metavar="VERB", dest="verb")
    verbs.add_parser("status", help="what runs, what is offered, what became of the last ones (the default)",
                     parents=[common]).set_defaults(run=status)
    check = verbs.add_parser("check", help="look what the site's server, or a stick, offers", parents=[common])
    one = verbs.add_parser("install", help="install what is offered, and restart into it, on trial", parents=[common])
    for parser in (check, one):
        parser.add_argument("--from", metavar="URL", dest="source", default="site",
                            help='another server\'s folder (https: or http:), or "stick"')
        parser.add_argument("--again", action="store_true", help="also a version that was on trial here and came back")
    check.set_defaults(run=ask, action="check")
    one.add_argument("--no-wait", action="store_true", help="do not wait for what comes of it")
    one.set_defaults(run=ask, action="install")
    two = verbs.add_parser("approve", help="let the box install a version inside the site's window", parents=[common])
    two.add_argument("wanted", metavar="VERSION", nargs="?", default="", help="the one that is offered, unless said")
    two.set_defaults(run=ask, action="approve")
    for name, run in (("run", serve), ("fetch", fetch), ("gate", gate), ("settle", settle)):      # of the image's units
        verbs.add_parser(name, parents=[common]).set_defaults(run=run)


def status(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.update.records import Records
    records = Records()
    trial, entries, progress = records.trial(), records.menu(), records.progress()
    box, history, offered = records.installed(), records.history(), records.offered()
    site.emit({"device": box.device, "running": box.running, "floor": box.floor, "offered": offered,
               "approved": records.approved(), "trial": asdict(trial) if trial else None, "progress": progress,
               "menu": [{"version": e.version, "state": e.slot, "tries": e.left} for e in entries],
               "history": [asdict(event) for event in history]})
    site.say(f"{box.running} runs, on {box.device}; nothing below {box.floor} is taken")
    if trial is not None:
        site.say(f"{trial.version} is on trial" if trial.version == box.running else f"{trial.version} waits for the restart")
    if offered:
        site.say(f"{offered} is offered" + (", and approved" if records.approved() == offered else ""))
    if progress and progress.get("stage") not in (None, "done"):
        more = f" {size(progress['have'])} of {size(progress['total'])}" if "have" in progress else ""
        site.say(f"{progress['stage']}: {safe(str(progress.get('text', '')))}{more}")
    if history:
        site.say()
        site.say(table(("WHEN", "VERSION", "WHAT", "BY", ""), [
            [when(e.at), e.version or "-", e.what, e.by or "-", safe(e.text)] for e in history[-10:]], columns=site.columns))
    return exits.OK


def ask(site: Site, arguments: argparse.Namespace) -> int:
    """Leave the request, and tell what comes of it."""
    from appliance.update.places import Places
    from appliance.update.records import Records
    from appliance.update.service import ENDS, FAILED, REFUSED, SITE, STICK, leave_request
    source = getattr(arguments, "source", SITE)
    if source not in (SITE, STICK) and not source.startswith(("https://", "http://")):
        raise UsageError(f'"{source[:60]}" is neither a URL nor "stick"', mend='write --from https://… or --from stick')
    places = Places()
    try:
        token = leave_request(places, action=arguments.action, source=source, version=getattr(arguments, "wanted", ""),
                              again=getattr(arguments, "again", False))
    except FileNotFoundError:
        raise UsageError("this is no system image: there is nothing that could be updated",
                         mend="update the package the way it was installed") from None
    if getattr(arguments, "no_wait", False):
        return exits.OK
    deadline, said = time.monotonic() + WAIT_SECONDS, ""
    while time.monotonic() < deadline:
        found = Records(places).progress()
        if found.get("request") == token:
            stage = str(found.get("stage", ""))
            if stage in ENDS:
                site.emit(found)
                text = safe(str(found.get("text", "")))
                site.say(site.bad(f"{stage}: {text}") if stage in (REFUSED, FAILED) else text)
                return exits.REFUSED if stage == REFUSED else exits.UNREACHABLE if stage == FAILED else exits.OK
            if stage != said:
                said = stage
                site.note(f"{stage} {safe(str(found.get('text', '')))}".rstrip())
        time.sleep(LOOK_SECONDS)
    raise DcmgateError("nothing has come of it so far", mend="`dcmgate update status` and the log of dcmgate-update.service")


def _config(site: Site) -> Config:
    """The file's, where it is good; else every default, so that a stick still works."""
    from appliance.config.settings import Config
    from appliance.errors import ConfigError
    from appliance.manage import generations
    try:
        from appliance.config import load
        return generations.parse(load.read(site.config_path), site.config_path)
    except ConfigError:
        return Config()


# --- what the units call -------------------------------------------------------------------------------------------------

def serve(site: Site, arguments: argparse.Namespace) -> int:
    """dcmgate-update.service."""
    from appliance.clock import SystemClock
    from appliance.telemetry import log
    from appliance.update.records import Records
    from appliance.update.service import Service
    log.set_up("info")
    Service(Records(), _config(site), SystemClock(), _unprivileged(site)).run()
    return exits.OK


def _unprivileged(site: Site) -> Any:
    """Fetching in a process of another user: what comes from a server or a stick is never read by root before it is checked."""
    def fetched(source: str, box: Installed, tell: Tell, *, again: bool, only_look: bool) -> Release:
        from appliance.policy.update import Refused, Release
        from appliance.update.fetch import Broken
        from appliance.update.lend import lend
        from appliance.update.places import Places
        from appliance.update.service import STICK
        user = pwd.getpwnam("dcmgate-update")
        lend(Places(), _config(site), user.pw_uid, user.pw_gid)
        if source == STICK:      # seen by this unit alone, until it ends
            subprocess.run([MOUNT_STICK], check=False, timeout=60)
        command = [sys.executable, "-I", "-m", "appliance.cli.main", "--config", site.config_path, "update", "fetch"]
        asked = {"source": source, "box": {**asdict(box), "failed": sorted(box.failed)}, "again": again, "only_look": only_look}
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, user="dcmgate-update",
                              group="dcmgate-update", extra_groups=["dcmgate"], umask=0o022) as child:
            assert child.stdin is not None and child.stdout is not None
            child.stdin.write(json.dumps(asked) + "\n")
            child.stdin.close()
            for line in child.stdout:
                said = json.loads(line)
                if "refused" in said:
                    raise Refused(str(said["refused"])[:1000])
                if "broken" in said:
                    raise Broken(str(said["broken"])[:1000])
                if "release" in said:
                    return Release(**said["release"])
                tell(str(said["name"]), int(said["have"]), int(said["total"]))
        raise Broken("the process that fetches it has died")
    return fetched


def fetch(site: Site, arguments: argparse.Namespace) -> int:
    """The child of the above: its orders come on standard input, what it says goes to standard output, a line each."""
    from appliance.policy.update import Installed, Refused
    from appliance.update.fetch import Broken, Folder, Web, look
    from appliance.update.fetch import fetch as whole
    from appliance.update.places import Places
    from appliance.update.service import SITE, STICK
    asked = json.loads(sys.stdin.readline())
    places, config, box = Places(), _config(site), Installed(**asked["box"])

    def say(value: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()

    try:
        url = str(asked["source"])
        if url == SITE:
            url = "/".join(filter(None, (config.update.url.rstrip("/"), config.update.channel)))
            if not url:
                raise Refused("the configuration names no server for updates ([update] url)")
        source = Folder(places.stick) if url == STICK else Web(url, config, places.lent)
        if asked["only_look"]:
            found = look(source, places, box, again=asked["again"])
        else:
            found = whole(source, places, box, lambda name, have, total: say({"name": name, "have": have, "total": total}),
                          again=asked["again"])
        say({"release": {"device": found.device, "version": found.version, "files": dict(found.files)}})
    except Refused as e:
        say({"refused": str(e)})
    except (Broken, ValueError) as e:
        say({"broken": str(e)})
    except OSError as e:
        say({"broken": e.strerror or str(e)})
    return exits.OK


def gate(site: Site, arguments: argparse.Namespace) -> int:
    """dcmgate-health-gate.service: 0 opens it."""
    from dataclasses import replace

    from appliance.policy.update import Signs, complaints, may_reboot
    from appliance.update import gate as health_gate
    from appliance.update.records import Records
    records = Records()
    trial = records.trial()
    if os.path.exists(site.config_path):
        signs = health_gate.look(_config(site), trial.before if trial is not None else ())
    else:
        signs = Signs(failed_units=health_gate.failed_units())
    said = complaints(replace(signs, running=records.places.running(), counted=records.places.counted()))
    if not said:
        site.say(f"{records.places.running()} is good")
        return exits.OK
    records.complain(said)
    site.say(f"{records.places.running()} is not good: {'; '.join(said)}")
    return exits.FINDING if may_reboot(records.places.entries(), records.places.running()) else STAYS


def settle(site: Site, arguments: argparse.Namespace) -> int:
    """dcmgate-update-settle.service, on every boot after an installation."""
    from appliance.update.outcome import settle as done
    from appliance.update.records import Records
    site.say(f"the last update: {done(Records()) or 'none'}")
    return exits.OK
