"""What an association's upper layer tells its user: one small value for each indication and confirmation (PS3.8 chapter 7)."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.dicom.dimse import Command
from appliance.dicom.pdu import AssociateAccept, AssociateReject, AssociateRequest


@dataclass(slots=True)
class Requested:
    """A-ASSOCIATE indication: answer with `accept` or `reject`."""

    request: AssociateRequest


@dataclass(slots=True)
class Accepted:
    """A-ASSOCIATE confirmation; `UpperLayer.contexts` says what was accepted."""

    accept: AssociateAccept


@dataclass(slots=True)
class Rejected:
    """A-ASSOCIATE confirmation, negative."""

    reject: AssociateReject


@dataclass(slots=True)
class CommandReceived:
    """A whole command set; where `command.has_data_set`, fragments follow."""

    context_id: int
    command: Command


@dataclass(slots=True)
class Fragment:
    """Some bytes of the current data set.

    `view` is None where they were put into the caller's buffer already, else a
    view that is valid until the next `buffers()`. `last`: the data set is whole.
    """

    context_id: int
    view: memoryview | None
    length: int
    last: bool


@dataclass(slots=True)
class ReleaseRequested:
    """A-RELEASE indication: answer with `release_reply`. It may come with a message unfinished: see `UpperLayer.idle`."""


@dataclass(slots=True)
class Released:
    """A-RELEASE confirmation."""


@dataclass(slots=True)
class Aborted:
    """A-ABORT or A-P-ABORT indication; `by_peer` False: the connection ended without one."""

    source: int
    reason: int
    by_peer: bool


Event = Requested | Accepted | Rejected | CommandReceived | Fragment | ReleaseRequested | Released | Aborted


@dataclass(frozen=True, slots=True)
class AcceptedContext:
    """A presentation context in force on an association."""

    id: int
    abstract: str
    syntax: str
