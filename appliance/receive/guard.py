"""Guard: one thread that watches the deadlines of all associations of a process, and beats its tick.

An association never makes a system call for a deadline of its own: it only says
in `phase` what it waits for, and counts in `moves` what it got. The guard looks
every `scan` seconds while anything is under way, and not at all while every
association is idle: then only the tick is left.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from appliance.clock import SECOND
from appliance.receive.limits import Limits
from appliance.telemetry.log import Log

IDLE, FIRST, PDU, MESSAGE, WRITE, STORE, SEND, CLOSING = range(8)
"""What an association waits for.

    IDLE      the next message, for as long as the peer's entry allows
    FIRST     the A-ASSOCIATE-RQ, by a deadline that began with the connection
    PDU       the rest of a PDU
    MESSAGE   the next PDU of a message that has begun
    WRITE     the disk, in the middle of an object
    STORE     the disk, with the last byte in hand and the status owed
    SEND      the peer, to take an answer
    CLOSING   the peer, to close
"""

FAILURES = 100
"""Looks that fail for a reason nobody foresaw; then the guard gives up, and `moving` says so."""

PHASES = ("idle", "first PDU", "rest of a PDU", "next PDU of a message", "disk in mid-object", "disk at the end of an object",
          "peer to take an answer", "peer to close")
ON_DISK = (WRITE, STORE)

log = Log("receive")


def now_ns() -> int:
    """Nanoseconds since boot (I7). Not the injectable clock: a test's compressed months must not cut real sockets."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Watched(Protocol):
    """What the guard watches. `phase` and `moves` are written by the association's thread alone."""

    phase: int
    idle_seconds: float
    deadline: int
    """Boot nanoseconds by which phase FIRST ends."""

    @property
    def moves(self) -> int:
        """Grows with whatever counts as progress."""

    def overdue(self, phase: int) -> None:
        """Called by the guard's thread when a limit has passed. Must not block."""

    def cut(self) -> None:
        """Called when the disk still keeps it in mid-object some time after that. Must not block."""


class _Mark:
    """What the guard saw of one association: since when nothing has moved, and it waits for the disk without a break."""

    __slots__ = ("called", "called_at", "cut", "disk_since", "moves", "phase", "since")

    def __init__(self, phase: int, moves: int, since: int) -> None:
        self.phase = phase
        self.moves = moves
        self.since = since
        self.disk_since = since
        self.called = False
        self.called_at = 0
        self.cut = False


class Guard:
    """Watches `Watched` members; `on_tick` is called in its thread each `limits.tick` seconds."""

    def __init__(self, limits: Limits, on_tick: Callable[[], None] = lambda: None) -> None:
        self.armed = False
        self.scans = 0
        self.ticks = 0
        self._on_tick = on_tick
        self._tick = int(limits.tick * SECOND)
        self._scan = limits.scan
        seconds = {PDU: limits.pdu, MESSAGE: limits.progress, WRITE: limits.store, STORE: limits.store, SEND: limits.send,
                   CLOSING: limits.closing}
        self._limits = {phase: int(limit * SECOND) for phase, limit in seconds.items()}
        self._marks: dict[Watched, _Mark] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopped = False
        self._thread: threading.Thread | None = None
        self._beat = self._due = now_ns()

    def start(self) -> None:
        self._beat = now_ns()
        self._thread = threading.Thread(target=self._run, name="guard", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped = True
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(10)

    def watch(self, member: Watched) -> None:
        with self._lock:
            self._marks[member] = _Mark(member.phase, member.moves, now_ns())
        self.arm()

    def forget(self, member: Watched) -> None:
        with self._lock:
            self._marks.pop(member, None)

    def arm(self) -> None:
        """Look every `scan` seconds from now on. An association calls it when it leaves IDLE and `armed` is False."""
        if not self.armed:
            self.armed = True
            self._wake.set()

    def poke(self) -> None:
        """Have the tick now."""
        self._due = 0
        self._wake.set()

    def moving(self) -> bool:
        """Whether the guard itself has moved, and every association that waits for something other than the disk.

        The disk has a probe of its own and never gates the watchdog's ping (design, Watchdog chain).
        """
        now = now_ns()
        if now - self._beat > 3 * self._tick:
            return False
        stuck = max(self._limits.values())
        return not any(mark.called and mark.phase not in ON_DISK and now - mark.called_at > stuck
                       for _, mark in self._members())

    def _members(self) -> list[tuple[Watched, _Mark]]:
        with self._lock:
            return list(self._marks.items())

    def _run(self) -> None:
        for _ in range(FAILURES):
            try:
                self._loop()
                return
            except Exception:  # noqa: BLE001  top of the guard's thread: without it no deadline holds, for nobody
                log.crash("a look at the associations failed")

    def _loop(self) -> None:
        self._due = now_ns() + self._tick
        while True:
            left = max(self._due - now_ns(), 0) / SECOND
            self._wake.wait(min(self._scan, left) if self.armed else left)
            self._wake.clear()
            if self._stopped:
                return
            now = now_ns()
            if not self.look(now) and self.armed:
                self.armed = False
                if self.look(now):          # one left IDLE between the two: it may have seen us armed
                    self.armed = True
            if now >= self._due:
                self._due = now + self._tick
                self.ticks += 1
                self._beat = now
                self._on_tick()

    def look(self, now: int) -> bool:
        """Look at every member once; True if anything is under way or has moved since the last look."""
        self.scans += 1
        busy = False
        for member, mark in self._members():
            phase, moves = member.phase, member.moves
            if moves != mark.moves:
                mark.moves, mark.since, mark.disk_since, mark.called = moves, now, now, False
                busy = True
            if phase not in ON_DISK:
                mark.disk_since = now      # bytes that trickle in make the phase flicker: only an unbroken wait counts
            mark.phase = phase
            if phase == IDLE:
                due = mark.since + int(member.idle_seconds * SECOND)
            else:
                busy = True
                since = mark.disk_since if phase in ON_DISK else mark.since
                due = member.deadline if phase == FIRST else since + self._limits[phase]
            if now >= due and not mark.called:
                mark.called, mark.called_at = True, now
                member.overdue(phase)
            elif phase == WRITE and mark.called and not mark.cut and now >= due + self._limits[CLOSING]:
                mark.cut = True
                member.cut()
        return busy
