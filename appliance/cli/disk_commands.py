"""`dcmgate disk status|recovery-key|open|settle|reset` and `dcmgate factory-reset`: the disks of the box.

`open`, `settle` and `reset` are for the units of the system image, as root.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from appliance.cli import exits
from appliance.cli.context import Site
from appliance.errors import ControlError, DcmgateError, UsageError


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    disk = commands.add_parser("disk", help="the disks of the box: encryption, redundancy, recovery key", parents=[common])
    verbs = disk.add_subparsers(metavar="VERB", required=True, dest="verb")
    for name, text, run in (
            ("status", "encryption, mirror and serial numbers; 1 if something is wrong", status),
            ("recovery-key", "show the key that opens the disk when nothing else does; recorded with your name", recovery_key),
            ("open", "open the spool's disks, make them on a new box (for the system)", open_spool),
            ("reset", "carry out the factory reset that was asked for (for the system)", reset),
            ("settle", "remember which disks of a mirror take part (for the system)", settle)):
        one = verbs.add_parser(name, help=text, parents=[common])
        one.set_defaults(run=run)
        if name == "recovery-key":
            one.add_argument("--written-down", metavar="LETTERS",
                             help="its last eight letters, from paper: it is not shown again, and no longer kept on the box")


    one = commands.add_parser("factory-reset", help="make the box new: every image, key and setting on it is wiped",
                              parents=[common])
    one.add_argument("--override", action="store_true", help="also where it holds what was not delivered: that is lost")
    one.add_argument("--reason", default="", metavar="TEXT", help="why: recorded with your name, and kept on the new box")
    one.add_argument("--yes", action="store_true", help="do not ask")
    one.set_defaults(run=factory_reset)


def facts() -> dict[str, Any]:
    """What `status` and `disk status` say, as JSON values; {} on a computer that is not the box."""
    from appliance.disks.found import boot_found, disk_alarms, spool_found
    from appliance.policy import disks
    boot, spool = boot_found(), spool_found()
    if not boot.var:
        return {}
    return {"encryption": disks.encryption_line(boot), "theft_covered": disks.theft_covered(boot),
            "redundancy": disks.redundancy_line(spool), "redundant": disks.redundant(spool),
            "opened_by": str(boot.opened), "secure_boot": boot.secure_boot, "errors_mended": spool.errors,
            "disks": [{"serial": one.serial, "present": one.present, "working": one.working} for one in spool.members],
            "alarms": [{"key": alarm.key, "severity": str(alarm.severity), "text": alarm.text, "mend": alarm.mend}
                       for alarm in disk_alarms()]}


def lines(site: Site, said: dict[str, Any]) -> list[str]:
    """Two lines of `status`."""
    if not said:
        return []
    first = said["encryption"] if said["theft_covered"] else site.warn(said["encryption"])
    second = said["redundancy"] if said["redundant"] else site.warn(said["redundancy"])
    return [f"disk   {first}"] + ([f"       {second}"] if said["redundancy"] else [])


def status(site: Site, arguments: argparse.Namespace) -> int:
    said = facts()
    if not said:
        raise DcmgateError("nothing is known of the disks", mend="this is for the system image of the box")
    site.emit(said)
    for line in lines(site, said):
        site.say(line)
    for disk in said["disks"]:
        state = "works" if disk["present"] and disk["working"] else "is out" if disk["present"] else "is not there"
        site.say(f"       disk {disk['serial'] or 'without serial number'} {state}")
    if said["errors_mended"]:
        site.say(site.warn(f"       {said['errors_mended']} rotten blocks were mended from the other disk"))
    for alarm in said["alarms"]:
        site.say(site.bad(f"{alarm['severity']}: {alarm['text']}") + f" — {alarm['mend']}")
    return exits.FINDING if said["alarms"] else exits.OK


def recovery_key(site: Site, arguments: argparse.Namespace) -> int:
    args = {} if arguments.written_down is None else {"written_down": arguments.written_down}
    answer = site.asking().call("recovery_key", **args)
    site.emit(answer)
    if arguments.written_down is None:
        site.say(answer["key"])
        site.note("Write it down, off the box; then `dcmgate disk recovery-key --written-down` and its last eight letters.")
    else:
        site.say("the recovery key is not kept on the box any more: it is on your paper alone")
    return exits.OK


def open_spool(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.disks.found import boot_found, spool_found
    from appliance.disks.spool import SpoolDisk
    from appliance.policy.disks import redundancy_line
    _as_root()
    SpoolDisk().open(boot_found())
    site.say(redundancy_line(spool_found()))      # with the kernel's word: a new disk lacks everything yet
    return exits.OK


def settle(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.disks.spool import SpoolDisk
    _as_root()
    SpoolDisk().settle()
    return exits.OK


def factory_reset(site: Site, arguments: argparse.Namespace) -> int:
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise UsageError("the whole box would be wiped", mend="add --yes where nobody can be asked")
        sys.stderr.write("Every image, key and setting on this box will be wiped, and it restarts. Type RESET to go on: ")
        sys.stderr.flush()
        if sys.stdin.readline().strip() != "RESET":
            raise ControlError("nothing was wiped", mend="it was not confirmed")
    answer = site.asking().call("factory_reset", override=arguments.override, reason=arguments.reason)
    site.emit(answer)
    site.say("the box ends intake, counts once more, and restarts as a new one")
    return exits.OK


def reset(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.disks.reset import KEEPER, reset_box
    from appliance.manage import box
    _as_root()
    request = box.take_request(KEEPER)
    reset_box(str(request["by"]), str(request["reason"]), override=request["override"] is True,
              count=lambda: box.held_now(site.opened().ledger))
    return exits.OK


def _as_root() -> None:
    if os.getuid() != 0:
        raise UsageError("this is for the system itself", mend="`dcmgate disk status` shows what it found")
