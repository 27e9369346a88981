"""`dcmgate balance` and `verify`: is everything accounted for, and is it still what was acknowledged?"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from appliance.cli import exits, selection
from appliance.cli.context import Site
from appliance.cli.text import bar, plural, size, span
from appliance.errors import ObjectDamaged
from appliance.model import ObjectState, number_text

if TYPE_CHECKING:
    from appliance.cli.services import Opened
    from appliance.spool.rows import ObjectRow

PARTS = (ObjectState.WAITING, ObjectState.SENT, ObjectState.CONFIRMED, ObjectState.RETIRED, ObjectState.DUPLICATE,
         ObjectState.QUARANTINED, ObjectState.DISCARDED)


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    one = commands.add_parser("balance", help="account for every number and every object; 1 if anything is unaccounted",
                              parents=[common])
    one.add_argument("--deep", action="store_true", help="also make every table anew from the events, and compare")
    one.set_defaults(run=balance)
    two = commands.add_parser("verify", help="read every object and check its digest; 1 if any is damaged", parents=[common])
    selection.add_objects(two)
    two.add_argument("--study", metavar="STUDY", help="Study Instance UID, or the short name that `status` shows")
    two.add_argument("--only-report", action="store_true", help="do not put damaged objects in quarantine")
    two.set_defaults(run=verify)


def balance(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.spool.balance import balance as count
    opened = site.opened()
    found = count(opened.spool, opened.ledger, deep=arguments.deep)
    states = {str(state): found.states.get(state, 0) for state in PARTS}
    site.emit({"granted": found.granted, "free": found.free, "in_flight": found.in_flight, "void": found.void,
               "accepted": found.accepted, "derived": found.derived, **states, "files": found.files,
               "held_bytes": found.held_bytes, "in_quarantine": found.in_quarantine, "unaccounted": found.unaccounted,
               "discrepancies": [str(d) for d in found.discrepancies]})
    _sum(site, "granted", found.granted, {"free": found.free, "in flight": found.in_flight, "void": found.void,
                                          "accepted": found.accepted, "derived": found.derived})
    site.say()
    _sum(site, "accepted", found.accepted, states)
    site.say()
    site.say(f"{plural(found.files, 'file')}, {size(found.held_bytes)} of data sets")
    for discrepancy in found.discrepancies:
        site.say(site.bad(str(discrepancy)))
    site.say(f"unaccounted {found.unaccounted}")
    return exits.OK if found.balanced else exits.FINDING


def _sum(site: Site, name: str, total: int, parts: dict[str, int]) -> None:
    site.say(f"{name:<14}{total:>12}")
    for part, count in parts.items():
        site.say(f"  {part:<12}{count:>12}")


def verify(site: Site, arguments: argparse.Namespace) -> int:
    opened = site.opened()
    chosen = selection.is_about_objects(arguments) or arguments.study
    arguments.patient = arguments.accession = arguments.date = arguments.modality = arguments.station = None
    arguments.description = None
    rows: Iterable[ObjectRow] = selection.objects(opened, arguments)
    if chosen:
        rows = list(rows)
        total = sum(row.custody.length for row in rows)
    else:
        total = opened.ledger.counts().held_bytes
    began = time.monotonic()
    count, read, damaged = _read(site, opened, rows, total)
    moved = _put_aside(site, [entry["number"] for entry in damaged]) if damaged and not arguments.only_report else []
    site.emit({"objects": count, "bytes": read, "damaged": damaged, "quarantined": moved})
    for number in moved:
        site.say(f"{number}: in quarantine; the scanner may still have it: ask for a re-send")
    site.say(f"{plural(count, 'object')}, {size(read)} read in {span(time.monotonic() - began)}, {len(damaged)} damaged")
    return exits.FINDING if damaged else exits.OK


def _read(site: Site, opened: Opened, rows: Iterable[ObjectRow], total: int) -> tuple[int, int, list[dict[str, str]]]:
    """Read each object whole: how many, their bytes, and those that are not what was acknowledged."""
    from appliance.spool import reader
    count, read = 0, 0
    damaged: list[dict[str, str]] = []
    progress = _Progress(total)
    for row in rows:
        if row.file != 0 or row.state is ObjectState.QUARANTINED:
            continue
        try:
            reader.verify(opened.spool, row.number, row.custody)
        except ObjectDamaged as e:
            now = opened.ledger.object(row.number)
            if now is not None and now.file == 0 and now.state is not ObjectState.QUARANTINED:   # not moved meanwhile
                damaged.append({"number": number_text(row.number), "error": e.message})
                site.say(site.bad(e.message))
        count += 1
        read += row.custody.length
        progress.show(read)
    progress.end()
    return count, read, damaged


def _put_aside(site: Site, numbers: list[str]) -> list[str]:
    from appliance.manage.verbs import MOST_NUMBERS
    moved: list[str] = []
    for start in range(0, len(numbers), MOST_NUMBERS):
        moved += site.asking().call("damaged", numbers=numbers[start:start + MOST_NUMBERS])["quarantined"]
    return moved


class _Progress:
    """A line that is written over, on a terminal; nothing elsewhere."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.on = sys.stderr.isatty() and total > 0
        self.last = self.began = time.monotonic()

    def show(self, done: int) -> None:
        now = time.monotonic()
        if not self.on or now - self.last < 0.2:
            return
        self.last = now
        left = (self.total - done) * (now - self.began) / max(done, 1)
        sys.stderr.write(f"\r{bar(done, self.total, 30)} {size(done)} of {size(self.total)}, {span(left)} left\x1b[K")
        sys.stderr.flush()

    def end(self) -> None:
        if self.on:
            sys.stderr.write("\r\x1b[K")
