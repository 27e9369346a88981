"""Destinations that exist only in a simulation: what they answer, what they keep, and what they keep silent about.

A `Site` behaves in some way until told otherwise (`mood`), and towards the next
objects in some other way (`plan`). `SimAssociation` stands in for the forwarder's
association, `SimFinder` for the limited child that asks an archive what it has.
The bytes that arrive are kept as they came: the judge reads them, not what the
gateway thinks it sent.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from appliance.dicom import dimse, pdu, uids
from appliance.dicom.indications import AcceptedContext
from appliance.errors import SandboxError
from appliance.forward.association import AssociationLost, Limits
from appliance.model import Attributes
from appliance.policy import Aborted, Failure, FailureKind, Party, Rejected
from appliance.route import STUDY_UID
from appliance.sandbox.find import Archive, Search
from appliance.sandbox.parent import Place

MOODS = ("up", "refused", "silent", "busy", "stranger", "full", "takes nothing", "no contexts", "tls", "no name")
"""How a site is until told otherwise."""

STATUSES: tuple[int | None, ...] = (0xA700, 0xA900, 0xC000, 0x0110, 0x0111, 0x0122, 0x0124, 0x0211, 0x0213, 0x01FF, 0xFF00,
                                    0xFE00, None, 0x1234)
"""One of each class of refusal (PS3.4 B.2.3, PS3.7 annex C)."""

PLANS = ("accept", "warn", "lie", "reset before", "reset after", "abort", "hang", "hang stored",
         *(f"status {code}" for code in STATUSES))
"""How a site treats one object."""

FRAGMENT = 1500


class World(Protocol):
    """What a site needs of the world it is in."""

    def effect(self, what: str) -> None: ...

    def pass_time(self, seconds: float) -> None: ...

    def arrived(self, site: Site, party: Party, item: Stored) -> None:
        """A whole data set came in."""

    def told(self, site: Site, item: Stored, status: int | None) -> None:
        """A status is on its way to the gateway, and arrives."""

    def listed(self, site: Site, uid: str) -> None:
        """An archive says that it has that instance."""

    def missed(self, site: Site, asked: Callable[[Stored], bool]) -> None:
        """An archive was asked for these, and says of some that it does not have them."""

    def site(self, host: str) -> Site: ...


@dataclass(frozen=True, slots=True)
class Stored:
    """One instance as it arrived."""

    uid: str
    syntax: str
    data: bytes


@dataclass(slots=True)
class Site:
    """One archive. `keeps_first`: what it does with other content under a UID that it has."""

    name: str
    keeps_first: bool = False
    mood: str = "up"
    plan: deque[str] = field(default_factory=deque)
    poison: set[str] = field(default_factory=set)
    answers_queries: bool = True
    store: dict[str, Stored] = field(default_factory=dict)

    def keep(self, item: Stored) -> None:
        if not (self.keeps_first and item.uid in self.store):
            self.store[item.uid] = item

    def heal(self) -> None:
        self.mood, self.answers_queries = "up", True
        self.plan.clear()
        self.poison.clear()


class SimAssociation:
    """The forwarder's association, towards a site. Made for one world: see `association_in`."""

    fragment = FRAGMENT
    moves = 0
    """What the watch of a lane counts; in a simulation time passes in one step, and nobody watches."""

    def __init__(self, world: World, party: Party, limits: Limits, cancel: int = -1, *_: object) -> None:
        self.party = party
        self.contexts: dict[int, AcceptedContext] = {}
        self.is_open = False
        self._world = world
        self._limits = limits
        self._site = world.site(party.host)
        world.effect(f"connect {self._site.name}")
        mood = self._site.mood
        if mood == "refused":
            raise self._lost(Failure(FailureKind.REFUSED, "Connection refused"))
        if mood == "no name":
            raise self._lost(Failure(FailureKind.NAME, "no address"))
        if mood == "tls":
            raise self._lost(Failure(FailureKind.CERTIFICATE, "unknown ca"))
        if mood == "silent":
            world.pass_time(limits.connect)
            raise self._lost(Failure(FailureKind.TIMEOUT, "timed out"))

    def _lost(self, answer: Any) -> AssociationLost:
        self.is_open = False
        return AssociationLost(answer, self.party)

    def associate(self, contexts: Sequence[pdu.ProposedContext]) -> None:
        mood = self._site.mood
        if mood == "busy":
            raise self._lost(Rejected(2, 3, 2))
        if mood == "stranger":
            raise self._lost(Rejected(1, 1, 3))
        self.is_open = True
        if mood != "no contexts":
            self.contexts = {c.id: AcceptedContext(c.id, c.abstract, c.syntaxes[0]) for c in contexts}

    def is_usable(self) -> bool:
        return self.is_open and self._site.mood == "up"

    def context_for(self, abstract: str, syntax: str) -> AcceptedContext | None:
        return next((c for c in self.contexts.values() if (c.abstract, c.syntax) == (abstract, syntax)), None)

    def echo(self) -> int | None:
        self._world.effect(f"echo {self._site.name}")
        return 0 if any(c.abstract == uids.VERIFICATION for c in self.contexts.values()) else None

    def release(self) -> None:
        self.is_open = False

    abort = interrupt = release

    def store(self, context: AcceptedContext, sop_class: bytes, sop_instance: bytes,
              pieces: Iterable[tuple[bytes | memoryview, bool]], priority: int = 0) -> dimse.Command:
        world, site = self._world, self._site
        world.effect(f"store {site.name}")
        uid = sop_instance.decode("latin-1")
        if site.mood == "full":
            how = "status 42752"                      # A700
        elif site.mood == "takes nothing" or uid in site.poison:
            how = "status 49152"                      # C000
        else:
            how = site.plan.popleft() if site.plan else "accept"
        data, whole = bytearray(), False
        try:
            for piece, last in pieces:
                data += piece
                if how == "reset before":
                    raise self._lost(Failure(FailureKind.CLOSED, "Connection reset by peer"))
                if how == "abort":
                    raise self._lost(Aborted(0, 0, during_object=True))
                if not last:
                    world.effect(f"fragment {site.name}")
                whole = last
        finally:
            if not whole:
                self.abort()
        item = Stored(uid, context.syntax, bytes(data))
        world.arrived(site, self.party, item)
        if how in ("accept", "warn", "reset after", "hang stored"):
            site.keep(item)
        world.effect(f"status of {site.name}")
        if how == "reset after":
            raise self._lost(Failure(FailureKind.CLOSED, "Connection reset by peer"))
        if how.startswith("hang"):
            world.pass_time(self._limits.progress)
            raise self._lost(Failure(FailureKind.TIMEOUT, "no answer"))
        status: int | None = 0xB007 if how == "warn" else 0
        if how.startswith("status "):
            text = how.removeprefix("status ")
            status = None if text == "None" else int(text)
        world.told(site, item, status)
        return dimse.Command(dimse.C_STORE_RSP, responded_id=1, status=status)


class SimFinder:
    """The limited child that asks an archive which instances of a series it has."""

    def __init__(self, world: World) -> None:
        self._world = world

    def images(self, archive: Archive, searches: Sequence[Search], *_: object) -> list[frozenset[str] | str]:
        site = self._world.site(archive.address)
        self._world.effect(f"query {site.name}")
        if site.mood in ("refused", "silent", "busy", "stranger", "tls", "no name"):
            raise SandboxError("cannot be asked")
        if not site.answers_queries:
            return ["A700: refused" for _ in searches]
        found = []
        for search in searches:
            answer = frozenset(uid for uid, item in site.store.items() if (
                uid in search.uids if search.uids else series_of(item.data) == (search.study, search.series)))
            for uid in sorted(answer):
                self._world.listed(site, uid)
            self._world.missed(site, lambda item, search=search: item.uid in search.uids or (  # type: ignore[misc]
                series_of(item.data) == (search.study, search.series)))
            found.append(answer)
        return list(found)

    def close(self) -> None:
        """There is no child."""


class SimWay:
    """The connection that the gateway makes for that child: it is there at once, and `SimFinder` says what comes of it."""

    descriptor = -1
    error: OSError | None = None

    def __init__(self, destination: object, state: object) -> None:
        """Takes what the real one does."""

    def line(self) -> SimWay:
        return self

    def handed_over(self) -> None:
        """There is nothing to let go of."""

    def close(self) -> None:
        """Nothing is open."""


class SimChild:
    """The limited child that reads tags: `STUDY=…;` at the beginning of a data set; it can make nothing of any other."""

    def __init__(self, memory: int, seconds: float) -> None:
        """Takes what the real one does."""

    def once(self, places: Sequence[Place], wanted: Iterable[int]) -> list[Attributes]:
        return self.tags(places, wanted)

    def tags(self, places: Sequence[Place], wanted: Iterable[int]) -> list[Attributes]:
        found = []
        for descriptor, offset, _, _ in places:
            study, _ = series_of(os.pread(descriptor, 64, offset))
            found.append(Attributes({STUDY_UID: study}) if study else Attributes(readable=False))
        return found

    def close(self) -> None:
        """There is no process."""


def series_of(data: bytes) -> tuple[str, str]:
    """Study and series that a data set of the simulation says; empty where it cannot be read."""
    if not data.startswith(b"STUDY="):
        return "", ""
    study = data[6:64].split(b";", 1)[0].decode("ascii", "replace")
    return study, study + ".1"
