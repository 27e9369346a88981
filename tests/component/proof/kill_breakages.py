"""Ways to break the product that only a kill can show, for a worker of the kills. None of them comes to rest: they are not
waited for as long as a sound product would be."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from appliance.receive import services
from appliance.receive.services import Response, Storing
from appliance.retire import Retirer
from appliance.spool import recover
from appliance.spool.buffers import Buffer
from appliance.spool.layout import Spool
from appliance.spool.recover import Judgement
from tests.proof import kills_ground

kills_ground.PATIENCE = 4.0


def _much_else() -> None:
    """Calls in between, so that few kills suffice to find the place."""
    for _ in range(40):
        os.close(os.open(os.devnull, os.O_RDONLY))


def success_before_custody() -> None:
    """The sender is told success, and then the object is finished."""
    def end(self: Storing) -> Iterable[Response]:
        yield from services.SUCCESS
        _much_else()
        call = self._call
        self._writer.finish(call.abstract.encode(), call.request.sop_instance, call.syntax, call.source)

    Storing.end = end  # type: ignore[method-assign]


def recovery_trusts_the_ledger() -> None:
    """What has no row of acceptance is taken for never accepted."""
    def judge(spool: Spool, number: int, buffer: Buffer) -> Judgement:
        return Judgement(number, void="no row")

    recover.judge = judge


def row_before_the_deletion() -> None:
    """The ledger says that a file is gone, and then deletes it."""
    def delete(self: Retirer, numbers: Sequence[int]) -> None:
        self._ledger.retired(numbers)
        _much_else()
        self._unlink(numbers)

    Retirer._delete = delete  # type: ignore[method-assign]
