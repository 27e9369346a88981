"""Transport: what a lane asks of a way to a destination (`dimse.py`, `folder.py`, later STOW).

A transport belongs to one lane and is used by its thread alone, but for `abort`.
It opens its association (or whatever it has) when it first needs one, keeps it
between calls, and never waits without a bound: its time-outs are for lack of
progress. It knows nothing of queues, back-off or the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from appliance.model import Outcome
from appliance.policy import Finding
from appliance.spool.rows import Queued

Emit = Callable[[Outcome], bool]
"""Takes the outcome of one object as soon as it is known. True: stop here, at the instance boundary.

The objects of the batch behind this one are then not touched; the association
stays open. This is how an urgent object, a closed window of the day, a rate
limit or the end of the process comes in between.
"""


class Transport(Protocol):
    """One way to one destination."""

    @property
    def moves(self) -> int | None:
        """Grows with whatever counts as progress towards the destination, bytes first of all. None: nothing is said of it
        now, because the disk, or a file system that is the destination's, is waited for. From any thread."""

    def send(self, batch: Sequence[Queued], emit: Emit) -> None:
        """Send these objects, in order. Each gets at most one outcome.

        Raises `DeliveryError` where the attempt failed as a whole (no connection,
        association rejected, aborted or lost): objects that got no outcome were
        not stored as far as is known, and are sent again. An object that was
        under way when the association broke gets its own outcome first. Raises
        `ObjectDamaged` where an object is not what was acknowledged, after the
        association was aborted (I5): that object is quarantined, the others are
        sent again. Raises `SpoolFault` where we cannot read.
        """

    def probe(self) -> Finding:
        """One C-ECHO where Verification is accepted (a folder: its marker). `fault` None: an object may be tried."""

    def close(self) -> None:
        """End the association in order, within a bound. Nothing happens where there is none. Never raises."""

    def abort(self) -> None:
        """From any thread: let a blocked call fail at once with DeliveryError. Final. Never raises."""
