"""Lanes and desks, step by step on a manual clock, with a real ledger and fake destinations."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest

from appliance.clock import SECOND
from appliance.config.settings import Destination
from appliance.errors import DeliveryError, LedgerFault, ObjectDamaged, SpoolFault
from appliance.model import DeliveryState, Fault, Outcome, Priority
from appliance.spool.rows import Queued
from tests.support.lanes import Yard, fault

DAY = 86400.0


def test_a_window_costs_two_transactions_and_is_claimed_before_it_is_touched(yard: Yard) -> None:
    lane = yard.lane()
    numbers = yard.put(64)
    site = yard.sites["pacs"]
    site.before = lambda row: site.times.append(yard.delivery(row.number) == "sending")
    site.times.clear()
    writes = yard.count_writes()
    yard.turn(lane)
    assert site.stored == numbers
    assert len(writes) == 4                                        # two windows of 32: claim and outcomes
    assert all(site.times)
    assert {yard.delivery(n) for n in numbers} == {"sent"}
    yard.check()


@pytest.mark.requirement("Delivery: back-off, breaker after 3, half-open by one C-ECHO and one object")
def test_a_destination_that_is_down_is_asked_by_echo_and_then_gets_one_object(yard: Yard) -> None:
    lane = yard.lane()
    numbers = yard.put(40)
    site = yard.sites["pacs"]
    site.break_down()
    yard.live(lane, 3600)
    waits = [round((b - a) / SECOND) for a, b in itertools.pairwise(site.times)]
    assert waits[:10] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]
    assert max(waits) <= 300 and not site.tried
    assert site.echoes == site.connects - 3                        # three real attempts, then only C-ECHO
    assert yard.desks["pacs"].condition().state == "down"
    attempts = {n: yard.ledger.deliveries(n)[0].attempts for n in numbers}
    assert max(attempts.values()) == 3
    site.down = None
    seen: list[int] = []
    site.before = lambda row: seen.append(site.connects)
    yard.live(lane, 301)
    assert sorted(site.stored) == numbers
    assert Counter(seen).most_common()[-1][1] == 1                 # the probe carried one object
    assert yard.desks["pacs"].condition().state == "up"
    assert all(not yard.ledger.deliveries(n)[0].faults for n in numbers)


@pytest.mark.requirement("Delivery: for ever")
@pytest.mark.requirement("Goal 3: the WAN may be down")
def test_an_outage_of_seven_days_loses_nothing_and_fills_no_ledger(yard: Yard) -> None:
    lane = yard.lane()
    yard.put(50)
    site = yard.sites["pacs"]
    site.break_down()
    yard.live(lane, 600)
    events = yard.ledger.head()[0]
    looks = yard.live(lane, 7 * DAY)
    assert looks <= 7 * DAY / 300 + 10                             # full back-off: a look each 300 s
    assert yard.ledger.head()[0] == events                         # probing writes nothing
    late = yard.put(10)
    site.down = None
    yard.live(lane, 301)
    assert len(site.stored) == 60 and set(late) <= set(site.stored)
    yard.check()


def test_a_probe_that_succeeds_with_nothing_to_send_opens_the_gate(yard: Yard) -> None:
    lane = yard.lane()
    numbers = yard.put(3)
    site = yard.sites["pacs"]
    site.break_down()
    yard.live(lane, 30)
    yard.ledger.discard(numbers, "anna", "test")
    site.down = None
    yard.live(lane, 301)
    assert yard.desks["pacs"].condition().state == "up" and not site.stored


@pytest.mark.requirement("Delivery: configuration fault")
def test_a_configuration_fault_backs_off_for_ever_and_says_what_to_mend(yard: Yard) -> None:
    lane = yard.lane()
    number, = yard.put()
    site = yard.sites["pacs"]
    site.break_down(Fault.CONFIGURATION, "does not recognise our calling title — add it")
    yard.live(lane, DAY)
    condition = yard.desks["pacs"].condition()
    assert (condition.fault, condition.state) == (Fault.CONFIGURATION, "down") and "calling title" in condition.text
    assert yard.delivery(number) == "waiting"
    assert yard.ledger.deliveries(number)[0].text == condition.text  # the ledger bears witness
    site.down = None
    yard.live(lane, 301)
    assert site.stored == [number]


@pytest.mark.requirement("Delivery: object fault, five tries while others succeed, then parked")
def test_an_object_at_fault_is_parked_after_five_tries_while_others_succeed(yard: Yard) -> None:
    lane = yard.lane()
    bad, *good = yard.put(12)
    site = yard.sites["pacs"]
    site.answer = lambda row: Outcome(row.number, Fault.OBJECT, 0xC000, "cannot understand") if row.number == bad else None
    yard.live(lane, 120)
    assert site.stored == good
    assert site.tried.count(bad) == 5
    parked, = yard.ledger.stuck(DeliveryState.PARKED)
    assert parked.number == bad and "cannot understand" in parked.reason
    yard.ledger.requeue([bad], "anna")
    yard.tell()
    site.answer = lambda row: None
    yard.turn(lane)
    assert site.stored[-1] == bad
    yard.check()


@pytest.mark.requirement("Delivery: object fault, only while others succeed")
def test_nothing_is_parked_and_nobody_is_hammered_where_nothing_gets_through(yard: Yard) -> None:
    lane = yard.lane()
    numbers = yard.put(300, study="a")
    site = yard.sites["pacs"]
    site.answer = fault(Fault.OBJECT, "processing failure", 0x0110)
    yard.live(lane, 3600)
    assert not yard.ledger.stuck(DeliveryState.PARKED)
    assert len(site.tried) < 200                                   # not once each, let alone five times
    assert yard.desks["pacs"].condition().state == "down"
    site.answer = lambda row: None
    yard.live(lane, 600)
    assert sorted(site.stored) == numbers


@pytest.mark.requirement("Delivery: an object fault never blocks the queue")
def test_many_refused_objects_do_not_keep_a_good_study_waiting(yard: Yard) -> None:
    lane = yard.lane()
    yard.put(400, study="not supported there")
    good = yard.put(40, study="fine")
    site = yard.sites["pacs"]
    site.answer = lambda row: None if row.number in good else Outcome(row.number, Fault.OBJECT, 0x0122, "not supported")
    yard.live(lane, 120)
    assert sorted(site.stored) == good


@pytest.mark.requirement("Delivery: one object never blocks the queue")
def test_an_object_that_an_archive_has_never_room_for_does_not_hold_up_the_others(yard: Yard) -> None:
    lane = yard.lane()
    bad = yard.put(20)[7]
    full = fault(Fault.DESTINATION, "full", 0xA700)
    yard.sites["pacs"].answer = lambda row: full(row) if row.number == bad else None
    yard.put(20, study="t")
    yard.turn(lane)
    yard.live(lane, 3600)
    assert len(yard.sites["pacs"].stored) == 39
    assert 4 <= yard.sites["pacs"].tried.count(bad) <= 30, "for longer and longer, and for ever"
    assert yard.delivery(bad) == "deferred"


def test_an_archive_that_is_full_is_down_after_three_objects(yard: Yard) -> None:
    lane = yard.lane()
    yard.put(20)
    yard.sites["pacs"].answer = lambda row: None if len(yard.sites["pacs"].stored) < 5 else Outcome(
        row.number, Fault.DESTINATION, 0xA700, "full")
    yard.turn(lane)
    assert yard.desks["pacs"].condition().state == "retrying"
    assert len(yard.sites["pacs"].tried) == 8
    yard.live(lane, 600)
    assert yard.desks["pacs"].condition().state == "down"


@pytest.mark.requirement("Delivery: one object never blocks the queue")
def test_an_object_that_breaks_every_association_lets_all_others_pass_and_is_never_given_up(yard: Yard) -> None:
    lane = yard.lane()
    poison, *good = yard.put(100)
    site = yard.sites["pacs"]
    site.answer = lambda row: DeliveryError("closed the connection", fault="destination") if row.number == poison else None
    yard.live(lane, 60)
    assert sorted(site.stored) == good
    yard.live(lane, DAY)
    assert yard.delivery(poison) in ("waiting", "deferred")
    assert 20 < site.tried.count(poison) < DAY / 100
    site.answer = lambda row: None
    yard.live(lane, 700)
    assert site.stored[-1] == poison


@pytest.mark.requirement("Delivery: fail-over")
def test_fail_over_after_its_time_takes_what_waits_but_not_what_a_person_holds(yard: Yard) -> None:
    yard.desk(Destination(id="pacs", failover="other", failover_seconds=300))
    yard.desk("other")
    lane, other = yard.lane("pacs"), yard.lane("other")
    numbers = yard.put(600)
    held, = yard.put()
    yard.ledger.hold([held], "anna", "wrong patient")
    yard.sites["pacs"].break_down()
    yard.live(lane, 290)
    assert yard.desks["pacs"].fail_over(yard.desks["other"]) == 0
    yard.live(lane, 20)
    yard.desks["other"].failed(Fault.DESTINATION, "down too")
    assert yard.desks["pacs"].fail_over(yard.desks["other"]) == 0
    yard.desks["other"].there()
    assert yard.desks["pacs"].fail_over(yard.desks["other"]) == 600
    yard.turn(other)
    assert sorted(yard.sites["other"].stored) == numbers
    assert yard.delivery(held, "pacs") == "held"
    yard.sites["pacs"].down = None
    yard.live(lane, 301)                                           # it is probed although nothing waits there
    assert yard.desks["pacs"].condition().state == "up"
    fresh = yard.put(2)
    assert yard.desks["pacs"].fail_over(yard.desks["other"]) == 0
    yard.turn(lane)
    assert yard.sites["pacs"].stored == fresh
    yard.check()


def test_what_persons_do_to_the_queue_is_taken_up(yard: Yard) -> None:
    lane = yard.lane("pacs")
    other = yard.lane("other")
    numbers = yard.put(5)
    yard.desks["pacs"].next(above=Priority.TRAUMA)                 # loaded, nothing taken
    yard.ledger.hold(numbers[:2], "anna", "look first")
    yard.ledger.requeue([numbers[2]], "anna", to="other")
    yard.ledger.discard([numbers[3]], "anna", "test image")
    yard.tell()
    yard.turn(lane)
    yard.turn(other)
    assert yard.sites["pacs"].stored == [numbers[4]] and yard.sites["other"].stored == [numbers[2]]
    yard.ledger.release(numbers[:2], "anna")
    yard.tell()
    yard.turn(lane)
    assert yard.sites["pacs"].stored == [numbers[4], *numbers[:2]]


def test_what_is_held_while_it_waits_in_a_claimed_window_counts_where_it_was_sent_all_the_same(yard: Yard) -> None:
    lane = yard.lane()
    numbers = yard.put(3)
    site = yard.sites["pacs"]
    site.before = lambda row: yard.ledger.hold([numbers[2]], "anna", "late") and None
    yard.turn(lane)
    assert site.stored == numbers and yard.delivery(numbers[2]) == "sent"


@pytest.mark.requirement("I5")
def test_a_damaged_object_is_quarantined_and_its_twin_steps_in(yard: Yard) -> None:
    lane = yard.lane()
    number = yard.take("1.2.3", "same")
    twin = yard.take("1.2.3", "same")
    others = yard.put(3)
    site = yard.sites["pacs"]
    site.answer = lambda row: ObjectDamaged(number, "digest differs") if row.number == number else None
    yard.live(lane, 10)
    assert sorted(site.stored) == sorted([twin, *others])
    assert yard.state(number) == "quarantined"
    assert yard.desks["pacs"].condition().state == "up"
    yard.check()


def test_when_we_cannot_read_the_lane_backs_off_and_nothing_is_lost(yard: Yard) -> None:
    lane = yard.lane()
    numbers = yard.put(5)
    site = yard.sites["pacs"]
    site.answer = lambda row: SpoolFault("too many open files")
    yard.live(lane, 30)
    assert "too many open files" in yard.desks["pacs"].condition().text
    assert {yard.delivery(n) for n in numbers} == {"waiting"}
    site.answer = lambda row: None
    yard.live(lane, 301)
    assert sorted(site.stored) == numbers


def test_a_fault_of_the_program_costs_one_object_its_tries_and_nobody_else(yard: Yard) -> None:
    lane = yard.lane()
    bad, *good = yard.put(10)
    site = yard.sites["pacs"]

    def answer(row: Queued) -> Any:
        if row.number == bad:
            raise ZeroDivisionError("bug")
        return None
    site.answer = answer
    yard.live(lane, 300)
    assert sorted(site.stored) == good
    parked, = yard.ledger.stuck(DeliveryState.PARKED)
    assert parked.number == bad and "ZeroDivisionError" in parked.reason
    yard.check()


def test_a_transport_without_outcomes_is_no_busy_loop(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    lane = yard.lane()
    yard.put(3)
    monkeypatch.setattr(lane._transport, "send", lambda batch, emit: None)
    assert yard.live(lane, 60) < 20
    assert yard.desks["pacs"].condition().state == "down"


@pytest.mark.requirement("I6")
def test_while_the_ledger_cannot_be_written_nothing_is_sent_and_what_is_known_is_kept(yard: Yard,
                                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    lane = yard.lane()
    numbers = yard.put(3)
    site = yard.sites["pacs"]
    broken = False
    attempt = yard.ledger._attempt

    def write(work: Any) -> Any:
        if broken:
            raise LedgerFault("disk I/O error")
        return attempt(work)
    monkeypatch.setattr(yard.ledger, "_attempt", write)

    def fail(row: Queued) -> None:
        nonlocal broken
        broken = True
    site.before = fail
    assert yard.turn(lane) > 0
    assert site.stored == numbers                                  # claimed before; the outcomes are not durable yet
    assert yard.delivery(numbers[0]) == "sending"
    yard.live(lane, 300)
    assert site.stored == numbers
    broken = False
    site.before = lambda row: None
    yard.live(lane, 61)
    assert {yard.delivery(n) for n in numbers} == {"sent"} and site.stored == numbers
    more = yard.put(2)
    broken = True
    yard.live(lane, 300)
    assert site.stored == numbers
    broken = False
    yard.live(lane, 61)
    assert site.stored == numbers + more
    yard.check()


@pytest.mark.requirement("Delivery: two crashes park")
def test_claims_of_a_dead_forwarder_wait_again_and_two_deaths_on_one_object_park_it(yard: Yard) -> None:
    lane = yard.lane()
    numbers = yard.put(3)
    site = yard.sites["pacs"]

    def die(row: Queued) -> None:
        if row.number == numbers[1]:
            raise KeyboardInterrupt
    site.before = die
    for death in range(2):
        with pytest.raises(KeyboardInterrupt):
            yard.turn(lane)
        yard.reopen()
        yard.desks.clear()
        recovered = yard.ledger.unclaim_after_crash()
        assert numbers[1] in {number for number, _, _ in recovered}
        lane = yard.lane()
        assert yard.delivery(numbers[1]) == ("parked" if death else "waiting")
    yard.turn(lane)
    assert yard.delivery(numbers[1]) == "parked"


def test_outcomes_are_durable_after_some_seconds_however_long_the_window(yard: Yard) -> None:
    lane = yard.lane()
    numbers = yard.put(10)
    site = yard.sites["pacs"]
    seen: list[str] = []

    def slow(row: Queued) -> None:
        yard.manual.advance(6)
        seen.append(yard.delivery(numbers[0]))
    site.before = slow
    yard.turn(lane)
    assert seen[:4] == ["sending", "sending", "sent", "sent"]


def test_an_idle_association_is_ended_after_its_linger(yard: Yard) -> None:
    lane = yard.lane(Destination(id="pacs", linger_seconds=2))
    yard.put(1)
    site = yard.sites["pacs"]
    assert yard.turn(lane) == pytest.approx(2)
    yard.manual.advance(1)
    yard.put(1)
    assert yard.turn(lane) == pytest.approx(2) and site.closes == 0
    yard.manual.advance(2)
    assert yard.turn(lane) > 1000 and site.closes == 1


def test_a_lane_that_leaves_gives_back_what_it_did_not_touch(yard: Yard) -> None:
    lane = yard.lane()
    numbers = yard.put(10)
    site = yard.sites["pacs"]
    site.before = lambda row: lane.leave() if row.number == numbers[2] else None
    while lane.guarded_step() is not None:
        pass
    assert site.stored == numbers[:3]
    assert {yard.delivery(n) for n in numbers[3:]} == {"waiting"}
    successor = yard.lane()
    yard.turn(successor)
    assert site.stored == numbers


def test_lanes_of_one_destination_share_its_work(yard: Yard) -> None:
    entry = Destination(id="pacs", associations=4)
    lanes = [yard.lane(entry) for _ in range(4)]
    yard.put(200)
    lanes[0].step()
    assert len(yard.sites["pacs"].stored) == entry.window
    for lane in lanes[1:]:                                         # each tries its association with one object
        lane.step()
    assert len(yard.sites["pacs"].stored) == entry.window + 3
    for lane in lanes:
        lane.step()
    assert entry.window + 3 + 4 * 20 < len(yard.sites["pacs"].stored) < 200
    assert len(set(yard.sites["pacs"].stored)) == len(yard.sites["pacs"].stored)
    yard.turn(lanes[0])
    assert len(yard.sites["pacs"].stored) == 200


def test_only_one_lane_probes(yard: Yard) -> None:
    entry = Destination(id="pacs", associations=3)
    lanes = [yard.lane(entry) for _ in range(3)]
    yard.put(30)
    site = yard.sites["pacs"]
    site.break_down()
    for _ in range(10):
        for lane in lanes:
            yard.turn(lane)
        yard.manual.advance(301)
    assert site.echoes <= 10
