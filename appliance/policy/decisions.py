"""Decisions on one object: what its deliveries make of it, and what happens after an attempt (design, Delivery; I2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from appliance.model import DeliveryState, Fault, ObjectState, Outcome

TRIES = 5
"""Tries of an object that is itself at fault, while others succeed; then it is parked."""

CRASHES = 2
"""Crashes of the forwarder on one object; then it is parked."""

UNDELIVERED = frozenset({DeliveryState.WAITING, DeliveryState.SENDING, DeliveryState.DEFERRED, DeliveryState.HELD,
                         DeliveryState.PARKED, DeliveryState.DROPPED})
"""States in which the destination does not have the object. DROPPED stays among them: what nobody got is never confirmed."""


@dataclass(frozen=True, slots=True)
class Next:
    """What becomes of a delivery: SENT, DEFERRED (until when is the back-off's matter) or PARKED, and why."""

    state: DeliveryState
    reason: str = ""


def object_state(deliveries: Iterable[tuple[DeliveryState, bool]]) -> ObjectState:
    """The state of an object from its (delivery state, destination is required) pairs: the least advanced required one.

    Where no destination is required, all of them are. COVERED says nothing by
    itself: an object that is covered everywhere is a duplicate. No delivery at all: not routed yet, so waiting.
    """
    every = list(deliveries)
    counted = [state for state, required in every if required] or [state for state, _ in every]
    if not counted or any(state in UNDELIVERED for state in counted):
        return ObjectState.WAITING
    if all(state is DeliveryState.COVERED for state in counted):
        return ObjectState.DUPLICATE
    return ObjectState.SENT if DeliveryState.SENT in counted else ObjectState.CONFIRMED


def decide_after(outcome: Outcome, attempts: int, others_succeeded: bool, crashes: int) -> Next:
    """What happens after an attempt.

    `attempts` counts the tries of this object that ended as its own fault, this
    one included; `others_succeeded` says whether this destination has stored any
    other object since the first of them; `crashes` counts forwarders that died
    on it. A destination's or a configuration's fault never parks anything, however often it happens.
    """
    if outcome.fault is None:
        return Next(DeliveryState.SENT, outcome.text)
    if crashes >= CRASHES:
        return Next(DeliveryState.PARKED, f"the forwarder died {crashes} times on this object")
    if outcome.fault is Fault.OBJECT and attempts >= TRIES and others_succeeded:
        return Next(DeliveryState.PARKED, f"{attempts} tries failed while others succeeded: {outcome.text}")
    return Next(DeliveryState.DEFERRED, outcome.text)
