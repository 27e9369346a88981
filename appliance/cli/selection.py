"""Which objects a command is about: by number, study, patient, accession, SOP Instance UID, state or destination.

What a person can search by comes from the index; what became of an object from
the ledger. Criteria are joined by "and".
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from appliance.errors import ControlError, UsageError
from appliance.model import DeliveryState, ObjectState, escape

if TYPE_CHECKING:
    from appliance.cli.services import Opened
    from appliance.spool.index import StudyInfo
    from appliance.spool.rows import ObjectRow

PAGE = 1000
MOST_STUDIES = 1000
_OBJECT_STATES = tuple(str(s) for s in ObjectState)
_DELIVERY_STATES = tuple(str(s) for s in DeliveryState)
STATES = (*_OBJECT_STATES, str(DeliveryState.HELD), str(DeliveryState.PARKED), str(DeliveryState.DEFERRED))
_SEARCH = ("patient", "accession", "study", "date", "modality", "station", "description")


def add_search(parser: argparse.ArgumentParser) -> None:
    """Criteria on what images say of themselves; `*` and `?` are wildcards."""
    group = parser.add_argument_group("search (* and ? are wildcards)")
    group.add_argument("--patient", metavar="TEXT", help="patient ID, or any part of the patient's name")
    group.add_argument("--accession", metavar="TEXT", help="accession number")
    group.add_argument("--study", metavar="STUDY", help="Study Instance UID, or the short name that `status` shows")
    group.add_argument("--date", metavar="DATE", help="study date YYYYMMDD, or a range FROM-TO")
    group.add_argument("--modality", metavar="TEXT", help="modality of a series")
    group.add_argument("--station", metavar="TEXT", help="station name")
    group.add_argument("--description", metavar="TEXT", help="any part of a study or series description")


def add_objects(parser: argparse.ArgumentParser) -> None:
    """Criteria on single objects."""
    parser.add_argument("numbers", nargs="*", metavar="NUMBER", help="numbers of objects, as `dcmgate list` shows them")
    group = parser.add_argument_group("objects")
    group.add_argument("--uid", metavar="UID", help="SOP Instance UID")
    group.add_argument("--state", choices=STATES, metavar="STATE", help="state: " + ", ".join(STATES))
    group.add_argument("--destination", metavar="ID", help="objects that are delivered to this destination")


def is_search(arguments: argparse.Namespace) -> bool:
    return any(getattr(arguments, name, None) for name in _SEARCH)


def is_about_objects(arguments: argparse.Namespace) -> bool:
    return bool(arguments.numbers or arguments.uid or arguments.state or arguments.destination)


def studies(opened: Opened, arguments: argparse.Namespace, limit: int) -> list[StudyInfo]:
    """Studies that fit the search, the latest first."""
    from appliance.spool.index import Query, study_key
    index = opened.index()
    if index is None:
        return []
    query = {"accession": arguments.accession or "", "date": arguments.date or "", "modality": arguments.modality or "",
             "station": arguments.station or "", "description": arguments.description or ""}
    keys = ("",) if not arguments.study else (arguments.study, study_key(arguments.study))
    found: dict[str, StudyInfo] = {}
    by_key = {info.study for key in keys if key and (info := index.study(key)) is not None}
    study_uid = "" if by_key or not arguments.study else arguments.study
    text = arguments.patient or ""
    for query_patient in ({"patient_id": text}, {"patient_name": text}) if text else ({},):
        for info in index.search(Query(**query, **query_patient, study_uid=study_uid), MOST_STUDIES if by_key else limit):
            if not by_key or info.study in by_key:
                found.setdefault(info.study, info)
    return list(found.values())[:limit]


def objects(opened: Opened, arguments: argparse.Namespace, limit: int = 1 << 62) -> Iterator[ObjectRow]:
    """Objects that fit every criterion, at most `limit`, read as they are asked for. ControlError for a number that is none."""
    return islice((row for row in _candidates(opened, arguments) if _fits(opened, row, arguments)), limit)


def _candidates(opened: Opened, arguments: argparse.Namespace) -> Iterable[ObjectRow]:
    """The smallest set that can be had at once and holds everything wanted."""
    ledger = opened.ledger
    if arguments.numbers:
        return numbered(opened, arguments.numbers)
    if arguments.uid:
        return ledger.objects_of_uid(arguments.uid.encode("utf-8", "surrogateescape"))
    if arguments.study and (rows := _of_study(opened, arguments.study)):
        return rows
    if is_search(arguments):
        return (row for info in studies(opened, arguments, MOST_STUDIES) for row in ledger.objects_of_study(info.study))
    if arguments.state == DeliveryState.HELD or arguments.state == DeliveryState.PARKED:
        stuck = ledger.stuck(DeliveryState(arguments.state), arguments.destination or None, 100 * PAGE)
        return ledger.objects(list(dict.fromkeys(row.number for row in stuck)))
    if arguments.state == ObjectState.QUARANTINED:
        return ledger.quarantined(100 * PAGE)
    if arguments.state == ObjectState.RETIRED:
        raise UsageError("retired objects are not listed by themselves", mend="add --study, --uid or a number")
    return _present(opened)


def _of_study(opened: Opened, study: str) -> list[ObjectRow]:
    """By the ledger's short name, or by the UID: also of studies whose files are gone."""
    from appliance.spool.index import study_key
    return opened.ledger.objects_of_study(study) or opened.ledger.objects_of_study(study_key(study))


def _present(opened: Opened) -> Iterator[ObjectRow]:
    after = 0
    while page := opened.ledger.present(after, PAGE):
        yield from page
        after = page[-1].number


def numbered(opened: Opened, texts: Iterable[str]) -> list[ObjectRow]:
    """The objects of these numbers. ControlError where a text is no number, or there is no such object."""
    from appliance.manage.verbs import parse_number
    rows = []
    for text in dict.fromkeys(texts):
        number = parse_number(text)
        row = opened.ledger.object(number)
        if row is None:
            raise ControlError(f"there is no object {number:016x}", mend="`dcmgate list` shows them")
        rows.append(row)
    return rows


def _fits(opened: Opened, row: ObjectRow, arguments: argparse.Namespace) -> bool:
    uid, state, destination = arguments.uid, arguments.state, arguments.destination
    if uid and row.custody.uid_text != escape(uid):
        return False
    if arguments.numbers and arguments.study:
        from appliance.spool.index import study_key
        if row.study not in (arguments.study, study_key(arguments.study)):
            return False
    if not (state or destination):
        return True
    if state in _OBJECT_STATES and not destination:
        return bool(row.state.value == state)
    deliveries = [d for d in opened.ledger.deliveries(row.number) if not destination or d.destination == destination]
    if state in _DELIVERY_STATES:
        return any(d.state.value == state for d in deliveries)
    return bool(deliveries) and (state is None or row.state.value == state)
