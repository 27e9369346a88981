"""Proof by query: does the archive list the object (C-FIND, Study Root, IMAGE level)?

One query for each series, over one association. An object whose study or
series is not known is asked for by its UID alone, which an archive need not
answer: such an object is then neither proved nor missing. Nor is one whose UID
was sent there with other content as well: it is listed, whichever of the two
the archive kept.

The archive is reached as it is sent to, by the same TLS and proxy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from appliance.config.settings import Destination
from appliance.confirm.proof import Evidence, Unavailable, Verdict
from appliance.dicom.part10 import is_uid
from appliance.errors import SandboxError
from appliance.net.line import Way
from appliance.net.tlserrors import TlsError
from appliance.policy import Party, classify, failure_of
from appliance.sandbox.find import Archive, Finder, Search
from appliance.spool.index import Located
from appliance.spool.rows import Sent

AT_ONCE = 64
"""UIDs in one query without study and series."""

Locator = Callable[[Sequence[int]], Mapping[int, Located]]
Rivalled = Callable[[int, str], bool]
Refused = Callable[[Destination, TlsError], None]

_Titles = tuple[str, str]


class QueryProof:
    """`locate` gives study and series of objects, as far as they are known; `rivalled` says whether the destination
    was also sent other content under the same UID. `state` is the folder that the certificate store is in; `refused` is
    told of each handshake that failed."""

    def __init__(self, destination: Destination, locate: Locator, finder: Finder | None = None, *, state: str = "",
                 rivalled: Rivalled = lambda number, destination: False,
                 refused: Refused = lambda destination, error: None) -> None:
        self._destination = destination
        self._refused = refused
        self._way = Way(destination, state)
        self._locate = locate
        self._rivalled = rivalled
        self._finder = finder or Finder()

    def close(self) -> None:
        self._finder.close()

    def look(self, sent: Sequence[Sent]) -> list[Evidence]:
        found: list[Evidence] = []
        located = self._locate([each.number for each in sent])
        groups: dict[_Titles, list[Sent]] = defaultdict(list)
        for each in sent:
            if self._rivalled(each.number, each.destination):
                found.append(Evidence(each.number, Verdict.UNKNOWN, "other content was sent there under the same UID: "
                                      "a query cannot tell which of them it has"))
            elif is_uid(each.sop_instance):
                groups[self._titles(each)].append(each)
            else:
                found.append(Evidence(each.number, Verdict.UNKNOWN, "its UID is none: no query can ask for it"))
        for titles, objects in groups.items():
            found += self._ask(titles, objects, located)
        return found

    def _broken(self, error: OSError, titles: _Titles) -> Unavailable:
        destination = self._destination
        if isinstance(error, TlsError):
            self._refused(destination, error)
        party = Party(destination.id, destination.address, destination.port, *titles)
        return Unavailable(classify(failure_of(error), party).text)

    def _titles(self, sent: Sent) -> _Titles:
        """Called and calling title, as the object was sent with."""
        called = self._destination.called or sent.source.called
        calling = self._destination.calling or sent.source.calling
        return called or "ANY-SCP", calling or "DCMGATE"

    def _ask(self, titles: _Titles, objects: Sequence[Sent], located: Mapping[int, Located]) -> list[Evidence]:
        destination = self._destination
        archive = Archive(destination.address, destination.port, *titles, destination.connect_seconds,
                          destination.progress_seconds)
        series: dict[tuple[str, str], list[Sent]] = defaultdict(list)
        others: list[Sent] = []
        for each in objects:
            place = located.get(each.number)
            if place is not None and is_uid(place.study_uid.encode()) and is_uid(place.series_uid.encode()):
                series[place.study_uid, place.series_uid].append(each)
            else:
                others.append(each)
        asked = [(Search(study, one), group) for (study, one), group in series.items()]
        asked += [(Search(uids=tuple(_text(each) for each in chunk)), chunk) for chunk in
                  (others[i:i + AT_ONCE] for i in range(0, len(others), AT_ONCE))]
        try:
            line = self._way.line()
        except OSError as error:
            raise self._broken(error, titles) from None
        try:
            answers = self._finder.images(archive, [search for search, _ in asked], line.descriptor, line.handed_over)
        except SandboxError as error:
            raise (Unavailable(error.message) if line.error is None else self._broken(line.error, titles)) from None
        finally:
            line.close()
        where = f"{archive.called} at {archive.address}:{archive.port}"
        return [evidence for (search, group), answer in zip(asked, answers, strict=True)
                for evidence in _evidence(group, answer, where, surely=bool(search.series))]


def _evidence(objects: Iterable[Sent], answer: frozenset[str] | str, where: str, *, surely: bool) -> list[Evidence]:
    if isinstance(answer, str):
        return [Evidence(each.number, Verdict.UNKNOWN, f"{where}: {answer}") for each in objects]
    missing = Verdict.MISSING if surely else Verdict.UNKNOWN
    return [Evidence(each.number, Verdict.PRESENT, f"C-FIND: listed by {where}") if _text(each) in answer
            else Evidence(each.number, missing, f"C-FIND: not listed by {where}") for each in objects]


def _text(sent: Sent) -> str:
    return sent.sop_instance.decode("ascii")
