"""Retire: the only code that deletes objects (I4).

    retiring   the durable row, in whose transaction it is looked at once more whether the object may go
    unlink     and the folder is synced
    retired    the row that says that the file is gone

What may go: copies that every required destination has confirmed, when they are
older than `keep_max`, or than `keep_min` while room is short, the oldest first;
and what a named person discarded. Nothing else, however full the disk is. A
crash on the way is finished at the next start. Slot files of numbers that will
never be an object are swept here too.

On failure: SpoolFault or SpoolFull where a file cannot be deleted, LedgerError;
the rows say how far it came, and `finish` goes on from there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from appliance.clock import SECOND
from appliance.config.settings import Spool as SpoolSettings
from appliance.model import SpaceState
from appliance.policy import retire_age
from appliance.spool import quarantine
from appliance.spool.durable import sync_folder
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger

BATCH = 128
"""Objects for one pair of rows: the state of the disk is looked at anew after each."""

MOST_BATCHES = 64
"""Batches in one `step`, so that the keeper gets to its other work."""

HOUR = 3600 * SECOND


class Retirer:
    """`finish` once at the start, then `step` and `sweep` as often as one likes. For one thread."""

    def __init__(self, spool: Spool, ledger: Ledger) -> None:
        self._spool = spool
        self._ledger = ledger

    def finish(self) -> int:
        """Delete what a crash left between `retiring` and `retired`; how many objects."""
        done = 0
        while numbers := self._ledger.unfinished(BATCH):
            self._delete(numbers)
            done += len(numbers)
        return done

    def step(self, settings: SpoolSettings, state: Callable[[], SpaceState]) -> int:
        """Delete what may go by now, a bounded part; how many objects. `state` is asked before each batch."""
        keep_min = int(settings.keep_min_hours * HOUR)
        keep_max = int(settings.keep_max_days * 24 * HOUR)
        done = 0
        for _ in range(MOST_BATCHES):
            age = retire_age(state(), keep_min, keep_max)
            numbers = [r.number for r in self._ledger.retirable(self._ledger.powered_on(), age, BATCH)]
            allowed = self._ledger.retiring(numbers)
            if not allowed:
                break
            self._delete(allowed)
            done += len(allowed)
        return done

    def sweep(self) -> int:
        """Delete the slot files of void numbers; how many numbers were looked at."""
        done = 0
        for _ in range(MOST_BATCHES):
            numbers = self._ledger.unswept(1024)
            if not numbers:
                break
            self._unlink(numbers)
            self._ledger.swept(numbers)
            done += len(numbers)
        return done

    def drop_remnants(self) -> list[int]:
        """Delete remnants in quarantine whose UID was acknowledged since; their numbers."""
        return quarantine.drop_remnants(self._spool, self._ledger.acknowledged_after)

    def _delete(self, numbers: Sequence[int]) -> None:
        """The rows `retiring` are durable: delete the files, then say so."""
        self._unlink(numbers)
        self._unlink_discarded(numbers)
        self._ledger.retired(numbers)

    def _unlink(self, numbers: Iterable[int]) -> None:
        """Delete the files; when this returns no crash brings them back."""
        folders = set()
        try:
            for number in numbers:
                # Synced even where the file is gone already: a crash may have come between its deletion and the sync.
                folders.add(self._spool.shard(number))
                with suppress(FileNotFoundError):
                    os.unlink(self._spool.object_path(number))
            for folder in folders:
                sync_folder(folder)
        except OSError as e:
            raise self._spool.failed(e, "cannot delete a retired object") from e

    def _unlink_discarded(self, numbers: Iterable[int]) -> None:
        """What a person discarded may lie in quarantine."""
        touched = False
        try:
            for number in numbers:
                path = quarantine.path(self._spool, number)
                for file in (path, path.with_suffix(".json")):
                    with suppress(FileNotFoundError):
                        os.unlink(file)
                        touched = True
            if touched:
                sync_folder(self._spool.quarantine)
        except OSError as e:
            raise self._spool.failed(e, "cannot delete a discarded object from quarantine") from e
