"""Fetch: a release into a folder, from a web server or a stick, going on where it was interrupted. Without privileges.

Parts of a file are asked for (`Range`), so that a line that breaks costs one of
them. Nothing is used before its digest is that of the signed list.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from appliance.config.settings import SYSTEM_TRUST, Config
from appliance.net.certstore import Store
from appliance.net.proxy import Proxy
from appliance.net.tls import PROFILES, client_context
from appliance.net.tlserrors import TlsError
from appliance.net.web import Answer, WebError, ask
from appliance.policy.update import Installed, Refused, Release
from appliance.update.places import SIGNATURE, SUMS, Places
from appliance.update.release import checked, digest, uki_is_ours

CHUNK = 8 << 20
CHUNK_SECONDS = 300.0
TRIES = 5
PAUSE = 2.0
LARGEST = 2 << 30
"""Bytes that one file may have."""

ROOM = 48 << 20
"""Bytes that are left free beside a release."""

_RANGE = re.compile(r"bytes (?P<first>\d+)-(?P<last>\d+)/(?P<total>\d+)")

Tell = Callable[[str, int, int], None]
"""Hears name, bytes that are there, and bytes in all."""


class Broken(Exception):
    """It cannot be fetched now; later it may. One sentence."""


class Source(Protocol):
    def part(self, name: str, first: int, count: int) -> tuple[bytes, int]:
        """At most `count` bytes from there on, and how many there are in all. Refused where there is no such file; Broken."""


class Folder:
    """A stick, or any folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def part(self, name: str, first: int, count: int) -> tuple[bytes, int]:
        try:
            with (self._path / name).open("rb") as file:
                file.seek(first)
                return file.read(count), os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            raise Refused(f"it has no {name}") from None
        except OSError as e:
            raise Broken(f"{name} cannot be read: {e.strerror}") from None


class Web:
    """A folder on a web server that serves parts of files. `state`: where trust and the proxy's password lie."""

    def __init__(self, url: str, config: Config, state: str | Path) -> None:
        self._url = url.rstrip("/") + "/"
        update, store = config.update, Store(state)
        trust = None if update.trust in ("", SYSTEM_TRUST) else store.material(update.trust)
        self._proxy = Proxy(update.proxy, state) if update.proxy else None
        try:
            self._context = client_context(PROFILES["bcp195"], None, trust) if url.startswith("https:") else None
        except TlsError as e:
            raise Broken(f"nothing says whom to trust at {url}: {e.text}") from None

    def part(self, name: str, first: int, count: int) -> tuple[bytes, int]:
        for tried in range(1, TRIES + 1):
            try:
                return self._part(name, first, count)
            except WebError as e:
                if tried == TRIES:
                    raise Broken(f"{self._url} cannot be fetched from: {e.text}") from None
                time.sleep(PAUSE * tried)
        raise AssertionError

    def _part(self, name: str, first: int, count: int) -> tuple[bytes, int]:
        answer = ask("GET", self._url + name, deadline=time.monotonic() + CHUNK_SECONDS, largest=count, context=self._context,
                     proxy=self._proxy, headers={"Range": f"bytes={first}-{first + count - 1}"})
        if answer.status == 404:
            raise Refused(f"it has no {name}")
        if answer.status == 416:
            return b"", first
        return answer.body, _total(answer, first, name)


def _total(answer: Answer, first: int, name: str) -> int:
    match = _RANGE.fullmatch(answer.headers.get("content-range", ""))
    if answer.status == 206 and match is not None and int(match["first"]) == first:
        return int(match["total"])
    if answer.status == 200 and first == 0:
        return len(answer.body)
    if answer.status in (200, 206):
        raise Broken(f"the server does not serve parts of {name}")
    raise Broken(f"the server answers {answer.said()} to {name}")


def fetch(source: Source, places: Places, box: Installed, tell: Tell, *, again: bool = False) -> Release:
    """Have the release whole and checked in `places.bundle`. Refused, Broken, OSError."""
    offered = look(source, places, box, again=again)
    folder = places.bundle
    for path in folder.iterdir():
        if path.name.removesuffix(".part") not in (*offered.files, SUMS, SIGNATURE):
            path.unlink()
    for name, wanted in offered.files.items():
        path = folder / name
        if not (path.exists() and digest(path) == wanted):
            _one(source, path, wanted, tell)
    uki_is_ours(next(folder / name for name in offered.files if name.endswith(".efi")), places.certificate)
    return offered


def look(source: Source, places: Places, box: Installed, *, again: bool = False) -> Release:
    """The list of files and its signature into the folder: what is offered. Refused, Broken, OSError."""
    for name in (SUMS, SIGNATURE):
        data, total = source.part(name, 0, 1 << 16)
        if total > len(data):
            raise Refused(f"its {name} is too long to be one")
        (places.bundle / name).write_bytes(data)
    return checked(places.bundle, box, places, again=again)


def _one(source: Source, path: Path, wanted: str, tell: Tell) -> None:
    beside = path.with_name(path.name + ".part")
    resumed = beside.exists() and beside.stat().st_size > 0
    _more(source, path.name, beside, tell)
    if digest(beside) != wanted and resumed:       # begun from another file of that name
        beside.unlink()
        _more(source, path.name, beside, tell)
    if digest(beside) != wanted:
        size = beside.stat().st_size
        beside.unlink()
        raise Refused(f"its {path.name} ({size} bytes) is not what its list says: it is cut off or changed")
    beside.rename(path)


def _more(source: Source, name: str, beside: Path, tell: Tell) -> None:
    with beside.open("ab") as file:
        while True:
            have = file.tell()
            data, total = source.part(name, have, CHUNK)
            if total > LARGEST:
                raise Refused(f"its {name} is too long: {total} bytes")
            free = os.statvfs(beside.parent)
            if total - have + ROOM > free.f_bavail * free.f_frsize:
                raise Broken(f"there is no room for it: {name} has {total} bytes")
            file.write(data)
            tell(name, have + len(data), total)
            if not data or have + len(data) >= total:
                break
        file.flush()
        os.fsync(file.fileno())
