"""A query cannot tell two contents of one UID apart: neither is confirmed by it, so neither is ever deleted for it."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from appliance.clock import SECOND, ManualClock
from appliance.config.settings import Config, Destination
from appliance.confirm import Confirmer
from appliance.model import Attributes
from appliance.sandbox.find import Archive, Finder, Search
from appliance.spool import index as ix
from appliance.spool.index import Index
from appliance.spool.layout import Spool
from tests.support.ledgers import Bench

DAY = 86400


@pytest.mark.requirement("I4")
def test_what_an_archive_kept_of_two_contents_of_one_uid_is_not_proved_by_its_list(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Archives exist that answer 0000 to the second content, keep the first one, and list the UID. (Orthanc does.)"""
    def lists_all(self: Finder, archive: Archive, searches: Sequence[Search], *_: object) -> list[frozenset[str] | str]:
        return [frozenset({"1.2.3", "1.2.4"}) for _ in searches]

    monkeypatch.setattr(Finder, "images", lists_all)
    clock = ManualClock()
    spool = Spool.init(tmp_path / "spool", clock=clock)
    bench = Bench(spool.path, clock)
    door = socket.create_server(("127.0.0.1", 0))
    archive = Destination(id="archive", address="127.0.0.1", port=door.getsockname()[1], called="A", calling="B",
                          proof="readback")
    first, second, other = (bench.take(uid, content, archive) for uid, content in
                            (("1.2.3", "before"), ("1.2.3", "corrected"), ("1.2.4", "another")))
    for number in (first, second, other):
        bench.send(number, "archive")
    with Index.open(spool.index_path) as index:
        index.add([(n, Attributes({ix.STUDY_UID: "1.2", ix.SERIES_UID: "1.2.0"})) for n in (first, second, other)])
    stage = Confirmer(spool, bench.ledger, clock, lambda: Config(destinations=(archive,)))
    watch = stage.watch(archive)
    assert watch is not None
    for _ in range(20):
        clock.advance(DAY)
        watch.step()
    assert [bench.state(n) for n in (first, second, other)] == ["sent", "sent", "confirmed"]
    assert [r.number for r in bench.ledger.retirable(bench.ledger.powered_on() + SECOND, 0)] == [other]
    bench.ledger.close()
    door.close()


@pytest.mark.requirement("I4")
def test_only_what_was_sent_there_too_counts_against_an_object(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    one, two, three = bench.take("1.2", "x", "a"), bench.take("1.2", "y", "b"), bench.take("1.2", "x", "a")
    assert not bench.ledger.rivalled(one, "a"), "the other content went elsewhere, the third is the same"
    bench.send(one, "a")
    bench.send(two, "b")
    assert not any(bench.ledger.rivalled(n, "a") for n in (one, three))
    four = bench.take("1.2", "z", "a")
    assert not bench.ledger.rivalled(one, "a"), "not sent yet"
    bench.send(four, "a")
    assert bench.ledger.rivalled(one, "a") and bench.ledger.rivalled(four, "a") and not bench.ledger.rivalled(two, "b")
    bench.ledger.close()
