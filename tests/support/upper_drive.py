"""Drive an UpperLayer as a socket loop would: any cutting of the bytes, with or without a buffer of the object's own."""

from __future__ import annotations

from collections.abc import Iterable

from appliance.dicom import indications as ind
from appliance.dicom import negotiation, pdu, uids
from appliance.dicom.upper import UpperLayer
from appliance.errors import ProtocolError


def serves(abstract: str) -> negotiation.Preference | None:
    if abstract == uids.VERIFICATION:
        return negotiation.verification_preference
    return negotiation.storage_preference if negotiation.is_storage(abstract) else None


class Drive:
    """Answers requests and releases, joins data sets, and notes what happened as plain tuples."""

    def __init__(self, layer: UpperLayer, *, direct: int = 0) -> None:
        self.layer = layer
        self.direct = direct
        self.told: list[tuple[object, ...]] = []
        self.sent: list[bytes] = []
        self.error: ProtocolError | None = None
        self._data = bytearray()

    def run(self, pieces: Iterable[bytes]) -> list[tuple[object, ...]]:
        for piece in pieces:
            left = memoryview(piece)
            while left and self.error is None:
                left = left[self._read(left):]
        return self.told

    def _read(self, data: memoryview) -> int:
        """What `recvmsg_into` does: fill the buffers in their order."""
        space = memoryview(bytearray(self.direct)) if self.direct else None
        count = 0
        for buffer in self.layer.buffers(space):
            part = min(len(buffer), len(data) - count)
            buffer[:part] = data[count:count + part]
            count += part
        assert count, "buffers without room"
        try:
            for event in self.layer.received(count):
                self._note(event, space)
        except ProtocolError as error:
            self.error = error
            self.told.append(("error", type(error).__name__, error.reason))
            self.sent.append(self.layer.abort(2, error.reason))
        return count

    def _note(self, event: ind.Event, space: memoryview | None) -> None:
        if isinstance(event, ind.Fragment):
            if event.view is None:
                assert space is not None
                self._data += space[:event.length]
            else:
                assert len(event.view) == event.length
                self._data += event.view
            if event.last:
                self.told.append(("data", event.context_id, bytes(self._data)))
                self._data.clear()
            return
        if isinstance(event, ind.Requested):
            self.told.append(("requested", event.request))
            self.sent.append(self.layer.accept(pdu.AssociateAccept(
                event.request.called, event.request.calling, negotiation.negotiate(event.request, serves))))
        elif isinstance(event, ind.ReleaseRequested):
            self.told.append(("release", self.layer.idle))
            self.sent.append(self.layer.release_reply())
        else:
            self.told.append((type(event).__name__, repr(event)))


def associated(request: bytes, *, direct: int = 0) -> Drive:
    """An acceptor behind that A-ASSOCIATE-RQ."""
    drive = Drive(UpperLayer.acceptor(), direct=direct)
    drive.run([request])
    drive.told.clear()
    return drive
