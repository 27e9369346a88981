"""What the ledger takes and answers: frozen values, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from appliance.model import Alarm, Custody, DeliveryState, ObjectState, Priority, Source


@dataclass(frozen=True, slots=True)
class Event:
    """One appended row. `number` is None and `destination` empty where it concerns none; `body` is compact JSON."""

    seq: int
    boot: int
    at: int
    wall: int
    kind: str
    number: int | None
    destination: str
    body: str
    hash: bytes = b""


@dataclass(frozen=True, slots=True)
class Routing:
    """What the router decided for one object. `destinations` are ids, in order; `hold` lets it wait for a person's release."""

    number: int
    generation: int
    rules: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()
    priority: Priority = Priority.ROUTINE
    hold: bool = False
    study: str = ""
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Queued:
    """One delivery that waits, as a lane loads it.

    `seq` is its place in the destination's queue. `until` is the boot time (ns) at
    which it is due, 0: now (also after a reboot, I7). `faults` counts the object
    faults so far (five park it), `attempts` every attempt, `crashes` how often a
    forwarder died while it was claimed in this boot.
    """

    number: int
    destination: str
    seq: int
    priority: Priority
    study: str
    length: int
    sop_class: bytes
    sop_instance: bytes
    syntax: str
    digest: bytes
    attempts: int
    faults: int
    crashes: int
    until: int
    source: Source


@dataclass(frozen=True, slots=True)
class Deferral:
    """Decision on a failed attempt: again, but not before the boot time `until` (ns; 0: at once)."""

    until: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Parking:
    """Decision on a failed attempt: not again until a person says so."""

    reason: str = ""


Decision = Deferral | Parking


@dataclass(frozen=True, slots=True)
class Sent:
    """One delivery that was sent and has to be confirmed. `sent_on` is powered-on time (ns)."""

    number: int
    destination: str
    sent_on: int
    reference: str
    status: int | None
    sop_class: bytes
    sop_instance: bytes
    syntax: str
    length: int
    digest: bytes
    study: str
    source: Source


@dataclass(frozen=True, slots=True)
class Confirmation:
    """`destination` proved that it has `number`; `proof` says how (one line)."""

    number: int
    destination: str
    proof: str


@dataclass(frozen=True, slots=True)
class ObjectRow:
    """One accepted object.

    `file` is 0 while the file is kept, 1 between the durable row `retiring` and
    the unlink, 2 when it is gone. `complete_on` is the powered-on time (ns) since
    when every required destination has it, None before.
    """

    custody: Custody
    seq: int
    state: ObjectState
    file: int
    complete_on: int | None
    routed: bool
    generation: int
    rules: tuple[str, ...]
    priority: Priority
    study: str
    flags: tuple[str, ...]

    @property
    def number(self) -> int:
        return self.custody.number


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """One object towards one destination. `twin`: the object that covers this one, or that it waits behind."""

    number: int
    destination: str
    state: DeliveryState
    required: bool
    seq: int
    attempts: int
    faults: int
    crashes: int
    until: int
    reason: str
    status: int | None
    text: str
    warning: bool
    reference: str
    sent_on: int | None
    confirmed_on: int | None
    twin: int | None


@dataclass(frozen=True, slots=True)
class Retirable:
    """A file that may be deleted: confirmed everywhere (`complete_on`, powered-on ns), or discarded by a person (None)."""

    number: int
    length: int
    complete_on: int | None


@dataclass(frozen=True, slots=True)
class QueueCount:
    """Deliveries of one destination in one state."""

    count: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Counts:
    """The spool in figures, O(1) to ask for.

    `open` numbers are granted and neither accepted nor void; `unrouted` objects
    have no destination yet. `held_*` counts files that are kept, `flags` those of
    them with a flag (`unreadable`, `conflict`), `largest` is the length of the
    largest data set ever seen. Lengths are bytes of data set.
    """

    granted: int
    open: int
    void: int
    accepted: int
    unrouted: int
    states: dict[ObjectState, int]
    held_objects: int
    held_bytes: int
    largest: int
    queues: dict[tuple[str, DeliveryState], QueueCount] = field(default_factory=dict)
    flags: dict[str, int] = field(default_factory=dict)

    def queue(self, destination: str, *states: DeliveryState) -> QueueCount:
        """Deliveries of that destination in those states together."""
        found = [self.queues.get((destination, s), QueueCount()) for s in states]
        return QueueCount(sum(q.count for q in found), sum(q.bytes for q in found))


@dataclass(frozen=True, slots=True)
class StudyRow:
    """One study towards one destination. `since_wall` is the arrival of the oldest object that it lacks, or None."""

    study: str
    destination: str
    received: int
    waiting: int
    sent: int
    confirmed: int
    bytes: int
    first_wall: int
    last_wall: int
    since_wall: int | None


@dataclass(frozen=True, slots=True)
class Backlog:
    """What a destination (empty: routing) has not got yet. `oldest_on` is the powered-on time (ns) of the oldest one."""

    destination: str
    count: int
    bytes: int
    oldest_on: int
    oldest_wall: int


@dataclass(frozen=True, slots=True)
class Arrival:
    """The habit of one source: powered-on time (ns) of the last image, and its gaps of ten minutes or more (`policy.learn`)."""

    source: str
    peer: str
    count: int
    last_on: int
    last_wall: int
    habit: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Knock:
    """Callers that were refused or held: `count` of them since the last report."""

    title: str
    called: str
    address: str
    verdict: str
    text: str
    count: int = 1
    first_wall: int = 0
    last_wall: int = 0


@dataclass(frozen=True, slots=True)
class AlarmRow:
    """An alarm in force, and the wall time (ns) since when."""

    alarm: Alarm
    wall: int


@dataclass(frozen=True, slots=True)
class Admitted:
    """A caller that a person let in."""

    title: str
    address: str
    by: str
    wall: int


@dataclass(frozen=True, slots=True)
class ChainReport:
    """Result of `verify_chain`: rows read, the head, and each break as (sequence number, what is wrong)."""

    rows: int
    seq: int
    hash: bytes
    breaks: tuple[tuple[int, str], ...]

    @property
    def whole(self) -> bool:
        return not self.breaks


Body = dict[str, Any]
