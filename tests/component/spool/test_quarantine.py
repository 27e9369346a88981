"""Quarantine keeps what we do not vouch for, and drops a remnant only when its UID came again."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from appliance.errors import SpoolFault, SpoolFull
from appliance.spool import quarantine
from appliance.spool.layout import Spool
from appliance.spool.quarantine import Entry
from tests.support.disk import FaultyOs
from tests.support.spools import accept, files, fresh, intake_of


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = fresh(tmp_path / "spool")
    with intake_of(spool, ready=4) as intake:
        for uid in (b"1.1", b"1.2", b"1.3"):
            accept(intake, b"data", uid)
    return spool


def test_moved_with_its_reason(spool: Spool) -> None:
    before = spool.object_path(1).read_bytes()
    entry = quarantine.put(spool, 1, "digest is wrong")
    assert (entry.number, entry.reason, entry.remnant, entry.uid) == (1, "digest is wrong", False, "1.1")
    assert quarantine.entries(spool) == [entry]
    assert quarantine.path(spool, 1).read_bytes() == before
    assert 1 not in files(spool)
    assert quarantine.put(spool, 1, "digest is wrong") == entry


def test_a_file_without_note_is_listed(spool: Spool) -> None:
    quarantine.put(spool, 1, "x")
    quarantine.path(spool, 1).with_suffix(".json").write_text("{")
    assert quarantine.entries(spool) == [Entry(1, "no note of the reason", False)]
    assert quarantine.drop_remnants(spool, lambda *_: True) == []


@pytest.mark.requirement("I4")
def test_only_remnants_that_came_again_are_dropped(spool: Spool) -> None:
    head = spool.object_path(2).read_bytes()
    spool.object_path(2).write_bytes(head[:-1])
    spool.object_path(3).write_bytes(os.urandom(5000))
    quarantine.put(spool, 1, "digest is wrong")
    second = quarantine.put(spool, 2, "remnant: too short", remnant=True)
    quarantine.put(spool, 3, "remnant: no head", remnant=True)
    asked: list[tuple[str, int, int]] = []

    def not_yet(uid: str, boot: int, since_boot: int) -> bool:
        asked.append((uid, boot, since_boot))
        return False

    assert quarantine.drop_remnants(spool, not_yet) == []
    assert asked == [("1.2", second.boot, second.since_boot)] and second.boot == 1 and second.since_boot > 0
    assert quarantine.drop_remnants(spool, lambda *_: True) == [2]
    assert [entry.number for entry in quarantine.entries(spool)] == [1, 3]
    assert sorted(os.listdir(spool.quarantine)) == [f"{n:016x}.{kind}" for n in (1, 3) for kind in ("dcm", "json")]


@pytest.mark.requirement("I4")
def test_a_remnant_goes_when_its_uid_was_acknowledged_again(spool: Spool) -> None:
    """Not for an object of that UID that was acknowledged before it."""
    for uid in (b"1.5", b"1.6\\\xff"):
        with intake_of(spool, ready=4) as intake:
            accept(intake, b"before", uid)
            remnant = accept(intake, b"a remnant", uid)
        os.truncate(spool.object_path(remnant.number), 4100)
        quarantine.put(spool, remnant.number, "remnant: too short", remnant=True)
        with intake_of(spool, ready=4) as intake:
            asked = quarantine.acknowledged_in(intake._ledger)
            assert not asked(remnant.uid_text, remnant.boot, remnant.since_boot)
            assert asked(remnant.uid_text, remnant.boot, remnant.since_boot - 1)
            again = accept(intake, b"once more", uid)
        with intake_of(spool, ready=4) as intake:
            assert again.since_boot > remnant.since_boot
            assert quarantine.drop_remnants(spool, quarantine.acknowledged_in(intake._ledger)) == [remnant.number]


@pytest.mark.parametrize(("code", "error"), [(errno.EIO, SpoolFault), (errno.ENOSPC, SpoolFull)])
def test_errors_are_ours_and_leave_the_object(spool: Spool, monkeypatch: pytest.MonkeyPatch, code: int,
                                              error: type[Exception]) -> None:
    faulty = FaultyOs()
    faulty.fail("rename", code)
    monkeypatch.setattr(quarantine, "os", faulty)
    with pytest.raises(error):
        quarantine.put(spool, 1, "x")
    assert 1 in files(spool)
