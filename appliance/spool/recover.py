"""Start-up: what became of every number that a dead process held (design, "Numbers are used once").

    no file, empty, or head all zero                 void
    valid head, digest equal, file as recorded       adopt
    valid head, digest equal, file longer            cut, sync, adopt
    anything else                                    quarantined as a remnant, void

Only granted numbers without a closing row are looked at, so the time depends on
what was under way, not on what is held. Files are read around the page cache:
after a failed sync it shows data that the disk never got. What is adopted is
synced first, with its name. A crash on the way repeats it.

On failure: SpoolFull or SpoolFault where the disk fails while writing,
LedgerError; then intake does not open, and nothing was lost.
"""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass

from blake3 import blake3

from appliance.dicom.part10 import HEAD, is_blank, parse_head
from appliance.errors import HeadError, SpoolFault
from appliance.model import Custody
from appliance.spool import quarantine
from appliance.spool.buffers import CAPACITY, Buffer
from appliance.spool.durable import sync_folder
from appliance.spool.layout import Spool, spool_error
from appliance.spool.ledger import Ledger

GROUP = 256
"""Numbers that are judged before their rows are written together."""

_PATTERN = bytes(range(256)) * (HEAD // 256)


@dataclass(slots=True)
class Recovery:
    """How many numbers came to what, over `owners` dead processes."""

    owners: int = 0
    adopted: int = 0
    cut: int = 0
    void: int = 0
    remnants: int = 0


@dataclass(frozen=True, slots=True)
class Judgement:
    """One number. Exactly one of `custody` (adopt it) and `void` (reason) is set; `remnant`: the file is to be kept aside.
    `unread`: because the disk did not let it be read."""

    number: int
    custody: Custody | None = None
    void: str = ""
    remnant: bool = False
    cut: bool = False
    unread: bool = False


def recover(spool: Spool, ledger: Ledger) -> Recovery:
    """Close every open number of every dead owner."""
    report = Recovery()
    buffer = Buffer()
    for owner in ledger.dead_owners(spool.is_alive):
        with spool.lock_owner(owner) as lock:
            if not lock.held:
                continue
            report.owners += 1
            numbers = ledger.open_numbers(owner)
            for start in range(0, len(numbers), GROUP):
                close(spool, ledger, [judge(spool, number, buffer) for number in numbers[start:start + GROUP]], report)
    return report


def close(spool: Spool, ledger: Ledger, judgements: list[Judgement], report: Recovery) -> None:
    """Make the files what was judged of them, then write the rows."""
    adopted = [j.custody for j in judgements if j.custody is not None]
    try:
        for folder in {spool.shard(custody.number) for custody in adopted}:
            sync_folder(folder)
    except OSError as e:
        raise spool_error(e, "cannot sync the folder of a recovered object") from e
    remnants = [j for j in judgements if j.remnant]
    for remnant in remnants:
        quarantine.put(spool, remnant.number, remnant.void, remnant=True)
    if adopted:
        ledger.accepted(sorted(adopted, key=lambda c: (c.boot, c.since_boot, c.number)))
    voids = [(j.number, j.void) for j in judgements if j.custody is None]
    if voids:
        ledger.void(voids)
    report.adopted += len(adopted)
    report.cut += sum(j.cut for j in judgements)
    report.remnants += len(remnants)
    report.void += len(voids)


def judge(spool: Spool, number: int, buffer: Buffer) -> Judgement:
    """What became of one number. Cuts and syncs the file where that is due, moves nothing. SpoolFull, SpoolFault."""
    try:
        fd = os.open(spool.object_path(number), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError as e:
        if not spool.is_there():
            raise SpoolFault(f"{spool.path} is not there any more", mend="Mount the spool's disk.") from e
        return Judgement(number, void="never made")
    except OSError as e:
        raise spool_error(e, f"cannot open object {number:016x}") from e
    try:
        return _judge(fd, number, buffer)
    finally:
        os.close(fd)


def _judge(fd: int, number: int, buffer: Buffer) -> Judgement:
    try:
        size = os.fstat(fd).st_size
        if size == 0:
            return Judgement(number, void="blank")
        _around_cache(fd)
    except OSError as e:
        raise spool_error(e, f"cannot look at object {number:016x}") from e
    unread = False
    try:
        count = _read(fd, buffer.whole[:HEAD], 0)
        head = bytes(buffer.whole[:min(count, HEAD)])
        if is_blank(head):
            return _blank(fd, number)
        custody = parse_head(head)
        problem = _problem(custody, number, size) or _digest_problem(fd, custody, buffer)
    except HeadError as e:
        problem = e.message
    except OSError as e:
        problem = f"cannot be read: {e.strerror}"
        unread = True
    if problem:
        return Judgement(number, void=f"remnant: {problem}", remnant=True, unread=unread)
    return _adopt(fd, custody, size)


def _blank(fd: int, number: int) -> Judgement:
    """Data without a head was never acknowledged."""
    try:
        os.ftruncate(fd, 0)
    except OSError as e:
        raise spool_error(e, f"cannot cut object {number:016x}") from e
    return Judgement(number, void="no head")


def _adopt(fd: int, custody: Custody, size: int) -> Judgement:
    longer = size > HEAD + custody.length
    try:
        if longer:
            os.ftruncate(fd, HEAD + custody.length)
        os.fsync(fd)
    except OSError as e:
        raise spool_error(e, f"cannot adopt object {custody.number:016x}") from e
    return Judgement(custody.number, custody=custody, cut=longer)


def _problem(custody: Custody, number: int, size: int) -> str:
    if custody.number != number:
        return f"its head is that of {custody.number:016x}"
    if size < HEAD + custody.length:
        return f"{size - HEAD} bytes of data set, not {custody.length}"
    return ""


def _digest_problem(fd: int, custody: Custody, buffer: Buffer) -> str:
    digest = blake3()
    done = 0
    while done < custody.length:
        count = min(_read(fd, buffer.data, HEAD + done), custody.length - done)
        if count <= 0:
            return f"ends after {done} bytes"
        digest.update(buffer.data[:count])
        done += count
    return "" if digest.digest() == custody.digest else "digest is wrong"


def _read(fd: int, view: memoryview, offset: int) -> int:
    """Fill the view from the file; fewer bytes at its end. A read at an offset that is not aligned means that it is the end."""
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        done += count
        if count == 0 or count % HEAD:
            break
    return done


def _around_cache(fd: int) -> None:
    """Have reads come from the disk: O_DIRECT, or, where that is refused, with the cached pages dropped."""
    os.fdatasync(fd)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def prove(spool: Spool, number: int) -> None:
    """Write to the unused file of a number, sync it, read it back from the disk, and empty it. SpoolFull, SpoolFault.

    The head's place stays blank, so that whoever finds it after a crash knows that it was never acknowledged.
    """
    buffer = Buffer()
    try:
        fd = os.open(spool.object_path(number), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.pwrite(fd, _PATTERN, HEAD)
            _around_cache(fd)      # syncs it first
            count = _read(fd, buffer.whole[:2 * HEAD], 0)
            if bytes(buffer.whole[HEAD:count]) != _PATTERN:
                raise SpoolFault("the disk does not give back what was written to it")
            os.ftruncate(fd, 0)
        finally:
            os.close(fd)
    except FileNotFoundError as e:
        if not spool.is_there():
            raise SpoolFault(f"{spool.path} is not there any more", mend="Mount the spool's disk.") from e
    except OSError as e:
        raise spool_error(e, "the disk was tried") from e


assert CAPACITY % HEAD == 0, "pieces of a read stay aligned"
