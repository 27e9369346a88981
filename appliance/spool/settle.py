"""Settling: what an intake that an I/O error closed still owes, once the disk is healthy again.

Objects that were durable when the ledger failed have no row, so nothing delivers
them; their numbers stay open. Their own process looks at exactly these numbers
here, as the next start-up would (recover.py), without opening intake again. A
number whose file cannot be read stays open: the disk is not healthy yet.

On failure: SpoolFull, SpoolFault, LedgerError; nothing was lost, and it may be done again.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.errors import SpoolFault
from appliance.spool.buffers import Buffer
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from appliance.spool.recover import GROUP, Recovery, close, judge, prove


def settle(spool: Spool, ledger: Ledger, owner: int, spare: Sequence[int] = ()) -> Recovery:
    """Close the open numbers of `owner`, which is this process and has nothing in flight.

    `spare` are numbers among them that were never used: with one of their files the disk is tried first. SpoolFault where
    something cannot be read yet: then all the others are closed.
    """
    for number in spare[:1]:
        prove(spool, number)
    report = Recovery(owners=1)
    buffer = Buffer()
    unread: list[int] = []
    numbers = ledger.open_numbers(owner)
    for start in range(0, len(numbers), GROUP):
        judgements = [judge(spool, number, buffer) for number in numbers[start:start + GROUP]]
        unread += [j.number for j in judgements if j.unread]
        close(spool, ledger, [j for j in judgements if not j.unread], report)
    if unread:
        raise SpoolFault(f"{len(unread)} objects cannot be read, {unread[0]:016x} among them")
    return report
