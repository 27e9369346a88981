"""The page of commands and the command line are one: every command, every option, every example, every exit status."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.cli import exits
from appliance.cli.main import parser

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "appliance" / "man" / "commands.md").read_text()
COMMON = {"--config", "--json", "--help", "-h"}
SECTIONS = dict(re.findall(r"^## `dcmgate ([a-z -]+)`\n(.*?)(?=^#|\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))


def leaves(one: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in one._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from leaves(below, (*path, name))
            return
    yield " ".join(path), one


LEAVES = dict(leaves(parser()))


def options(one: argparse.ArgumentParser) -> set[str]:
    return {option for action in one._actions for option in action.option_strings} - COMMON


def test_every_command_has_its_section_and_every_section_its_command() -> None:
    assert sorted(SECTIONS) == sorted(LEAVES)


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_the_options_of_a_section_are_those_of_the_command(name: str) -> None:
    prose = re.sub(r"```sh\n.*?```", "", SECTIONS[name], flags=re.DOTALL)
    prose = re.sub(r"`dcmgate [^`]*`", "", prose)          # options of other commands
    assert set(re.findall(r"(?<![\w-])--[a-z-]+", prose)) == options(LEAVES[name])


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_each_command_has_an_example_that_parses(name: str) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", SECTIONS[name], flags=re.DOTALL)
    examples = re.findall(r"^dcmgate .*$", "".join(blocks), re.MULTILINE)
    assert examples
    for example in examples:
        words = shlex.split(re.sub(r" > \S+$", "", example))[1:]
        arguments = parser().parse_args(words)
        assert callable(arguments.run), example
    named = [w for w in shlex.split(examples[0])[1:] if not w.startswith("-")]
    assert named[:1] == name.split()[:1]


def test_the_exit_statuses_are_documented_in_page_and_help() -> None:
    help_text = parser().format_help()
    for status, meaning in exits.MEANINGS.items():
        assert f"| {status} | {meaning} |" in PAGE
        assert re.search(rf"^  {status}\s+{re.escape(meaning)}$", help_text, re.MULTILINE)


def sources() -> Iterator[Path]:
    yield from (ROOT / "appliance").rglob("*.py")
    yield from (ROOT / "appliance").rglob("*.md")
    yield from ROOT.glob("*.md")


def test_every_command_that_a_text_tells_people_to_use_exists() -> None:
    """Mends and pages say `dcmgate …`: a person types that."""
    wrong = []
    groups = {name.split()[0] for name in LEAVES if " " in name}
    for path in sources():
        for mention in re.findall(r"`dcmgate ([^`]+)`", path.read_text()):
            words = mention.replace("|", " ").split()
            names = [w for w in words if re.fullmatch(r"[a-z]+", w)]
            if not names:
                continue
            if names[0] in groups:
                known = all(f"{names[0]} {n}" in LEAVES for n in names[1:2]) or names[0] == "peers"
            else:
                known = names[0] in LEAVES or all(n in LEAVES for n in names)
            used = set(re.findall(r"(?<![\w-])--[a-z-]+", mention)) - COMMON
            leaf = LEAVES.get(" ".join(names[:2]), LEAVES.get(names[0]))
            if not known or (leaf is not None and used - options(leaf)):
                wrong.append(f"{path.relative_to(ROOT)}: {mention}")
    assert wrong == []
