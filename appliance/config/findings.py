"""What is wrong with a configuration: collected, each with its place and a mend, so that one look shows all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from appliance.config.lines import Path
from appliance.errors import ConfigError


class Findings:
    """Collects the errors of one file. `ids` names the entries of arrays of tables where they have a name."""

    def __init__(self, name: str, places: Mapping[Path, int]) -> None:
        self.name = name
        self.places = places
        self.errors: list[ConfigError] = []
        self.ids: dict[Path, str] = {}
        self._paths: set[Path] = set()

    def wrong(self, path: Path, message: str, mend: str) -> None:
        """One finding at a path. Its line is that of the nearest thing that has one."""
        self._paths.add(path)
        self.errors.append(ConfigError(message, file=self.name, line=self.line(path), key=self.key(path), mend=mend))

    def is_wrong(self, path: Path) -> bool:
        """Whether this setting, or a part of it, has been found wrong: what follows from it is not worth a second line."""
        return any(found[:len(path)] == path for found in self._paths)

    def line(self, path: Path) -> int:
        while path:
            if path in self.places:
                return self.places[path]
            path = path[:-1]
        return 1

    def key(self, path: Path) -> str:
        """`destination.pacs.port`; an entry without a usable id is counted from 1: `destination[2].port`."""
        text = ""
        for nth, part in enumerate(path):
            if isinstance(part, int):
                known = self.ids.get(path[:nth + 1])
                text += f".{known}" if known else f"[{part + 1}]"
            else:
                text += f".{part}" if text else part
        return text

    def sorted(self) -> list[ConfigError]:
        """In the order of the file."""
        return sorted(self.errors, key=lambda e: e.line)


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """A mend for a name that is not known: the nearest that is, or the whole list."""
    names = list(known)
    lowered = {name.lower(): name for name in reversed(names)}
    near = get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    if near:
        return f'did you mean "{lowered[near[0]]}"?'
    if otherwise:
        return otherwise
    return "known are: " + ", ".join(names) if names else "none is defined"
