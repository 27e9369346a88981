"""The forwarder with everything that belongs to it: intake's objects, routing by tags, C-STORE and a folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.config.settings import Config, Control, Destination, Rule
from appliance.forward.engine import Forwarder
from appliance.model import Custody, DeliveryState
from appliance.net import archive, kick
from appliance.spool.intake import Intake
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from tests.support import objects
from tests.support.objects import Instance
from tests.support.peers import pynetdicom_scp
from tests.support.spools import SOURCE, intake_of
from tests.support.waiting import free_port, wait_until


def take_in(intake: Intake, instance: Instance) -> Custody:
    writer = intake.take()
    try:
        for part in instance.parts:
            writer.write(memoryview(part))
        return writer.finish(instance.sop_class.encode(), instance.sop_instance.encode(), instance.syntax, SOURCE)
    finally:
        writer.abandon("test")


@pytest.fixture
def run() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="dg-"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.requirement("conformance: data sets as received")
@pytest.mark.requirement("I3")
@pytest.mark.requirement("I9")
def test_every_object_reaches_where_its_rule_says_byte_for_byte(tmp_path: Path, run: Path) -> None:
    spool = Spool.init(tmp_path / "spool", clock=SystemClock())
    archive.init(tmp_path / "archive")
    scans = [objects.ct(n, side=64) for n in range(1, 7)]
    reports = [objects.sr(n, size=2000) for n in range(1, 4)]
    port = free_port()
    config = Config(
        control=Control(run=str(run)),
        destinations=(Destination(id="disk", type="folder", path=str(tmp_path / "archive"), default=True),
                      Destination(id="pacs", address="127.0.0.1", port=port, called="PYNET", calling="DCMGATE",
                                  connect_seconds=2.0, progress_seconds=10.0)),
        rules=(Rule(id="scans", match={"modality": "CT"}, destinations=("pacs", "disk")),))
    forwarder = Forwarder(lambda: config, spool, SystemClock(), run, random=lambda: 0.0)
    with intake_of(spool) as intake, Ledger.open(spool.ledger_path, SystemClock()) as ledger:
        forwarder.start()
        try:
            taken = [take_in(intake, instance) for instance in [*scans[:3], *reports]]
            wait_until(lambda: ledger.counts().queue("disk", DeliveryState.SENT).count == 6, what="the folder has all")
            assert ledger.counts().queue("pacs", DeliveryState.SENT).count == 0   # nobody listens there yet
            with pynetdicom_scp(port=port) as pacs:
                taken += [take_in(intake, instance) for instance in scans[3:]]
                kick.send(run / kick.FORWARDER)
                pacs.wait_for([scan.key for scan in scans])
                assert sorted(pacs.keys) == sorted(scan.key for scan in scans)
                wait_until(lambda: ledger.counts().queue("pacs", DeliveryState.SENT).count == 6, what="the ledger knows")
                wait_until(lambda: ledger.counts().queue("disk", DeliveryState.SENT).count == 9, what="the folder has all nine")
                assert forwarder.stop() is True
            with archive.Archive(tmp_path / "archive") as opened:
                references = {delivery.number: delivery.reference for custody in taken
                              for delivery in ledger.deliveries(custody.number) if delivery.destination == "disk"}
                assert {n: opened.read_back(reference) for n, reference in references.items()} == {
                    c.number: c.digest for c in taken}
            assert ledger.verify_chain().whole
        finally:
            forwarder.stop(1.0)
