"""The index kept up by the router: each routed object, and now and then every object that it lacks or has too much.

Nothing here is custody and nothing raises for the index's sake: an index that
fails is opened again after a while, and audited from the beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from appliance.clock import SECOND, Clock
from appliance.errors import SandboxError, SpoolError, SpoolFault
from appliance.model import Attributes
from appliance.spool.index import Index
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from appliance.spool.rows import ObjectRow
from appliance.telemetry.log import Log

PAGE = 256
"""Objects that one step of the audit looks at: routing waits for no more than these."""

AGAIN_SECONDS = 60
"""After a failure the index is left alone for this long; so often it is also looked whether the file is still there."""

AUDIT_SECONDS = 6 * 3600
"""So often the index is compared with what is held: whoever was retired is forgotten by then (data protection)."""

_HIGHEST = (1 << 63) - 1

Reader = Callable[[Sequence[ObjectRow], frozenset[int]], list[Attributes]]

log = Log("index")


class Indexing:
    """For one thread. `read` gives the attributes of objects."""

    def __init__(self, spool: Spool, ledger: Ledger, clock: Clock, read: Reader) -> None:
        self._spool = spool
        self._ledger = ledger
        self._clock = clock
        self._read = read
        self._index: Index | None = None
        self._inode = 0
        self._not_before = 0
        self._look_at = 0
        self._audited = 0
        self._audit_at = 0
        self._whole = False

    def close(self) -> None:
        if self._index is not None:
            self._index.close()
            self._index = None

    def add(self, objects: Sequence[tuple[int, Attributes]]) -> None:
        """Take routed objects in, if there is an index."""
        if (index := self._opened()) is not None:
            try:
                index.add(objects)
            except SpoolError as error:
                self._failed(error)

    def step(self, wanted: frozenset[int]) -> bool:
        """One page of the audit; False where nothing is left to do. LedgerError."""
        index = self._opened()
        if self._whole and self._clock.boot_ns() >= self._audit_at:
            self._audited, self._whole = 0, False
        if index is None or self._whole:
            return False
        try:
            rows = self._ledger.present(self._audited, PAGE)
            upto = rows[-1].number if len(rows) == PAGE else _HIGHEST
            known = index.numbers(self._audited, upto)
            missing = [row for row in rows if row.routed and row.number not in known]
            if missing:
                index.add([(row.number, found) for row, found in zip(missing, self._read(missing, wanted), strict=True)])
            # Some may have been retired while they were read: they must not come back.
            kept = {row.number for row in rows}
            gone = (known - kept) | {row.number for row in self._ledger.objects([m.number for m in missing]) if row.file}
            if gone:
                index.drop(gone)
            self._audited = upto
            if upto == _HIGHEST:
                self._whole = True
                self._audit_at = self._clock.boot_ns() + AUDIT_SECONDS * SECOND
                if not index.complete:
                    index.set_complete(True)
        except (SpoolError, SandboxError) as error:
            self._failed(error)
            return False
        return not self._whole

    def _opened(self) -> Index | None:
        now = self._clock.boot_ns()
        if self._index is not None and now >= self._look_at:
            self._look_at = now + AGAIN_SECONDS * SECOND
            if self._found_inode() != self._inode:
                log.warning("the index is gone; it is made again")
                self._forget()
        if self._index is None and now >= self._not_before:
            try:
                self._index = Index.open(self._spool.index_path)
                self._inode = self._found_inode()
                self._look_at = now + AGAIN_SECONDS * SECOND
                self._audited, self._whole = 0, False
            except SpoolError as error:
                self._failed(error)
        return self._index

    def _found_inode(self) -> int:
        try:
            return self._spool.index_path.stat().st_ino
        except OSError:
            return 0

    def _failed(self, error: Exception) -> None:
        if isinstance(error, SpoolFault):
            self._spool.latch.report(error, self._spool.index_path.name)
        log.error("the index fails; it is tried again later", error=str(error))
        self._not_before = self._clock.boot_ns() + AGAIN_SECONDS * SECOND
        self._forget()

    def _forget(self) -> None:
        if self._index is not None:
            self._index.close()
            self._index = None
