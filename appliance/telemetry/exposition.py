"""Figures in Prometheus' text format, version 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats/).

Written by hand: the library would cost more memory than the process that uses it. The tests read it with the library's parser.
"""

from __future__ import annotations

import math
import re

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


class Exposition:
    """`gauge` and `counter` add one sample; samples of a name stay together, in the order of their first."""

    def __init__(self) -> None:
        self._families: dict[str, tuple[str, str, list[str]]] = {}

    def gauge(self, name: str, text: str, value: float | None, **labels: str) -> None:
        """A value that goes up and down. None: it is not known, and is left out."""
        self._add("gauge", name, text, value, labels)

    def counter(self, name: str, text: str, value: float | None, **labels: str) -> None:
        """A value that only grows; its name ends with `_total`."""
        if not name.endswith("_total"):
            raise ValueError(f"a counter's name ends with _total: {name}")
        self._add("counter", name, text, value, labels)

    def _add(self, kind: str, name: str, text: str, value: float | None, labels: dict[str, str]) -> None:
        if not _NAME.fullmatch(name) or not all(_LABEL.fullmatch(label) for label in labels):
            raise ValueError(f"no name for Prometheus: {name} {labels}")
        known = self._families.setdefault(name, (kind, text, []))
        if known[0] != kind:
            raise ValueError(f"{name} is a {known[0]} already")
        if value is None:
            return
        inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        known[2].append(f"{name}{{{inside}}} {_number(value)}" if inside else f"{name} {_number(value)}")

    def render(self) -> str:
        """All of it."""
        lines = []
        for name, (kind, text, samples) in self._families.items():
            if samples:
                help_ = text.replace("\\", "\\\\").replace("\n", "\\n")
                lines += [f"# HELP {name} {help_}", f"# TYPE {name} {kind}", *samples]
        return "".join(f"{line}\n" for line in lines)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return repr(int(value)) if value == int(value) else repr(float(value))
