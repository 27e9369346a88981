"""The nouns: frozen values that every layer shares. No behaviour beyond their own spelling.

Times are integers of nanoseconds. Numbers are positive integers below 2**63,
written as 16 hex digits wherever a person or a file name sees them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum


def number_text(number: int) -> str:
    """A number as people and file names see it: 16 hex digits."""
    return f"{number:016x}"


class Priority(IntEnum):
    """Order of transmission only, the smaller first; never a statement on the patient's state."""

    TRAUMA = 0
    STAT = 1
    ROUTINE = 2
    BACKFILL = 3


class Proof(StrEnum):
    """What counts as "the destination has it"."""

    COMMITMENT = "commitment"
    READBACK = "readback"
    STATUS = "status"


class Fault(StrEnum):
    """Whose fault a failed delivery is: it decides what happens next (design, Delivery)."""

    DESTINATION = "destination"    # back off, for ever
    CONFIGURATION = "configuration"  # back off, for ever, and alarm at once
    OBJECT = "object"              # five tries while others succeed, then parked


class DeliveryState(StrEnum):
    """One object towards one destination."""

    WAITING = "waiting"
    SENDING = "sending"
    DEFERRED = "deferred"
    HELD = "held"
    PARKED = "parked"
    SENT = "sent"
    CONFIRMED = "confirmed"
    COVERED = "covered"            # a duplicate whose twin is still on its way: nothing to send
    DROPPED = "dropped"            # nothing will be sent: the object was discarded, quarantined or retired


class ObjectState(StrEnum):
    """One object, at its least advanced required destination (I2)."""

    WAITING = "waiting"
    SENT = "sent"
    CONFIRMED = "confirmed"
    RETIRED = "retired"
    DUPLICATE = "duplicate"
    QUARANTINED = "quarantined"
    DISCARDED = "discarded"


class SpaceState(StrEnum):
    """How much room the spool has (design, Space)."""

    GREEN = "green"
    AMBER = "amber"
    RED = "red"
    BLACK = "black"


@dataclass(frozen=True, slots=True)
class Source:
    """Where an instance came from, as the association showed it.

    `calling` and `called` are decoded and stripped; the raw fields are the 16
    bytes as received. `peer` is the id of the `[[peer]]` entry that admitted it,
    empty for an unknown one. `certificate` is "sha256:" and the fingerprint of its certificate in hex, empty without one.
    """

    listener: str = ""
    calling: str = ""
    called: str = ""
    raw_calling: bytes = b""
    raw_called: bytes = b""
    address: str = ""
    port: int = 0
    peer: str = ""
    certificate: str = ""
    implementation: str = ""


@dataclass(frozen=True, slots=True)
class Custody:
    """What the head of a spooled object says of it. `digest` is BLAKE3 (32 bytes) of the `length` bytes of data set.

    `sop_class` and `sop_instance` are the bytes of the command set as received,
    without trailing NUL or space padding; they need not be valid UIDs.
    """

    number: int
    boot: int
    since_boot: int
    wall: int
    sop_class: bytes
    sop_instance: bytes
    transfer_syntax: str
    length: int
    digest: bytes
    source: Source = field(default_factory=Source)

    @property
    def uid_text(self) -> str:
        """The SOP Instance UID as text; bytes outside printable ASCII are escaped, so that any UID has one spelling."""
        return escape(self.sop_instance)

    @property
    def class_text(self) -> str:
        return escape(self.sop_class)


def escape(raw: bytes | str) -> str:
    r"""Peer bytes made safe for logs, tables and keys: printable ASCII stays, everything else becomes \xNN."""
    if isinstance(raw, str):
        raw = raw.encode("utf-8", "surrogateescape")
    return "".join(chr(b) if 32 <= b < 127 and b != 92 else f"\\x{b:02x}" for b in raw)


@dataclass(frozen=True, slots=True)
class Attributes:
    """What a data set says of itself, as read by the limited child. Keys are tags (group << 16 | element).

    `values` are text as the child read it (multiple values joined by a
    backslash), at most 1024 characters each. `readable` is False where the child
    died, timed out or could not parse: then every condition on a tag is *unknown*.
    """

    values: dict[int, str] = field(default_factory=dict)
    readable: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one attempt at one object came to.

    `status` is the DIMSE or HTTP status where the destination gave one.
    `fault` is None where the destination has it (with `warning` for Bxxx).
    """

    number: int
    fault: Fault | None
    status: int | None = None
    text: str = ""
    warning: bool = False
    reference: str = ""            # where the destination put it (folder), for the read-back


class Severity(StrEnum):
    NOTICE = "notice"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class Alarm:
    """A finding that a person should know. `key` names it for good (`destination-down:pacs`); `mend` says what to do."""

    key: str
    severity: Severity
    text: str
    mend: str = ""
