"""Plain pynetdicom, as its documentation shows it: a receiver and a router.

    python -m tests.bench.plain receive PORT FOLDER
    python -m tests.bench.plain route PORT SINK_PORT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.presentation import build_context


def receive(port: int, folder: Path) -> None:
    """Each data set is written as it came (`encoded_dataset`, the quickest way that pynetdicom has)."""

    def on_store(event: Any) -> int:
        (folder / f"{event.request.AffectedSOPInstanceUID}.dcm").write_bytes(event.encoded_dataset())
        return 0

    ae = AE(ae_title="PLAIN")
    ae.maximum_associations = 64
    ae.supported_contexts = AllStoragePresentationContexts
    ae.start_server(("127.0.0.1", port), block=True, evt_handlers=[(evt.EVT_C_STORE, on_store)])


def route(port: int, sink: int) -> None:
    """Each data set is sent on while the scanner waits, on one association for each of the scanner's."""
    outgoing: dict[Any, Any] = {}

    def on_store(event: Any) -> int:
        association = outgoing.get(event.assoc)
        if association is None or not association.is_established:
            requestor = AE(ae_title="PLAIN")
            requestor.requested_contexts = [build_context(cx.abstract_syntax, cx.transfer_syntax[0])
                                            for cx in event.assoc.accepted_contexts]
            association = outgoing[event.assoc] = requestor.associate("127.0.0.1", sink, ae_title="STORESCP")
        data_set = event.dataset
        data_set.file_meta = event.file_meta
        return int(association.send_c_store(data_set).Status)

    def on_end(event: Any) -> None:
        association = outgoing.pop(event.assoc, None)
        if association is not None:
            association.release()

    ae = AE(ae_title="PLAIN")
    ae.maximum_associations = 64
    ae.supported_contexts = AllStoragePresentationContexts
    ae.start_server(("127.0.0.1", port), block=True, evt_handlers=[
        (evt.EVT_C_STORE, on_store), (evt.EVT_RELEASED, on_end), (evt.EVT_ABORTED, on_end)])


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(int(sys.argv[2]), Path(sys.argv[3]))
    else:
        route(int(sys.argv[2]), int(sys.argv[3]))
