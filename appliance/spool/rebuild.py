"""A lost or damaged ledger, made again from the objects: it costs re-sends, never an image (design, Spool).

Every file with a valid head and the right length is accepted again and waits for
routing; every other file's number stays open, so that the next start-up judges
it by the table in recover.py. Numbers that lie in quarantine are used up, too:
nothing new may ever get the name of what is kept there. The old ledger is moved aside, never deleted: it
is evidence. Run it while no receiver, forwarder or keeper runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from appliance.clock import Clock
from appliance.dicom.part10 import HEAD, parse_head
from appliance.errors import HeadError, SpoolRefused
from appliance.model import Custody
from appliance.spool import ledger as ledgers
from appliance.spool import quarantine
from appliance.spool.durable import sync_folder
from appliance.spool.layout import Spool, spool_error
from appliance.spool.owners import nobody

SIDE_FILES = ("", "-wal", "-shm")


@dataclass(slots=True)
class Rebuilt:
    """`accepted` objects have a row again, `open` numbers are for the next start-up; `moved` is where the old ledger is."""

    accepted: int = 0
    open: list[int] = field(default_factory=list)
    moved: Path | None = None


def rebuild(spool: Spool, clock: Clock) -> Rebuilt:
    """Make the ledger again. SpoolRefused while a receiver runs; SpoolFull, SpoolFault, LedgerError where the disk fails.

    A crash on the way leaves an unfinished ledger: run it again.
    """
    report = Rebuilt()
    try:
        with nobody(spool.owners_path) as free:
            if not free:
                raise SpoolRefused(f"{spool.path} is in use", mend="Stop all of Dcmgate first.")
            kept = [entry.number for entry in quarantine.entries(spool)]
            report.moved = _move_aside(spool)
            numbers = spool.object_numbers()
            # `open` is filled while the heads are read; the ledger looks at it when it has had them all.
            ledgers.rebuild(spool.ledger_path, clock, _whole(spool, numbers, report), chain(report.open, kept)).close()
            sync_folder(spool.path)
    except OSError as e:
        raise spool_error(e, "cannot rebuild the ledger") from e
    return report


def _move_aside(spool: Spool) -> Path | None:
    """The ledger and its side files under a name of their own; None where there was none."""
    if not any(Path(f"{spool.ledger_path}{kind}").exists() for kind in SIDE_FILES):
        return None
    count = 1
    while (target := spool.path / f"{spool.ledger_path.name}.old{count}").exists():
        count += 1
    for kind in SIDE_FILES:
        with suppress(FileNotFoundError):
            os.rename(f"{spool.ledger_path}{kind}", f"{target}{kind}")
    sync_folder(spool.path)
    return target


def _whole(spool: Spool, numbers: list[int], report: Rebuilt) -> Iterator[Custody]:
    for number in numbers:
        custody = _head(spool, number)
        if custody is None:
            report.open.append(number)
        else:
            report.accepted += 1
            yield custody


def _head(spool: Spool, number: int) -> Custody | None:
    """The record of a file that looks whole, without reading its data set: whoever reads it for delivery does (I5).

    Head and length are what the disk has: after a sync that failed the page cache shows what never got there.
    """
    fd = os.open(spool.object_path(number), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        custody = parse_head(os.pread(fd, HEAD, 0))
        return custody if custody.number == number and os.fstat(fd).st_size == HEAD + custody.length else None
    except HeadError:
        return None
    finally:
        os.close(fd)
