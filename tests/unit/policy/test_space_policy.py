"""Space states: thresholds of the design, quota, who is refused first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.model import Priority, SpaceState
from appliance.policy import fits, retire_age, space, space_state, storage_admitted

GIB = 1 << 30
MIB = 1 << 20


@pytest.mark.requirement("Space")
@pytest.mark.parametrize(("total", "free", "largest", "expected"), [
    (100 * GIB, 20 * GIB, 0, SpaceState.GREEN),
    (100 * GIB, 20 * GIB - 1, 0, SpaceState.AMBER),
    (100 * GIB, 5 * GIB, 0, SpaceState.AMBER),           # max(5 %, min(4 GiB, 10 %)) = 5 GiB
    (100 * GIB, 5 * GIB - 1, 0, SpaceState.RED),
    (60 * GIB, 4 * GIB, 0, SpaceState.AMBER),            # 4 GiB beats 5 % = 3 GiB
    (60 * GIB, 4 * GIB - 1, 0, SpaceState.RED),
    (1000 * MIB, 100 * MIB, 0, SpaceState.AMBER),        # 10 % beats 4 GiB
    (1000 * MIB, 100 * MIB - 1, 0, SpaceState.RED),
    (100 * GIB, 7 * GIB, 4 * GIB, SpaceState.RED),       # twice the largest object
    (100 * GIB, 64 * MIB, 0, SpaceState.BLACK),
    (100 * GIB, 64 * MIB + 1, 0, SpaceState.RED),
    (100 * GIB, 0, 0, SpaceState.BLACK),
    (0, 0, 0, SpaceState.BLACK),
])
def test_thresholds(total: int, free: int, largest: int, expected: SpaceState) -> None:
    assert space_state(total, free, 0, 0, largest) is expected


@pytest.mark.requirement("Space")
def test_a_quota_has_the_same_states_as_a_small_disk() -> None:
    quota = 100 * MIB
    states = [space_state(500 * GIB, 400 * GIB, used * MIB, quota, 0) for used in (0, 80, 81, 90, 91, 99, 100, 200)]
    assert states == [SpaceState.GREEN, SpaceState.GREEN, SpaceState.AMBER, SpaceState.AMBER, SpaceState.RED,
                      SpaceState.BLACK, SpaceState.BLACK, SpaceState.BLACK]


def test_the_file_system_counts_even_within_the_quota() -> None:
    assert space_state(500 * GIB, 10 * MIB, 0, 100 * GIB, 0) is SpaceState.BLACK


@pytest.mark.requirement("Space")
def test_low_priority_senders_are_refused_first() -> None:
    roomy = space(100 * GIB, 4 * GIB, 0, 0, 0)
    tight = space(100 * GIB, 2 * GIB, 0, 0, 0)
    assert roomy.state is tight.state is SpaceState.RED
    assert [storage_admitted(roomy, p) for p in Priority] == [True, True, False, False]
    assert [storage_admitted(tight, p) for p in Priority] == [False] * 4
    assert [storage_admitted(SpaceState.RED, p) for p in Priority] == [True, True, False, False]
    assert all(storage_admitted(s, p) for s in (SpaceState.GREEN, SpaceState.AMBER) for p in Priority)
    assert not any(storage_admitted(SpaceState.BLACK, p) for p in Priority)


def test_what_fits_leaves_the_black_reserve_alone() -> None:
    room = space(0, 0, 0, 0, 0)
    assert not fits(1, room)
    room = space(100 * GIB, 65 * MIB, 0, 0, 0)
    assert fits(MIB, room)
    assert not fits(MIB + 1, room)


sizes = st.integers(min_value=0, max_value=1 << 45)


@given(sizes, sizes, sizes, sizes, sizes, sizes)
def test_more_free_room_is_never_worse(total: int, free: int, more: int, used: int, quota: int, largest: int) -> None:
    order = list(SpaceState)
    worse = order.index(space_state(total, free, used, quota, largest))
    better = order.index(space_state(total, free + more, used, quota, largest))
    assert better <= worse


@given(sizes, sizes, sizes, sizes, sizes)
def test_a_more_urgent_sender_is_never_refused_before_a_less_urgent_one(total: int, free: int, used: int, quota: int,
                                                                       largest: int) -> None:
    room = space(total, free, used, quota, largest)
    admitted = [storage_admitted(room, p) for p in Priority]
    assert admitted == sorted(admitted, reverse=True)


def test_confirmed_copies_have_a_minimum_and_a_maximum_age() -> None:
    assert retire_age(SpaceState.GREEN, 5, 9) == 9
    assert [retire_age(s, 5, 9) for s in (SpaceState.AMBER, SpaceState.RED, SpaceState.BLACK)] == [5, 5, 5]
    assert retire_age(SpaceState.GREEN, 9, 5) == 9
