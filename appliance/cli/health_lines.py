"""What `status` shows of a destination's health: when it was reached last, by what, or at which hop the way ends; canaries."""

from __future__ import annotations

from typing import Any

from appliance.cli.text import safe, span
from appliance.health.canary import Canary
from appliance.health.reach import Reach

SECOND = 1_000_000_000


def reach_facts(reach: Reach | None, canary: Canary | None, state: str, now: int) -> dict[str, Any]:
    """Values for JSON; `state`: as the forwarder says, `now` in boot ns, times in seconds before it."""
    def ago(at: int | None) -> float | None:
        return None if at is None else round(max(0, now - at) / SECOND, 1)

    down = state == "up" and reach is not None and reach.down      # the forwarder has nothing to send, and so no trouble
    facts: dict[str, Any] = {"state": "down" if down else state, "reached": None, "canary": None}
    if reach is not None:
        facts["reached"] = {
            "seconds_ago": ago(reach.reached), "by": reach.by, "milliseconds": round(reach.milliseconds, 1),
            "failures": reach.failures, "failing_for": ago(reach.since), "hop": reach.hop, "cause": reach.cause,
            "text": reach.text, "mend": reach.mend, "down": reach.down}
    if canary is not None:
        facts["canary"] = {
            "arrived_seconds_ago": ago(canary.arrived), "took_seconds": round(canary.seconds, 3),
            "in_flight_for": ago(canary.sent), "late": canary.late, "trouble": canary.trouble}
    return facts


def health_lines(destination: dict[str, Any]) -> list[tuple[str, bool]]:
    """Lines under a destination, each with whether it is bad news."""
    lines: list[tuple[str, bool]] = []
    reached, canary = destination["reached"], destination["canary"]
    if reached is not None:
        last = "" if reached["seconds_ago"] is None else f"reached {span(reached['seconds_ago'])} ago by {reached['by']}" + (
            f" in {reached['milliseconds']:.0f} ms" if reached["milliseconds"] else "")
        if reached["failures"]:
            lines.append((f"not reached for {span(reached['failing_for'])}, at {reached['hop']}: {safe(reached['text'])}" +
                          (f" ({last})" if last else ""), True))
        elif last:
            lines.append((last, False))
    if canary is not None:
        text = "canary: none has arrived yet" if canary["arrived_seconds_ago"] is None else \
            f"canary: arrived {span(canary['arrived_seconds_ago'])} ago in {canary['took_seconds']:.1f} s"
        if canary["trouble"]:
            text += f"; not taken in here: {safe(canary['trouble'])}"
        elif canary["in_flight_for"] is not None:
            text += f"; one is on its way for {span(canary['in_flight_for'])}"
        lines.append((text, canary["late"] or bool(canary["trouble"])))
    return lines
