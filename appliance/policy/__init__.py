"""Decisions as pure functions of values and `now`: what to admit, what a fault is, what to do next, what to alarm on.

One file per noun; everything public is named here.
"""

from appliance.policy.admission import Admission, Admitted, Verdict, admit
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
    "Aborted",
    "Admission",
    "Admitted",
    "Answer",
    "Failure",
    "FailureKind",
    "Finding",
    "HttpStatus",
    "NoContext",
    "Party",
    "Rejected",
    "Space",
    "Status",
    "Verdict",
    "admit",
    "classify",
    "failure_of",
    "fits",
    "retire_age",
    "space",
    "space_state",
    "storage_admitted",
]
