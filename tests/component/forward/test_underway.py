"""Notes of what lanes have in their hands: they survive the process, and never more than that."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.config.settings import Destination
from appliance.forward.lane import interleave, together
from appliance.forward.underway import MOST, NAME, SLOT, SLOTS, Claims, UnderWay
from appliance.model import Priority, Source
from appliance.spool.rows import Queued


def test_notes_tell_the_next_process_what_was_in_hand(tmp_path: Path) -> None:
    first = UnderWay(tmp_path)
    first.open()
    slot, note = first.take("pacs")
    _, other = first.take("other")
    note.window([3, 4, 5])
    note.under_way(4)
    other.window([9])
    assert UnderWay(tmp_path).left() == [Claims("pacs", 4, (3, 4, 5)), Claims("other", 0, (9,))]
    assert UnderWay(tmp_path).left()[0].innocent == [3, 5]
    note.window([6])
    assert UnderWay(tmp_path).left()[0] == Claims("pacs", 0, (6,))
    first.give_back(slot)
    assert [claims.destination for claims in UnderWay(tmp_path).left()] == ["other"]
    UnderWay(tmp_path).open()
    assert UnderWay(tmp_path).left() == []


def test_a_window_that_is_too_long_is_noted_as_far_as_there_is_room(tmp_path: Path) -> None:
    under_way = UnderWay(tmp_path)
    under_way.open()
    _, first = under_way.take("a")
    _, second = under_way.take("b")
    second.window([7])
    first.window(list(range(1, MOST + 100)))
    left = UnderWay(tmp_path).left()
    assert len(left[0].numbers) == MOST and left[1] == Claims("b", 0, (7,))


def test_lanes_beyond_the_slots_go_without_and_slots_are_used_again(tmp_path: Path) -> None:
    under_way = UnderWay(tmp_path)
    under_way.open()
    taken = [under_way.take("x") for _ in range(SLOTS + 3)]
    assert [slot for slot, _ in taken[-3:]] == [-1, -1, -1]
    taken[-1][1].window([1])
    taken[-1][1].under_way(1)
    assert UnderWay(tmp_path).left() == []
    under_way.give_back(-1)
    under_way.give_back(5)
    assert under_way.take("y")[0] == 5


@pytest.mark.parametrize("raw", [b"", b"x", bytes(SLOT * SLOTS - 1), b"\xff" * (SLOT * SLOTS)])
def test_a_file_that_makes_no_sense_says_nothing(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / NAME).write_bytes(raw)
    assert UnderWay(tmp_path).left() == []


def test_without_a_folder_lanes_go_without_notes(tmp_path: Path) -> None:
    under_way = UnderWay(tmp_path / "missing")
    under_way.open()
    _, note = under_way.take("pacs")
    note.window([1])
    note.under_way(1)
    assert under_way.left() == []


def row(number: int, priority: Priority = Priority.ROUTINE, called: str = "A") -> Queued:
    return Queued(number, "pacs", number, priority, "s", 1, b"1.2", b"1.2.3", "1.2", b"", 0, 0, 0, 0, Source(called=called))


def test_objects_with_the_same_titles_go_together_within_a_priority() -> None:
    batch = [row(1), row(2, called="B"), row(3), row(4, Priority.BACKFILL), row(5, called="B")]
    assert [r.number for r in together(batch, Destination(id="pacs", calling="ME"))] == [1, 3, 2, 4, 5]
    assert [r.number for r in together(batch, Destination(id="pacs", called="P", calling="ME"))] == [1, 2, 3, 4, 5]


def test_one_that_gave_way_goes_after_every_ninth_urgent_one() -> None:
    urgent, hand = [row(n) for n in range(100, 120)], [row(1), row(2), row(3)]
    numbers = [r.number for r in interleave(urgent, hand)]
    assert (numbers.index(1), numbers.index(2)) == (9, 19) and numbers[-1] == 3
    assert interleave(urgent, hand, already=9)[0].number == 1
    assert sorted(numbers) == [1, 2, 3, *range(100, 120)]
