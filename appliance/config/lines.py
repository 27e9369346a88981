"""Where each key of a TOML text stands: `tomllib` gives values, an error message needs lines.

The text is one that `tomllib` has already accepted, so the finder only has to
follow it, not judge it. It never raises: at the worst a key has no line of its
own, and its table's line stands in.
"""

from __future__ import annotations

from bisect import bisect_left
from contextlib import suppress

Path = tuple[str | int, ...]
"""Keys and, for an element of an array, its index from 0: `("destination", 1, "port")`."""

_BARE_END = ",]}#\n"


def find_lines(text: str) -> dict[Path, int]:
    """The 1-based line of every table, key and array element of a valid TOML text."""
    finder = _Finder(text.replace("\r\n", "\n"))
    with suppress(RecursionError):       # deeper than any configuration: what was found so far will do
        finder.document()
    return finder.places


class _Finder:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.newlines = [i for i, c in enumerate(text) if c == "\n"]
        self.places: dict[Path, int] = {}
        self.arrays: dict[Path, int] = {}      # arrays of tables: how many elements so far

    def document(self) -> None:
        table: Path = ()
        while self.blank():
            start = self.at
            if self.peek("["):
                table = self.header()
            else:
                self.pair(table)
            if self.at == start:               # not TOML after all: go on with the next character
                self.at += 1

    def peek(self, what: str) -> bool:
        return self.text.startswith(what, self.at)

    def note(self, path: Path, at: int) -> None:
        self.places.setdefault(path, bisect_left(self.newlines, at) + 1)

    def blank(self) -> bool:
        """Pass over white space, line ends and comments; False at the end of the text."""
        while self.at < len(self.text):
            if self.text[self.at] in " \t\r\n":
                self.at += 1
            elif self.text[self.at] == "#":
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            else:
                return True
        return False

    def header(self) -> Path:
        start = self.at
        array = self.peek("[[")
        self.at += 2 if array else 1
        keys = self.keys()
        path: Path = ()
        for nth, key in enumerate(keys):
            path += (key,)
            if array and nth == len(keys) - 1:
                self.note(path, start)
                self.arrays[path] = self.arrays.get(path, 0) + 1
            if path in self.arrays:
                path += (self.arrays[path] - 1,)
            self.note(path, start)
        self.at += 2 if array else 1
        return path

    def pair(self, table: Path) -> None:
        start = self.at
        path = table
        for key in self.keys():
            path += (key,)
            self.note(path, start)
        if self.peek("="):
            self.at += 1
        self.blank()
        self.value(path)

    def keys(self) -> list[str]:
        """A dotted key; ends before whatever follows it."""
        keys = []
        while True:
            self.spaces()
            if self.peek('"') or self.peek("'"):
                keys.append(self.string())
            else:
                start = self.at
                while self.at < len(self.text) and (self.text[self.at].isalnum() or self.text[self.at] in "_-"):
                    self.at += 1
                keys.append(self.text[start:self.at])
            self.spaces()
            if not self.peek("."):
                return keys
            self.at += 1

    def spaces(self) -> None:
        while self.at < len(self.text) and self.text[self.at] in " \t":
            self.at += 1

    def string(self) -> str:
        """Pass over a string of any of the four kinds; its text as written (escapes are not resolved)."""
        quote = self.text[self.at]
        mark = quote * 3 if self.peek(quote * 3) else quote
        self.at += len(mark)
        start = self.at
        while self.at < len(self.text) and not self.peek(mark):
            self.at += 2 if quote == '"' and self.peek("\\") else 1
        end = self.at
        self.at += len(mark)
        while len(mark) == 3 and self.peek(quote):      # up to two quotes may stand before the closing three
            self.at += 1
        return self.text[start:end]

    def value(self, path: Path) -> None:
        if self.peek('"') or self.peek("'"):
            self.string()
        elif self.peek("["):
            self.elements(path, "]")
        elif self.peek("{"):
            self.elements(path, "}")
        else:
            while self.at < len(self.text) and self.text[self.at] not in _BARE_END:
                self.at += 1

    def elements(self, path: Path, end: str) -> None:
        """An array, or an inline table."""
        self.at += 1
        nth = 0
        while self.blank() and not self.peek(end):
            start = self.at
            if self.peek(","):
                self.at += 1
                nth += 1
            elif end == "]":
                self.note((*path, nth), self.at)
                self.value((*path, nth))
            else:
                self.pair(path)
            if self.at == start:
                self.at += 1
        self.at += 1
