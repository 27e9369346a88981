"""`dcmgate list`, `show` and `export`: reading what is held.

Each reading is an event with the person's name, durable before anything is
shown; where it cannot be recorded, nothing is shown.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cli import exits, selection
from appliance.cli.context import Site
from appliance.cli.text import cut, plural, safe, size, table, when
from appliance.errors import ControlError, ObjectDamaged, UsageError
from appliance.model import number_text

if TYPE_CHECKING:
    from appliance.cli.services import Opened
    from appliance.spool.index import StudyInfo
    from appliance.spool.rows import DeliveryRow, Event, ObjectRow, StudyRow

LIMIT = 100


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    one = commands.add_parser("list", help="find studies or objects; recorded with your name", parents=[common])
    selection.add_objects(one)
    selection.add_search(one)
    one.add_argument("--objects", action="store_true", help="list objects rather than studies")
    one.add_argument("--limit", type=_limit, default=LIMIT, metavar="N", help=f"at most so many (default: {LIMIT})")
    one.set_defaults(run=list_)
    two = commands.add_parser("show", help="everything about objects; recorded with your name", parents=[common])
    two.add_argument("numbers", nargs="+", metavar="NUMBER", help="numbers of objects")
    two.set_defaults(run=show)
    three = commands.add_parser("export", help="objects out as DICOM files; recorded with your name", parents=[common])
    selection.add_objects(three)
    selection.add_search(three)
    three.add_argument("--to", required=True, metavar="FOLDER", help="where the files go, named by their numbers")
    three.add_argument("--limit", type=_limit, default=100_000, metavar="N", help="at most so many (default: 100000)")
    three.set_defaults(run=export)


def _limit(text: str) -> int:
    count = int(text)
    if not 1 <= count <= 1_000_000:
        raise ValueError(text)
    return count


def _record(site: Site, verb: str, arguments: argparse.Namespace) -> None:
    """The event, durable before anything is shown; where it cannot be written, nothing is shown."""
    asked = {name: value for name, value in vars(arguments).items()
             if value and name not in ("run", "command", "config", "json", "version")}
    site.asking().call("seen", what=f"{verb} {json.dumps(asked, default=str)}"[:1024])


# --- list ----------------------------------------------------------------------------------------------------------------

def list_(site: Site, arguments: argparse.Namespace) -> int:
    opened = site.opened()
    if arguments.objects or selection.is_about_objects(arguments):
        rows = list(selection.objects(opened, arguments, arguments.limit))
        _record(site, "list", arguments)
        _list_objects(site, opened, rows, arguments.limit)
        return exits.OK
    infos = selection.studies(opened, arguments, arguments.limit)
    progress = {info.study: opened.ledger.studies(1, info.study) for info in infos}
    _record(site, "list", arguments)
    _list_studies(site, infos, progress, arguments.limit)
    index = opened.index()
    if index is None or not index.complete:
        site.note("dcmgate: the index is being made again from the objects: some may be missing here")
    return exits.OK


def _list_studies(site: Site, infos: list[StudyInfo], progress: dict[str, list[StudyRow]], limit: int) -> None:
    site.emit({"studies": [{
        "study": info.study, "uid": info.uid, "patient_id": info.patient_id, "patient_name": info.patient_name,
        "accession": info.accession, "date": info.date, "time": info.time, "description": info.description,
        "modalities": list(info.modalities), "stations": list(info.stations), "objects": info.objects,
        "destinations": {row.destination: {"received": row.received, "waiting": row.waiting, "sent": row.sent,
                                           "confirmed": row.confirmed} for row in progress[info.study]},
    } for info in infos]})
    rows = [[info.study, info.date, cut(safe(info.patient_id), 16), cut(safe(info.patient_name), 24),
             cut(safe(info.accession), 16), cut(safe("/".join(info.modalities)), 8), str(info.objects),
             " ".join(f"{row.destination} {row.received - row.waiting}/{row.received}" for row in progress[info.study]),
             cut(safe(info.description), 32)] for info in infos]
    site.say(table(("STUDY", "DATE", "PATIENT ID", "NAME", "ACCESSION", "MOD", "OBJECTS", "DELIVERED", "DESCRIPTION"), rows,
                   right=(6,), columns=site.columns))
    _count(site, len(infos), limit, "study", "studies")


def _list_objects(site: Site, opened: Opened, rows: list[ObjectRow], limit: int) -> None:
    site.emit({"objects": [_object(opened, row) for row in rows]})
    lines = [[number_text(row.number), when(row.custody.wall), cut(safe(row.custody.source.calling), 16),
              row.study, size(row.custody.length), row.state.value,
              " ".join(_said(d) for d in opened.ledger.deliveries(row.number))] for row in rows]
    site.say(table(("NUMBER", "RECEIVED", "FROM", "STUDY", "SIZE", "STATE", "DELIVERIES"), lines, right=(4,),
                   columns=site.columns))
    _count(site, len(rows), limit, "object", "objects")


def _count(site: Site, count: int, limit: int, one: str, many: str) -> None:
    more = f": there may be more, --limit {limit * 10} shows them" if count >= limit else ""
    site.say(site.dim(f"{plural(count, one, many)}{more}"))


def _said(delivery: DeliveryRow) -> str:
    return f"{delivery.destination}:{delivery.state.value}" + ("!" if delivery.warning else "")


def _object(opened: Opened, row: ObjectRow) -> dict[str, Any]:
    custody, source = row.custody, row.custody.source
    return {
        "number": number_text(row.number), "state": row.state.value, "study": row.study, "sop_class": custody.class_text,
        "sop_instance": custody.uid_text, "transfer_syntax": custody.transfer_syntax, "length": custody.length,
        "digest": custody.digest.hex(), "boot": custody.boot, "since_boot": custody.since_boot, "wall": custody.wall,
        "calling": source.calling, "called": source.called, "address": source.address, "port": source.port,
        "listener": source.listener, "peer": source.peer, "priority": row.priority.name.lower(), "routed": row.routed,
        "generation": row.generation, "rules": list(row.rules), "flags": list(row.flags), "file": not row.file,
        "deliveries": [{
            "destination": d.destination, "state": d.state.value, "required": d.required, "attempts": d.attempts,
            "reason": d.reason, "status": d.status, "text": d.text, "warning": d.warning, "reference": d.reference,
            "twin": None if d.twin is None else number_text(d.twin),
        } for d in opened.ledger.deliveries(row.number)],
    }


# --- show ----------------------------------------------------------------------------------------------------------------

def show(site: Site, arguments: argparse.Namespace) -> int:
    opened = site.opened()
    rows = selection.numbered(opened, arguments.numbers)
    _record(site, "show", arguments)
    told = []
    for nth, row in enumerate(rows):
        index = opened.index()
        located = index.study(row.study) if row.study and index is not None else None
        history = opened.ledger.history(row.number)
        told.append({**_object(opened, row), "patient_id": located.patient_id if located else "",
                     "patient_name": located.patient_name if located else "", "accession": located.accession if located else "",
                     "study_uid": located.uid if located else "", "history": [_event(event) for event in history]})
        if nth:
            site.say()
        _show(site, opened, row, located, history)
    site.emit({"objects": told})
    return exits.OK


def _event(event: Event) -> dict[str, Any]:
    return {"seq": event.seq, "boot": event.boot, "at": event.at, "wall": event.wall, "kind": event.kind,
            "destination": event.destination, "body": json.loads(event.body)}


def _show(site: Site, opened: Opened, row: ObjectRow, info: StudyInfo | None, history: list[Event]) -> None:
    custody, source = row.custody, row.custody.source
    kept = ("kept", "being deleted", "deleted")[row.file]
    site.say(site.bold(f"{number_text(row.number)}  {row.state.value}") + (f"  [{' '.join(row.flags)}]" if row.flags else ""))
    facts = [
        ("file", f"{opened.spool.object_path(row.number)} ({kept}, {size(custody.length)} of data set)"),
        ("digest", f"blake3 {custody.digest.hex()}"),
        ("received", f"{when(custody.wall)}, boot {custody.boot}"),
        ("from", safe(f'"{source.calling}" at {source.address}, {"peer " + source.peer if source.peer else "unknown peer"}')),
        ("to", safe(f'"{source.called}" on port {source.port}, listener {source.listener}')),
        ("SOP class", custody.class_text), ("SOP instance", custody.uid_text), ("syntax", custody.transfer_syntax),
    ]
    if info is not None:
        facts += [("patient", safe(f"{info.patient_id}  {info.patient_name}")), ("accession", safe(info.accession)),
                  ("study", safe(f"{row.study}  {info.uid}  {info.date}  {info.description}"))]
    facts.append(("routed", f"by {', '.join(row.rules) or 'default'}, generation {row.generation}, "
                            f"priority {row.priority.name.lower()}" if row.routed else "not yet"))
    for name, value in facts:
        site.say(f"  {name:<13}{value}")
    for delivery in opened.ledger.deliveries(row.number):
        status = f"  status {delivery.status:04X}" if delivery.status is not None else ""
        twin = f"  by {number_text(delivery.twin)}" if delivery.twin is not None else ""
        why = f"  {safe(delivery.reason or delivery.text)}" if delivery.reason or delivery.text else ""
        site.say(f"  → {delivery.destination}: {delivery.state.value}, {delivery.attempts} attempts{status}{twin}{why}")
    site.say(site.dim("  history"))
    for event in history:
        where = f" {event.destination}" if event.destination else ""
        site.say(f"    {when(event.wall)}  {event.kind}{where}  {site.dim(_body(event))}")


def _body(event: Event) -> str:
    """An event's own words; the custody record stands above already."""
    if event.kind == "accepted":
        return ""
    body = json.loads(event.body)
    if event.kind == "deferred":
        body.pop("reason", None)         # as in the event before it
    return safe(" ".join(f"{key}={value}" for key, value in body.items() if value not in ("", None, [], False)))


# --- export --------------------------------------------------------------------------------------------------------------

def export(site: Site, arguments: argparse.Namespace) -> int:
    if not selection.is_about_objects(arguments) and not selection.is_search(arguments):
        raise UsageError("it is not said what to export", mend="give numbers, --study or another criterion")
    opened = site.opened()
    rows = (row for row in selection.objects(opened, arguments, arguments.limit) if row.file == 0)
    first = next(rows, None)
    if first is None:
        raise ControlError("no object that is kept fits", mend="`dcmgate list --objects` with the same criteria says more")
    folder = Path(arguments.to)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _record(site, "export", arguments)
    done, failed = 0, []
    for row in chain([first], rows):
        target = folder / f"{number_text(row.number)}.dcm"
        problem = _export_one(opened, row, target)
        if problem:
            failed.append({"number": number_text(row.number), "error": problem})
            site.say(site.bad(f"{number_text(row.number)}: {problem}"))
        else:
            done += 1
    site.emit({"folder": str(folder), "exported": done, "failed": failed})
    site.say(f"{done} of {done + len(failed)} exported to {folder}")
    return exits.FINDING if failed else exits.OK


def _export_one(opened: Opened, row: ObjectRow, target: Path) -> str:
    """The whole file under its name, or nothing of it: the name appears when the digest was right. Empty: done."""
    from appliance.dicom.part10 import HEAD
    from appliance.spool.reader import ObjectReader
    try:
        with ObjectReader(opened.spool, row.number, row.custody) as reader, _whole_file(target) as out:
            source = opened.spool.open_object(row.number)
            try:
                os.write(out, os.pread(source, HEAD, 0))
            finally:
                os.close(source)
            for chunk in reader.chunks(1 << 20):
                while chunk:
                    chunk = chunk[os.write(out, chunk):]
    except ObjectDamaged as e:
        return f"damaged, not exported: {e.message} — `dcmgate verify` puts it in quarantine"
    except FileExistsError:
        return f"{target} is there already, and was left alone"
    return ""


@contextmanager
def _whole_file(target: Path) -> Iterator[int]:
    """A descriptor whose file gets its name at the end of the block, unless the block fails. FileExistsError."""
    if target.exists():
        raise FileExistsError(str(target))
    try:
        fd = os.open(target.parent, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError:                      # a file system without O_TMPFILE (USB sticks): a name that says it is not whole
        beside = target.with_suffix(".part")
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        whole = False
        try:
            yield fd
            os.fsync(fd)
            os.rename(beside, target)
            whole = True
        finally:
            if not whole:
                os.ftruncate(fd, 0)
            os.close(fd)
        return
    try:
        yield fd
        os.fsync(fd)
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:                             # with a folder's descriptor it is linkat(2), which follows the link of /proc
            os.link(f"/proc/self/fd/{fd}", target.name, dst_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(folder)
    finally:
        os.close(fd)
