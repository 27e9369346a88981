"""The folder transport: outcomes, references, and what a missing marker or a full disk means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from blake3 import blake3

from appliance.config.settings import Destination
from appliance.errors import DeliveryError, ObjectDamaged
from appliance.forward.folder import FolderTransport
from appliance.model import Fault, Outcome
from appliance.net import archive
from appliance.net.archive import Archive
from tests.support.held import Held, other


@pytest.fixture
def held(tmp_path: Path) -> Held:
    return Held(tmp_path / "held")


@pytest.fixture
def transport(tmp_path: Path, held: Held) -> FolderTransport:
    archive.init(tmp_path / "archive")
    return FolderTransport(Destination(id="disk", type="folder", path=str(tmp_path / "archive")), held.spool)


def test_objects_are_delivered_and_found_again(tmp_path: Path, held: Held, transport: FolderTransport):
    batch = [held.keep(data) for data in (b"one", b"", bytes(3_000_000))]
    outcomes: list[Outcome] = []
    assert transport.probe().fault is None
    transport.send(batch, lambda outcome: outcomes.append(outcome) or False)
    assert [(o.number, o.fault) for o in outcomes] == [(q.number, None) for q in batch]
    with Archive(tmp_path / "archive") as opened:
        assert [opened.read_back(o.reference) for o in outcomes] == [q.digest for q in batch]
    transport.close()


def test_emit_stops_it(held: Held, transport: FolderTransport):
    outcomes: list[Outcome] = []
    transport.send([held.keep(b"1"), held.keep(b"2")], lambda outcome: outcomes.append(outcome) or True)
    assert len(outcomes) == 1


@pytest.mark.requirement("a folder without its marker is never written into")
def test_a_missing_marker_is_the_destinations_fault(tmp_path: Path, held: Held, transport: FolderTransport):
    (tmp_path / "archive" / archive.MARKER).rename(tmp_path / "away")
    before = sorted(tmp_path.rglob("*"))
    outcomes: list[Outcome] = []
    with pytest.raises(DeliveryError, match="no DCMGATE-ARCHIVE") as caught:
        transport.send([held.keep(b"1")], lambda outcome: outcomes.append(outcome) or False)
    assert caught.value.fault == Fault.DESTINATION
    assert outcomes == []
    assert {p.parent.name for p in set(tmp_path.rglob("*")) - set(before)} == {"held"}
    assert transport.probe().fault is Fault.DESTINATION


@pytest.mark.parametrize(("number", "words"), [(28, "is full"), (122, "is full"), (5, "cannot be written"),
                                               (30, "cannot be written")])
def test_an_error_of_the_disk_ends_the_batch(held: Held, transport: FolderTransport, monkeypatch: pytest.MonkeyPatch,
                                             number: int, words: str):
    def broken(fd: int) -> None:
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr(os, "fsync", broken)
    outcomes: list[Outcome] = []
    with pytest.raises(DeliveryError, match=words):
        transport.send([held.keep(b"1"), held.keep(b"2")], lambda outcome: outcomes.append(outcome) or False)
    assert [o.fault for o in outcomes] == [Fault.DESTINATION]


@pytest.mark.requirement("I5")
def test_a_damaged_object_is_not_delivered(tmp_path: Path, held: Held, transport: FolderTransport):
    good, bad = held.keep(b"good"), held.keep(bytes(3_000_000))
    held.damage(bad)
    outcomes: list[Outcome] = []
    with pytest.raises(ObjectDamaged) as caught:
        transport.send([good, bad], lambda outcome: outcomes.append(outcome) or False)
    assert caught.value.number == bad.number
    with pytest.raises(ObjectDamaged):
        transport.send([other(good, digest=bad.digest)], lambda outcome: False)
    names = [p.stem for p in (tmp_path / "archive" / "objects").glob("*/*")]
    assert names == [blake3(b"good").hexdigest()]


def test_abort_is_final(held: Held, transport: FolderTransport):
    transport.abort()
    with pytest.raises(DeliveryError):
        transport.send([held.keep(b"1")], lambda outcome: False)
