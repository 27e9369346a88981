"""What the simulated disk, the associations and the archives tell the world they are part of, and what it makes of it.

Here a process dies at its step, and here the judge hears of everything that
happens outside of the gateway's own books.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import apsw

from appliance.clock import SECOND
from appliance.policy import Party
from appliance.spool.index import Located
from appliance.spool.layout import Spool
from tests.proof.simulation_box import Holder, Receiver
from tests.proof.simulation_oracle import Instance, Oracle
from tests.proof.simulation_process import Crash, Process, SimClock
from tests.proof.simulation_sites import Site, Stored, series_of


class Hooks:
    """The world's ears; see `simulation_world.World` for the rest of it."""

    clock: SimClock
    current: Process | None
    oracle: Oracle
    spool: Spool
    sites: dict[str, Site]
    receivers: list[Receiver | None]
    holder: Holder | None
    eyes: apsw.Connection | None
    blackout: bool
    maintaining: bool
    slow_seconds: float
    faults: int

    def _die(self, process: Process) -> None:
        raise NotImplementedError

    def effect(self, what: str) -> None:
        process = self.current
        if process is None:
            return
        if process.dead:
            raise Crash(what)
        self.clock.advance(0.0002)
        if process.fuse is not None:
            process.fuse -= 1
            if process.fuse < 0:
                self.blackout = self.blackout or process.power
                self._die(process)
                raise Crash(what)

    def process(self) -> object:
        return self.current

    def _number(self, path: str) -> int | None:
        name = os.path.basename(path)
        return int(name[:16], 16) if os.path.dirname(path).startswith(str(self.spool.objects)) else None

    def instance_at(self, path: str) -> Instance | None:
        """The acknowledged object whose file that is."""
        number = self._number(path)
        one = None if number is None else self.oracle.instances.get(number)
        return one if one is not None and one.acknowledged else None

    def made(self, path: str) -> None:
        number = self._number(path)
        if number is not None:
            self.oracle.check("I2 a number is used once", number not in self.oracle.made, f"{number:x} is made twice")
            self.oracle.made.add(number)

    def wrote(self, path: str) -> None:
        one = self.instance_at(path)
        self.oracle.check("I3 unmodified", one is None, f"{os.path.basename(path)} is written by {self.current}")

    def read(self, path: str, offset: int) -> None:
        receiving = any(r is not None and r.process is self.current for r in self.receivers)
        self.oracle.check("I8 not read before custody", not receiving or self.maintaining, os.path.basename(path))

    def gone(self, path: str) -> None:
        number = self._number(path)
        if number is None or self.current is None:
            return
        row = bool(self.look_up("SELECT 1 FROM events WHERE number = ? AND kind = 'retiring'", number))
        busy = any(number == each.number for r in self.receivers if r is not None for each in r.underway)
        self.oracle.check("I4 only the keeper deletes", not busy, f"{number:x} is being received")
        role = "keeper" if self.holder is not None and self.current is self.holder.process else self.current.name
        self.oracle.may_go(number, role, self.clock.powered_ns, row)

    def aside(self, source: str, target: str) -> None:
        one = self.instance_at(source)
        if one is not None:
            self.oracle.check("I4 intact objects stay", one.damaged, f"{one.number:x} is put aside by {self.current}")

    def synced(self, path: str, again: bool) -> None:
        self.oracle.check("I6 no sync is repeated", not again, os.path.basename(path))

    def failed(self, what: str, path: str, number: int) -> None:
        if what == "read":
            number_of = self._number(path)
            one = None if number_of is None else self.oracle.instances.get(number_of)
            if one is not None:                      # it will be put aside, and that is right, whatever its sender was told
                self.damage(one)
        elif number not in (errno.ENOSPC, errno.EDQUOT) and path.startswith(f"{self.spool.path}/"):
            # `[spool] state` is on another disk.
            self.faults += 1

    def damage(self, one: Instance) -> None:
        """From now on its file is not what was acknowledged, or cannot be read."""
        one.damaged = True
        self.oracle.disturbed.add(one.uid)

    def slow(self, seconds: float) -> None:
        self.slow_seconds += seconds
        self.clock.advance(seconds)

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def site(self, host: str) -> Site:
        return self.sites[host]

    def arrived(self, site: Site, party: Party, item: Stored) -> None:
        self.oracle.arrived(site, item)
        if site.name == "research" and self.clock.trusted():
            minutes = [_minute(self.clock.wall_ns() - late * SECOND) for late in (0, 120)]
            shut = all(390 <= minute < 1140 for minute in minutes)
            urgent = any(one.urgent and (one.uid, one.data) == (item.uid, item.data) for one in self.oracle.instances.values())
            self.oracle.check("I7 time of day", not shut or urgent, f"{item.uid} at minute {minutes[0]}")

    def told(self, site: Site, item: Stored, status: int | None) -> None:
        self.oracle.told(site, item, status, self.clock.powered_ns)

    def listed(self, site: Site, uid: str) -> None:
        self.oracle.listed(site, uid, self.clock.powered_ns)

    def missed(self, site: Site, asked: Callable[[Stored], bool]) -> None:
        self.oracle.missed(site, asked)

    def locate(self, numbers: Iterable[int]) -> dict[int, Located]:
        found = {}
        for number in numbers:
            study, series = series_of(self.oracle.instances[number].data) if number in self.oracle.instances else ("", "")
            if study:
                found[number] = Located(number, study, study, series)
        return found

    def look_up(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """The judge's own look into the ledger, by a connection of its own."""
        if self.eyes is None:
            self.eyes = apsw.Connection(str(self.spool.ledger_path))
        return self.eyes.execute(sql, values).fetchall()


def _minute(wall_ns: int) -> int:
    local = time.localtime(wall_ns // SECOND)
    return local.tm_hour * 60 + local.tm_min
