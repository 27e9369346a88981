"""The machine's clocks, and that timers run on the one that nobody can set (I7)."""

from __future__ import annotations

import time

import pytest

from appliance.clock import SystemClock


@pytest.mark.requirement("I7")
def test_timers_count_from_the_boot_and_not_by_the_wall_clock() -> None:
    """CLOCK_BOOTTIME goes on in suspend, which CLOCK_MONOTONIC does not, and is never set."""
    clock = SystemClock()
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    now = clock.boot_ns()
    assert before <= now <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@pytest.mark.requirement("I7")
def test_a_stepped_wall_clock_moves_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SystemClock()
    before, real = clock.boot_ns(), time.time_ns
    for step in (-10, 10):
        monkeypatch.setattr(time, "time_ns", lambda s=step: real() + s * 365 * 86400 * 10**9)
        assert 0 <= clock.boot_ns() - before < 60 * 10**9
        assert clock.trusted() is (step > 0)
