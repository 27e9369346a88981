"""Delivery by C-STORE: the transport of `[[destination]] type = "dimse"`.

Data sets go out byte for byte as they were received, unless the destination
refused their uncompressed syntax and takes the other one: then the limited child
re-encodes them on the way, and nothing of that is kept. The last fragment of an
object leaves only after its digest was found right (I5).

On failure: one object's own fault is its outcome, and the others go on; whatever
is the destination's doing ends the batch (see `transport`).
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, groupby

from appliance.config.settings import Destination
from appliance.config.settings import Limits as BoxLimits
from appliance.dicom import dimse, pdu, uids
from appliance.dicom.part10 import HEAD
from appliance.errors import DeliveryError, ObjectDamaged, SandboxError
from appliance.forward.association import GATHER, Association, AssociationLost, Limits
from appliance.forward.transport import Emit
from appliance.model import Fault, Priority
from appliance.net.certstore import Store
from appliance.net.proxy import Proxy
from appliance.net.tls import Client
from appliance.policy import Aborted, Answer, Failure, FailureKind, Finding, NoContext, Party, Status, classify
from appliance.sandbox.parent import Child
from appliance.spool.layout import Spool
from appliance.spool.reader import ObjectReader, expect
from appliance.spool.rows import Queued

MOST_CONTEXTS = 128
"""Presentation contexts in one association: the odd numbers of one byte."""

OWN_TITLE = "DCMGATE"
"""Stands in for a scanner's title that is blank: a blank title is not allowed in a request (PS3.8 9.3.2)."""

_PRIORITIES = {Priority.TRAUMA: dimse.HIGH, Priority.STAT: dimse.HIGH, Priority.ROUTINE: dimse.MEDIUM,
               Priority.BACKFILL: dimse.LOW}
_OTHER = {uids.IMPLICIT_LE: uids.EXPLICIT_LE, uids.EXPLICIT_LE: uids.IMPLICIT_LE}

Pair = tuple[str, str]
"""An abstract syntax and a transfer syntax."""

Refused = Callable[[Destination, str, str], None]
"""Destination, which check failed, and a sentence."""

Pieces = Iterable[tuple[bytes | memoryview, bool]]


class DimseTransport:
    """See `transport.Transport`. `box` bounds the limited child; `state` is the folder that the certificate store is in.

    `refused` is told of each handshake that failed.
    """

    def __init__(self, destination: Destination, spool: Spool, box: BoxLimits, state: str = "", *,
                 refused: Refused = lambda destination, check, text: None) -> None:
        self._destination = destination
        self._refused = refused
        self._spool = spool
        self._box = box
        self._limits = Limits(destination.connect_seconds, destination.progress_seconds, destination.max_pdu)
        self._tls = Client(Store(state), destination, destination.address) if destination.tls != "off" else None
        self._proxy = Proxy(destination.proxy, state) if destination.proxy else None
        self._association: Association | None = None
        self._proposed: frozenset[Pair] = frozenset()
        self._party: Party | None = None
        self._child: Child | None = None
        self._reading = False            # the disk is waited for
        self._steps = 0                  # progress besides the bytes of the association that there is now
        self._rested = False             # whether the association lay idle since its last object
        self._stored = False             # whether this destination has ever taken anything from us
        self._aborted = threading.Event()
        self._cancel = os.eventfd(0, os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._cancel)

    # --- the protocol of a transport ------------------------------------------------------------------------------------

    @property
    def moves(self) -> int | None:
        """See `transport.Transport.moves`."""
        association = self._association
        return None if self._reading else self._steps + (association.moves if association is not None else 0)

    def send(self, batch: Sequence[Queued], emit: Emit) -> None:
        """See `transport.Transport.send`. Of neighbours of one priority, those with the same titles go together."""
        self._rested = True
        waiting: deque[tuple[Party, Queued]] = deque()
        for _, neighbours in groupby(batch, key=lambda queued: queued.priority):
            by_party: dict[Party, list[tuple[Party, Queued]]] = {}
            for queued in neighbours:
                party = self._party_of(queued)
                by_party.setdefault(party, []).append((party, queued))
            waiting.extend(chain.from_iterable(by_party.values()))
        while waiting:
            party, queued = waiting.popleft()
            if waiting:
                expect(self._spool, waiting[0][1].number)
            finding, broken = self._deliver(party, queued, (other for theirs, other in waiting if theirs == party))
            self._rested = False
            self._steps += 1
            if finding.fault is None:
                self._stored = True
            stop = emit(finding.outcome(queued.number))
            if broken is not None:
                raise broken
            if stop:
                return
            if finding.fault is Fault.CONFIGURATION or (finding.fault is Fault.DESTINATION and finding.status is None):
                raise DeliveryError(finding.text, fault=finding.fault, status=finding.status)

    def probe(self) -> Finding:
        """One C-ECHO; nothing is said of a destination that takes no Verification, or whose titles are not known yet."""
        party = self._party_with(self._destination.called, self._destination.calling) or self._party
        if party is None:
            return Finding(None)
        try:
            self._open(party, [(uids.VERIFICATION, uids.IMPLICIT_LE)])
            assert self._association is not None
            status = self._association.echo()
        except AssociationLost as e:
            self._drop()
            return classify(e.answer, party)
        self.close()
        return Finding(None) if status is None else classify(Status(status), party)

    def close(self) -> None:
        """See `transport.Transport.close`."""
        if self._association is not None:
            self._association.release()
        self._drop()
        if self._child is not None:
            self._child.close()
            self._child = None

    def abort(self) -> None:
        """See `transport.Transport.abort`."""
        self._aborted.set()
        os.eventfd_write(self._cancel, 1)
        association = self._association
        if association is not None:
            association.interrupt()

    # --- associations ---------------------------------------------------------------------------------------------------

    def _party_of(self, queued: Queued) -> Party:
        wanted = self._destination
        return Party(wanted.id, wanted.address, wanted.port, wanted.called or queued.source.called or OWN_TITLE,
                     wanted.calling or queued.source.calling or OWN_TITLE)

    def _party_with(self, called: str, calling: str) -> Party | None:
        wanted = self._destination
        return Party(wanted.id, wanted.address, wanted.port, called, calling) if called and calling else None

    def _ready(self, party: Party, first: Queued, others: Iterable[Queued]) -> bool:
        """Have an association that proposed what `first` needs; a new one for the others too. True if it was there before."""
        needed = set(_pairs(first))
        association = self._association
        if association is not None and self._party == party and needed <= self._proposed and association.is_usable():
            return True
        if association is not None:
            association.release()
            self._drop()
        pairs: dict[Pair, None] = {}
        for queued in chain((first,), others):
            more = [pair for pair in _pairs(queued) if pair not in pairs]
            if len(pairs) + len(more) <= MOST_CONTEXTS:
                pairs.update(dict.fromkeys(more))
        self._open(party, list(pairs))
        return False

    def _open(self, party: Party, pairs: Sequence[Pair]) -> None:
        if self._association is not None:
            self._association.release()
            self._drop()
        if self._aborted.is_set():
            raise AssociationLost(Failure(FailureKind.CLOSED, "given up"), party)
        self._party = party
        association = self._association = Association(party, self._limits, self._cancel, self._tls, self._proxy)
        if self._aborted.is_set():  # between the two: `abort` has not seen it
            association.interrupt()
        try:
            association.associate([pdu.ProposedContext(2 * n + 1, abstract, (syntax,))
                                   for n, (abstract, syntax) in enumerate(pairs)])
        except AssociationLost as lost:
            if isinstance(lost.answer, Failure) and lost.answer.check:
                self._refused(self._destination, lost.answer.check, lost.answer.text)
            raise
        self._proposed = frozenset(pairs)

    def _drop(self) -> None:
        """Forget the association, and close it hard if it is still open."""
        association, self._association = self._association, None
        self._steps += 1 + (association.moves if association is not None else 0)
        self._proposed = frozenset()
        if association is not None:
            association.abort()

    # --- one object -----------------------------------------------------------------------------------------------------

    def _deliver(self, party: Party, queued: Queued, others: Iterable[Queued]) -> tuple[Finding, DeliveryError | None]:
        """What became of this object; and the error where its association broke under it, but for an abort by the peer.

        Raises DeliveryError where no association could be had: then this object was not touched.
        """
        if not _pairs(queued):
            return classify(NoContext(queued.sop_class.decode("latin-1"), queued.syntax), party), None
        reused = self._ready(party, queued, others)
        try:
            answer = self._store(queued)
        except AssociationLost as lost:
            self._drop()
            stale = isinstance(lost.answer, Aborted) or (
                isinstance(lost.answer, Failure) and lost.answer.kind is FailureKind.CLOSED)
            if reused and self._rested and stale and not self._aborted.is_set():
                return self._deliver(party, queued, others)  # the peer ended it while it lay idle: once more on a new one
            broken = None if isinstance(lost.answer, Aborted) and not self._aborted.is_set() else lost
            return classify(lost.answer, party), broken
        except ObjectDamaged:
            if self._association is not None and not self._association.is_open:
                self._drop()
            raise
        return classify(answer, party), None

    def _store(self, queued: Queued) -> Answer:
        association = self._association
        assert association is not None
        abstract = queued.sop_class.decode("latin-1")
        context = association.context_for(abstract, queued.syntax)
        target = _OTHER.get(queued.syntax, "")
        if context is None:
            context = association.context_for(abstract, target)
        if context is None:
            return NoContext(abstract, queued.syntax, everything=not association.contexts and not self._stored)
        self._reading = True
        with self._no_more_reading(), ObjectReader(self._spool, queued.number) as reader:
            custody = reader.custody
            if (custody.digest, custody.length) != (queued.digest, queued.length):
                raise ObjectDamaged(queued.number, "its head is not the one that was acknowledged")
            try:
                pieces = (_verbatim(reader, association.fragment) if context.syntax == queued.syntax
                          else self._recoded(reader, queued, context.syntax, association.fragment))
                response = association.store(context, queued.sop_class, queued.sop_instance, self._read(pieces),
                                             _PRIORITIES[queued.priority])
            except SandboxError as e:
                return Failure(FailureKind.LOCAL_OBJECT, e.message)
        return Status(response.status, response.comment, everything=not self._stored)

    @contextmanager
    def _no_more_reading(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._reading = False

    def _read(self, pieces: Pieces) -> Pieces:
        """The same pieces; while each is fetched, it is the disk that is waited for and not the destination."""
        fetch = iter(pieces)
        while True:
            self._reading = True
            piece = next(fetch, None)
            self._reading = False
            if piece is None:
                return
            yield piece

    def _recoded(self, reader: ObjectReader, queued: Queued, target: str, fragment: int) -> Pieces:
        """The data set in the other uncompressed syntax. SandboxError here rather than later, where it shows at once."""
        for _ in reader.chunks(1 << 20):
            pass  # the child reads by itself: the digest is checked before (I5)
        if self._child is None:
            self._child = Child(self._box.child_memory, self._box.child_seconds)
        descriptor = self._spool.open_object(queued.number)
        pieces = _even(_closing(self._child.recode(descriptor, HEAD, queued.length, queued.syntax, target), descriptor),
                       _gathered(fragment))
        first = next(pieces, (b"", True))
        return chain((first,), pieces)


def _pairs(queued: Queued) -> list[Pair]:
    """What has to be proposed for this object; nothing where its class is no UID, which no destination could accept."""
    abstract = queued.sop_class.decode("latin-1")
    if not uids.is_uid(abstract) or not uids.is_uid(queued.syntax):
        return []
    other = _OTHER.get(queued.syntax)
    return [(abstract, queued.syntax)] + ([(abstract, other)] if other else [])


def _gathered(fragment: int) -> int:
    """Bytes to read at once: whole fragments, about as much as goes into one write."""
    return max(fragment, GATHER // fragment * fragment)


def _verbatim(reader: ObjectReader, fragment: int) -> Iterator[tuple[memoryview, bool]]:
    """The data set as it was received. The reader gives its last bytes only when the digest of all was right (I5)."""
    left = reader.custody.length
    for chunk in reader.chunks(_gathered(fragment)):
        left -= len(chunk)
        yield chunk, not left
    if not reader.custody.length:
        yield memoryview(b""), True


def _closing(pieces: Iterator[bytes], descriptor: int) -> Iterator[bytes]:
    try:
        yield from pieces
    finally:
        os.close(descriptor)


def _even(pieces: Iterator[bytes], size: int) -> Iterator[tuple[bytes, bool]]:
    """The same bytes in pieces of `size`, and whether each is the last: known only when the pieces have ended without error."""
    held = bytearray()
    for piece in pieces:
        held += piece
        while len(held) > size:
            yield bytes(held[:size]), False
            del held[:size]
    yield bytes(held), True
