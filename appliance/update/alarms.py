"""Alarms that follow from the records: a version that came back, one that waits for approval."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.model import Alarm, Severity
from appliance.policy.update import Fate
from appliance.update.records import Event, Records


def of_history(history: Sequence[Event], running: str) -> list[Alarm]:
    """The last thing that became of an installation, where it did not go well and nothing was installed since."""
    for event in reversed(history):
        if event.what == Fate.BACK:
            return [Alarm("update-back", Severity.WARNING, f"the update did not prove itself: {event.text}",
                          f"{running} runs as before. `dcmgate update status` says more; have the next one installed.")]
        if event.what in (Fate.BLESSED, "installed"):
            return []
    return []


def alarms(records: Records, *, by_person: bool) -> list[Alarm]:
    """`by_person`: a person has to approve each version."""
    found = of_history(records.history(), records.places.running())
    offered = records.offered()
    if offered and by_person and records.approved() != offered and offered not in records.installed().failed:
        found.append(Alarm("update-offered", Severity.NOTICE, f"version {offered} waits for approval",
                           f"`dcmgate update approve {offered}`; the box then installs it inside the site's window."))
    return found
