"""Retire: what may go goes, nothing else does, and a crash on the way is finished."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance import retire
from appliance.clock import ManualClock
from appliance.config.settings import Destination
from appliance.config.settings import Spool as SpoolSettings
from appliance.errors import SpoolFault
from appliance.model import SpaceState
from appliance.retire import Retirer
from appliance.spool import quarantine
from appliance.spool.balance import balance
from tests.support.filled import Filled

pytestmark = pytest.mark.requirement("I4")
HOUR = 3600.0
DAY = 24 * HOUR
SETTINGS = SpoolSettings(keep_min_hours=24.0, keep_max_days=30.0)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Filled]:
    found = Filled(tmp_path)
    yield found
    found.close()


def advance(site: Filled, seconds: float) -> None:
    assert isinstance(site.clock, ManualClock)
    site.clock.advance(seconds)


def run(site: Filled, state: SpaceState = SpaceState.GREEN) -> int:
    return Retirer(site.spool, site.ledger).step(SETTINGS, lambda: state)


def test_a_confirmed_copy_goes_after_its_maximum_age_and_not_before(site: Filled) -> None:
    [number] = site.complete()
    advance(site, 30 * DAY - 60)
    assert run(site) == 0 and site.there(number)
    advance(site, 60)
    assert run(site) == 1
    assert not site.there(number)
    assert site.state(number) == "retired"
    assert balance(site.spool, site.ledger, deep=True).balanced


@pytest.mark.parametrize("state", [SpaceState.AMBER, SpaceState.RED, SpaceState.BLACK])
def test_where_room_is_short_copies_go_after_their_minimum_age(site: Filled, state: SpaceState) -> None:
    [number] = site.complete()
    advance(site, DAY - 60)
    assert run(site, state) == 0
    advance(site, 60)
    assert run(site, state) == 1 and not site.there(number)


def test_the_oldest_go_first_and_only_until_there_is_room(site: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retire, "BATCH", 2)
    old = site.complete(2)
    advance(site, 10.0)
    young = site.complete(3)
    advance(site, 2 * DAY)
    states = iter([SpaceState.AMBER, SpaceState.GREEN])
    assert Retirer(site.spool, site.ledger).step(SETTINGS, lambda: next(states)) == 2
    assert [site.there(n) for n in old + young] == [False, False, True, True, True]


@pytest.mark.parametrize("progress", ["accepted", "routed", "claimed", "sent", "held", "parked", "one of two"])
def test_what_is_not_confirmed_everywhere_never_goes(site: Filled, progress: str) -> None:
    [number] = site.accept()
    if progress != "accepted":
        site.route("pacs", *(["other"] if progress == "one of two" else []), hold=progress == "held")
    if progress == "claimed":
        site.ledger.claim("pacs", [number])
    if progress in ("sent", "one of two"):
        site.send()
    if progress == "one of two":
        site.confirm()
    if progress == "parked":
        site.ledger.claim("pacs", [number])
        site.ledger.outcomes_of("pacs", [number], retire_parking())
    for _ in range(3):
        advance(site, 3650 * DAY)
        assert run(site, SpaceState.BLACK) == 0
    assert site.ledger.retiring([number]) == [], "not even when asked for by number"
    assert site.there(number)


def test_what_the_ledger_does_not_allow_in_the_end_is_not_deleted(site: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the question and the row a person may want it again, or the destination may not have it after all."""
    wanted, gone = site.complete(2)
    advance(site, 31 * DAY)
    found = site.ledger.retirable(site.ledger.powered_on(), 0)
    assert [r.number for r in found] == [wanted, gone]
    site.ledger.requeue([wanted], "anna")
    monkeypatch.setattr(site.ledger, "retirable", lambda *_: [r for r in found if site.there(r.number)])
    assert run(site) == 1
    assert site.there(wanted) and not site.there(gone)
    site.ledger.retired([wanted])
    assert site.state(wanted) == "waiting", "nothing is gone without its first row"


def retire_parking() -> object:
    from appliance.spool.rows import Parking
    return Parking("five tries")


def test_an_object_that_goes_nowhere_that_is_required_stays_until_all_have_it(site: Filled) -> None:
    [number] = site.accept()
    site.route(Destination(id="a", required=False), Destination(id="b", required=False))
    site.send("a")
    site.confirm("a")
    advance(site, 100 * DAY)
    assert run(site) == 0 and site.there(number)


def test_an_optional_destination_does_not_keep_an_object(site: Filled) -> None:
    [number] = site.accept()
    site.route(Destination(id="pacs"), Destination(id="research", required=False))
    site.send()
    site.confirm()
    advance(site, 31 * DAY)
    assert run(site) == 1 and not site.there(number)
    assert site.ledger.load("research") == [], "nobody is told to send a file that is gone"


def test_what_a_person_discarded_goes_at_once(site: Filled) -> None:
    [number, other] = site.accept(2)
    site.route()
    site.ledger.discard([number], "anna", "phantom")
    assert run(site) == 1
    assert not site.there(number) and site.there(other)
    assert site.state(number) == "discarded"
    assert balance(site.spool, site.ledger, deep=True).balanced


def test_a_discarded_object_goes_from_quarantine_with_its_note(site: Filled) -> None:
    [number] = site.accept()
    site.ledger.quarantine(number, "digest")
    quarantine.put(site.spool, number, "digest")
    advance(site, 3650 * DAY)
    assert run(site, SpaceState.BLACK) == 0 and quarantine.path(site.spool, number).exists()
    site.ledger.discard([number], "anna", "sent again by the scanner")
    assert run(site) == 1
    assert os.listdir(site.spool.quarantine) == []
    assert balance(site.spool, site.ledger, deep=True).balanced


@pytest.mark.parametrize("unlinked", [False, True])
def test_a_crash_between_the_row_and_the_deletion_is_finished(site: Filled, unlinked: bool) -> None:
    [number] = site.complete()
    assert site.ledger.retiring([number]) == [number]
    if unlinked:
        site.spool.object_path(number).unlink()
    assert Retirer(site.spool, site.ledger).finish() == 1
    assert not site.there(number) and site.state(number) == "retired"
    assert Retirer(site.spool, site.ledger).finish() == 0


class Failing:
    """`os` whose unlink fails for some numbers."""

    def __init__(self, error: int) -> None:
        self.error = error

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def unlink(self, path: object) -> None:
        raise OSError(self.error, os.strerror(self.error))


def test_a_file_that_cannot_be_deleted_is_not_called_gone(site: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    [number] = site.complete()
    advance(site, 31 * DAY)
    with monkeypatch.context() as patch:
        patch.setattr(retire, "os", Failing(5))
        with pytest.raises(SpoolFault):
            run(site)
    assert site.state(number) == "confirmed" and site.there(number)
    assert Retirer(site.spool, site.ledger).finish() == 1
    assert site.state(number) == "retired"


def test_the_row_is_durable_before_the_file_goes_and_the_folder_synced_before_the_last_row(
        site: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    site.complete()
    advance(site, 31 * DAY)
    order: list[str] = []

    def watched(name: str, real: object) -> object:
        def call(*args: object) -> object:
            order.append(name)
            return real(*args)  # type: ignore[operator]
        return call

    monkeypatch.setattr(site.ledger, "retiring", watched("retiring", site.ledger.retiring))
    monkeypatch.setattr(site.ledger, "retired", watched("retired", site.ledger.retired))
    monkeypatch.setattr(retire.os, "unlink", watched("unlink", os.unlink))
    monkeypatch.setattr(retire, "sync_folder", watched("sync", retire.sync_folder))
    run(site)
    assert [order.index(step) for step in ("retiring", "unlink", "sync")] == [0, 1, 2]
    assert order.index("retired") > max(n for n, step in enumerate(order) if step == "unlink")


def test_a_duplicate_goes_when_its_twin_was_confirmed(site: Filled) -> None:
    [first] = site.accept(uid="1.2", content=b"same")
    [second] = site.accept(uid="1.2", content=b"same")
    site.route()
    assert site.send() == [first], "the twin is still on its way: nothing to send"
    advance(site, 100 * DAY)
    assert run(site) == 0 and site.there(second)
    site.confirm()
    advance(site, 31 * DAY)
    assert run(site) == 2 and not site.there(second)


def test_slots_of_numbers_that_will_never_be_an_object_are_swept(site: Filled) -> None:
    first = site.ledger.grant(site.owner, 3)
    for number in range(first, first + 3):
        site.spool.object_path(number).touch()
    site.ledger.void([(first, "unused"), (first + 1, "aborted")])
    retirer = Retirer(site.spool, site.ledger)
    assert retirer.sweep() == 2
    assert [site.there(n) for n in range(first, first + 3)] == [False, False, True], "an open number keeps its slot"
    assert retirer.sweep() == 0
    assert balance(site.spool, site.ledger, deep=True).balanced


def test_a_remnant_goes_only_when_its_uid_was_acknowledged_since(site: Filled) -> None:
    [number] = site.accept(uid="1.2.9")
    [other] = site.accept(uid="1.2.8")
    for remnant in (number, other):
        quarantine.put(site.spool, remnant, "remnant", remnant=True)
    retirer = Retirer(site.spool, site.ledger)
    assert retirer.drop_remnants() == []
    advance(site, 1.0)
    site.accept(uid="1.2.9")
    assert retirer.drop_remnants() == [number]
    assert quarantine.path(site.spool, other).exists()
