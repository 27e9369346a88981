"""How things look on a terminal: sizes, times, bars and tables. Nothing that came from a peer moves the cursor."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from unicodedata import combining, east_asian_width

BOLD, DIM, RED, YELLOW, GREEN, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[33m", "\x1b[32m", "\x1b[0m"
SECOND = 1_000_000_000
_STYLE = re.compile(r"\x1b\[[0-9]*m")


def safe(text: str) -> str:
    """A text from outside, fit for a terminal: what is not printable becomes a replacement character."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)


def width(text: str) -> int:
    """Columns on a terminal; styles take none, wide characters two."""
    bare = _STYLE.sub("", text)
    if bare.isascii():
        return len(bare)
    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in bare)


def cut(text: str, columns: int) -> str:
    """At most that many columns, with an ellipsis where something is missing. For texts without styles."""
    if width(text) <= columns:
        return text
    while text and width(text) > columns - 1:
        text = text[:-1]
    return text + "…" if columns > 0 else ""


def tail(text: str, columns: int) -> str:
    """The end of a UID, which is where UIDs differ."""
    return text if len(text) <= columns else "…" + text[-(columns - 1):]


def size(count: int | float) -> str:
    """Bytes in decimal units, three digits: 5.24 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            if unit == "B" or value >= 99.95:
                return f"{value:.0f} {unit}"
            return f"{value:.1f} {unit}" if value >= 9.995 else f"{value:.2f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


def plural(count: int, one: str, many: str = "") -> str:
    """1 object, 2 objects."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def span(seconds: float) -> str:
    """A duration in its two largest units: 45 s, 3 min 10 s, 2 h 05 min, 3 d 4 h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def when(wall_ns: int) -> str:
    """A label of the wall clock, in local time; empty for none."""
    if not wall_ns:
        return ""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall_ns // SECOND))
    except (OverflowError, ValueError, OSError):
        return "?"


def bar(done: int, total: int, columns: int = 20) -> str:
    """A progress bar. It is full only when everything is done, and empty only when nothing is."""
    if total <= 0:
        return "·" * columns
    eighths = min(8 * columns, 8 * columns * max(0, done) // total)
    if 0 < done < total:
        eighths = min(max(eighths, 1), 8 * columns - 1)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")).ljust(columns, "·")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), columns: int = 0) -> str:
    """Columns side by side, without trailing blanks. `right` are columns of figures; the last column is cut to `columns`."""
    lines = [list(headings), *map(list, rows)]
    widths = [max(width(line[nth]) for line in lines) for nth in range(len(headings))]
    out = []
    for line in lines:
        cells = []
        for nth, cell in enumerate(line):
            gap = " " * (widths[nth] - width(cell))
            cells.append(gap + cell if nth in right else cell + gap)
        text = "  ".join(cells).rstrip()
        out.append(cut(text, columns) if columns and width(text) > columns and "\x1b" not in text else text)
    return "\n".join(out)
