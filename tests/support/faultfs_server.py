"""The server of a folder that fails on purpose: a FUSE pass-through (see `tests.support.faultfs`), in a process of its own.

It talks to /dev/fuse itself (include/uapi/linux/fuse.h, 7.31):

    python -m tests.support.faultfs_server <mount point> <backing folder> <control socket>
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import stat
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from tests.support.faultfs import GONE, Hit, Rule, class_of

THREADS = 8
"""Requests that may be delayed at once; more wait for their turn, as they do for a disk."""

_IN = struct.Struct("IIQQIIII")
_OUT = struct.Struct("IiQ")
_ENTRY = struct.Struct("QQQQII")
_ATTR = struct.Struct("QQQQQQIIIIIIIIII")
(_LOOKUP, _FORGET, _GETATTR, _SETATTR, _MKDIR, _UNLINK, _RMDIR, _RENAME, _OPEN, _READ, _WRITE, _STATFS, _RELEASE, _FSYNC,
 _FLUSH, _INIT, _OPENDIR, _READDIR, _RELEASEDIR, _FSYNCDIR, _ACCESS, _CREATE, _INTERRUPT, _BATCH_FORGET, _FALLOCATE,
 _RENAME2, _LSEEK) = (1, 2, 3, 4, 9, 10, 11, 12, 14, 15, 16, 17, 18, 20, 25, 26, 27, 28, 29, 30, 34, 35, 36, 42, 43, 45, 46)
_SILENT = frozenset({_FORGET, _INTERRUPT, _BATCH_FORGET})
_BIG_WRITES, _MAX_PAGES, _PARALLEL = 1 << 5, 1 << 22, 1 << 18
_KEEP_CACHE = 2
_CHUNK = 1 << 20
_MODE, _UID, _GID, _SIZE, _FH = 1, 2, 4, 8, 64
_BY_PAGE_CACHE = 1
"""Flag of a WRITE that comes from a shared mapping: nobody's system call, so it is not counted."""

_NAME = {_OPEN: "open", _CREATE: "create", _READ: "read", _WRITE: "write", _FSYNC: "sync", _FSYNCDIR: "sync", _RENAME: "rename",
         _RENAME2: "rename", _UNLINK: "unlink"}


@dataclass(slots=True)
class _File:
    """An open file or folder. `undo`: what its writes since the last good sync replaced (bytes, and where)."""

    node: int
    fd: int
    names: list[tuple[str, int]]


class Server:
    """One mounted folder. Answers with several threads until it is unmounted."""

    def __init__(self, mount_point: str, backing: str) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self._backing = backing
        self._lock = threading.Lock()
        self._paths: dict[int, str] = {1: ""}
        self._nodes: dict[str, int] = {"": 1}
        self._next = 2
        self._files: dict[int, _File] = {}
        self._undo: dict[int, list[tuple[int, bytes]]] = {}
        self._rules: list[Rule] = []
        self._counts: Counter[tuple[str, str]] = Counter()
        self._hits: list[Hit] = []
        self._ends: dict[int, int] = {}                      # file handle → where its last write ended
        self._again: dict[int, tuple[int, Rule]] = {}        # file handle → where its next write fails, by that rule
        self._gone = False
        self._healed = threading.Event()
        options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0,allow_other,max_read=131072".encode()
        if libc.mount(b"faultfs", mount_point.encode(), b"fuse", 6, options):
            raise OSError(ctypes.get_errno(), f"mount: {os.strerror(ctypes.get_errno())}")

    # control

    def command(self, asked: dict[str, Any]) -> dict[str, Any]:
        """One question of the control socket. With a new plan counts begin anew, and what was delayed goes on at once."""
        with self._lock:
            if "plan" in asked:
                self._rules = [Rule(**rule) for rule in asked["plan"]]
                self._counts.clear()
                self._hits.clear()
                self._healed.set()
                self._healed = threading.Event()
            if "mode" in asked:
                self._gone = asked["mode"] == GONE
            if "forget" in asked:
                self._paths, self._nodes = {1: ""}, {"": 1}
            return {"counts": [[*key, count] for key, count in sorted(self._counts.items())],
                    "hits": [asdict(hit) for hit in self._hits]}

    # the loop

    def serve(self) -> None:
        threads = [threading.Thread(target=self._loop, daemon=True) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _loop(self) -> None:
        while True:
            try:
                request = os.read(self._fd, _CHUNK + 65536)
            except OSError as e:
                if e.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                if e.errno == errno.ENODEV:       # unmounted
                    return
                raise
            _, kind, unique, node, _, _, thread, _ = _IN.unpack_from(request)
            body = memoryview(request)[_IN.size:]
            if kind in _SILENT:
                continue
            try:
                answer = self._answer(kind, node, thread, body)
                error = 0
            except OSError as e:
                answer, error = b"", e.errno or errno.EIO
            except KeyError:                      # deleted, or closed, since the kernel heard of it
                answer, error = b"", errno.ENOENT
            with suppress(OSError):    # ENOENT: whoever asked was killed meanwhile
                os.write(self._fd, _OUT.pack(_OUT.size + len(answer), -error, unique) + answer)

    def _answer(self, kind: int, node: int, thread: int, body: memoryview) -> bytes:
        handler = self._HANDLERS.get(kind)
        if handler is None:
            raise OSError(errno.ENOSYS, "not here")
        if self._gone and kind not in (_INIT, _RELEASE, _RELEASEDIR, _FLUSH):
            raise OSError(errno.EIO, "the disk is gone")
        spoiled = self._spoiled(kind, node, thread, body)
        if spoiled is None:
            return handler(self, node, body)
        if spoiled.short < 1 and kind == _WRITE:
            fh, offset, size = struct.unpack_from("QQI", body)
            taken = max(1, int(size * spoiled.short))
            return self._write(node, memoryview(struct.pack("QQI20x", fh, offset, taken) + bytes(body[40:40 + taken])))
        if spoiled.error:
            if kind == _FSYNC:
                self._drop(node)
            raise OSError(spoiled.error, "on purpose")
        return handler(self, node, body)

    def _spoiled(self, kind: int, node: int, thread: int, body: memoryview) -> Rule | None:
        """The rule that this call falls under; it is counted, and waits as long as the rule says."""
        op = _NAME.get(kind, "")
        if kind == _SETATTR and struct.unpack_from("I", body)[0] & _SIZE:
            op = "truncate"
        if not op or (kind == _WRITE and struct.unpack_from("I", body, 20)[0] & _BY_PAGE_CACHE):
            return None
        hidden = False
        path = self._paths.get(node, "?")
        if kind in (_CREATE, _UNLINK, _RENAME, _RENAME2):
            start = {_CREATE: 16, _UNLINK: 0, _RENAME: 8, _RENAME2: 16}[kind]
            path += "/" + _names(body[start:])[-1]
        where = class_of(path)
        with self._lock:
            self._counts[where, op] += 1
            self._counts["*", op] += 1
            found = next((r for r in self._rules if r.op == op and r.where in ("*", where)
                          and r.first <= self._counts[r.where, op] < r.first + r.times), None)
            if kind == _WRITE:
                found, hidden = self._hidden(found, *struct.unpack_from("QQI", body))
            if found is None:
                return None
            call, healed = self._counts[found.where, op], self._healed
        if found.delay:
            healed.wait(found.delay)
        with self._lock:
            if not healed.is_set() and not hidden:
                self._hits.append(Hit(time.monotonic(), _process(thread), op, where, path, call, found.error))
        return found

    def _hidden(self, found: Rule | None, fh: int, offset: int, size: int) -> tuple[Rule | None, bool]:
        """The rule for this write, and whether nobody will hear of its error. Locked.

        The kernel sends one write(2) in pieces where it crosses a page that is not
        cached. An error of a later piece is a short write to the program, which goes on
        where that stopped: so it fails there once more, for the program to see.
        """
        place, rule = self._again.pop(fh, (-1, None))
        if rule is not None and place == offset:
            return rule, False
        if found is None or not found.error:
            self._ends[fh] = offset + size
            return found, False
        tail = offset % 4096 == 0 and self._ends.get(fh) == offset
        if tail:
            self._again[fh] = (offset, found)
        return found, tail

    # nodes

    def _path(self, node: int, name: str = "") -> str:
        with self._lock:
            path = self._paths.get(node)
        if path is None:
            raise OSError(errno.ENOENT, "deleted")
        return self._backing + path + ("/" + name if name else "")

    def _node(self, path: str) -> int:
        with self._lock:
            found = self._nodes.get(path)
            if found is None:
                found = self._nodes[path] = self._next
                self._paths[found] = path
                self._next += 1
            return found

    def _forget_path(self, path: str) -> None:
        with self._lock:
            node = self._nodes.pop(path, None)
            if node is not None:
                self._paths.pop(node, None)

    def _stat(self, node: int) -> os.stat_result:
        with self._lock:
            file = next((file for file in self._files.values() if file.node == node), None)
            if file is not None:
                return os.fstat(file.fd)
        return os.lstat(self._path(node))

    def _entry(self, path: str) -> bytes:
        found = os.lstat(self._backing + path)
        return _ENTRY.pack(self._node(path), 0, 0, 0, 0, 0) + _attributes(found)

    # what is asked

    def _init(self, node: int, body: memoryview) -> bytes:
        return struct.pack("IIIIHHIIHHI28x", 7, 31, 131072, _BIG_WRITES | _MAX_PAGES | _PARALLEL, 16, 12, _CHUNK, 1,
                           _CHUNK // 4096, 0, 0)

    def _lookup(self, node: int, body: memoryview) -> bytes:
        return self._entry(self._paths[node] + "/" + _names(body)[0])

    def _getattr(self, node: int, body: memoryview) -> bytes:
        return struct.pack("QII", 0, 0, 0) + _attributes(self._stat(node))

    def _setattr(self, node: int, body: memoryview) -> bytes:
        valid, _, fh, size = struct.unpack_from("IIQQ", body)
        mode, _, uid, gid = struct.unpack_from("IIII", body, 68)
        if valid & _SIZE:
            if valid & _FH:
                os.ftruncate(self._files[fh].fd, size)
            else:
                os.truncate(self._path(node), size)
        if valid & _MODE:
            os.chmod(self._path(node), stat.S_IMODE(mode))
        if valid & (_UID | _GID):
            os.chown(self._path(node), uid if valid & _UID else -1, gid if valid & _GID else -1)
        return self._getattr(node, body)

    def _mkdir(self, node: int, body: memoryview) -> bytes:
        mode, umask = struct.unpack_from("II", body)
        path = self._paths[node] + "/" + _names(body[8:])[0]
        os.mkdir(self._backing + path, mode & ~umask)
        return self._entry(path)

    def _unlink(self, node: int, body: memoryview) -> bytes:
        name = _names(body)[0]
        os.unlink(self._path(node, name))
        self._forget_path(self._paths[node] + "/" + name)
        return b""

    def _rmdir(self, node: int, body: memoryview) -> bytes:
        name = _names(body)[0]
        os.rmdir(self._path(node, name))
        self._forget_path(self._paths[node] + "/" + name)
        return b""

    def _rename(self, node: int, body: memoryview, start: int = 8) -> bytes:
        old, new = _names(body[start:])
        target = struct.unpack_from("Q", body)[0]
        old_path, new_path = self._paths[node] + "/" + old, self._paths[target] + "/" + new
        os.rename(self._backing + old_path, self._backing + new_path)
        self._forget_path(new_path)
        with self._lock:
            for path, number in list(self._nodes.items()):
                if path == old_path or path.startswith(old_path + "/"):
                    moved = new_path + path.removeprefix(old_path)
                    del self._nodes[path]
                    self._nodes[moved], self._paths[number] = number, moved
        return b""

    def _rename2(self, node: int, body: memoryview) -> bytes:
        if struct.unpack_from("8xI", body)[0]:
            raise OSError(errno.EINVAL, "flags")
        return self._rename(node, body, 16)

    def _opened(self, node: int, fd: int, names: list[tuple[str, int]]) -> bytes:
        with self._lock:
            handle = self._next
            self._next += 1
            self._files[handle] = _File(node, fd, names)
        # What is mapped must not be thrown out when somebody else opens it; all else comes from the disk after an open.
        keep = _KEEP_CACHE if class_of(self._paths.get(node, "")) == "shm" else 0
        return struct.pack("QII", handle, keep, 0)

    def _open(self, node: int, body: memoryview) -> bytes:
        flags = struct.unpack_from("I", body)[0] & ~(os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_DIRECT | os.O_APPEND)
        if flags & os.O_ACCMODE == os.O_WRONLY:
            flags = flags & ~os.O_ACCMODE | os.O_RDWR
        return self._opened(node, os.open(self._path(node), flags | os.O_CLOEXEC), [])

    def _create(self, node: int, body: memoryview) -> bytes:
        flags, mode, umask = struct.unpack_from("III", body)
        path = self._paths[node] + "/" + _names(body[16:])[0]
        fd = os.open(self._backing + path, os.O_RDWR | os.O_CREAT | flags & os.O_EXCL | os.O_CLOEXEC, mode & ~umask)
        entry = self._entry(path)
        return entry + self._opened(self._node(path), fd, [])

    def _read(self, node: int, body: memoryview) -> bytes:
        fh, offset, size = struct.unpack_from("QQI", body)
        return os.pread(self._files[fh].fd, size, offset)

    def _write(self, node: int, body: memoryview) -> bytes:
        fh, offset, size = struct.unpack_from("QQI", body)
        fd = self._files[fh].fd
        before = os.pread(fd, size, offset)
        with self._lock:
            self._undo.setdefault(node, []).append((offset, before.ljust(size, b"\0")))
        done = 0
        while done < size:
            done += os.pwrite(fd, body[40 + done:40 + size], offset + done)
        return struct.pack("II", size, 0)

    def _drop(self, node: int) -> None:
        """A sync failed: what was written since the last good one never reached the disk, whatever is asked later."""
        with self._lock:
            undo = self._undo.pop(node, [])
            file = next((file for file in self._files.values() if file.node == node), None)
        if file is not None:
            for offset, before in reversed(undo):
                os.pwrite(file.fd, before, offset)

    def _fsync(self, node: int, body: memoryview) -> bytes:
        with self._lock:
            self._undo.pop(node, None)
        return b""

    def _statfs(self, node: int, body: memoryview) -> bytes:
        s = os.statvfs(self._backing)
        return struct.pack("QQQQQIIII24x", s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_bsize, s.f_namemax,
                           s.f_frsize, 0)

    def _release(self, node: int, body: memoryview) -> bytes:
        with self._lock:
            file = self._files.pop(struct.unpack_from("Q", body)[0])
        if file.fd >= 0:
            os.close(file.fd)
        return b""

    def _opendir(self, node: int, body: memoryview) -> bytes:
        with os.scandir(self._path(node)) as entries:
            names = [(".", stat.S_IFDIR), ("..", stat.S_IFDIR)]
            names += [(e.name, stat.S_IFDIR if e.is_dir(follow_symlinks=False) else stat.S_IFREG) for e in entries]
        return self._opened(-1, -1, names)

    def _readdir(self, node: int, body: memoryview) -> bytes:
        fh, offset, size = struct.unpack_from("QQI", body)
        out = b""
        for number, (name, mode) in enumerate(self._files[fh].names[offset:], offset + 1):
            raw = name.encode()
            record = struct.pack("QQII", number, number, len(raw), mode >> 12) + raw
            record += bytes(-len(record) % 8)
            if len(out) + len(record) > size:
                break
            out += record
        return out

    def _fallocate(self, node: int, body: memoryview) -> bytes:
        fh, offset, length, mode = struct.unpack_from("QQQI", body)
        if mode:
            raise OSError(errno.EOPNOTSUPP, "mode")
        os.posix_fallocate(self._files[fh].fd, offset, length)
        return b""

    def _lseek(self, node: int, body: memoryview) -> bytes:
        fh, offset, whence = struct.unpack_from("QQI", body)
        return struct.pack("Q", os.lseek(self._files[fh].fd, offset, whence))

    def _nothing(self, node: int, body: memoryview) -> bytes:
        return b""

    _HANDLERS: ClassVar[dict[int, Callable[[Server, int, memoryview], bytes]]] = {
        _INIT: _init, _LOOKUP: _lookup, _GETATTR: _getattr, _SETATTR: _setattr, _MKDIR: _mkdir, _UNLINK: _unlink,
        _RMDIR: _rmdir, _RENAME: _rename, _RENAME2: _rename2, _OPEN: _open, _CREATE: _create, _READ: _read, _WRITE: _write,
        _FSYNC: _fsync, _STATFS: _statfs, _RELEASE: _release, _OPENDIR: _opendir, _READDIR: _readdir, _RELEASEDIR: _release,
        _FSYNCDIR: _nothing, _FALLOCATE: _fallocate, _LSEEK: _lseek, _FLUSH: _nothing, _ACCESS: _nothing}


def _names(body: memoryview) -> list[str]:
    return [raw.decode() for raw in bytes(body).rstrip(b"\0").split(b"\0")]


def _attributes(s: os.stat_result) -> bytes:
    seconds, nanoseconds = zip(*(divmod(t, 10 ** 9) for t in (s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns)), strict=True)
    return _ATTR.pack(s.st_ino, s.st_size, s.st_blocks, *seconds, *nanoseconds, s.st_mode, s.st_nlink, s.st_uid, s.st_gid, 0,
                      4096, 0)


def _process(thread: int) -> int:
    """The process that a thread belongs to; the thread itself where it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{thread}/status").read_text().splitlines():
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    return thread


def _listen(server: Server, sock: socket.socket) -> None:
    while True:
        peer, _ = sock.accept()
        with peer, peer.makefile("rw") as lines, suppress(OSError):
            lines.write(json.dumps(server.command(json.loads(lines.readline()))) + "\n")


def main(mount: str, backing: str, control: str) -> None:
    server = Server(mount, backing)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(control)
        sock.listen(8)                            # before anybody is told: a socket that is only bound refuses
        threading.Thread(target=_listen, args=(server, sock), daemon=True).start()
        print("mounted", flush=True)
        server.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
