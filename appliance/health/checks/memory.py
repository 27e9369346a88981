"""Check `memory`: whether the box is about to kill something for want of it."""

from __future__ import annotations

import psutil

from appliance.health.checks.verdict import State, Verdict

POOR, BAD = 0.08, 0.03
"""Share of memory that is available."""


def look(share: float | None = None) -> Verdict:
    """psutil's figure, unless given."""
    if share is None:
        figures = psutil.virtual_memory()
        share = figures.available / figures.total
    state = State.BAD if share < BAD else State.POOR if share < POOR else State.GOOD
    if state is State.GOOD:
        return Verdict("memory", state, evidence={"available": round(share, 3)})
    return Verdict("memory", state, f"{share:.0%} of the memory is left", "`systemd-cgtop` says who has it.",
                   {"available": round(share, 3)})
