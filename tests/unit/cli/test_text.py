"""How things look: sizes, spans, bars and tables; and nothing that came from a peer moves the cursor."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.cli.text import bar, cut, plural, safe, size, span, table, tail, when, width


@pytest.mark.parametrize(("count", "text"), [
    (0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (9994, "9.99 kB"), (9995, "10.0 kB"),
    (99_949, "99.9 kB"), (99_950, "100 kB"),
    (999_499, "999 kB"), (999_500, "1.00 MB"), (5_240_000, "5.24 MB"), (10**12, "1.00 TB"), (10**16, "10000 TB"),
])
def test_sizes_have_three_digits(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [
    (-1, "0 s"), (0.4, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (3599, "59 min 59 s"), (3600, "1 h 00 min"),
    (86399, "23 h 59 min"), (90000, "1 d 1 h"),
])
def test_spans_have_two_units(seconds: float, text: str) -> None:
    assert span(seconds) == text


@given(st.integers(0, 10**6), st.integers(1, 10**6), st.integers(1, 40))
def test_a_bar_is_full_only_when_all_is_done_and_empty_only_when_nothing_is(done: int, total: int, columns: int) -> None:
    drawn = bar(min(done, total), total, columns)
    assert len(drawn) == columns
    assert (drawn == "█" * columns) == (done >= total)
    assert (drawn == "·" * columns) == (done == 0)


def test_a_bar_of_nothing_is_empty() -> None:
    assert bar(0, 0, 4) == "····" and bar(3, 0, 4) == "····"


@given(st.text())
def test_nothing_from_outside_moves_the_cursor(text: str) -> None:
    assert safe(text).isprintable() and len(safe(text)) == len(text)


def test_escape_sequences_are_shown_and_not_obeyed() -> None:
    assert safe("\x1b[2JDOE^JOHN\r\n") == "\ufffd[2JDOE^JOHN\ufffd\ufffd"


def test_columns_line_up_whatever_is_in_them() -> None:
    text = table(("A", "N"), [["山田", "1"], ["\x1b[31mred\x1b[0m", "22"], ["é", "333"]], right=(1,))
    assert [width(line) for line in text.split("\n")] == [9, 9, 9, 9]
    assert table(("A", "B"), [["x" * 30, "y" * 30]], columns=20).split("\n")[1].endswith("…")


@given(st.text(), st.integers(0, 20))
def test_a_cut_text_fits(text: str, columns: int) -> None:
    assert width(cut(text, columns)) <= max(columns, 0) or width(text) <= columns


def test_the_end_of_a_uid_is_what_differs() -> None:
    assert tail("1.2.840.113619.2.5.1762583153", 8) == "…2583153" and tail("1.2", 8) == "1.2"


def test_small_things() -> None:
    assert [plural(n, "study", "studies") for n in (0, 1, 2)] == ["0 studies", "1 study", "2 studies"]
    assert when(0) == "" and when(1 << 62)[:4].isdigit() and when(1 << 110) == "?"
