"""A disk that remembers the order of its writes and flushes: a FUSE file system of one file, to put a loop device on.

Run as a process of its own, because the kernel waits for it:

    python -m tests.support.recorder <mount point: a file> <image> <log>

The image is read into memory and never written back. The log is what a crash
can be made of: records of `RECORD` (kind, offset, length, when: ns of wall time)
and, for a write, its bytes. The first 8 bytes of `<log>.count` hold the number of records so far: read
after a sync has returned, it says which of them happened before that moment.
It talks to /dev/fuse itself (Linux, include/uapi/linux/fuse.h), so it needs no library.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import struct
import sys
import time

RECORD = struct.Struct("<BQIQ")
WRITE, FLUSH = 1, 2

_IN = struct.Struct("IIQQIIII")
_OUT = struct.Struct("IiQ")
_GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _STATFS = 3, 4, 14, 15, 16, 17
_RELEASE, _FSYNC, _FLUSH, _INIT, _ACCESS = 18, 20, 25, 26, 34
_SILENT = frozenset({2, 36, 42})          # FORGET, INTERRUPT, BATCH_FORGET: never answered
_BIG_WRITES, _MAX_PAGES = 1 << 5, 1 << 22
_DIRECT_IO = 1
_CHUNK = 1 << 20


class Server:
    """Answers the kernel until the file system is unmounted."""

    def __init__(self, mount_point: str, image: str, log: str) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self.size = os.stat(image).st_size
        self._data = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        load(image, self._data)
        self._log = open(log, "wb", buffering=1 << 20)  # noqa: SIM115  open for as long as the process lives
        counter = os.open(log + ".count", os.O_RDWR | os.O_CREAT)
        os.ftruncate(counter, 4096)
        self._counter = mmap.mmap(counter, 4096)
        self._count = 0
        options = f"fd={self._fd},rootmode=100000,user_id=0,group_id=0".encode()
        if libc.mount(b"recorder", mount_point.encode(), b"fuse", 6, options):
            raise OSError(ctypes.get_errno(), f"mount: {os.strerror(ctypes.get_errno())}")

    def serve(self) -> None:
        """SIGTERM ends it as well; whatever is still asked then is an I/O error."""
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
        try:
            self._serve()
        finally:
            self._log.flush()

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._fd, _CHUNK + 65536)
            except OSError as e:
                if e.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                if e.errno == errno.ENODEV:       # unmounted
                    return
                raise
            _, kind, unique, *_ = _IN.unpack_from(request)
            if kind not in _SILENT:
                error, body = self._answer(kind, memoryview(request)[_IN.size:])
                os.write(self._fd, _OUT.pack(_OUT.size + len(body), -error, unique) + body)

    def _answer(self, kind: int, body: memoryview) -> tuple[int, bytes | memoryview]:
        if kind == _INIT:
            flags = _BIG_WRITES | _MAX_PAGES
            return 0, struct.pack("IIIIHHIIHHI28x", 7, 31, 131072, flags, 16, 12, _CHUNK, 1, _CHUNK // 4096, 0, 0)
        if kind in (_GETATTR, _SETATTR):
            return 0, struct.pack("QII", 3600, 0, 0) + self._attributes()
        if kind == _OPEN:
            return 0, struct.pack("QII", 1, _DIRECT_IO, 0)
        if kind == _READ:
            _, offset, size = struct.unpack_from("QQI", body)
            return 0, self._data[offset:offset + size]
        if kind == _WRITE:
            _, offset, size = struct.unpack_from("QQI", body)
            data = body[40:40 + size]
            self._data[offset:offset + size] = data
            self._record(WRITE, offset, data)
            return 0, struct.pack("II", size, 0)
        if kind == _FSYNC:
            self._record(FLUSH, 0, b"")
            return 0, b""
        if kind == _STATFS:
            return 0, struct.pack("QQQQQIIII24x", self.size // 4096, 0, 0, 1, 0, 4096, 255, 4096, 0)
        if kind in (_RELEASE, _FLUSH, _ACCESS):
            return 0, b""
        return errno.ENOSYS, b""

    def _attributes(self) -> bytes:
        return struct.pack("QQQQQQIIIIIIIIII", 1, self.size, self.size // 512, 0, 0, 0, 0, 0, 0, 0o100600, 1, 0, 0, 0, 4096, 0)

    def _record(self, kind: int, offset: int, data: bytes | memoryview) -> None:
        self._log.write(RECORD.pack(kind, offset, len(data), time.time_ns()))
        self._log.write(data)
        self._count += 1
        self._counter[:8] = self._count.to_bytes(8, "little")


def load(path: str, target: mmap.mmap) -> None:
    """Read a sparse file's data, and only that."""
    fd = os.open(path, os.O_RDONLY)
    try:
        end, at = os.fstat(fd).st_size, 0
        while at < end:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                return
            hole = os.lseek(fd, at, os.SEEK_HOLE)
            while at < hole:
                piece = os.pread(fd, min(_CHUNK, hole - at), at)
                target[at:at + len(piece)] = piece
                at += len(piece)
    finally:
        os.close(fd)


if __name__ == "__main__":
    server = Server(*sys.argv[1:])
    print("mounted", flush=True)
    server.serve()
