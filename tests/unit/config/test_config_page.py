"""The example, `config show` and the page of the manual are made from the table, and stay so."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.config import load
from appliance.config.page import KINDS, page, render, toml_value
from appliance.config.settings import Config, Destination, Listener, Peer, Rule

MANUAL = Path(__file__).parents[3] / "appliance" / "man" / "configuration.md"


def test_the_example_is_a_valid_configuration() -> None:
    assert load.check(load.example(), "example") == []


def test_every_default_in_the_example_is_the_default() -> None:
    """Taking every # away changes nothing."""
    uncommented = re.sub(r"^#(?=[a-z_]+ = )", "", load.example(), flags=re.MULTILINE)
    assert uncommented != load.example()
    assert load.parse(uncommented, "x") == load.parse(load.example(), "x")


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.table)
def test_each_setting_has_a_sentence_in_example_and_page(kind: type) -> None:
    example, manual = load.example().replace("\n# ", " "), page()
    for field in fields(kind):
        text = field.metadata["text"]
        assert text.endswith("."), f"{kind.__name__}.{field.name}: a sentence ends in a full stop"
        assert text in example
        assert f"| `{field.name}` |" in manual and text in manual


def test_the_page_of_the_manual_is_the_table() -> None:
    assert MANUAL.read_text() == page(), "run: python -m appliance.config.page > appliance/man/configuration.md"


def test_the_toml_blocks_of_the_page_are_valid() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", page(), flags=re.DOTALL)
    assert len(blocks) == 2
    small = '[[listener]]\nid = "in"\n[[destination]]\nid = "pacs"\naddress = "h"\ndefault = true\n'
    assert load.check(small + blocks[0], "x") == []
    assert load.check(blocks[1], "x") == []


def test_what_is_shown_makes_the_same_configuration() -> None:
    config = load.parse(load.example(), "x", generation=3)
    assert load.parse(render(config), "x", generation=3) == config


SIGNS = st.characters(codec="ascii", exclude_characters="\\", exclude_categories=["C"])
TITLE = st.text(SIGNS, min_size=1, max_size=16).filter(lambda t: t == t.strip())
WORDS = st.text(max_size=20).filter(lambda t: t.isprintable() and ".." not in t)


@settings(max_examples=60, deadline=None)
@given(st.lists(TITLE, max_size=3), WORDS, st.floats(1, 1e9), st.dictionaries(st.just("SeriesDescription"), WORDS))
def test_any_configuration_survives_being_shown(titles: list[str], text: str, idle: float, match: dict[str, str]) -> None:
    config = Config(listeners=(Listener(id="in", titles=tuple(titles)),), peers=(Peer(id="p", idle_seconds=idle),),
                    destinations=(Destination(id="d", address="h", default=True),),
                    rules=(Rule(id="r", hold=True, match={**match, "any": [{"modality": text}]}),))
    assert load.parse(render(config), "shown") == config


@given(st.text(), st.floats(allow_nan=False), st.integers(-(1 << 62), 1 << 62))
def test_values_are_written_so_that_they_are_read_again(text: str, number: float, count: int) -> None:
    import tomllib
    clean = text.encode("utf-8", "ignore").decode()
    written = toml_value({"a b": [clean, number, count, True], "c": {}})
    assert tomllib.loads(f"x = {written}")["x"] == {"a b": [clean, number, count, True], "c": {}}
