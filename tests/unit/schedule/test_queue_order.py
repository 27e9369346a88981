"""Who goes next: classes, studies in turn, order of arrival, and a share for the lowest."""

from __future__ import annotations

import itertools
import sys
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.model import Priority
from appliance.schedule import Queue

T, S, R, B = Priority


def drain(queue: Queue) -> list[tuple[int, Priority]]:
    picked = []
    while place := queue.pick():
        picked.append((place.number, place.priority))
    return picked


def filled(*waiting: tuple[Priority, str]) -> Queue:
    queue = Queue()
    for number, (priority, study) in enumerate(waiting, 1):
        queue.add(number, priority, study, seq=number)
    return queue


@pytest.mark.requirement("Delivery: order")
def test_urgent_first_studies_in_turn_and_arrival_within_a_study() -> None:
    queue = filled((R, "a"), (R, "a"), (R, "a"), (R, "b"), (B, "c"), (S, "d"), (T, "e"), (R, "b"))
    assert [number for number, _ in drain(queue)] == [7, 6, 1, 4, 2, 8, 3, 5]


def test_an_object_that_comes_back_keeps_its_place_in_its_study() -> None:
    queue = filled((R, "a"), (R, "a"), (R, "a"))
    first = queue.pick()
    assert first is not None and first.number == 1
    queue.add(1, R, "a", seq=1)
    queue.add(9, R, "a", seq=2)
    assert next(number for number, _ in drain(queue)) == 1


@pytest.mark.requirement("Delivery: a tenth for the lowest class")
def test_the_lowest_class_gets_every_tenth_pick() -> None:
    queue = filled(*[(T, "t")] * 90, *[(B, "b")] * 10)
    picks = [priority for _, priority in drain(queue)]
    assert picks == ([T] * 9 + [B]) * 10


@pytest.mark.requirement("Delivery: preemption")
def test_an_urgent_object_that_comes_late_is_the_very_next() -> None:
    queue = filled(*[(R, "r")] * 200, *[(B, "b")] * 200)
    for number in range(1000, 1040):
        queue.pick()
        queue.add(number, T, "t", seq=number)
        place = queue.pick()
        if place is None or place.priority is not T:
            # Only the tenth of the lowest class may come in between, and then one object.
            assert place is not None and place.priority is B
            place = queue.pick()
        assert place is not None and place.number == number


def test_a_class_in_the_middle_gets_its_turn_in_a_flood_of_trauma_and_backfill() -> None:
    queue = filled(*[(T, "t")] * 200, *[(S, "s")] * 5, *[(R, "r")] * 5, *[(B, "b")] * 200)
    picks = [priority for _, priority in drain(queue)]
    for middle in (S, R):
        at = [nth for nth, priority in enumerate(picks) if priority is middle]
        assert at[0] <= 25 and max(b - a for a, b in itertools.pairwise(at)) <= 25


def test_only_the_classes_asked_for_are_picked() -> None:
    queue = filled((T, "t"), (R, "r"))
    assert queue.highest((R, B)) is R
    assert [place.number for place in iter(lambda: queue.pick((R, B)), None)] == [2]
    assert queue.highest() is T and len(queue) == 1 and queue.size(T) == 1


def test_a_hundred_thousand_waiting_objects_cost_a_few_megabytes() -> None:
    queue = Queue()
    for number in range(100_000):
        queue.add(number, R, f"study {number // 200}", seq=number)
    waiting = queue._classes[R]
    assert sum(sys.getsizeof(pairs) for pairs in waiting.studies.values()) < 4_000_000


arrivals = st.lists(st.tuples(st.sampled_from(Priority), st.sampled_from("abcde")), max_size=120)


@given(arrivals, st.randoms(use_true_random=False))
def test_everything_that_waits_is_picked_once_and_in_order_within_its_study(waiting: list[tuple[Priority, str]],
                                                                            random: object) -> None:
    order = list(enumerate(waiting, 1))
    random.shuffle(order)  # type: ignore[attr-defined]
    queue = Queue()
    for number, (priority, study) in order:
        queue.add(number, priority, study, seq=number)
    assert len(queue) == len(waiting)
    picked = drain(queue)
    assert sorted(number for number, _ in picked) == list(range(1, len(waiting) + 1))
    by_study = defaultdict(list)
    for number, priority in picked:
        by_study[priority, waiting[number - 1][1]].append(number)
    assert all(numbers == sorted(numbers) for numbers in by_study.values())


@given(arrivals)
def test_no_study_gets_two_turns_before_another_of_its_class_gets_one(waiting: list[tuple[Priority, str]]) -> None:
    queue = filled(*waiting)
    left = Counter(waiting)
    turns: Counter[tuple[Priority, str]] = Counter()
    for number, priority in drain(queue):
        study = waiting[number - 1]
        turns[study] += 1
        left[study] -= 1
        for other in left:
            if other[0] is priority and left[other]:
                assert turns[study] - turns[other] <= 1


@given(st.lists(st.tuples(st.sampled_from(Priority), st.integers(1, 4)), min_size=1, max_size=300), st.integers(0, 60))
def test_no_class_starves_whatever_arrives(flow: list[tuple[Priority, int]], backlog: int) -> None:
    queue = filled(*[(p, "x") for p in Priority for _ in range(backlog)])
    number = 10_000
    waited = dict.fromkeys(Priority, 0)
    for priority, count in flow:
        for _ in range(count):
            queue.add(number, priority, "y", seq=number)
            number += 1
        lowest = max((p for p in Priority if queue.size(p)), default=None)
        sizes = {p: queue.size(p) for p in Priority}
        place = queue.pick()
        assert place is not None
        for p in Priority:
            waited[p] = 0 if place.priority is p or not sizes[p] else waited[p] + 1
            assert waited[p] <= 25
        if lowest is not None and lowest is not place.priority:
            assert waited[lowest] < 12
