"""Outcome: what became of the last installation. Looked at on every boot, so it imports little."""

from __future__ import annotations

from appliance.policy.update import Fate, fate, why_back
from appliance.update import firmware
from appliance.update.records import Records


def settle(records: Records) -> Fate | None:
    """Take down what became of the last installation. None where there was none."""
    records.show_menu()
    firmware.offer(records.places)
    trial = records.trial()
    if trial is None:
        return None
    found = fate(trial, records.places.running(), records.places.entries())
    if found is Fate.BLESSED:
        records.note(found, trial.version, f"after {trial.since}", trial.by)
        records.raise_floor()
    elif found is Fate.BACK:
        records.note(found, trial.version, why_back(trial))
    elif found is Fate.CUT_OFF:
        records.note(found, trial.version, "the installation was cut off; it can be done again")
    if found in (Fate.BLESSED, Fate.BACK, Fate.CUT_OFF):
        records.end_trial()
    return found
