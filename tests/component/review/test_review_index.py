"""Who was retired is forgotten by the index too, without a restart: it is the one file that people's names stay in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from appliance.clock import ManualClock
from appliance.forward.indexing import AUDIT_SECONDS, Indexing
from appliance.model import Attributes
from appliance.spool import index as ix
from appliance.spool.index import Index, Query
from appliance.spool.layout import Spool
from appliance.spool.rows import ObjectRow
from tests.support.ledgers import Bench


@pytest.mark.requirement("data protection: confirmed copies and their index entries have a maximum age")
def test_retired_objects_leave_the_index_while_the_forwarder_runs(tmp_path: Path) -> None:
    clock = ManualClock()
    spool = Spool.init(tmp_path / "spool", clock=clock)
    bench = Bench(spool.path, clock)

    def read(rows: Sequence[ObjectRow], wanted: frozenset[int]) -> list[Attributes]:
        return [Attributes({ix.STUDY_UID: f"1.{row.number}", ix.SERIES_UID: "1.2", ix.PATIENT_NAME: "Doe"}) for row in rows]

    indexing = Indexing(spool, bench.ledger, clock, read)
    gone, kept = bench.take(), bench.take()
    while indexing.step(frozenset()):
        pass
    with Index.open(spool.index_path, read_only=True) as index:
        assert len(index.search(Query(patient_name="doe"))) == 2
    bench.send(gone)
    bench.confirm(gone)
    assert bench.ledger.retiring([gone]) == [gone]
    bench.ledger.retired([gone])
    clock.advance(AUDIT_SECONDS + 1)
    while indexing.step(frozenset()):
        pass
    with Index.open(spool.index_path, read_only=True) as index:
        assert index.numbers(0, 1000) == {kept}
        assert [study.uid for study in index.search(Query(patient_name="doe"))] == [f"1.{kept}"]
    assert not indexing.step(frozenset())
    indexing.close()
    bench.ledger.close()
