"""Checks of the box itself, one file for each: they look, and give a verdict with its evidence.

What may follow from a verdict is not theirs to say: `policy.escalation.RULES`. None of them opens spool or ledger, and what may
hang is done in a child process or bounded otherwise.
"""

from appliance.health.checks.verdict import State, Verdict

__all__ = ["State", "Verdict"]
