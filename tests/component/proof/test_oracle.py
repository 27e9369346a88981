"""The judge finds what it has to find, and nothing where nothing is wrong; the spool's files are the real intake's."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from appliance.spool.layout import Spool
from tests.proof import oracle
from tests.proof.oracle import Entry, Journal, judge
from tests.support import objects
from tests.support.objects import Instance
from tests.support.spools import EXPLICIT, accept, fresh, intake_of

SOUND: dict[str, Any] = {
    "granted": 8, "free": 4, "in_flight": 0, "void": 1, "accepted": 3, "derived": 0, "waiting": 2, "sent": 1, "confirmed": 0,
    "retired": 0, "duplicate": 0, "quarantined": 0, "discarded": 0, "unaccounted": 0, "discrepancies": []}


def noted(data: bytes, uid: str) -> Entry:
    return Entry(uid, EXPLICIT, hashlib.sha256(data).hexdigest(), len(data))


@pytest.fixture
def three(tmp_path: Path) -> tuple[Spool, Journal]:
    """Three objects in the spool of a real intake, which has ended, and what their sender noted."""
    spool = fresh(tmp_path / "spool")
    journal = Journal()
    with intake_of(spool, ready=4) as intake:
        for number in range(1, 4):
            data = bytes([number]) * (100_000 * number)
            accept(intake, data, b"1.2.%d" % number)
            journal.acknowledge(noted(data, f"1.2.{number}"))
    return spool, journal


def file_of(spool: Spool, number: int) -> Path:
    return sorted(spool.objects.glob("*/*.dcm"))[number]


def test_everything_is_in_the_spool(three: tuple[Spool, Journal], tmp_path: Path) -> None:
    spool, journal = three
    verdict = judge(journal, {"pacs": []}, spool=spool.path, balance=oracle.balance_of(spool.path, tmp_path, "--deep"))
    assert verdict.holds and verdict.notes == []
    assert (verdict.acknowledged, verdict.held, verdict.delivered) == (3, 3, 0)


def test_what_is_at_the_destination_need_not_be_in_the_spool(three: tuple[Spool, Journal]) -> None:
    spool, journal = three
    file_of(spool, 0).unlink()
    assert judge(journal, {"pacs": journal.acknowledged[:1]}, spool=spool.path).holds
    assert judge(journal, {"pacs": journal.acknowledged[:1], "other": []}, spool=spool.path).lost == 1


@pytest.mark.parametrize(("damage", "why"), [
    (lambda path: path.unlink(), ""),
    (lambda path: os.truncate(path, 4096 + 99_999), "1 bytes of its data set are missing"),
    (lambda path: os.truncate(path, 0), ""),
    (lambda path: flip(path, 4096), "its data set has another digest than its head"),
    (lambda path: flip(path, 1000), ""),
    (lambda path: flip(path, 4095), ""),
    (lambda path: path.rename(path.with_name(f"{9:016x}.dcm")), "it is the file of number"),
])
def test_a_damaged_object_is_lost(three: tuple[Spool, Journal], damage: Any, why: str) -> None:
    spool, journal = three
    damage(file_of(spool, 0))
    verdict = judge(journal, {"pacs": []}, spool=spool.path)
    assert verdict.lost == 1 and verdict.held == 2
    assert why in verdict.notes[0] and "1.2.1" in verdict.notes[0]


def flip(path: Path, offset: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1
    path.write_bytes(raw)


def test_bytes_after_the_data_set_are_no_loss(three: tuple[Spool, Journal]) -> None:
    spool, journal = three
    with file_of(spool, 0).open("ab") as file:
        file.write(b"left over")
    assert judge(journal, {}, spool=spool.path).holds
    assert [held.excess for held in oracle.read_spool(spool.path)] == [9, 0, 0]


def test_an_object_in_quarantine_is_set_aside(three: tuple[Spool, Journal]) -> None:
    spool, journal = three
    path = file_of(spool, 0)
    path.rename(spool.quarantine / path.name)
    verdict = judge(journal, {"pacs": []}, spool=spool.path)
    assert verdict.holds and verdict.set_aside == 1 and verdict.notes


def test_other_bytes_at_the_destination_are_altered() -> None:
    right, wrong = noted(b"right", "1.2.1"), noted(b"wrong", "1.2.1")
    verdict = judge([right], {"pacs": [right, wrong]})
    assert (verdict.lost, verdict.altered) == (0, 1) and not verdict.holds
    assert judge([right], {"pacs": [wrong]}).lost == 1
    assert judge([right, wrong], {"pacs": [right, wrong]}).holds, "the same UID was sent with two contents"


def test_what_nobody_sent_is_altered_where_all_offers_are_known() -> None:
    journal = Journal()
    journal.acknowledge(journal.offer(noted(b"a", "1.2.1")))
    journal.offer(noted(b"b", "1.2.2"))
    stranger = noted(b"c", "1.2.3")
    assert judge(journal, {"pacs": [*journal.offered]}).holds
    assert judge(journal, {"pacs": [*journal.offered, stranger]}).altered == 1
    assert judge(journal.acknowledged, {"pacs": [*journal.acknowledged, stranger]}).holds


@pytest.mark.parametrize(("change", "count"), [
    ({}, 0), ({"unaccounted": 2, "discrepancies": ["x", "y"]}, 2), ({"granted": 9}, 1), ({"sent": 0}, 1),
    ({"accepted": 2, "free": 5, "waiting": 1}, 1), ({"accepted": 2, "in_flight": 1, "waiting": 1}, 0)])
def test_the_balance_is_added_up_again(change: dict[str, Any], count: int) -> None:
    entries = [noted(b"a", "1.2.1")] * 2 + [noted(b"b", "1.2.2")]
    verdict = judge(entries, {"pacs": entries}, balance={**SOUND, **change})
    assert verdict.unaccounted == count, verdict.notes
    assert verdict.acknowledged == 3


def test_a_journal_survives_its_sender(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    instance = objects.sr(1)
    first = Journal(path)
    first.offer(instance)
    first.acknowledge(instance)
    with path.open("ab") as file:
        file.write(b'["+","1.2.3')
    again = Journal(path)
    assert again.acknowledged == again.offered == [oracle.entry_of(instance)]
    again.acknowledge(objects.sr(2))
    assert Journal(path).acknowledged == again.acknowledged


def test_a_store_is_read_as_its_files_are(tmp_path: Path) -> None:
    sent: list[Instance] = [objects.ct(1, side=64), *objects.specials()]
    for number, instance in enumerate(sent):
        instance.write(tmp_path / f"{number}.dcm")
    (tmp_path / "storescp.log").write_text("no object")
    store = oracle.read_store(tmp_path)
    assert set(store) == {oracle.entry_of(instance) for instance in sent}
    assert oracle.read_bytes((tmp_path / "0.dcm").read_bytes()) == oracle.entry_of(sent[0])
    assert judge([oracle.entry_of(instance) for instance in sent], {"pacs": store}).delivered == len(sent)
