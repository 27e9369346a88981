"""Reading an object back: digested while it streams, the last bytes held back until the digest was right (I5)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType

from blake3 import blake3

from appliance.dicom.part10 import HEAD, parse_head
from appliance.errors import HeadError, ObjectDamaged, SpoolFault
from appliance.model import Custody
from appliance.spool.layout import Spool, spool_error

CHUNK = 131072

AHEAD = 4 << 20
"""Most bytes of an object that are asked of the disk ahead of need: intake leaves nothing in the page cache, and a reader
that has begun is read ahead by the kernel."""

_DAMAGE = frozenset({errno.ENOENT, errno.EIO, errno.ENODATA, errno.EREMOTEIO, errno.EUCLEAN, errno.EBADMSG, errno.ELOOP})
"""What the file system says when the object itself is gone or unreadable, rather than we out of descriptors or memory."""


def _reading(spool: Spool, number: int, error: OSError) -> ObjectDamaged | SpoolFault:
    if error.errno == errno.ENOENT and not spool.is_there():
        return SpoolFault(f"{spool.path} is not there any more", mend="Mount the spool's disk.")
    if error.errno in _DAMAGE:
        return ObjectDamaged(number, f"cannot be read: {error.strerror}")
    return SpoolFault(spool_error(error, f"cannot read object {number:016x}").message)


def expect(spool: Spool, number: int) -> None:
    """Have the disk fetch an object that will be read soon. Nothing waits for it, and no error shows before the reading."""
    with suppress(OSError):
        descriptor = spool.open_object(number)
        try:
            os.posix_fadvise(descriptor, 0, AHEAD, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)


class ObjectReader:
    """One object, open for reading. ObjectDamaged where it is not what was acknowledged, SpoolFault where we cannot read.

    `custody`, where given, is what the ledger knows: the head must agree with it.
    `chunks` may be called again for another pass.
    """

    def __init__(self, spool: Spool, number: int, custody: Custody | None = None) -> None:
        self._spool = spool
        self._number = number
        self._known = custody
        self._fd = -1
        self._custody: Custody | None = None

    @property
    def custody(self) -> Custody:
        """What the head says; only within the context."""
        if self._custody is None:
            raise ValueError("the reader is not open")
        return self._custody

    def __enter__(self) -> ObjectReader:
        try:
            self._fd = self._spool.open_object(self._number)
            size = os.fstat(self._fd).st_size
            head = os.pread(self._fd, HEAD, 0)
        except OSError as e:
            self.close()
            raise _reading(self._spool, self._number, e) from e
        try:
            self._custody = self._checked(head, size)
        except ObjectDamaged:
            self.close()
            raise
        return self

    def _checked(self, head: bytes, size: int) -> Custody:
        try:
            found = parse_head(head)
        except HeadError as e:
            raise ObjectDamaged(self._number, e.message) from None
        if found.number != self._number:
            raise ObjectDamaged(self._number, f"its head is that of {found.number:016x}")
        if size != HEAD + found.length:
            raise ObjectDamaged(self._number, f"{size - HEAD} bytes of data set, not {found.length}")
        known = self._known
        if known is not None and (known.digest, known.length, known.uid_text) != (found.digest, found.length, found.uid_text):
            raise ObjectDamaged(self._number, "its head is not the one that was acknowledged")
        return found

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def chunks(self, size: int = CHUNK) -> Iterator[memoryview]:
        """The data set in pieces of at most `size` bytes, each valid until the next is asked for.

        ObjectDamaged before the last piece is given, if the digest of it all is
        not the one in the head.
        """
        custody = self.custody
        buffer = memoryview(bytearray(min(size, max(custody.length, 1))))
        digest = blake3()
        done = 0
        while done < custody.length:
            want = min(len(buffer), custody.length - done)
            try:
                count = os.preadv(self._fd, [buffer[:want]], HEAD + done)
            except OSError as e:
                raise _reading(self._spool, self._number, e) from e
            if count == 0:
                raise ObjectDamaged(self._number, f"ends after {done} bytes")
            digest.update(buffer[:count])
            done += count
            if done == custody.length and digest.digest() != custody.digest:
                raise ObjectDamaged(self._number, "digest is wrong")
            yield buffer[:count]
        if custody.length == 0 and digest.digest() != custody.digest:
            raise ObjectDamaged(self._number, "digest is wrong")


def verify(spool: Spool, number: int, custody: Custody | None = None) -> Custody:
    """Read a whole object and say what it is. ObjectDamaged, SpoolFault."""
    with ObjectReader(spool, number, custody) as reader:
        for _ in reader.chunks(1 << 20):
            pass
        return reader.custody
