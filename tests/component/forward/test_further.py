"""A further association with a destination: opened where it helps, never missed where it is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.config.settings import Destination
from appliance.errors import DeliveryError
from appliance.forward.further import AGAIN, SOME, Further
from appliance.forward.lane import Lane
from appliance.model import Fault, Outcome
from appliance.spool.rows import Queued
from tests.support.lanes import Yard

TWO = Destination(id="pacs", associations=2)


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    made = Yard(tmp_path)
    yield made
    made.ledger.close()


def pair(yard: Yard) -> tuple[Lane, Lane]:
    return yard.lane(TWO), yard.lane(TWO)


# --- whose turn it is -------------------------------------------------------------------------------------------------


def test_one_goes_ahead_until_its_association_has_taken_something() -> None:
    further = Further()
    assert further.share("a", 0, 100) == 100
    further.took("a")
    assert further.share("b", 0, 100) == 0 and further.share("a", 0, 100) == 100
    assert further.works("a")
    further.took("a")
    assert further.share("b", 0, 100) == 1
    assert further.works("b") and not further.works("b")
    assert further.share("a", 0, 100) == further.share("b", 0, 100) == 50
    assert further.share("b", 0, 3) == SOME                 # a few more or less are not worth a window of their own


def test_a_few_objects_are_not_worth_an_association() -> None:
    further = Further()
    further.took("a")
    further.works("a")
    further.took("a")
    assert further.share("b", 0, SOME - 1) == 0 and further.share("b", 0, SOME) == 1
    further.asks("a")                                       # it has its hands free
    assert further.share("b", 0, 100) == 0


def test_another_goes_ahead_where_the_first_has_failed() -> None:
    further = Further()
    further.took("a")
    further.ended("a")
    assert further.share("b", 0, 100) == 100


def test_refused_where_none_works_is_a_fault() -> None:
    further = Further()
    further.took("a")
    assert not further.refused("a", 0)
    further.works("a")
    assert not further.refused("a", 0)                      # its own, that broke
    assert further.refused("b", 0)


def test_tries_are_further_and_further_apart() -> None:
    further = Further()
    further.took("a")
    further.works("a")
    further.took("a")
    now = 0
    for nth in range(1, 9):
        assert further.share("b", now, 100) == 1
        assert further.refused("b", now)
        assert further.share("b", now + AGAIN.ceiling(nth) - 1, 100) == 0
        now += AGAIN.ceiling(nth)
    further.works("b")                                      # it was just a busy day
    further.ended("b")
    assert further.refused("b", now) and further.share("b", now + AGAIN.ceiling(1), 100) == 1


# --- lanes ------------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("Delivery: destination fault")
@pytest.mark.parametrize("how", ["no association", "broken off", "rejected for good"])
def test_a_second_association_that_is_refused_is_nobodys_fault(yard: Yard, how: str) -> None:
    first, second = pair(yard)
    numbers = yard.put(100)
    site = yard.sites["pacs"]
    first.step()
    begun = len(site.stored)
    assert begun == TWO.window
    if how == "broken off":
        site.answer = lambda row: DeliveryError("aborted", fault="destination")
    else:
        site.break_down(Fault.CONFIGURATION if how == "rejected for good" else Fault.DESTINATION, "one too many")
    second.step()
    site.down, site.answer = None, lambda row: None
    assert len(site.stored) == begun
    assert yard.desks["pacs"].condition().state == "up"
    tried = site.connects
    for _ in range(3):
        yard.turn(second)                                   # it stands aside
    assert site.connects == tried
    yard.turn(first)
    assert sorted(site.stored) == numbers
    assert all(row.faults == 0 and row.crashes == 0 for number in numbers for row in yard.ledger.deliveries(number))


def test_where_it_is_taken_both_work(yard: Yard) -> None:
    first, second = pair(yard)
    numbers = yard.put(100)
    first.step()
    second.step()
    second.step()
    assert len(yard.sites["pacs"].stored) == TWO.window + 1 + TWO.window
    yard.turn(first)
    assert sorted(yard.sites["pacs"].stored) == numbers


@pytest.mark.requirement("Delivery: destination fault")
def test_a_destination_that_is_down_is_found_out_by_the_one_that_worked(yard: Yard) -> None:
    first, second = pair(yard)
    yard.put(100)
    first.step()
    yard.sites["pacs"].break_down()
    second.step()
    assert yard.desks["pacs"].condition().state == "up"
    first.step()
    assert yard.desks["pacs"].condition().state == "retrying"


@pytest.mark.requirement("Delivery: order of arrival for one UID with two contents")
def test_two_contents_of_one_uid_are_never_under_way_together(yard: Yard) -> None:
    first, second = pair(yard)
    yard.put(TWO.window)
    a = yard.take("1.2.3", "a")
    b = yard.take("1.2.3", "b")
    yard.put(40)
    yard.tell()
    site = yard.sites["pacs"]

    def meanwhile(row: Queued) -> None:
        """While the older one is under way, the other lane takes all it can get."""
        if row.number == a:
            site.before = lambda row: None
            yard.turn(second)
            assert b not in site.stored
            site.answer = lambda row: Outcome(row.number, Fault.OBJECT, 0xC000, "later") if row.number == a else None

    site.before = meanwhile
    yard.turn(first)
    assert b not in site.stored                             # the older one is deferred: the younger waits for it
    site.answer = lambda row: None
    yard.manual.advance(301)
    yard.turn(first)
    yard.tell()
    yard.turn(first)
    assert site.stored.index(a) < site.stored.index(b)
