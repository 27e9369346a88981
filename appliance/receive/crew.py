"""Crew: the worker processes, as the front's process sees them.

A socket goes to the worker with the fewest associations. A worker that dies
takes its own associations with it and nobody else's; it is replaced, at a
bounded rate. All of this happens in the front's thread, except where it says
otherwise.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import astuple, replace
from typing import Any

from appliance import errors
from appliance.clock import SECOND
from appliance.config.settings import Config
from appliance.errors import DcmgateError, SpoolFault
from appliance.receive import channel as channels
from appliance.receive.front import Arrival, Front
from appliance.receive.guard import now_ns
from appliance.receive.limits import Limits
from appliance.receive.process import Setup
from appliance.receive.worker import Report
from appliance.telemetry import log as logs

PROGRAM = "from appliance.receive.process import main; main()"

log = logs.Log("receive")


class _Member:
    """One worker process; `channel` is None while there is none."""

    __slots__ = ("channel", "index", "pid", "ready", "report", "reported", "starts", "tickets")

    def __init__(self, index: int) -> None:
        self.index = index
        self.channel: socket.socket | None = None
        self.pid = 0
        self.ready = False
        self.tickets: set[int] = set()
        self.report: Report | None = None
        self.reported = 0
        self.starts: deque[int] = deque()

    @property
    def out_of_intake(self) -> str:
        """Why this worker takes nothing in, as it said last; empty where it does."""
        return self.report.out_of_intake if self.report is not None else ""


class Crew:
    """`on_ended` is called with the ticket of each association that is over."""

    def __init__(self, count: int, setup: Setup, limits: Limits, front: Front, on_ended: Callable[[int], None]) -> None:
        self._setup = setup
        self._limits = limits
        self._front = front
        self._on_ended = on_ended
        self._members = [_Member(index) for index in range(count)]
        self._nursery: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._changed = threading.Condition()
        self._failure: DcmgateError | None = None
        self._stopping = False

    # -- from any thread ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Bring all workers up. Raises what the first one failed with; SpoolFault where they are not ready in time."""
        self._front.call(self._begin_all)
        with self._changed:
            done = self._changed.wait_for(lambda: self._failure or all(m.ready for m in self._members), self._limits.ready)
        if self._failure is not None or not done:
            failure = self._failure or SpoolFault("the receiver processes are not ready in time")
            self.stop(0)
            raise failure

    def stop(self, drain: float) -> bool:
        """Have all workers end, within `drain` seconds and what they need to close; True if all ended by themselves."""
        self._stopping = True
        self._front.call(lambda: self._stop_all(drain))
        patience = drain + 2 * self._limits.closing + 10
        with self._changed:
            clean = self._changed.wait_for(lambda: all(m.channel is None for m in self._members), patience)
        for member in self._members:
            if member.channel is not None and member.pid:
                os.kill(member.pid, signal.SIGKILL)      # its channel is open, so it lives, so the number is its own
            if member.channel is not None:
                member.channel.close()
        self._front.call(self._dismiss_nursery)
        if self._nursery is not None:
            try:
                self._nursery.wait(5)
            except subprocess.TimeoutExpired:
                self._nursery.kill()
                self._nursery.wait()
        return clean

    @property
    def pids(self) -> list[int]:
        """Process numbers of the workers that are ready."""
        return [member.pid for member in self._members if member.ready]

    @property
    def out_of_intake(self) -> str:
        """Why workers take nothing in, as they said last; empty where all do."""
        if not any(member.ready for member in self._members):
            return self._failure.message if self._failure is not None else "no receiver process is up"
        return "; ".join(sorted({member.out_of_intake for member in self._members if member.ready and member.out_of_intake}))

    def moving(self) -> bool:
        """Whether each worker that is up has lately said that it moves, and at least one is up."""
        oldest = now_ns() - int(3 * self._limits.tick * SECOND)
        up = [m for m in self._members if m.ready]
        return bool(up) and all(m.reported >= oldest and (m.report is None or m.report.moving) for m in up)

    # -- the front's thread ------------------------------------------------------------------------------------------

    def take(self, sock: socket.socket, arrival: Arrival, ticket: int) -> bool:
        """Hand a socket to the least loaded worker; False if none can take it, and the socket is still the caller's.

        One that is out of intake comes last: it sends every scanner away at once, and so would always be the least loaded.
        """
        for member in sorted((m for m in self._members if m.ready), key=lambda m: (bool(m.out_of_intake), len(m.tickets))):
            if self._send(member, channels.ARRIVED, (ticket, *astuple(arrival)), [sock.fileno()]):
                member.tickets.add(ticket)
                sock.close()
                return True
        return False

    def settle(self) -> None:
        """Read what the workers have said by now: places that they gave back count at once."""
        for member in self._members:
            if member.channel is not None:
                self._heard(member)

    def configure(self, config: Config) -> None:
        """Every worker, and those that come after them, decide by that from now on."""
        self._setup = replace(self._setup, config=config)
        for member in self._members:
            self._configure(member)

    def pulse(self) -> None:
        """Have each worker show that its main thread listens: a hung one would take connections for ever and answer none."""
        for member in self._members:
            self._send(member, channels.PULSE, None)

    def tick(self) -> None:
        """Start workers again that had died too often, once their time has passed."""
        if self._nursery is not None:
            self._nursery.poll()
        for member in self._members:
            if member.channel is None:
                self._again(member)

    def _begin_all(self) -> None:
        for member in self._members:
            self._begin(member)

    def _stop_all(self, drain: float) -> None:
        for member in self._members:
            self._send(member, channels.STOP, drain)

    def _dismiss_nursery(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None

    def _begin(self, member: _Member) -> None:
        try:
            ours, theirs = channels.pair()
        except OSError as e:
            log.error("a worker process cannot be started", error=e)
            return
        with theirs:
            try:
                self._ask_nursery(channels.FORK, theirs.fileno())
                channels.send_long(ours, channels.BEGIN, self._setup)
            except OSError as e:
                log.error("a worker process cannot be started", error=e)
                ours.close()
                return
        member.channel = ours
        member.pid = 0
        member.report = None
        member.starts.append(now_ns())
        self._front.watch(ours.fileno(), lambda: self._heard(member))

    def _again(self, member: _Member) -> None:
        """Replace a dead worker, unless it died too often lately."""
        since = now_ns() - int(self._limits.restart_window * SECOND)
        while member.starts and member.starts[0] < since:
            member.starts.popleft()
        if not self._stopping and len(member.starts) <= self._limits.restarts:
            self._begin(member)

    def _ask_nursery(self, kind: bytes, fd: int | None = None) -> None:
        """To the nursery; to a new one if it has died."""
        fds = [fd] if fd is not None else []
        if self._control is not None:
            try:
                channels.send(self._control, kind, fds=fds)
                return
            except OSError as e:
                log.error("the nursery of worker processes has died", error=e)
                self._control.close()
                self._control = None
        if fd is None:
            return
        ours, theirs = channels.pair()
        root = logging.getLogger(logs.ROOT)
        level = [logging.getLevelName(root.level).lower()] if root.handlers else []
        with theirs:
            self._nursery = subprocess.Popen(
                [sys.executable, "-P", "-c", PROGRAM, str(theirs.fileno()), *level],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self._control = ours
        channels.send(ours, kind, fds=fds)

    def _configure(self, member: _Member) -> None:
        if member.channel is not None:
            try:
                channels.send_long(member.channel, channels.CONFIGURE, self._setup.config, wait=False)
            except OSError as e:
                log.error("a worker process does not take its configuration", worker=member.index, error=e)

    def _send(self, member: _Member, kind: bytes, value: object, fds: list[int] | None = None) -> bool:
        if member.channel is None:
            return False
        try:
            channels.send(member.channel, kind, value, fds, wait=False)
        except OSError:
            return False     # full, or dying: its end of file will be read
        return True

    def _heard(self, member: _Member) -> None:
        """Everything that a worker has said, until it has no more to say."""
        while member.channel is not None:
            try:
                kind, value, _ = channels.receive(member.channel, wait=False)
                self._take_in(member, kind, value)
            except BlockingIOError:
                return
            except (ValueError, TypeError) as e:
                log.error("a worker process talks nonsense", worker=member.index, error=e)
                self._dead(member)

    def _take_in(self, member: _Member, kind: bytes, value: Any) -> None:
        if kind == channels.ENDED:
            if value in member.tickets:
                member.tickets.discard(value)
                self._on_ended(value)
        elif kind == channels.REPORT:
            member.report, member.reported = Report(*value), now_ns()
        elif kind == channels.READY:
            member.pid, member.reported = int(value), now_ns()
            self._change(member, ready=True)
        elif kind == channels.FAILED:
            name, message, mend = value
            self._fail(str(name), str(message), str(mend))
        elif not kind:
            self._dead(member)

    def _fail(self, name: str, message: str, mend: str) -> None:
        kind = getattr(errors, name, SpoolFault)
        failure = kind(message, mend=mend) if kind.__init__ is DcmgateError.__init__ else SpoolFault(message, mend=mend)
        log.error("a worker process cannot open its intake", error=message)
        with self._changed:
            self._failure = failure
            self._changed.notify_all()

    def _dead(self, member: _Member) -> None:
        """End of file on its channel: all that it had is over."""
        channel = member.channel
        assert channel is not None
        self._front.unwatch(channel.fileno())
        channel.close()
        tickets, member.tickets = member.tickets, set()
        for ticket in tickets:
            self._on_ended(ticket)
        member.channel = None
        self._change(member, ready=False)
        if self._stopping:
            return
        log.error("a worker process ended", worker=member.index, pid=member.pid, associations=len(tickets))
        self._ask_nursery(channels.REAP)
        self._again(member)

    def _change(self, member: _Member, *, ready: bool) -> None:
        with self._changed:
            member.ready = ready
            self._changed.notify_all()
