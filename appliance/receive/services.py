"""Services: which abstract syntax is served by what (PS3.4), and what becomes of one request.

A `Service` begins a `Task` for each request; the association feeds it the data
set and sends the responses that `end` gives, one for C-STORE, several for a
query. The registry is asked in order, so a service that names its classes stands
before Storage, which takes whatever is not known to be another service.

Statuses are chosen on purpose: SpoolError, LedgerError and OSError become A700
(the sender may try again later), what the request itself lacks becomes 0117 or
C000. 0000 is only ever said after `SlotWriter.finish` has returned (I1).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from appliance.dicom import dimse, uids
from appliance.dicom.negotiation import Preference, is_storage, storage_preference, verification_preference
from appliance.dicom.part10 import MAX_RAW_UID
from appliance.errors import DcmgateError, FormatError, LedgerError, SpoolError, StateError
from appliance.model import Custody, Source
from appliance.telemetry.log import Log

log = Log("receive")

SCRATCH = memoryview(bytearray(1 << 16))
"""Where bytes go that nobody will read. Shared by all: what it holds does not matter."""


@dataclass(frozen=True, slots=True)
class Response:
    """One DIMSE response without a data set; `comment` is Error Comment (0000,0902), at most 64 characters are sent."""

    status: int
    comment: str = ""


SUCCESS = (Response(dimse.SUCCESS),)


@dataclass(slots=True)
class Call:
    """One request on an association, with what a service may know of its surroundings."""

    request: dimse.Command
    abstract: str
    syntax: str
    source: Source
    cancelled: bool = False
    """Set when a C-CANCEL for this request came in (PS3.7 9.3.2.3): a service with several responses looks at it."""


class Task(Protocol):
    """One request under way. `room`, `advance` and `write` take the data set as `spool.SlotWriter` does."""

    def room(self) -> memoryview:
        """Where the next bytes go; never empty. May block on the disk."""

    def advance(self, count: int, /) -> None:
        """That many were put there."""

    def write(self, data: memoryview, /) -> None:
        """Take a copy."""

    def end(self) -> Iterable[Response]:
        """The request is whole: the responses, in order. May block on the disk."""

    def abandon(self, reason: str, /) -> None:
        """The request will never be whole."""


class Service(Protocol):
    """Serves some abstract syntaxes."""

    def preference(self, abstract: str) -> Preference | None:
        """How to choose a transfer syntax for that abstract syntax; None where it is not served here."""

    def begin(self, call: Call) -> Task:
        """A request has come in; its data set, if any, follows."""


class Refusal:
    """Reads a data set and drops it, within bounds, so that the peer hears the status rather than a reset."""

    __slots__ = ("_left", "_responses")

    def __init__(self, status: int, comment: str, bound: int) -> None:
        self._responses = (Response(status, comment),)
        self._left = bound

    def room(self) -> memoryview:
        return SCRATCH

    def advance(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise StateError("the refused data set is too long to wait for its end")

    def write(self, data: memoryview) -> None:
        self.advance(len(data))

    def end(self) -> Iterable[Response]:
        return self._responses

    def abandon(self, reason: str) -> None:
        pass


class Verification:
    """C-ECHO (PS3.4 annex A). Answers in every state of the spool."""

    def __init__(self, drain: int) -> None:
        self._drain = drain

    def preference(self, abstract: str) -> Preference | None:
        return verification_preference if abstract == uids.VERIFICATION else None

    def begin(self, call: Call) -> Task:
        if call.request.field != dimse.C_ECHO_RQ:
            return unrecognised(call, self._drain)
        return Refusal(dimse.SUCCESS, "", self._drain)


class Writer(Protocol):
    """`spool.SlotWriter`, as Storage uses it."""

    def room(self) -> memoryview: ...
    def advance(self, count: int, /) -> None: ...
    def write(self, data: memoryview, /) -> None: ...
    def finish(self, sop_class: bytes, sop_instance: bytes, transfer_syntax: str, source: Source, /) -> Custody: ...
    def abandon(self, reason: str, /) -> None: ...


class Taker(Protocol):
    """`spool.Intake`, as Storage uses it."""

    def take(self) -> Writer: ...


class Storage:
    """C-STORE (PS3.4 annex B): every instance into a slot of the spool."""

    def __init__(self, intake: Taker, drain: int) -> None:
        self._intake = intake
        self._drain = drain

    def preference(self, abstract: str) -> Preference | None:
        return storage_preference if is_storage(abstract) else None

    def begin(self, call: Call) -> Task:
        request = call.request
        if request.field != dimse.C_STORE_RQ:
            return unrecognised(call, self._drain)
        fault = _unfit(request)
        if fault is not None:
            log.warning("an instance is refused", status=f"{fault.status:04X}", why=fault.comment,
                        uid=request.sop_instance[:64], calling=call.source.calling, address=call.source.address)
            return Refusal(fault.status, fault.comment, self._drain)
        try:
            writer = self._intake.take()
        except (SpoolError, LedgerError, OSError) as e:
            return out_of_resources(call, e, self._drain)
        return Storing(call, writer)


def _unfit(request: dimse.Command) -> Response | None:
    """What makes a C-STORE-RQ impossible to take into custody. A UID against the rules does not (design, Spool)."""
    if not request.has_data_set:
        return Response(dimse.CANNOT_UNDERSTAND, "no data set announced")
    if not request.sop_instance:
        return Response(dimse.INVALID_INSTANCE, "Affected SOP Instance UID is empty")
    if len(request.sop_instance) > MAX_RAW_UID or len(request.sop_class) > MAX_RAW_UID:
        return Response(dimse.INVALID_INSTANCE, "UID too long")
    return None


class Storing:
    """One instance on its way into its slot."""

    __slots__ = ("_call", "_writer", "abandon", "advance", "room", "write")

    def __init__(self, call: Call, writer: Writer) -> None:
        self._call = call
        self._writer = writer
        # The writer's own methods, so that a fragment costs one call and not two.
        self.room = writer.room
        self.advance = writer.advance
        self.write = writer.write
        self.abandon = writer.abandon

    def end(self) -> Iterable[Response]:
        call = self._call
        request = call.request
        try:
            # The class is that of the context (PS3.7 9.3.1.1): where a command names another one (DCMTK's dcmsend says "31"
            # for files whose UIDs have the VR UN), no destination would accept a context for it.
            sop_class = call.abstract.encode("latin-1")
            self._writer.finish(sop_class, request.sop_instance, call.syntax, call.source)
        except (SpoolError, LedgerError, OSError) as e:
            return out_of_resources(call, e, 0).end()
        except FormatError as e:
            log.error("no head can be written for an instance", error=e.message, uid=request.sop_instance)
            return (Response(dimse.PROCESSING_FAILURE, "no head can be written for this instance"),)
        return SUCCESS


def out_of_resources(call: Call, error: Exception, drain: int) -> Refusal:
    """A700: the spool has no room, or its disk or ledger failed (PS3.4 B.2.3). The sender is told nothing of our paths."""
    text = error.message if isinstance(error, DcmgateError) else str(error)
    log.error("out of resources", error=text, calling=call.source.calling, address=call.source.address)
    return Refusal(dimse.OUT_OF_RESOURCES, "out of resources", drain)


def unrecognised(call: Call, drain: int) -> Refusal:
    """0211: this service has no such operation (PS3.7 C.5)."""
    log.warning("unrecognised operation", field=f"{call.request.field:04X}", abstract=call.abstract,
                calling=call.source.calling, address=call.source.address)
    return Refusal(dimse.UNRECOGNISED_OPERATION, "unrecognised operation", drain)


class Registry:
    """The services of this box, first come first served."""

    def __init__(self, *services: Service) -> None:
        self._services = services

    def service(self, abstract: str) -> Service | None:
        """The service behind an abstract syntax, or None."""
        return next((service for service in self._services if service.preference(abstract) is not None), None)

    def preference(self, abstract: str) -> Preference | None:
        """For `negotiation.negotiate`."""
        for service in self._services:
            preference = service.preference(abstract)
            if preference is not None:
                return preference
        return None
