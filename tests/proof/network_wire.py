"""Real TCP over lines that lose packets, are slow, are pulled out, or have a known rate: a part of `network`.

Runs in namespaces of its own (`tests.support.namespace`), over lines of its own
(`tests.support.wire`): gateway and scanner on this side, archives on the other.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from tests.proof.figures import Figures
from tests.proof.network_part import Part
from tests.proof.oracle import Journal, judge, read_store
from tests.support import objects, peers
from tests.support.faults import start_hurried
from tests.support.gateway import Gateway, to_peer
from tests.support.objects import Instance
from tests.support.peers import Destination
from tests.support.scu import Scanner, contexts_of
from tests.support.waiting import free_port, wait_until
from tests.support.wire import Line, Wire, theirs

BAD_LINES = {
    "1 % loss": Line(loss=0.01, delay=0.02),
    "5 % loss, 0.2 s round trip": Line(loss=0.05, delay=0.1),
    "20 % loss, 0.2 s": Line(loss=0.20, delay=0.1),
    "2 s round trip": Line(delay=1.0),
    "bits turned over, packets twice and out of order": Line(flips=0.02, twice=0.05, delay=0.02, jitter=0.03),
    "10 % loss, 0.6 s": Line(loss=0.10, delay=0.3),
    "20 % loss, 2 s": Line(loss=0.20, delay=1.0),
}
QUICK_LINES = 5
DAY = 86400.0


def _part(argument: dict[str, Any]) -> Part:
    return Part(Figures("network"), int(argument["seed"]), lambda line: print(line, flush=True))


def _site(folder: Path, wire: Wire, **settings: Any) -> Gateway:
    """A gateway with an archive at the end of each line, on the settings it is shipped with but for `settings`."""
    return Gateway(folder / "site", [
        to_peer(archive, id=f"line{number}", address=theirs(number), status_days=14.0, **settings)
        for number, archive in enumerate(wire.archives)])


def _send(site: Gateway, instances: list[Instance], journal: Journal) -> None:
    """The scanner's side is as good as ever: every object is acknowledged."""
    with Scanner(site.port, contexts_of(instances)) as scanner:
        for instance in instances:
            journal.offer(instance)
            status = scanner.store(instance)
            assert status == 0, f"status {status:04X}"
            journal.acknowledge(instance)


def _finish(site: Gateway, wire: Wire, journal: Journal, part: Part, what: str, seconds: float) -> None:
    """Everything arrives, and the three agree."""
    try:
        site.wait_settled(seconds, accepted=len(journal))
    except AssertionError as error:
        part.fail(f"{what}: {str(error)[:1500]}")
    assert site.stop() == 0
    part.judge(judge(journal, {f"line{n}": read_store(archive.folder) for n, archive in enumerate(wire.archives)},
                     spool=site.spool, balance=site.json("balance", "--deep", status=None)), what)


def lossy(argument: dict[str, Any]) -> dict[str, Any]:
    """Every bad line at once, each with an archive of its own."""
    part, folder = _part(argument), Path(argument["folder"])
    names = list(BAD_LINES)[:argument["lines"]]
    journal = Journal()
    with ExitStack() as stack:
        wire = stack.enter_context(Wire(folder, [BAD_LINES[name] for name in names], seed=part.seed))
        site = stack.enter_context(_site(folder, wire))
        site.start()
        study = [objects.ct(number, "lossy", side=64) for number in range(argument["objects"])]
        began = time.monotonic()
        _send(site, study, journal)
        keys = {instance.key for instance in study}
        pending = dict(enumerate(names))
        while pending and time.monotonic() - began < argument["seconds"]:
            for number, name in list(pending.items()):
                if keys <= set(wire.archives[number].arrived()):
                    part.set(f"seconds at {name}", round(time.monotonic() - began, 1))
                    del pending[number]
            threading.Event().wait(0.2)
        _finish(site, wire, journal, part, "bad lines", 20)
        part.count("packets", sum(line.packets for line in wire.lines))
        part.count("packets_lost", sum(line.lost for line in wire.lines))
    return part.figures.as_json()


def unplugged(argument: dict[str, Any]) -> dict[str, Any]:
    """The plug is pulled in mid-object and the archive replaced, so that its end is never heard; then a line that flaps."""
    part, folder = _part(argument), Path(argument["folder"])
    journal = Journal()
    with ExitStack() as stack:
        wire = stack.enter_context(Wire(folder, [Line(rate=4e6, delay=0.005), Line(rate=4e6, delay=0.005)], seed=part.seed))
        site = stack.enter_context(_site(folder, wire, connect_seconds=1.0, progress_seconds=1.5))
        site.start()
        dead, flapping = wire.lines
        for round_ in range(argument["rounds"]):
            before = dead.carried[0]
            sender = threading.Thread(target=_send, args=(site, [objects.dx(round_, "unplugged", size=6_000_000)], journal))
            sender.start()
            wait_until(lambda: dead.carried[0] > before + 1_000_000, 90, "the object is under way")   # noqa: B023
            dead.up = False
            sender.join()
            wire.replace(0)
            part.count("pieces_left_by_killed_archives", _swept(wire.archives[0], journal))
            for _ in range(3):
                flapping.up = False
                threading.Event().wait(1.0)
                flapping.up = True
                threading.Event().wait(1.0)
            dead.up = True
            part.count("plugs_pulled", 4)
        # A line whose last probe fell into a pulled plug waits for its back-off: up to 64 s by then.
        _finish(site, wire, journal, part, "pulled plugs", 180)
    return part.figures.as_json()


def _swept(archive: Destination, journal: Journal) -> int:
    """An archive killed in mid-object leaves a piece, of which nobody was told that it was stored: put away as it would."""
    known = {(entry.instance, entry.length) for entry in journal.offered}
    pieces = [found.path for found in archive.files()
              if (found.sop_instance, found.path.stat().st_size - found.offset) not in known]
    for path in pieces:
        path.unlink()
    return len(pieces)


def drain(argument: dict[str, Any]) -> dict[str, Any]:
    """A backlog over a line of known rate, after it was down: over so many associations, 0 for the settings as shipped."""
    part, folder = _part(argument), Path(argument["folder"])
    rate = float(argument["rate"])
    for associations in argument["associations"]:
        journal = Journal()
        with ExitStack() as stack:
            here = folder / f"drain{associations}"
            wire = stack.enter_context(Wire(here, [Line(rate=rate, delay=0.01)], seed=part.seed))
            line = wire.lines[0]
            line.up = False
            site = stack.enter_context(_site(here, wire, **({"associations": associations} if associations else {})))
            site.start()
            study = [objects.ct(number, "drain") for number in range(argument["objects"])]
            _send(site, study, journal)
            share = _drained(wire, study, line)
            name = f"{associations}_associations" if associations else "as_shipped"
            part.set(f"drain_share_of_line_{name}", round(share, 3))
            _finish(site, wire, journal, part, f"drain, {name}", 60)
    return part.figures.as_json()


def _drained(wire: Wire, study: list[Instance], line: Line) -> float:
    """Put the plug in again; the data sets' bytes a second while the backlog goes, as a share of the line's rate."""
    archive = wire.archives[0]
    keys = {instance.key for instance in study}
    line.first_at = 0.0
    line.carried = [0, 0]
    line.up = True
    size = sum(instance.length for instance in study)
    wait_until(lambda: line.carried[0] >= size, 60 + 3 * size / line.rate, "the backlog is through", every=0.1)
    archive.wait_for(keys, 30)
    return size / line.rate / (line.last_at - line.first_at)


def _events(site: Gateway) -> int:
    with closing(sqlite3.connect(f"file:{site.spool}/ledger.sqlite?mode=ro", uri=True)) as db:
        return int(db.execute("SELECT count(*) FROM events").fetchone()[0])


def seven_days(argument: dict[str, Any]) -> dict[str, Any]:
    """The plug is out for a week on a clock that hurries; scanners go on; then the backlog goes at the line's rate.

    A second archive is gone for that week in the other way: its host refuses.
    """
    part, folder = _part(argument), Path(argument["folder"])
    rate, factor = float(argument["rate"]), float(argument["factor"])
    journal = Journal()
    with ExitStack() as stack:
        wire = stack.enter_context(Wire(folder, [Line(rate=rate, delay=0.01)], seed=part.seed))
        line = wire.lines[0]
        site = _site(folder, wire, associations=2, connect_seconds=0.3)
        refusing = Destination("storescp", "STORESCP", free_port(), folder / "refusing")
        site.destinations.append(to_peer(refusing, id="refusing"))
        site.write_config()
        stack.enter_context(site)
        start_hurried(site, factor)
        study = [objects.ct(number, "week") for number in range(argument["objects"])]
        _send(site, study[:2], journal)
        wire.archives[0].wait_for({instance.key for instance in study[:2]}, 30)
        line.up = False
        events = _events(site)
        began = time.monotonic()
        week = 7 * DAY / factor
        for number in range(2, len(study)):
            _send(site, [study[number]], journal)
            left = began + week * (number - 1) / (len(study) - 2) - time.monotonic()
            threading.Event().wait(max(left, 0))
        part.set("outage_days", round((time.monotonic() - began) * factor / DAY, 2))
        balance = site.balance()
        if balance["waiting"] != len(study):
            part.fail(f"after the outage: {balance}")
        # A try every 300 s at most, and two rows or three for each: it must not fill the disk by itself.
        part.set("ledger_events_a_day_of_outage", round((_events(site) - events) / 7))
        stack.enter_context(peers.storescp(folder / "refusing", profile=False, port=refusing.port))
        share = _drained(wire, study[2:], line)
        if argument["measured"]:    # not beside other work: on a clock that hurries, each object is a transaction of its own
            part.set("drain_share_of_line_after_seven_days", round(share, 3))
        refusing.wait_for({instance.key for instance in study}, 60)
        _finish(site, wire, journal, part, "an outage of seven days", 60)
    return part.figures.as_json()
