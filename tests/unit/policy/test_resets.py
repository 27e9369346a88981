"""Why a boot began, from what the last one left behind."""

from __future__ import annotations

import pytest

from appliance.policy.resets import Reset, Traces, cause


@pytest.mark.parametrize(("traces", "expected"), [
    (Traces(), Reset.FIRST),
    (Traces(known=True), Reset.ORDERLY),
    (Traces(known=True, running=True), Reset.CUT),
    (Traces(known=True, running=True, board=False), Reset.CUT),
    (Traces(known=True, running=True, board=True), Reset.WATCHDOG),
    (Traces(known=True, running=True, panic="Kernel panic - not syncing"), Reset.PANIC),
    (Traces(known=True, running=True, panic="Kernel panic", board=True), Reset.PANIC),
    (Traces(known=True, escalation="spool: it fails"), Reset.ESCALATION),
    (Traces(known=True, running=True, escalation="spool: it fails"), Reset.ESCALATION),
    (Traces(kept=False), Reset.UNKNOWN),
    (Traces(kept=False, board=True), Reset.WATCHDOG),
])
def test_the_cause_follows_from_the_traces(traces: Traces, expected: Reset) -> None:
    assert cause(traces)[0] is expected


def test_a_panic_and_an_escalation_say_more() -> None:
    assert cause(Traces(panic="BUG: unable to handle"))[1].endswith(": BUG: unable to handle")
    assert cause(Traces(escalation="receiver: restarts have not helped"))[1].endswith("restarts have not helped")
