"""The limited child that queries archives. `python -m appliance.sandbox.find_child <memory> <parent>`.

It opens no connection: it is handed one with each request. It ends by being
killed: pynetdicom's threads may hang in an association for ever.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from appliance.errors import SandboxError
from appliance.sandbox import frames, limits

FILES = 64
PENDING = (0xFF00, 0xFF01)
_STACK = 512 << 10


def requestor(title: str, connection: socket.socket) -> Any:
    """pynetdicom's application entity, on a connection that is there already. It closes it."""
    from pynetdicom import AE
    from pynetdicom.transport import AssociationSocket

    class Given(AssociationSocket):
        def _create_socket(self, address: Any) -> socket.socket:
            return connection

        def connect(self, primitive: Any) -> None:
            self._is_connected = True
            primitive.result = "Evt2"            # transport connection confirmation (PS3.8 9.2.2)
            self.provider_queue.put(primitive)
            self._ready.set()

    class Requestor(AE):
        def _create_socket(self, assoc: Any, address: Any, tls_args: Any) -> Any:
            return Given(assoc, address=address)

    return Requestor(ae_title=title)


def answer(request: Any, connection: socket.socket, reply: Callable[[dict[str, Any]], None]) -> None:
    """Ask all searches over one association; one reply for each, or an error instead of the rest."""
    from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind as Find  # type: ignore[attr-defined]

    archive = request["archive"]
    ae = requestor(archive["calling"], connection)
    ae.add_requested_context(Find)
    ae.connection_timeout = ae.acse_timeout = archive["connect_seconds"]
    ae.dimse_timeout = ae.network_timeout = archive["progress_seconds"]
    place = f"{archive['called']} at {archive['address']}:{archive['port']}"
    association = ae.associate("127.0.0.1", archive["port"], ae_title=archive["called"])   # no address is looked up here
    if not association.is_established:
        how = "rejected the association" if association.is_rejected else "gives no answer to our association request"
        reply({"error": f"{place} {how}"})
        return
    try:
        if not association.accepted_contexts:
            reply({"error": f"{place} does not accept queries (Study Root C-FIND)"})
            return
        for search in request["searches"]:
            found = one(association, Find, search, request["most"])
            reply(found)
            if "error" in found:
                return
    finally:
        if association.is_established:
            association.release()


def one(association: Any, model: Any, search: Any, most: int) -> dict[str, Any]:
    """The instances that match one search."""
    from pydicom import Dataset

    query = Dataset()
    query.QueryRetrieveLevel = "IMAGE"
    query.StudyInstanceUID = search["study"]
    query.SeriesInstanceUID = search["series"]
    query.SOPInstanceUID = list(search["uids"]) or ""
    uids: list[str] = []
    for status, identifier in association.send_c_find(query, model):
        code = status.get("Status")
        if code is None:
            return {"error": "the archive broke off or went silent at a query; it may not let our title ask"}
        if code in PENDING:
            if identifier is not None and (uid := str(identifier.get("SOPInstanceUID", ""))):
                uids.append(uid[:64])
            if len(uids) > most:
                association.abort()
                return {"error": f"the archive lists more than {most} instances of one series"}
        elif code != 0:
            return {"refused": f"query refused with status {code:04X}"}
    return {"uids": uids}


def main() -> None:
    memory, parent = int(sys.argv[1]), int(sys.argv[2])
    threading.stack_size(_STACK)
    import pynetdicom  # noqa: F401 - takes a while: not within the time of the first query
    from pydicom import config
    limits.apply(memory, FILES, parent)
    config.settings.reading_validation_mode = config.IGNORE
    config.settings.writing_validation_mode = config.IGNORE
    sock = socket.socket(fileno=0)
    frames.send(sock, frames.READY)
    while True:
        payload, descriptors = frames.receive(sock, 16 << 20)
        if not payload:
            return
        with socket.socket(fileno=descriptors[0]) as connection:
            answer(json.loads(payload), connection, lambda found: frames.send(sock, json.dumps(found).encode()))


if __name__ == "__main__":
    try:
        main()
    except (OSError, SandboxError):
        pass
    finally:
        os._exit(1)                              # without waiting for the threads of an association
