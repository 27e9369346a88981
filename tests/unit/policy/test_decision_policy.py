"""Object states and what follows an attempt; alarms that follow from values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.model import DeliveryState, Fault, ObjectState, Outcome, Severity
from appliance.policy import (
    backlog,
    backlog_alarm,
    decide_after,
    habit_of,
    object_state,
    parked_alarm,
    removed_alarm,
    silence,
    silence_alarm,
    span,
)
from appliance.policy.alarms import BUCKETS, HABIT_FULL, HABIT_LEARNED, MINUTE, SECOND

S = DeliveryState
HOUR = 60 * MINUTE


@pytest.mark.requirement("I2")
@pytest.mark.parametrize(("deliveries", "state"), [
    ([], ObjectState.WAITING),
    ([(S.WAITING, True)], ObjectState.WAITING),
    ([(S.SENDING, True), (S.CONFIRMED, True)], ObjectState.WAITING),
    ([(S.PARKED, True), (S.SENT, True)], ObjectState.WAITING),
    ([(S.HELD, True)], ObjectState.WAITING),
    ([(S.DROPPED, True), (S.CONFIRMED, True)], ObjectState.WAITING),
    ([(S.SENT, True), (S.CONFIRMED, True)], ObjectState.SENT),
    ([(S.CONFIRMED, True), (S.CONFIRMED, True)], ObjectState.CONFIRMED),
    ([(S.CONFIRMED, True), (S.WAITING, False)], ObjectState.CONFIRMED),
    ([(S.WAITING, False)], ObjectState.WAITING),
    ([(S.CONFIRMED, False)], ObjectState.CONFIRMED),
    ([(S.COVERED, True)], ObjectState.DUPLICATE),
    ([(S.COVERED, True), (S.WAITING, True)], ObjectState.WAITING),
    ([(S.COVERED, True), (S.SENT, True)], ObjectState.SENT),
    ([(S.COVERED, True), (S.CONFIRMED, True)], ObjectState.CONFIRMED),
])
def test_an_object_stands_at_its_least_advanced_required_destination(deliveries: list[tuple[S, bool]],
                                                                     state: ObjectState) -> None:
    assert object_state(deliveries) is state


@given(st.lists(st.tuples(st.sampled_from(S), st.booleans())))
@pytest.mark.requirement("I4")
def test_an_object_is_never_confirmed_while_a_required_delivery_is_not(deliveries: list[tuple[S, bool]]) -> None:
    if object_state(deliveries) is ObjectState.CONFIRMED:
        required = [s for s, r in deliveries if r] or [s for s, _ in deliveries]
        assert set(required) <= {S.CONFIRMED, S.COVERED} and S.CONFIRMED in required


def after(fault: Fault | None, attempts: int = 1, others: bool = True, crashes: int = 0) -> S:
    return decide_after(Outcome(1, fault, text="why"), attempts, others, crashes).state


@pytest.mark.requirement("Delivery: five tries while others succeed")
def test_an_object_at_fault_is_parked_after_five_tries_while_others_succeed() -> None:
    assert [after(Fault.OBJECT, n) for n in range(1, 7)] == [S.DEFERRED] * 4 + [S.PARKED] * 2
    assert after(Fault.OBJECT, 500, others=False) is S.DEFERRED


@given(st.sampled_from([Fault.DESTINATION, Fault.CONFIGURATION]), st.integers(1, 10**9), st.booleans(), st.integers(0, 1))
@pytest.mark.requirement("Delivery: for ever")
def test_a_fault_of_the_destination_never_parks_an_object(fault: Fault, attempts: int, others: bool, crashes: int) -> None:
    assert after(fault, attempts, others, crashes) is S.DEFERRED


@given(st.sampled_from([None, *Fault]), st.integers(1, 100), st.booleans(), st.integers(0, 9))
def test_success_is_sent_and_nothing_else_is(fault: Fault | None, attempts: int, others: bool, crashes: int) -> None:
    assert (after(fault, attempts, others, crashes) is S.SENT) == (fault is None)


@pytest.mark.requirement("Delivery: two crashes park")
def test_two_crashes_park() -> None:
    assert [after(Fault.DESTINATION, crashes=n) for n in range(4)] == [S.DEFERRED, S.DEFERRED, S.PARKED, S.PARKED]


def test_a_parked_object_says_why() -> None:
    assert "why" in decide_after(Outcome(1, Fault.OBJECT, text="why"), 5, True, 0).reason


WEEK = [20 * MINUTE] * 20 + [14 * HOUR]
MONTH = ([*WEEK * 4, *[20 * MINUTE] * 20, 62 * HOUR]) * 4


def test_nights_and_weekends_are_a_habit_and_a_dead_scanner_is_not() -> None:
    habit = habit_of(MONTH)
    assert silence_alarm("ct", habit, 62 * HOUR, HOUR) is None
    alarm = silence_alarm("ct", habit, 100 * HOUR, HOUR)
    assert alarm is not None and alarm.severity is Severity.WARNING and "ct" in alarm.text and "4 d 4 h" in alarm.text


def test_nobody_is_silent_before_its_habit_is_known_or_before_the_minimum() -> None:
    assert silence(habit_of([MINUTE] * (HABIT_LEARNED - 1)), 0) is None
    assert silence(habit_of([MINUTE] * HABIT_LEARNED), HOUR) == HOUR


def test_one_holiday_is_no_habit() -> None:
    plain, holiday = habit_of(MONTH), habit_of([*MONTH, 500 * HOUR])
    assert silence(plain, 0) == silence(holiday, 0)


@given(st.lists(st.integers(0, 1 << 62), min_size=HABIT_LEARNED, max_size=60))
def test_a_gap_that_happened_twice_never_alarms(gaps: list[int]) -> None:
    limit = silence(habit_of(gaps * 2), 0)
    assert limit is not None
    assert all(gap <= limit for gap in gaps if gap < SECOND << BUCKETS)


def test_a_habit_is_bounded_and_a_busy_scanner_keeps_its_weekends() -> None:
    week = [MINUTE] * 1000 + [60 * HOUR]
    habit = habit_of(week * 20)
    assert len(habit) == BUCKETS and sum(habit) <= HABIT_FULL
    assert (silence(habit, 0) or 0) > 60 * HOUR


def test_backlog_levels() -> None:
    levels = (15.0, 240.0, 1440.0)
    assert [backlog(age * MINUTE, levels) for age in (0, 14, 15, 240, 1440, 9999)] == [
        None, None, Severity.NOTICE, Severity.WARNING, Severity.CRITICAL, Severity.CRITICAL]
    assert backlog(MINUTE, ()) is None and backlog(MINUTE, (1.0,) * 5) is Severity.CRITICAL
    alarm = backlog_alarm("pacs", 1, 300 * MINUTE, levels)
    assert alarm is not None and alarm.text == "1 object waits for pacs, the oldest for 5 h" and alarm.key == "backlog:pacs"
    assert backlog_alarm("pacs", 0, 300 * MINUTE, levels) is None


def test_parked_and_forgotten_objects_are_alarms_with_a_mend() -> None:
    assert parked_alarm("pacs", 0, "") is None and removed_alarm("pacs", 0) is None
    parked, removed = parked_alarm("pacs", 1, "cannot understand"), removed_alarm("old", 7)
    assert parked is not None and parked.text == "1 object is parked for pacs: cannot understand"
    assert "requeue pacs" in parked.mend
    assert removed is not None and removed.text.startswith("7 objects are held for old") and "--to" in removed.mend


@pytest.mark.parametrize(("seconds", "text"), [
    (-1, "0 s"), (0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"), (172799, "47 h"),
    (172800, "2 d"), (200000, "2 d 7 h"),
])
def test_durations_are_said_as_people_do(seconds: int, text: str) -> None:
    assert span(seconds * SECOND) == text
