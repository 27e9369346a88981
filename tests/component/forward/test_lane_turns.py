"""Which object goes next, when and how fast: lanes on a manual clock, with a real ledger and fake destinations."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import Any

import pytest

from appliance.clock import ManualClock
from appliance.config.settings import Destination
from appliance.forward import desk as desks
from appliance.forward.desk import Desk
from appliance.forward.pace import Pace
from appliance.forward.work import Batch
from appliance.model import Priority
from appliance.spool.rows import Queued
from tests.support.lanes import Yard
from tests.support.ledgers import SOURCE

T, S, R, B = Priority


@pytest.mark.requirement("Delivery: preemption at an instance boundary")
def test_a_trauma_object_that_arrives_in_mid_window_goes_next(yard: Yard) -> None:
    lane = yard.lane()
    routine = yard.put(32)
    site = yard.sites["pacs"]
    urgent: list[int] = []

    def arrive(row: Queued) -> None:
        if row.number == routine[4]:
            urgent.extend(yard.put(2, priority=T, study="crash"))
    site.before = arrive
    writes = yard.count_writes()
    yard.turn(lane)
    assert site.stored == routine[:5] + urgent + routine[5:]
    assert len(writes) <= 2 + 3 + 2                                # the window, the arrival, the preemption
    assert {d.attempts for n in routine for d in yard.ledger.deliveries(n)} == {1}
    yard.check()


@pytest.mark.requirement("Delivery: a tenth for the lowest class")
def test_a_flood_of_trauma_objects_does_not_stop_the_rest(yard: Yard) -> None:
    lane = yard.lane()
    routine = yard.put(32)
    site = yard.sites["pacs"]
    arrivals = iter(range(300))

    def arrive(row: Queued) -> None:
        if next(arrivals, None) is not None:
            yard.put(1, priority=T, study="flood")
    site.before = arrive
    yard.turn(lane, 5000)
    assert len(site.stored) == 332
    positions = [site.stored.index(n) for n in routine]
    assert max(positions) < 330
    assert all(b - a <= 12 for a, b in itertools.pairwise(positions))


@pytest.mark.requirement("Delivery: round robin by study")
def test_studies_take_turns_and_a_late_small_study_does_not_wait_for_a_large_one(yard: Yard) -> None:
    lane = yard.lane()
    yard.put(200, study="large")
    small = yard.put(3, study="small")
    site = yard.sites["pacs"]
    yard.turn(lane)
    assert max(site.stored.index(n) for n in small) <= 6


def test_forwarding_begins_while_a_study_is_still_arriving(yard: Yard) -> None:
    lane = yard.lane()
    first = yard.put(2, study="growing")
    yard.turn(lane)
    assert yard.sites["pacs"].stored == first
    more = yard.put(2, study="growing")
    yard.turn(lane)
    assert yard.sites["pacs"].stored == first + more


@pytest.mark.requirement("Delivery: rate limit, trauma exempt")
def test_a_rate_limit_holds_and_trauma_does_not_wait(yard: Yard) -> None:
    lane = yard.lane(Destination(id="pacs", rate_bytes=1_000_000))
    numbers = yard.put(100, length=1_000_000)
    site = yard.sites["pacs"]
    yard.turn(lane)
    assert [yard.delivery(n) for n in numbers].count("sending") <= 12  # no more is claimed than soon goes
    yard.live(lane, 20)
    assert 18 <= len(site.stored) <= 23
    urgent = yard.put(5, priority=T, length=50_000_000, study="crash")
    yard.live(lane, 0.01)
    assert set(urgent) <= set(site.stored)
    yard.live(lane, 10)
    assert 33 <= len(site.stored) <= 38
    yard.live(lane, 90)
    assert sorted(site.stored) == numbers + urgent
    yard.check()


def test_the_total_rate_is_shared_by_destinations(yard: Yard) -> None:
    yard.total.change(1_000_000, yard.manual.boot_ns())
    lanes = [yard.lane("a"), yard.lane("b")]
    yard.put(50, "a", "b", length=1_000_000)
    for _ in range(20):
        for lane in lanes:
            yard.turn(lane)
        yard.manual.advance(1)
    assert 18 <= sum(len(site.stored) for site in yard.sites.values()) <= 24


@pytest.mark.requirement("Delivery: send windows by hour, trauma exempt")
@pytest.mark.requirement("I7")
def test_outside_its_hours_only_trauma_is_sent_and_a_clock_that_is_not_trusted_opens_them(yard: Yard) -> None:
    lane = yard.lane(Destination(id="pacs", hours=("19:00-06:30",)))
    routine = yard.put(2)
    urgent = yard.put(1, priority=T)
    site = yard.sites["pacs"]
    yard.minute = 12 * 60
    pause = yard.turn(lane)
    assert site.stored == urgent and 0 < pause <= 60
    yard.minute = None
    yard.tell()
    yard.turn(lane)
    assert site.stored == urgent + routine
    more = yard.put(3)
    yard.minute = 6 * 60 + 29

    def dawn(row: Queued) -> None:
        yard.minute = 6 * 60 + 30
    site.before = dawn
    yard.turn(lane)
    assert site.stored[-1] == more[0] and {yard.delivery(n) for n in more[1:]} == {"waiting"}


@pytest.mark.requirement("I7")
def test_a_clock_that_is_set_while_a_window_is_shut_is_noticed_soon(yard: Yard) -> None:
    """The lane slept until the window would have opened by the clock as it was: for an hour, however far it had been wrong."""
    lane = yard.lane(Destination(id="pacs", hours=("19:00-06:30",)))
    numbers = yard.put(2)
    yard.minute = 12 * 60
    pause = yard.turn(lane)
    lane.event.clear()
    yard.minute = 19 * 60                        # nobody is told
    yard.manual.advance(pause)
    assert pause <= 60
    yard.turn(lane)
    assert yard.sites["pacs"].stored == numbers


@pytest.mark.requirement("Delivery: order of arrival for one UID with two contents")
def test_two_contents_of_one_uid_go_in_order_of_arrival(yard: Yard) -> None:
    lane = yard.lane()
    yard.sites["pacs"].break_down()
    first, second = yard.take("1.2.3", "a"), yard.take("1.2.3", "b")
    yard.tell()
    yard.live(lane, 60)
    yard.sites["pacs"].down = None
    yard.live(lane, 301)
    yard.tell()
    yard.live(lane, 1)
    assert yard.sites["pacs"].stored == [first, second]


def test_an_order_that_was_missed_is_found_by_counting(yard: Yard) -> None:
    desk = yard.desk()
    lane = yard.lane()
    numbers = yard.put(4)
    desk._more, desk._after = False, 10**9                         # as if the queue had been read past them
    yard.turn(lane)
    assert not yard.sites["pacs"].stored
    desk.recount()
    yard.turn(lane)
    assert yard.sites["pacs"].stored == numbers
    desk.recount()
    assert not desk._more


class _Endless:
    """A ledger with a hundred thousand deliveries, that keeps none of them."""

    def __init__(self, count: int) -> None:
        self.count = count

    def load(self, destination: str, after: int, limit: int) -> list[Queued]:
        return [Queued(n, destination, n, R, f"study {n // 100}", 500_000, b"1.2", b"1.2.3", "1.2", b"", 0, 0, 0, 0, SOURCE)
                for n in range(after + 1, min(after + limit, self.count) + 1)]

    def claim(self, destination: str, numbers: list[int]) -> list[int]:
        return numbers


@pytest.mark.requirement("memory is bounded with 100,000 waiting")
def test_a_hundred_thousand_waiting_objects_cost_a_desk_a_few_megabytes() -> None:
    clock = ManualClock()
    ledger: Any = _Endless(100_000)
    desk = Desk(Destination(id="pacs"), ledger, clock, Pace(0, 0), lambda: 1.0, lambda: None)
    tracemalloc.start()
    try:
        offer = desk.next()
        assert isinstance(offer, Batch) and len(offer.objects) == 32
        first = desk.waiting()
        assert first <= desks.PAGE * desks.PAGES_AT_ONCE           # sending begins before all of it is read
        while desk._more:
            desk.next()
        assert tracemalloc.get_traced_memory()[0] < 6_000_000
    finally:
        tracemalloc.stop()
    assert desk.waiting() > 95_000


def test_windows_are_no_larger_than_the_destination_says(yard: Yard) -> None:
    desk = yard.desk(Destination(id="pacs", window=5))
    yard.put(20)
    offer = desk.next()
    assert isinstance(offer, Batch) and len(offer.objects) == 5
