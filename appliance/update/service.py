"""Service: what the root half does when it is started, by the timer or by a person's request; then it ends.

A person asks by leaving a file in a folder that only persons can write to: whose
file it is, is who asks. The box by itself looks at the site's server, and
installs what is approved, inside the window.
"""

from __future__ import annotations

import json
import os
import pwd
import secrets
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from appliance.clock import SECOND, Clock
from appliance.config.settings import Config
from appliance.policy.update import Installed, Refused, Release, is_due
from appliance.schedule import hours
from appliance.update import install, outcome
from appliance.update.fetch import Broken, Tell
from appliance.update.places import Places
from appliance.update.records import Records

STICK = "stick"
"""In place of a URL: the stick with the label DCMGATE-UPD."""

SITE = "site"
"""In place of a URL: that of the configuration."""

INSTALL, APPROVE, CHECK = "install", "approve", "check"
LARGEST_REQUEST = 4096
HALF_WRITTEN_SECONDS = 30

RESTARTING, REFUSED, FAILED, DONE = "restarting", "refused", "failed", "done"
ENDS = (RESTARTING, REFUSED, FAILED, DONE)
"""Stages with which a request is over."""


class Fetch(Protocol):
    """`only_look`: the list of files, and nothing more. Refused, Broken."""

    def __call__(self, source: str, box: Installed, tell: Tell, *, again: bool, only_look: bool) -> Release: ...


@dataclass(frozen=True, slots=True)
class Request:
    token: str
    action: str
    by: str
    source: str = SITE
    version: str = ""
    again: bool = False


def leave_request(places: Places, **what: Any) -> str:
    """For the command: the token by which `progress` is recognised. OSError."""
    token = secrets.token_hex(8)
    beside = places.requests / f".{token}"
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(json.dumps(what) + "\n")
    beside.rename(places.requests / f"{token}.json")
    return token


def take_requests(places: Places) -> list[Request]:
    """Those that wait, the oldest first; they are gone then."""
    found: list[tuple[float, Request]] = []
    with suppress(FileNotFoundError):
        for entry in os.scandir(places.requests):
            about = entry.stat(follow_symlinks=False)
            if entry.name.endswith(".json"):
                request = _read(Path(entry.path))
                if request is not None:
                    found.append((about.st_mtime, request))
            elif time.time() - about.st_mtime < HALF_WRITTEN_SECONDS:
                continue
            os.unlink(entry.path)
    return [request for _, request in sorted(found, key=lambda one: one[0])]


def _read(path: Path) -> Request | None:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1 or about.st_size > LARGEST_REQUEST:
                return None
            value = json.loads(file.read(LARGEST_REQUEST))
        try:
            name = pwd.getpwuid(about.st_uid).pw_name
        except KeyError:
            name = str(about.st_uid)
        return Request(path.stem, str(value["action"]), name, str(value.get("source", SITE)), str(value.get("version", "")),
                       value.get("again") is True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


class Service:
    """`run` once. `restart` is called when the box has to be restarted."""

    def __init__(self, records: Records, config: Config, clock: Clock, fetch: Fetch,
                 restart: Callable[[], None] = install.restart) -> None:
        self._records = records
        self._config = config
        self._clock = clock
        self._fetch = fetch
        self._restart = restart
        self._token = ""

    def run(self) -> None:
        outcome.settle(self._records)
        waiting = take_requests(self._records.places)
        for request in waiting:
            self._token = request.token
            self._guarded(partial(self._do, request), request.version, request.by)
        if not waiting:
            self._token = ""
            self._guarded(self._by_itself, "", "")
        self._records.show_menu()

    def _tell(self, stage: str, text: str = "", **more: Any) -> None:
        self._records.tell(stage, text, request=self._token, **more)

    def _guarded(self, work: Callable[[], None], version: str, by: str) -> None:
        try:
            work()
        except Refused as e:
            if by:
                self._records.note(REFUSED, version, str(e), by)
            self._tell(REFUSED, str(e))
        except (Broken, OSError) as e:
            self._records.note(FAILED, version, str(e), by)
            self._tell(FAILED, str(e))

    def _do(self, request: Request) -> None:
        if request.action == CHECK:
            self._tell(DONE, self._look(request.source, again=request.again))
        elif request.action == APPROVE:
            version = request.version or self._records.offered()
            if not version or version != self._records.offered():
                raise Refused(f"{version or 'a version'} is not on offer: `dcmgate update check` looks what is")
            self._records.approve(version, request.by)
            self._tell(DONE, f"{version} is approved: the box installs it inside the site's window")
        elif request.action == INSTALL:
            self._install(request.source, request.by, again=request.again)
        else:
            raise Refused(f'there is no request "{request.action[:20]}"')

    # --- by itself ----------------------------------------------------------------------------------------------------

    def _by_itself(self) -> None:
        update = self._config.update
        if not update.url:
            return
        if update.check_hours > 0 and self._look_is_due(update.check_hours):
            with suppress(Refused):
                self._look(SITE)
        version = self._records.offered()
        if not version:
            return
        minute = time.localtime(self._clock.wall_ns() // SECOND) if self._clock.trusted() else None
        windows = [window for text in update.window if (window := hours(text)) is not None]
        why_not = is_due(windows, minute.tm_hour * 60 + minute.tm_min if minute else None, version, self._records.approved(),
                         by_person=update.approval == "person")
        if why_not:
            self._tell(DONE, why_not)
            return
        self._install(SITE, "")

    def _look_is_due(self, hours_between: float) -> bool:
        mark = self._records.places.run / "looked"
        now = self._clock.boot_ns()
        try:
            due = now - int(mark.read_text()) >= int(hours_between * 3600 * SECOND)
        except (OSError, ValueError):
            due = True
        if due:
            mark.write_text(str(now))
        return due

    def _look(self, source: str, *, again: bool = False) -> str:
        try:
            offered = self._fetch(source, self._records.installed(), lambda *_: None, again=again, only_look=True)
        except Refused:
            if source == SITE:
                self._records.offer("")
            raise
        if source == SITE:
            self._records.offer(offered.version)
        return f"{offered.version} can be installed; {self._records.places.running()} runs"

    # --- the way of an update -----------------------------------------------------------------------------------------

    def _install(self, source: str, by: str, *, again: bool = False) -> None:
        records, config = self._records, self._config
        self._tell("fetching")
        offered = self._fetch(source, records.installed(), self._fetched, again=again, only_look=False)
        self._tell("installing", f"{offered.version} beside {records.places.running()}", version=offered.version)
        install.install(records, offered, Path(config.control.run), by, again=again)
        ports = {port for listener in config.listeners for port in listener.ports}
        left = install.drain(ports, config.update.drain_minutes * 60,
                             lambda count: self._tell("draining", f"associations: {count}", version=offered.version))
        more = f"; {left} associations were not waited for any longer" if left else ""
        self._tell(RESTARTING, f"{offered.version} is installed: the box restarts into it, on trial{more}",
                   version=offered.version)
        self._restart()

    def _fetched(self, name: str, have: int, total: int) -> None:
        self._tell("fetching", name, have=have, total=total)
