"""Space: how much room the spool has, who may still send, and how long confirmed copies are kept (design, Space).

    green   20 % or more is free
    amber   confirmed copies are retired down to `keep_min`; alarm
    red     below the reserve: low-priority senders are refused at the association, first
    black   what is in flight does not fit: A700

The file system counts first; a quota (`[spool] size`) only ever makes the room smaller.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.model import Priority, SpaceState

GIB = 1 << 30
AMBER_PERCENT = 20
RED_PERCENT = 5
RED_BYTES = 4 * GIB
RED_BYTES_PERCENT = 10
BLACK_BYTES = 64 << 20
BLACK_PERCENT = 1
"""Black is the last 1 % (at most 64 MiB): so much stays for the ledger, its log, and deletions."""

_RANK = {SpaceState.GREEN: 0, SpaceState.AMBER: 1, SpaceState.RED: 2, SpaceState.BLACK: 3}


@dataclass(frozen=True, slots=True)
class Space:
    """The room there is: bytes in all, bytes free, the red and the black reserve in bytes, and the state these make."""

    state: SpaceState
    total: int
    free: int
    red: int
    black: int


def _room(total: int, free: int, used: int, quota: int) -> tuple[int, int]:
    """Size and free bytes once the quota is applied (0: none). `used` counts the spool's own bytes only."""
    total, free = max(total, 0), max(free, 0)
    if quota > 0:
        total = min(total, quota)
        free = min(free, max(quota - max(used, 0), 0))
    return total, min(free, total)


def space(total: int, free: int, used: int, quota: int, largest: int) -> Space:
    """Everything that is known of the room.

    All in bytes: `total` and `free` (to us) of the file system, `used` by the
    spool's objects, `quota` (0: none), `largest` object seen so far.
    """
    total, free = _room(total, free, used, quota)
    black = min(BLACK_BYTES, total * BLACK_PERCENT // 100)
    red = max(total * RED_PERCENT // 100, min(RED_BYTES, total * RED_BYTES_PERCENT // 100), 2 * max(largest, 0))
    if free <= black:
        state = SpaceState.BLACK
    elif free < red:
        state = SpaceState.RED
    elif free * 100 < total * AMBER_PERCENT:
        state = SpaceState.AMBER
    else:
        state = SpaceState.GREEN
    return Space(state, total, free, red, black)


def space_state(total: int, free: int, used: int, quota: int, largest: int) -> SpaceState:
    """The state alone; see `space`."""
    return space(total, free, used, quota, largest).state


def fits(length: int, room: Space) -> bool:
    """Whether `length` more bytes leave the black reserve alone: if not, the instance in flight gets A700."""
    return room.free - length >= room.black


def storage_admitted(state: Space | SpaceState, priority: Priority) -> bool:
    """Whether an association that proposes storage is taken, or rejected as transient, local limit (PS3.8 9.3.4: 2, 3, 2).

    At red, routine and backfill are refused; trauma and stat come in until half
    of the red reserve is gone. A bare state does not say how much of the reserve
    is left: then trauma and stat come in until black. Verification is never asked here.
    """
    bare = state.state if isinstance(state, Space) else state
    if bare is SpaceState.BLACK:
        return False
    if bare is not SpaceState.RED:
        return True
    if priority > Priority.STAT:
        return False
    return isinstance(state, SpaceState) or state.free * 2 >= state.red


def worse(one: SpaceState, other: SpaceState) -> SpaceState:
    """The worse of two states."""
    return one if _RANK[one] >= _RANK[other] else other


def retire_age(state: SpaceState, keep_min: int, keep_max: int) -> int:
    """Age in powered-on nanoseconds from which a *confirmed* object may be retired (I4).

    While there is room, copies stay until their maximum age; from amber on, only
    for the minimum. `keep_min` wins where the two contradict each other.
    """
    return keep_min if state is not SpaceState.GREEN else max(keep_min, keep_max)
