"""An archive folder: what `[[destination]] type = "folder"` delivers into, and how a copy is read back.

    <path>/
      DCMGATE-ARCHIVE              marker: JSON with format and uuid, made only by `dcmgate archive init`
      objects/<2 hex>/<64 hex>.dcm a Part 10 file named by the BLAKE3 of its data set; all 256 folders made at init
      incoming/                    files that are being written; what a crash leaves is written over or stays empty
      index.jsonl                  one line for each delivery; may be rebuilt from the heads of the objects

A folder without its marker is a destination that is not there, such as a disk
that is not mounted: nothing is ever written into the mount point below it. No
byte that came from a peer is part of a path. An object is durable when `write`
returns: temporary file, fsync, rename, fsync of its folder.

On failure OSError, as the system says it; `ArchiveMissing` is one of them.
"""

from __future__ import annotations

import errno
import json
import os
import re
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from blake3 import blake3

from appliance.dicom.part10 import HEAD, build_head, parse_head
from appliance.errors import HeadError, UsageError
from appliance.model import Custody

MARKER = "DCMGATE-ARCHIVE"
FORMAT = 1
INDEX = "index.jsonl"

_CHUNK = 1 << 20
_REFERENCE = re.compile(r"objects/([0-9a-f]{2})/(\1[0-9a-f]{62})\.dcm")
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class ArchiveMissing(OSError):
    """The folder is not there, or is no archive (ENOENT, or EPROTO for a marker of another format)."""


def init(path: Path) -> str:
    """Make an archive of an empty or missing folder; its uuid. UsageError where it is not empty, OSError."""
    if path.is_dir() and (found := sorted(entry.name for entry in path.iterdir() if entry.name != "lost+found")):
        is_one = MARKER in found
        raise UsageError(f"{path} is {'an archive already' if is_one else f'not empty: it holds {found[0]}'}",
                         mend="Name it as it is in [[destination]] path." if is_one else "Name an empty folder.")
    path.mkdir(parents=True, exist_ok=True)
    for name in ("incoming", "objects", *(f"objects/{shard:02x}" for shard in range(256))):
        (path / name).mkdir(exist_ok=True)
    identity = str(uuid.uuid4())
    root = os.open(path, _FOLDER)
    try:
        for name in ("objects", "incoming", "."):
            _sync_folder(name, root)
        fd = os.open(MARKER, _WRITE | os.O_EXCL, 0o644, dir_fd=root)
        try:
            os.write(fd, json.dumps({"format": FORMAT, "uuid": identity}).encode() + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        os.fsync(root)
    finally:
        os.close(root)
    _sync_folder(str(path.absolute().parent))
    return identity


class Archive:
    """An open archive: a context manager. Everything goes through one descriptor, so a folder that is
    unmounted meanwhile is never mistaken for the one whose marker was seen. ArchiveMissing, OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._root = os.open(path, _FOLDER)
        except (FileNotFoundError, NotADirectoryError) as e:
            raise ArchiveMissing(errno.ENOENT, f"{path} is not there: {e.strerror}") from None
        try:
            self.uuid = self._identity()
        except OSError:
            self.close()
            raise

    def _identity(self) -> str:
        try:
            fd = os.open(MARKER, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._root)
        except FileNotFoundError:
            raise ArchiveMissing(errno.ENOENT, f"{self.path} carries no {MARKER}: not mounted, or never made one") from None
        try:
            found = json.loads(os.read(fd, 4096))
            identity, version = str(found["uuid"]), found["format"]
        except (ValueError, KeyError, TypeError):
            raise ArchiveMissing(errno.EPROTO, f"{self.path}/{MARKER} is damaged") from None
        finally:
            os.close(fd)
        if version != FORMAT:
            raise ArchiveMissing(errno.EPROTO, f"{self.path} is an archive of format {version}, this release writes {FORMAT}")
        return identity

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def write(self, custody: Custody, chunks: Iterable[bytes | memoryview]) -> str:
        """Store one object; its reference. What `chunks` raises goes through, and then there is no such object.

        HeadError where the custody record makes no head. The same data set
        delivered again replaces its file.
        """
        name = custody.digest.hex()
        shard = f"objects/{name[:2]}"
        reference = f"{shard}/{name}.dcm"
        part = f"incoming/{custody.number:016x}-{name[:16]}.part"
        head = build_head(custody)
        fd = os.open(part, _WRITE, 0o644, dir_fd=self._root)
        whole = False
        try:
            _write(fd, head)
            for chunk in chunks:
                _write(fd, chunk)
            os.fsync(fd)
            whole = True
        finally:
            if not whole:
                with suppress(OSError):
                    os.ftruncate(fd, 0)  # of no use to anybody; the name stays, and is used again
            os.close(fd)
        os.rename(part, reference, src_dir_fd=self._root, dst_dir_fd=self._root)
        _sync_folder(shard, self._root)
        self._note(custody, reference)
        return reference

    def _note(self, custody: Custody, reference: str) -> None:
        line = json.dumps({
            "reference": reference, "instance": custody.uid_text, "class": custody.class_text,
            "syntax": custody.transfer_syntax, "length": custody.length, "number": f"{custody.number:016x}",
            "wall": custody.wall, "calling": custody.source.calling, "called": custody.source.called,
        }, ensure_ascii=True, separators=(",", ":"))
        fd = os.open(INDEX, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=self._root)
        try:
            end = os.fstat(fd).st_size
            torn = end > 0 and os.pread(fd, 1, end - 1) != b"\n"  # a crash in the middle of a line
            _write(fd, (("\n" if torn else "") + line + "\n").encode())
            os.fdatasync(fd)
        finally:
            os.close(fd)

    def read_back(self, reference: str) -> bytes | None:
        """Digest of the data set as the disk has it now; None where there is no such file, or not a whole one.

        ValueError for a text that is no reference of ours. OSError where the archive itself cannot be read.
        """
        if not _REFERENCE.fullmatch(reference):
            raise ValueError(f"no reference of an archive: {reference!r}")
        try:
            fd = os.open(reference, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._root)
        except FileNotFoundError:
            return None
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # the disk is asked, not the page cache
            return _data_set_digest(fd)
        except OSError as e:
            if e.errno == errno.EIO:
                return None
            raise
        finally:
            os.close(fd)


def _data_set_digest(fd: int) -> bytes | None:
    try:
        custody = parse_head(os.pread(fd, HEAD, 0))
    except HeadError:
        return None
    digest = blake3()
    buffer = memoryview(bytearray(_CHUNK))
    position = HEAD
    while count := os.preadv(fd, [buffer], position):
        digest.update(buffer[:count])
        position += count
    found: bytes = digest.digest()
    return found if position - HEAD == custody.length else None


def _write(fd: int, data: bytes | memoryview) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left):]


def _sync_folder(name: str, root: int | None = None) -> None:
    fd = os.open(name, _FOLDER, dir_fd=root)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
