"""The C-STORE transport against pynetdicom's acceptor: an implementation that is not ours takes what we send."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE, evt

from appliance.config.settings import Destination, Limits
from appliance.dicom import uids
from appliance.errors import DeliveryError
from appliance.forward.dimse import DimseTransport
from appliance.model import Fault, Outcome
from tests.support import objects
from tests.support.held import Held
from tests.support.waiting import free_port

Arrived = list[tuple[str, str, bytes]]


@contextmanager
def scp(on_store: Callable[[Any], int] = lambda event: 0, *, syntaxes: tuple[str, ...] = (uids.EXPLICIT_LE, uids.IMPLICIT_LE),
        title: str = "PYNET", max_pdu: int = 16382, **settings: object) -> Iterator[tuple[int, Arrived]]:
    arrived: Arrived = []

    def stored(event: Any) -> int:
        arrived.append((str(event.request.AffectedSOPInstanceUID), str(event.context.transfer_syntax),
                        event.encoded_dataset(include_meta=False)))
        return on_store(event)
    ae = AE(ae_title=title)
    ae.add_supported_context(uids.VERIFICATION)
    ae.add_supported_context(uids.CT_IMAGE_STORAGE, list(syntaxes))
    ae.maximum_pdu_size = max_pdu
    for name, value in settings.items():
        setattr(ae, name, value)
    port = free_port()
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, stored)])
    assert server is not None
    try:
        yield port, arrived
    finally:
        server.shutdown()


def transport(held: Held, port: int, called: str = "PYNET") -> DimseTransport:
    destination = Destination(id="pacs", address="127.0.0.1", port=port, called=called, calling="GATE", connect_seconds=5.0,
                              progress_seconds=10.0)
    return DimseTransport(destination, held.spool, Limits(child_seconds=20.0))


def send(sender: DimseTransport, *batch: object) -> list[Outcome]:
    outcomes: list[Outcome] = []
    sender.send(batch, lambda outcome: outcomes.append(outcome) or False)  # type: ignore[arg-type]
    return outcomes


@pytest.mark.requirement("conformance: data sets as received")
@pytest.mark.requirement("I3")
@pytest.mark.parametrize("max_pdu", [0, 128, 16382, 1 << 20])
def test_objects_arrive_byte_for_byte(tmp_path: Path, max_pdu: int):
    held = Held(tmp_path / "held")
    with scp(max_pdu=max_pdu) as (port, arrived):
        sender = transport(held, port)
        assert sender.probe().fault is None
        instances = [objects.ct(n, side=64) for n in range(3)]
        batch = [held.keep(b"".join(bytes(part) for part in i.parts), uid=i.sop_instance.encode()) for i in instances]
        assert [o.fault for o in send(sender, *batch)] == [None] * 3
        assert arrived == [(i.sop_instance, uids.EXPLICIT_LE, b"".join(bytes(p) for p in i.parts)) for i in instances]
        sender.close()


@pytest.mark.parametrize(("status", "fault", "warning"), [
    (0x0122, Fault.DESTINATION, False), (0xA700, Fault.DESTINATION, False), (0xC000, Fault.OBJECT, False),
    (0xA900, Fault.OBJECT, False), (0xB000, None, True), (0xB006, None, True), (0xB007, None, True)])
def test_statuses(tmp_path: Path, status: int, fault: Fault | None, warning: bool):
    held = Held(tmp_path / "held")
    with scp(lambda event: status) as (port, _):
        sender = transport(held, port)
        outcomes: list[Outcome] = []
        queued = held.keep(b"".join(bytes(part) for part in objects.ct(1, side=16).parts))
        sender.send([queued], lambda outcome: outcomes.append(outcome) or False)
        assert [(o.fault, o.status, o.warning) for o in outcomes] == [(fault, status, warning)]
        sender.close()


def test_a_title_that_is_not_recognised_is_named(tmp_path: Path):
    held = Held(tmp_path / "held")
    with scp(require_called_aet=True) as (port, _):
        with pytest.raises(DeliveryError, match='"Pynet"') as caught:
            send(transport(held, port, called="Pynet"), held.keep(b"x"))
        assert caught.value.fault == Fault.CONFIGURATION


def test_too_many_associations_is_for_the_moment(tmp_path: Path):
    held = Held(tmp_path / "held")
    with scp(maximum_associations=1) as (port, _):
        first = transport(held, port)
        queued = held.keep(b"".join(bytes(part) for part in objects.ct(1, side=16).parts))
        assert send(first, queued)[0].fault is None
        with pytest.raises(DeliveryError) as caught:
            send(transport(held, port), queued)
        assert caught.value.fault == Fault.DESTINATION
        first.close()


@pytest.mark.requirement("conformance: contexts proposed")
def test_re_encoded_on_the_way(tmp_path: Path):
    held = Held(tmp_path / "held")
    with scp(syntaxes=(uids.IMPLICIT_LE,)) as (port, arrived):
        sender = transport(held, port)
        stored = objects.ct(1, side=64)
        wanted = objects.ct(1, side=64, syntax=uids.IMPLICIT_LE)
        queued = held.keep(b"".join(bytes(p) for p in stored.parts), uid=stored.sop_instance.encode())
        assert send(sender, queued)[0].fault is None
        assert arrived == [(wanted.sop_instance, uids.IMPLICIT_LE, b"".join(bytes(p) for p in wanted.parts))]
        sender.close()
