"""What the parts of the instrument `network` add up in: thread-safe, and carried from a namespace as JSON."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tests.proof.figures import Figures
from tests.proof.oracle import Verdict


class Part:
    """Figures that several threads may add to. A failure is told at once, and ends nothing."""

    def __init__(self, figures: Figures, seed: int, say: Callable[[str], None]) -> None:
        self.figures = figures
        self.seed = seed
        self.say = say
        self._lock = threading.Lock()

    def count(self, name: str, by: int | float = 1) -> None:
        with self._lock:
            self.figures.counts[name] = self.figures.counts.get(name, 0) + by

    def set(self, name: str, value: int | float) -> None:
        with self._lock:
            self.figures.counts[name] = value

    def add(self, other: Figures) -> None:
        """The figures of a part that ran elsewhere, and told of its failures itself."""
        for name, value in other.counts.items():
            self.count(name, value)
        with self._lock:
            for name in ("acknowledged", "lost", "altered", "unaccounted"):
                setattr(self.figures, name, getattr(self.figures, name) + getattr(other, name))
            self.figures.failures += other.failures
            self.figures.notes += other.notes

    def note(self, text: str) -> None:
        with self._lock:
            self.figures.notes.append(text)

    def fail(self, text: str) -> None:
        with self._lock:
            self.figures.failures.append(text)
        self.say(f"FAILED {text}")

    def judge(self, verdict: Verdict, what: str) -> None:
        """Add a verdict of the oracle."""
        with self._lock:
            self.figures.acknowledged += verdict.acknowledged
            self.figures.lost += verdict.lost
            self.figures.altered += verdict.altered
            self.figures.unaccounted += verdict.unaccounted
            self.figures.notes += [f"{what}: {note}" for note in verdict.notes]
        if not verdict.holds:
            self.fail(f"{what}, seed {self.seed}: {verdict.as_text()}")
        self.say(f"{what}: {verdict.acknowledged} acknowledged, {verdict.lost} lost")
