"""`dcmgate install`: the installer's conversation, on the console of a box that was started from the installer's stick."""

from __future__ import annotations

import argparse
import fcntl
import sys
from pathlib import Path
from typing import Any

from appliance.cli import exits
from appliance.cli.context import Site
from appliance.errors import DiskFault, UsageError
from appliance.policy.install import ERASE, Offer, board_lines, choose, offers

LOCK = Path("/run/dcmgate-install.lock")
KEYS = Path("/boot/loader/keys/auto")


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    one = commands.add_parser("install", help="write the system to a disk of this box (from the installer's stick)",
                              parents=[common])
    one.set_defaults(run=install)


def install(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.disks import install as hands
    from appliance.disks.system import attached
    if not hands.STARTED.exists():
        raise UsageError("this system was not started from an installer's stick",
                         mend="start the box from the stick that image-build/installer made")
    site.say("\nDcmgate installer\n")
    board = hands.board()
    for good, text in board_lines(board):
        site.say(f"  {'ok  ' if good else 'look'}  {text}")
    while True:
        disks = attached()
        source = hands.stick(disks)
        found = offers(disks, source.path)
        site.say("\nDisks, by serial number:")
        for offer in found:
            site.say(f"  {offer.text}")
        chosen = _chosen(site, found)
        if chosen is None:
            continue
        with LOCK.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                site.say("an installation runs already, from the other console")
                continue
            try:
                hands.install(source, chosen, progress=lambda name, done, of: _progress(site, name, done, of))
            except DiskFault as e:
                site.say(f"not installed: {e}")
                continue
            site.say(f"dcmgate: installed on disk {chosen.disk.serial}")
            if board.secure_boot == "set-up mode" and _ask(site, "Enrol our keys for Secure Boot? Type yes: ") == "yes":
                try:
                    hands.enrol(KEYS)
                    site.say("dcmgate: keys enrolled, Secure Boot is on from the next start")
                except DiskFault as e:
                    site.say(f"not enrolled: {e}")
            _ask(site, "Take the stick out, then press Enter: the box restarts. ")
            return exits.OK


def _chosen(site: Site, found: list[Offer]) -> Offer | None:
    """The disk, once a person has typed its serial number, and that what is on it may go."""
    serial = _ask(site, "\nSerial number of the disk to install on (Enter: look again): ")
    if not serial:
        return None
    offer = choose(found, serial)
    if isinstance(offer, str):
        site.say(offer)
        return None
    if offer.foreign and _ask(site, f"Everything on {serial} will be lost. Type {ERASE}: ") != ERASE:
        site.say("nothing was written")
        return None
    return offer


def _ask(site: Site, text: str) -> str:
    site.out.write(text)
    site.out.flush()
    line = sys.stdin.readline()
    if not line:
        raise UsageError("nobody is at the console", mend="the installer asks; it needs a keyboard or a serial cable")
    return line.strip()


def _progress(site: Site, name: str, done: int, of: int) -> None:
    if done == of or done % (64 << 20) == 0:
        site.say(f"  {name}: {done * 100 // of} %")
