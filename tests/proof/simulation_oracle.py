"""The judge of the simulation: what the scanners were told, what the disk and the destinations really hold, and I1 to I9.

It believes nothing that the gateway keeps. It writes down what each scanner sent
and was answered, looks at the platter below the gateway's feet, reads what the
destinations were given, and keeps its own account of who is owed what
(`Duty`). The ledger is read only to be contradicted.

Every property is a named check (`CHECKS` says what each is); `found` holds what
was violated, `done` how often each was asked.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from appliance.clock import SECOND
from tests.proof.simulation_sites import Site, Stored

CHECKS = {
    "I1 durable before success": "at the moment of 0x0000 the platter has the object's name, its head and each byte of it",
    "I1 held is durable": "what the ledger counts as held is on the platter, whole, whatever the page cache shows",
    "I1 answered in time": "a status within 25 s of the last byte, unless the sync itself takes longer",
    "I1 failures are our own": "whatever breaks, a scanner gets a failure status; no exception that nobody foresaw",
    "I2 a number is used once": "no number's file is made twice, and no number stands for two acknowledged objects",
    "I2 every acknowledged object has a row or is owed one": "it is in the ledger, or its number is open; never neither",
    "I2 bounded debt": "no success while more acknowledged objects than the bound are without a row",
    "I2 balance": "the product's own balance counts nothing unaccounted",
    "I2 states follow facts": "what the ledger says of an object is what happened: file, success status, proof, person",
    "I3 unmodified": "no byte of an acknowledged object is written again, and its file holds what was sent",
    "I4 deletes only what is proved": "a file goes only when every required destination proved it, or a person discarded it",
    "I4 the row before the unlink": "the ledger's durable row is there before the file goes",
    "I4 only the keeper deletes": "no other process deletes an object",
    "I4 kept for keep_min": "no proved object goes before keep_min of powered-on time has passed since its proof",
    "I4 intact objects stay": "nothing that was acknowledged and is intact is put into quarantine",
    "I5 what leaves is what came": "every whole data set at a destination is, byte for byte, one that a scanner sent so",
    "I6 out of intake": "no success from anybody once any process met an I/O error while writing, until a restart",
    "I6 no sync is repeated": "no process syncs a file again whose sync failed, unless it then looks at what the disk has",
    "I7 time of day": "outside its hours a destination is sent nothing but emergencies, while the clock is trusted",
    "I7 order of arrival": "of two contents under one UID the destination gets the later one last",
    "I8 not read before custody": "a receiver does not read the data sets it takes in",
    "I9 at least once": "when all faults are over, every acknowledged object reaches every destination that it is owed to",
    "I9 proved in the end": "when all faults are over, every required destination proves it, and the file goes after keep_max",
    "I9 once in effect": "no object is sent more often than its arrivals, a person, a crash or a missing proof account for",
}

LOOKS = 5
"""An archive may take its time: so often an object is looked for before it counts as missing."""

Content = tuple[str, str, str]
"""UID, transfer syntax, SHA-256 of the data set."""


Routing = list[tuple[tuple[str, ...], bool]]
"""Each destination with those that may stand in for it, and whether it is required."""


@dataclass(slots=True)
class Duty:
    """One destination that an object is owed to, and who may stand in for it: each with the powered-on time (ns) since which
    what it says counts."""

    sites: dict[str, int]
    required: bool = True

    @property
    def main(self) -> str:
        return next(iter(self.sites))

    def __str__(self) -> str:
        return "/".join(self.sites)


@dataclass(slots=True)
class Instance:
    """One data set that a scanner sent whole. `order` is its place among all of them."""

    number: int
    uid: str
    syntax: str
    data: bytes
    urgent: bool
    order: int
    head: bytes = b""
    acknowledged: bool = False
    discarded: bool = False
    damaged: bool = False
    duties: list[Duty] = field(default_factory=list)
    routing: Routing = field(default_factory=list)
    ever: set[str] = field(default_factory=set)      # destinations that it was ever owed to

    def __post_init__(self) -> None:
        self.content: Content = (self.uid, self.syntax, hashlib.sha256(self.data).hexdigest())

    content: Content = ("", "", "")

    @property
    def owed(self) -> bool:
        return self.acknowledged and not self.discarded and not self.damaged


@dataclass(frozen=True, slots=True)
class Terms:
    """What a destination was agreed on: `proof` readback or status, after `status_ns`; `resend` always; `required`."""

    proof: str
    status_ns: int
    resend: bool
    required: bool


class Oracle:
    """See the module."""

    def __init__(self, terms: dict[str, Terms], keep_min: int) -> None:
        self.terms = terms
        self.keep_min = keep_min
        self.found: list[tuple[str, str]] = []
        self.done: Counter[str] = Counter()
        self.instances: dict[int, Instance] = {}         # whatever was sent whole, by number
        self.known: set[Content] = set()                 # of all that was ever sent whole
        self.ledger_was_lost = False
        self._offers = 0
        self.made: set[int] = set()
        self.gone: set[int] = set()
        self.successes: dict[tuple[str, Content], list[int]] = {}
        self.listings: dict[tuple[str, str, str], list[int]] = {}   # destination, UID, SHA-256: whatever the syntax
        self.arrivals: dict[tuple[str, str], list[Content]] = {}
        self.excuses: Counter[tuple[str, Content]] = Counter()
        self.misses: Counter[tuple[str, Content]] = Counter()
        self.disturbed: set[str] = set()                 # UIDs whose order somebody meddled with
        self.unsettled: list[tuple[str, Content]] = []   # told, and perhaps not durable at the forwarder
        self.acknowledged = 0

    def check(self, name: str, holds: object, detail: str = "") -> bool:
        """One look at one property."""
        self.done[name] += 1
        if not holds:
            self.found.append((name, detail))
        return bool(holds)

    def unforeseen(self, text: str) -> None:
        """A stage met an exception that nobody foresaw."""
        self.check("I1 failures are our own", False, text)

    # What scanners did

    def offered(self, number: int, uid: str, syntax: str, data: bytes, *, urgent: bool) -> Instance:
        """A scanner has sent it whole, and has no answer yet."""
        before = self.instances.get(number)          # a slot that was given back untouched may be offered again
        self.check("I2 a number is used once", before is None or not before.acknowledged,
                   f"{number:x} stands for {before and before.uid} and {uid}")
        found = self.instances[number] = Instance(number, uid, syntax, data, urgent, self._offers)
        self._offers += 1
        self.known.add(found.content)
        return found

    def success(self, one: Instance, now: int, sites: Routing, durable: bytes | None) -> None:
        """0x0000 for it. `sites` it is owed to now, and whether they are required; `durable`: what the platter has."""
        whole = durable is not None and len(durable) == 4096 + len(one.data) and durable[4096:] == one.data \
            and any(durable[:4096])
        self.check("I1 durable before success", whole, f"{one.number:x}: the platter has "
                   f"{'no such name' if durable is None else f'{len(durable)} bytes'}, {len(one.data)} were sent")
        one.acknowledged = True
        one.routing = sites
        one.ever.update(*(alternatives for alternatives, _ in sites))
        one.head = (durable or b"")[:4096]
        self.acknowledged += 1
        for alternatives, required in sites:
            since = now
            if not all(self.terms[site].resend for site in alternatives):
                since = -1
            else:
                # What was stored just now, and is not durable at the forwarder yet, is as good as a twin that waits.
                since = min([now, *(self.successes[key][-1] for key in self.unsettled
                                    if key[0] in alternatives and key[1] == one.content)])
            one.duties.append(Duty(dict.fromkeys(alternatives, since), required))

    # What destinations saw

    def arrived(self, site: Site, item: Stored) -> None:
        content = (item.uid, item.syntax, hashlib.sha256(item.data).hexdigest())
        self.check("I5 what leaves is what came", content in self.known,
                   f"{site.name} got {len(item.data)} bytes as {item.uid}, which nobody sent")

    def told(self, site: Site, item: Stored, status: int | None, now: int) -> None:
        if status is None or not (status == 0 or status & 0xF000 == 0xB000):
            return
        content = (item.uid, item.syntax, hashlib.sha256(item.data).hexdigest())
        key = (site.name, content)
        self.successes.setdefault(key, []).append(now)
        self.arrivals.setdefault((site.name, item.uid), []).append(content)
        self.unsettled.append(key)
        sent = sum(one.content == content for one in self.instances.values())
        most = sent + self.excuses[key] + self.misses[key] // LOOKS
        self.check("I9 once in effect", len(self.successes[key]) <= most,
                   f"{site.name} got {item.uid} {len(self.successes[key])} times, {most} are accounted for")

    def listed(self, site: Site, uid: str, now: int) -> None:
        """The archive says that it has it; it counts for the content that it truly has."""
        item = site.store[uid]
        self.listings.setdefault((site.name, uid, hashlib.sha256(item.data).hexdigest()), []).append(now)

    def missed(self, site: Site, asked: Callable[[Stored], bool]) -> None:
        """An archive was asked and did not list what it once took: missing in five looks, it is sent again."""
        for key in self.successes:
            name, (uid, syntax, _) = key
            if name == site.name and uid not in site.store:
                alike = [one for one in self.instances.values() if one.content == key[1]]
                if alike and asked(Stored(uid, syntax, alike[0].data)):
                    self.misses[key] += len(alike)

    def forgiven(self, contents: Iterable[Content], times: int = 1) -> None:
        """These may be sent once more, anywhere: a person wants it, or a crash made it unknown whether they were."""
        for content in contents:
            for site in self.terms:
                self.excuses[site, content] += times

    def ledger_lost(self, held: set[int], without: set[str]) -> None:
        """It is made again from the objects that are held: they are routed as when they came, and sent once more, save to
        destinations that are not in the configuration any more. Of all others nothing is known any more."""
        self.ledger_was_lost = True
        self.forgiven([one.content for one in self.instances.values()])
        for number in [number for number in self.instances if number not in held]:
            del self.instances[number]
        self.made &= held
        self.gone &= held
        for one in self.instances.values():
            self.disturbed.add(one.uid)
            one.duties = [Duty(dict.fromkeys(sites, -1), required) for sites, required in one.routing
                          if not without.issuperset(sites)]

    # What is true of a duty

    def delivered(self, one: Instance, duty: Duty) -> bool:
        return any(at >= since for site, since in duty.sites.items() for at in self.successes.get((site, one.content), ()))

    def proved_at(self, one: Instance, duty: Duty, now: int) -> int | None:
        """Since when (powered-on ns) some destination of the duty has given the proof that it declares."""
        times = []
        for site, since in duty.sites.items():
            terms = self.terms[site]
            if terms.proof == "readback":
                times += [at for at in self.listings.get((site, one.uid, one.content[2]), ()) if at >= since]
                if self.ledger_was_lost:             # and with it the memory of what else went there under this UID
                    times += [at for (name, uid, _), seen in self.listings.items() if (name, uid) == (site, one.uid)
                              for at in seen if at >= since]
            else:
                times += [at + terms.status_ns for at in self.successes.get((site, one.content), ())
                          if at >= since and at + terms.status_ns <= now]
        return min(times, default=None)

    def can_be_proved(self, one: Instance, duty: Duty) -> bool:
        """A query cannot tell which of two contents under one UID an archive has; and where the series of an object is not
        known, that it lacks it."""
        asked = [site for site in duty.sites if self.terms[site].proof == "readback"]
        rivals = any(other.uid == one.uid and other.content[2] != one.content[2] and other.ever.intersection(asked)
                     for other in self.instances.values())
        return not rivals and (not asked or one.data.startswith(b"STUDY="))

    def counted(self, one: Instance) -> list[Duty]:
        """The duties on which its file depends: the required ones; where there is none, all."""
        return [duty for duty in one.duties if duty.required] or one.duties

    # What happens to files

    def may_go(self, number: int, process: str, now: int, row: bool) -> None:
        """A file of `objects` is about to be deleted. `row`: whether the durable row `retiring` is there."""
        one = self.instances.get(number)
        self.gone.add(number)
        self.check("I4 only the keeper deletes", process == "keeper", f"{number:x} by {process}")
        if one is None or not one.acknowledged:
            return
        self.check("I4 the row before the unlink", row, f"{number:x}")
        if one.discarded:
            return
        unproved = [duty for duty in self.counted(one) if self.proved_at(one, duty, now) is None]
        names = " and ".join(map(str, unproved))
        self.check("I4 deletes only what is proved", one.duties and not unproved,
                   f"{number:x} ({one.uid}) goes, and {names} did not prove it")
        if not unproved and one.duties:
            since = max(self.proved_at(one, duty, now) or 0 for duty in self.counted(one))
            self.check("I4 kept for keep_min", now - since >= self.keep_min,
                       f"{number:x} goes {(now - since) / SECOND:.0f} s after its proof")

    # The end

    def at_the_end(self, now: int) -> None:
        """All faults are over, and everything had its time."""
        for one in self.instances.values():
            if not one.owed:
                continue
            for duty in one.duties:
                if one.number in self.gone and duty not in self.counted(one):
                    continue                         # optional: it may miss what all the others have proved
                there = self.check("I9 at least once", self.delivered(one, duty),
                                   f"{one.number:x} ({one.uid}) never got to {duty}")
                if there and duty in self.counted(one) and self.can_be_proved(one, duty):
                    self.check("I9 proved in the end", self.proved_at(one, duty, now) is not None,
                               f"{one.number:x} ({one.uid}) was never proved by {duty}")
        for (site, uid), contents in self.arrivals.items():
            if uid in self.disturbed:
                continue
            owed = [one for one in self.instances.values() if one.uid == uid and site in one.ever]
            alone = all(set(duty.sites) == {site} for one in owed for duty in one.duties if site in duty.sites)
            if owed and alone and self.terms[site].resend and all(one.owed for one in owed):
                last = max(owed, key=lambda one: one.order)
                self.check("I7 order of arrival", contents[-1][2] == last.content[2],
                           f"{site} got {uid} last with content {contents[-1][2][:8]}, {last.content[2][:8]} came in last")
