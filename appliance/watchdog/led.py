"""LED: the status light of a box that has one, in /sys/class/leds; a name that is not there is no light.

    on                      all is well
    one second in five off  a person should look
    one second on, one off  something fails
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from appliance.health.checks import State

LEDS = Path("/sys/class/leds")


class Light:
    """`show` once a second."""

    def __init__(self, name: str, leds: Path = LEDS) -> None:
        self._file = leds / name / "brightness" if name and "/" not in name else None
        self._lit: bool | None = None

    def show(self, worst: State, second: int) -> None:
        lit = pattern(worst, second)
        if self._file is None or lit is self._lit:
            return
        self._lit = lit
        with suppress(OSError):
            self._file.write_text("255" if lit else "0")


def pattern(worst: State, second: int) -> bool:
    """Whether it is lit in that second."""
    if worst is State.BAD:
        return second % 2 == 0
    return second % 5 != 0 if worst is State.POOR else True
