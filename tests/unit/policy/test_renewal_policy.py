"""When certificates are renewed and lists fetched, and how long to wait after a failure."""

from __future__ import annotations

from dataclasses import replace

import pytest

from appliance.model import Severity
from appliance.policy.certificates import DAY, SECOND, Facts
from appliance.policy.renewal import (
    HOUR,
    LIST_LEAST,
    LIST_PERIOD,
    LONGEST_PAUSE,
    MINUTE,
    SHORTEST_PAUSE,
    asked_for,
    due,
    list_pause,
    pause,
    renewed_from,
    severity,
)

NOW = 1_800_000_000_000_000_000
LEAF = Facts("CN=box", "CN=ca", "1", "ab" * 32, NOW, NOW + 90 * DAY, ("dns:box.example.org",))


@pytest.mark.parametrize(("days", "life", "at"), [
    (0, 90, 60), (0, 3, 2), (20, 90, 70), (60, 90, 45), (0.5, 3, 2.5),
])
def test_renewal_begins_at_a_third_of_its_life_or_as_configured_never_before_half(days: float, life: int, at: float) -> None:
    leaf = replace(LEAF, not_after=NOW + life * DAY)
    assert renewed_from(leaf, days) == NOW + at * DAY
    assert due(leaf, (), days, int(NOW + at * DAY) - 1) == ""
    assert "time" in due(leaf, (), days, int(NOW + at * DAY))


def test_names_that_the_configuration_has_now_are_a_reason() -> None:
    assert due(LEAF, ("box.example.org",), 0, NOW) == ""
    assert "10.0.0.7" in due(LEAF, ("box.example.org", "10.0.0.7"), 0, NOW)
    assert due(None, (), 0, NOW)


def test_pauses_double_up_to_six_hours_and_are_spread() -> None:
    waits = [pause(n, 0, 0.999) for n in range(1, 15)]
    assert waits == sorted(waits)
    assert waits[0] <= MINUTE and waits[-1] <= LONGEST_PAUSE
    assert pause(1000, 0, 0.0) == LONGEST_PAUSE // 2
    assert pause(3, 0, 0.0) < pause(3, 0, 0.5) < pause(3, 0, 0.99)


@pytest.mark.parametrize("room", [8 * HOUR, HOUR, MINUTE, SECOND])
def test_what_lives_shortly_is_tried_often_enough(room: int) -> None:
    """At least eight times before its end, however often it failed; and never without a pause."""
    assert SHORTEST_PAUSE // 2 <= pause(50, room, 0.99) <= max(SHORTEST_PAUSE, room // 8)


def test_what_a_server_asks_for_is_done_within_reason() -> None:
    assert asked_for(120) == 120 * SECOND
    assert asked_for(0) == asked_for(-5) == SHORTEST_PAUSE
    assert asked_for(1e9) == DAY


def test_a_renewal_that_fails_is_critical_when_little_time_is_left() -> None:
    assert severity(None, 0, NOW) is Severity.CRITICAL
    assert severity(LEAF, 0, NOW + 61 * DAY) is Severity.WARNING
    assert severity(LEAF, 0, NOW + 79 * DAY) is Severity.WARNING
    assert severity(LEAF, 0, NOW + 80 * DAY) is Severity.CRITICAL


@pytest.mark.parametrize(("left", "expected"), [
    (7 * DAY, LIST_PERIOD), (4 * HOUR, 2 * HOUR), (-DAY, LIST_LEAST), (MINUTE, LIST_LEAST)])
def test_a_list_is_fetched_well_before_it_runs_out(left: int, expected: int) -> None:
    assert list_pause(NOW + left, NOW, 0.0) == expected
    assert 0.9 * expected <= list_pause(NOW + left, NOW, 0.999) < expected
    assert list_pause(0, NOW, 0.0) == LIST_PERIOD
