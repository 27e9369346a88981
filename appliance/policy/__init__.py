"""Decisions as pure functions of values and `now`: what to admit, what a fault is, what to do next, what to alarm on.

One file per noun; everything public is named here.
"""

from appliance.policy.admission import Admission, Admitted, Verdict, admit
from appliance.policy.alarms import (
    backlog,
    backlog_alarm,
    habit_of,
    learn,
    parked_alarm,
    removed_alarm,
    silence,
    silence_alarm,
    span,
)
from appliance.policy.decisions import CRASHES, TRIES, Next, decide_after, object_state
from appliance.policy.faults import (
    Aborted,
    Answer,
    Failure,
    FailureKind,
    Finding,
    HttpStatus,
    NoContext,
    Party,
    Rejected,
    Status,
    classify,
    failure_of,
)
from appliance.policy.space import Space, fits, retire_age, space, space_state, storage_admitted

__all__ = [
    "CRASHES",
    "TRIES",
    "Aborted",
    "Admission",
    "Admitted",
    "Answer",
    "Failure",
    "FailureKind",
    "Finding",
    "HttpStatus",
    "Next",
    "NoContext",
    "Party",
    "Rejected",
    "Space",
    "Status",
    "Verdict",
    "admit",
    "backlog",
    "backlog_alarm",
    "classify",
    "decide_after",
    "failure_of",
    "fits",
    "habit_of",
    "learn",
    "object_state",
    "parked_alarm",
    "removed_alarm",
    "retire_age",
    "silence",
    "silence_alarm",
    "space",
    "space_state",
    "span",
    "storage_admitted",
]
