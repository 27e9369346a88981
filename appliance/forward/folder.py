"""Delivery into an archive folder: the transport of `[[destination]] type = "folder"` (see `net.archive` for its form).

An outcome is a success only when the object is durable there; `Outcome.reference`
is what the read-back needs. There is no time-out on a file system: a network
mount that hangs keeps its own lane, and no other.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from appliance.config.settings import Destination
from appliance.errors import DeliveryError, HeadError, ObjectDamaged
from appliance.forward.transport import Emit
from appliance.model import Fault
from appliance.net.archive import Archive
from appliance.policy import Failure, FailureKind, Finding, Party, classify, failure_of
from appliance.spool.layout import Spool
from appliance.spool.reader import ObjectReader
from appliance.spool.rows import Queued

CHUNK = 1 << 20


class FolderTransport:
    """See `transport.Transport`."""

    def __init__(self, destination: Destination, spool: Spool) -> None:
        self._path = Path(destination.path)
        self._party = Party(destination.id)
        self._spool = spool
        self._aborted = threading.Event()

    @property
    def moves(self) -> None:
        """See `transport.Transport.moves`: a mount that hangs is the destination's trouble, and no restart of ours mends it."""
        return None

    def send(self, batch: Sequence[Queued], emit: Emit) -> None:
        """See `transport.Transport.send`."""
        try:
            with Archive(self._path) as archive:
                for queued in batch:
                    if self._aborted.is_set():
                        raise DeliveryError(f"{self._party.destination} was given up", fault=Fault.DESTINATION)
                    finding, reference = self._store(archive, queued)
                    stop = emit(finding.outcome(queued.number, reference))
                    if finding.fault is Fault.DESTINATION:
                        raise DeliveryError(finding.text, fault=Fault.DESTINATION)
                    if stop:
                        return
        except OSError as e:
            raise DeliveryError(self._finding(e).text, fault=Fault.DESTINATION) from None

    def _store(self, archive: Archive, queued: Queued) -> tuple[Finding, str]:
        with ObjectReader(self._spool, queued.number) as reader:
            custody = reader.custody
            if (custody.digest, custody.length) != (queued.digest, queued.length):
                raise ObjectDamaged(queued.number, "its head is not the one that was acknowledged")
            try:
                return Finding(None), archive.write(custody, reader.chunks(CHUNK))
            except HeadError as e:
                return classify(Failure(FailureKind.LOCAL_OBJECT, e.message), self._party), ""
            except OSError as e:
                return self._finding(e), ""

    def _finding(self, error: OSError) -> Finding:
        """Whatever a file system says is the destination's fault: full, or else not to be written."""
        found = failure_of(error)
        kind = FailureKind.FULL if found.kind is FailureKind.FULL else FailureKind.STORAGE
        return classify(Failure(kind, error.strerror or str(error)), self._party)

    def probe(self) -> Finding:
        """Whether the archive is there, with its marker."""
        try:
            with Archive(self._path):
                return Finding(None)
        except OSError as e:
            return self._finding(e)

    def close(self) -> None:
        """Nothing is kept open."""

    def abort(self) -> None:
        """See `transport.Transport.abort`: at the next instance boundary."""
        self._aborted.set()
