"""The certificate store: where key, chain, trust anchors and revocation lists of an id are, and how they get there.

    <state>/certificates/<id>/        0700
        current -> <generation>/      a link that is replaced in one step, so that no reader sees a mixed pair
        <generation>/key.pem          0600
        <generation>/chain.pem        leaf first
        trust.pem                     certification authorities, one after the other
        crl.pem                       revocation lists, if any
        request.pem, next-key.pem     a request that waits for its certificate, and its key
        est-request.pem, est-key.pem  the same for enrolment by EST; est-password, est.json: what it goes by, how it went
        *.crl                         revocation lists that somebody has put here for the keeper; crl.json: how fetching went

A key is made here and leaves the box never. All files are 0600 and folders 0700,
of the owner of the state folder. Where the services run as several users, the
folder `certificates` is made beforehand with a group that those are in who talk
TLS, and mode 2750: then what they need (key, chain, trust, lists) is 0640 and
that group's, and the rest stays with the writer, the keeper, alone.
Nothing is cached here: `Store.material` looks each time, for the price of a few
`stat` calls, and its `generation` differs whenever anything has changed.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from appliance.errors import CertificateError

FOLDER = "certificates"
CURRENT = "current"
KEY = "key.pem"
CHAIN = "chain.pem"
TRUST = "trust.pem"
CRL = "crl.pem"
REQUEST = "request.pem"
NEXT_KEY = "next-key.pem"
EST_REQUEST = "est-request.pem"
EST_KEY = "est-key.pem"
EST_LOGIN = "est-password"
EST_STATE = "est.json"
EST_LOCK = "est.lock"
CRL_STATE = "crl.json"
DROPPED = ".crl"
"""Ending of files with revocation lists that the keeper takes up."""

SHARED = frozenset({KEY, CHAIN, TRUST, CRL})
"""What those who talk TLS read; everything else is for the keeper and the commands."""

_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Material:
    """The files of one `[[certificate]]`; None for what is not there. `generation` differs whenever one of them does."""

    id: str
    folder: Path
    key: Path | None = None
    chain: Path | None = None
    trust: Path | None = None
    crl: Path | None = None
    generation: int = 0


class Store:
    """`state` is the folder of `[spool] state`."""

    def __init__(self, state: str | Path) -> None:
        self.folder = Path(state) / FOLDER

    def material(self, id: str) -> Material:
        """What is there for that id now; everything None where nothing is. Never raises."""
        folder = self.folder / id
        pair = _pair(folder)
        while True:
            paths = (pair / KEY, pair / CHAIN, folder / TRUST, folder / CRL)
            marks = [_mark(path) for path in paths]
            now = _pair(folder)
            if now == pair or (marks[0] and marks[1]):
                break
            pair = now            # replaced, and the old one deleted, while we looked
        key, chain, trust, crl = (path if mark else None for path, mark in zip(paths, marks, strict=True))
        if key is None or chain is None:
            key = chain = None
        digest = blake2b(repr((pair.name, marks)).encode(), digest_size=7)
        return Material(id, folder, key, chain, trust, crl, int.from_bytes(digest.digest()))


def _pair(folder: Path) -> Path:
    """The generation that counts now."""
    try:
        return folder / os.readlink(folder / CURRENT)
    except OSError:
        return folder / CURRENT


def _mark(path: Path) -> tuple[int, int, int, int] | None:
    """Differs whenever the file was replaced, or its mode changed; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size, stat.st_mode


class Writer:
    """The writing side, for the commands and the keeper. A file is there whole or not at all, whenever the power goes.

    Every writer of an id waits for the others. What root writes belongs to the
    owner of the state folder, as do the processes that read it. CertificateError
    where the folder cannot be written.
    """

    def __init__(self, state: str | Path) -> None:
        self.state = Path(state)
        self.store = Store(state)

    @contextmanager
    def writing(self, id: str) -> Iterator[Path]:
        """The folder of an id, made where it is missing, with nobody else writing in it."""
        if not _ID.fullmatch(id):
            raise CertificateError(f'"{id}" cannot be the name of a folder', mend="Use letters, digits, dot, dash, underscore.")
        folder = self.store.folder / id
        try:
            for path in (self.store.folder, folder):
                if not path.is_dir():
                    self._folder(path)
                    _sync(path.parent)
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as e:
            raise self._cannot(folder, e) from e
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
        except OSError as e:
            raise self._cannot(folder, e) from e
        finally:
            os.close(lock)

    def install(self, id: str, key: bytes, chain: bytes, prove: Callable[[Path], None] = lambda made: None) -> Path:
        """A new generation of key and chain (PEM), in force at once for the next connection; returns its folder.

        The generation before stays, for a reader that has just been told of it; older ones go. A request that waited for this
        is done. `prove` looks at the folder before it is in force: what it raises leaves everything as it was.
        """
        with self.writing(id) as folder:
            made = self._install(folder, key, chain, prove)
            for waiting, request in ((NEXT_KEY, REQUEST), (EST_KEY, EST_REQUEST)):
                if self.read(id, waiting) == key:
                    for name in (request, waiting):
                        (folder / name).unlink(missing_ok=True)
                    _sync(folder)
            return made

    def put(self, id: str, **files: bytes) -> None:
        """Replace files by their names without ".pem" (`trust`, `crl`, `request`, `next_key`), each in one step."""
        with self.writing(id) as folder:
            for name, data in files.items():
                self._write(folder / f"{name.replace('_', '-')}.pem", data)
            _sync(folder)

    def keep(self, path: Path, data: bytes) -> None:
        """A file of another kind for those who talk TLS, below the state folder; its own folder is made where it is missing."""
        try:
            if not path.parent.is_dir():
                self._folder(path.parent)
                _sync(path.parent.parent)
            self._write(path, data, shared=True)
            _sync(path.parent)
        except OSError as e:
            raise self._cannot(path, e) from e

    def note(self, id: str, **files: bytes) -> None:
        """The same for files that are no PEM: `est_password`, `est_json`, `crl_json`."""
        with self.writing(id) as folder:
            for name, data in files.items():
                stem, _, ending = name.rpartition("_")
                self._write(folder / (f"{stem}.json" if ending == "json" else name.replace("_", "-")), data)
            _sync(folder)

    def forget(self, id: str, *names: str) -> None:
        """Files that nobody needs any more."""
        with self.writing(id) as folder:
            for name in names:
                (folder / name).unlink(missing_ok=True)
            _sync(folder)

    def dropped(self, id: str) -> list[Path]:
        """Revocation lists that somebody has put there."""
        try:
            return sorted(path for path in (self.store.folder / id).iterdir()
                          if path.suffix == DROPPED and path.name[0] != "." and path.is_file())
        except OSError:
            return []

    @contextmanager
    def enrolling(self, id: str) -> Iterator[bool]:
        """Whether nobody else enrols that id; within it nobody else does."""
        with self.writing(id) as folder:
            descriptor = os.open(folder / EST_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            self._own(folder / EST_LOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)

    def read(self, id: str, name: str) -> bytes:
        """A file of an id; empty where there is none."""
        try:
            return (self.store.folder / id / name).read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as e:
            raise self._cannot(self.store.folder / id / name, e) from e

    def _install(self, folder: Path, key: bytes, chain: bytes, prove: Callable[[Path], None]) -> Path:
        numbers = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
        made = folder / f"{max(numbers, default=0) + 1:06}"
        self._folder(made)
        self._write(made / KEY, key)
        self._write(made / CHAIN, chain)
        try:
            prove(made)
        except BaseException:
            shutil.rmtree(made)
            raise
        _sync(made)
        _sync(folder)
        try:
            before = os.readlink(folder / CURRENT)
        except OSError:
            before = ""
        link = folder / f".{CURRENT}"
        link.unlink(missing_ok=True)
        link.symlink_to(made.name)
        self._own(link)
        os.replace(link, folder / CURRENT)
        _sync(folder)
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink() and path.name not in (made.name, before):
                shutil.rmtree(path)
        return made

    def _write(self, path: Path, data: bytes, *, shared: bool = False) -> None:
        temporary = path.with_name(f".{path.name}")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            self._own(temporary)
            if (shared or path.name in SHARED) and self._is_shared():
                os.fchmod(descriptor, 0o640)
            os.fsync(descriptor)
        os.replace(temporary, path)

    def _folder(self, path: Path) -> None:
        shared = path != self.store.folder and self._is_shared()
        path.mkdir(0o750 if shared else 0o700)       # set-group-ID is inherited: a sandboxed keeper may not set it
        self._own(path)
        if shared and path.stat().st_mode & 0o7777 != 0o2750:
            path.chmod(0o2750)

    def _is_shared(self) -> bool:
        """Whether a group may read what it needs: the store's folder was made so, with its set-group-ID bit as the sign."""
        return self.store.folder.is_dir() and self.store.folder.stat().st_mode & 0o2050 == 0o2050

    def _own(self, path: Path) -> None:
        """To the owner and the group of the store, which are those of the state folder unless it was made otherwise."""
        whose = (self.store.folder if path != self.store.folder and self.store.folder.is_dir() else self.state).stat()
        if os.geteuid() == 0:
            os.chown(path, whose.st_uid, whose.st_gid, follow_symlinks=False)
        elif path.lstat().st_gid != whose.st_gid and self._is_shared():
            os.chown(path, -1, whose.st_gid, follow_symlinks=False)

    def _cannot(self, path: Path, error: OSError) -> CertificateError:
        if not self.state.is_dir():
            return CertificateError(f"the state folder {self.state} does not exist", mend="Run `dcmgate spool init` first.")
        mend = "Run it as root, or as the user that Dcmgate runs as." if isinstance(error, PermissionError) else \
            "Look at that folder and its disk."
        return CertificateError(f"cannot use {path}: {error.strerror or error}", mend=mend)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
