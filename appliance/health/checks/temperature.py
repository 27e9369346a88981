"""Check `temperature`: the hottest sensor that says what is too hot for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import psutil

from appliance.health.checks.verdict import State, Verdict

CRITICAL, HIGH = 95.0, 85.0
"""Degrees Celsius, for sensors that name no limit of their own."""

MEND = "See that its vents are free and its fan turns; heat shortens the life of the disk and slows the box down."


class Sensor(Protocol):
    @property
    def label(self) -> str: ...
    @property
    def current(self) -> float: ...
    @property
    def high(self) -> float | None: ...
    @property
    def critical(self) -> float | None: ...


def look(sensors: Mapping[str, Sequence[Sensor]] | None = None) -> Verdict:
    """psutil's sensors, unless given."""
    given: Mapping[str, Sequence[Sensor]] = psutil.sensors_temperatures() if sensors is None else sensors
    found = [(state(each), each.current, each.label or chip) for chip, some in given.items() for each in some]
    if not found:
        return Verdict("temperature", State.UNKNOWN)
    order = (State.GOOD, State.POOR, State.BAD)
    worst, degrees, name = max(found, key=lambda one: (order.index(one[0]), one[1]))
    evidence = {"degrees": degrees, "sensor": name, "sensors": len(found)}
    if worst is State.GOOD:
        return Verdict("temperature", worst, evidence=evidence)
    return Verdict("temperature", worst, f"{name} is at {degrees:.0f} °C", MEND, evidence)


def state(sensor: Sensor) -> State:
    """Of one sensor. A limit of 0 or of more than 150 °C is none."""
    critical = sensor.critical if sensor.critical and 20 < sensor.critical <= 150 else CRITICAL
    high = sensor.high if sensor.high and 20 < sensor.high <= critical else min(HIGH, critical)
    return State.BAD if sensor.current >= critical else State.POOR if sensor.current >= high else State.GOOD
