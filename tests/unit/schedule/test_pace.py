"""Back-off, breaker, rate limit, windows of the day, fail-over."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.model import Priority
from appliance.schedule import (
    BREAKER_FAULTS,
    SECOND,
    Backoff,
    Breaker,
    Gate,
    TokenBucket,
    fail_over,
    hours,
    may_send,
    within,
)

BACKOFF = Backoff()
CAP = 300 * SECOND


@pytest.mark.requirement("Delivery: back off 1 s x 2 with full jitter, cap 300 s")
def test_ceilings_double_up_to_the_cap() -> None:
    assert [BACKOFF.ceiling(n) // SECOND for n in range(1, 11)] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300]
    assert BACKOFF.ceiling(10**9) == CAP
    assert BACKOFF.delay(3, 0.5) == 2 * SECOND


@given(st.integers(1, 10**6), st.floats(0, 1), st.floats(0, 1))
def test_delays_are_bounded_and_grow_with_failures_and_with_the_random_number(failures: int, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert BACKOFF.floor <= BACKOFF.delay(failures, low) <= BACKOFF.delay(failures, high) <= CAP
    assert BACKOFF.delay(failures, low) <= BACKOFF.delay(failures + 1, low)


@pytest.mark.requirement("Delivery: breaker after 3, half-open")
def test_the_breaker_trips_at_the_third_fault_and_opens_by_a_probe() -> None:
    breaker, now = Breaker(), 0
    for nth in range(1, BREAKER_FAULTS + 1):
        assert breaker.gate(now) is Gate.OPEN
        breaker = breaker.after_fault(now, 1.0, BACKOFF)
        assert breaker.gate(now) is Gate.SHUT
        now += BACKOFF.ceiling(nth)
    assert breaker.gate(now - 1) is Gate.SHUT
    assert breaker.gate(now) is Gate.PROBE
    probing = breaker.probe()
    assert probing.gate(now) is Gate.SHUT                              # one association only
    failed = probing.after_fault(now, 1.0, BACKOFF)
    assert (failed.faults, failed.gate(now), failed.gate(now + 8 * SECOND)) == (4, Gate.SHUT, Gate.PROBE)
    assert probing.after_success().gate(now) is Gate.OPEN
    assert probing.after_nothing().gate(now) is Gate.PROBE
    assert failed.retry_now().gate(now) is Gate.PROBE


def test_associations_that_fail_together_count_once() -> None:
    breaker = Breaker()
    for _ in range(16):
        breaker = breaker.after_fault(0, 1.0, BACKOFF)
    assert breaker.faults == 1


def test_since_when_it_is_down_is_kept_until_it_works() -> None:
    breaker = Breaker().after_fault(5, 1.0, BACKOFF).after_fault(9 * SECOND, 1.0, BACKOFF)
    assert breaker.down_for(25) == 20 and breaker.after_success().down_for(99) == 0


@given(st.lists(st.tuples(st.integers(0, 400 * SECOND), st.floats(0, 1)), max_size=80))
@pytest.mark.requirement("Delivery: for ever")
def test_a_breaker_always_comes_back_within_the_cap(story: list[tuple[int, float]]) -> None:
    breaker, now = Breaker(), 0
    for passed, random in story:
        now += passed
        if breaker.gate(now) is Gate.PROBE:
            breaker = breaker.probe()
        breaker = breaker.after_fault(now, random, BACKOFF)
        assert not breaker.probing
        assert breaker.gate(now + CAP) is not Gate.SHUT


@pytest.mark.requirement("Delivery: fail-over")
def test_fail_over_only_after_its_time_and_only_to_one_that_works() -> None:
    down = Breaker()
    for n in range(3):
        down = down.after_fault(n * 10 * SECOND, 1.0, BACKOFF)
    assert not fail_over(down, 299 * SECOND, 300 * SECOND, Breaker())
    assert fail_over(down, 300 * SECOND, 300 * SECOND, Breaker())
    assert not fail_over(down, 300 * SECOND, 300 * SECOND, down)
    assert not fail_over(down, 300 * SECOND, 300 * SECOND, None)
    assert not fail_over(Breaker().after_fault(0, 1.0, BACKOFF), 900 * SECOND, 0, Breaker())


@pytest.mark.requirement("Delivery: rate limit, trauma exempt")
def test_a_large_object_passes_and_the_next_one_waits_for_what_it_cost() -> None:
    bucket = TokenBucket(1000, now=0)
    assert bucket.wait(0, Priority.ROUTINE) == 0
    bucket.spend(0, 11_000, Priority.ROUTINE)
    assert bucket.wait(0, Priority.ROUTINE) == pytest.approx(10 * SECOND, abs=2)
    assert bucket.wait(0, Priority.TRAUMA) == 0
    bucket.spend(0, 10**9, Priority.TRAUMA)
    assert bucket.wait(10 * SECOND + 2, Priority.ROUTINE) == 0


def test_no_rate_is_no_limit_and_a_new_one_counts_from_now() -> None:
    bucket = TokenBucket(0, now=0)
    bucket.spend(0, 10**12, Priority.ROUTINE)
    assert bucket.wait(0, Priority.ROUTINE) == 0
    bucket.change(1000, 0)
    bucket.spend(0, 2000, Priority.ROUTINE)
    assert bucket.wait(0, Priority.ROUTINE) == pytest.approx(SECOND, abs=2)
    bucket.change(10, 0)
    assert bucket.wait(0, Priority.ROUTINE) == pytest.approx(SECOND, abs=2)
    bucket.change(0, 0)
    assert bucket.wait(0, Priority.ROUTINE) == 0


@given(st.integers(1, 10**9), st.lists(st.tuples(st.integers(0, 10**8), st.integers(0, 5 * SECOND)), max_size=50))
def test_the_rate_holds_over_any_stretch_of_time(rate: int, sends: list[tuple[int, int]]) -> None:
    bucket = TokenBucket(rate, now=0)
    now = sent = 0
    last = 0
    for length, pause in sends:
        now += pause + bucket.wait(now + pause, Priority.ROUTINE)
        assert bucket.wait(now, Priority.ROUTINE) == 0
        bucket.spend(now, length, Priority.ROUTINE)
        sent, last = sent + length, length
    assert sent - last <= rate * (now / SECOND + 1) * 1.000001 + 1


@pytest.mark.requirement("I7: time-of-day rules are unknown while the clock is not trusted")
def test_windows_of_the_day() -> None:
    night = [hours("19:00-06:30")]
    assert night == [(1140, 390)]
    windows = [w for w in night if w is not None]
    assert [within(windows, m) for m in (0, 389, 390, 1139, 1140, 1439)] == [True, True, False, False, True, True]
    assert within(windows, None) is None and within([], None) is True
    assert within([(480, 480)], 3) is True
    assert may_send(windows, None, Priority.BACKFILL)
    assert not may_send(windows, 720, Priority.STAT) and may_send(windows, 720, Priority.TRAUMA)


@pytest.mark.parametrize("text", ["", "19-20", "25:00-01:00", "24:00-01:00", "01:60-02:00", "1:00", "01:00-24:30",
                                  "٠١:00-02:00"])
def test_what_is_no_window(text: str) -> None:
    assert hours(text) is None


def test_spellings_of_windows() -> None:
    assert hours(" 8:00 - 24:00 ") == (480, 1440)
    assert hours("08:00..09:00") == (480, 540)
