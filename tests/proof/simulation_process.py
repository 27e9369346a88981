"""Processes that are only simulated: each may die at any step, and its threads run when they are told to.

The product's stages run as they are, in one thread of one Python process. What
they take from the system is exchanged while a world lives (`Stage`): `os` and
`fcntl` of the spool's modules, `threading` where a stage makes threads, the
limited children, the association with a destination. A `Process` groups what
dies together; its `fuse` says after how many steps.

Two exceptions leave the product's code, both past every `except Exception`:
`Crash`, after which the process does nothing any more, whatever its `finally`
clauses try; and `Idle`, by which a thread says that it has nothing to do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Protocol, TypeVar
from unittest import mock

import apsw

from appliance.clock import SECOND, ManualClock
from appliance.confirm import confirmer
from appliance.forward import dimse, engine, lane, router
from appliance.spool import (
    behind,
    buffers,
    core,
    durable,
    intake,
    layout,
    owners,
    quarantine,
    reader,
    rebuild,
    recover,
    slots,
    space,
    writer,
)
from appliance.telemetry import log
from tests.proof.simulation_disk import SimFcntl, SimOs, SimPath

T = TypeVar("T")

CAPACITY = 4096
"""Bytes of a buffer here: objects of a few kilobytes are written in several pieces."""

DIRECT_FROM = 6000
"""Bytes from which a write goes around the page cache here."""


class Crash(BaseException):
    """The running process is dead from here on."""


class Idle(BaseException):
    """The running thread waits, for so many seconds at most (None: until it is told)."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds


class Process:
    """What dies together. `fuse`: dies at the step that many steps on; `power`: and the whole box with it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fuse: int | None = None
        self.power = False
        self.dead = False
        self.ledgers: list[Any] = []
        self.faults = 0                              # I/O errors that anybody had met while writing when it was started

    def __repr__(self) -> str:
        return self.name


class SimClock(ManualClock):
    """Knows how long the box was really on, whatever the product makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.powered_ns = 0

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        self.powered_ns += int(seconds * SECOND)


class Runner(Protocol):
    """The world, as its threads and locks see it."""

    clock: SimClock

    def run_beside(self, seconds: float) -> float:
        """Let the running process's other thread do what it has to do; seconds until it has more, at most `seconds`."""

    def join(self, thread: SimThread) -> None:
        """Let a thread come to its end, if it wants to."""


class Threads:
    """`threading` for a stage. Locks and events are the real ones: nobody ever contends."""

    def __init__(self, world: Runner) -> None:
        self._world = world

    def __getattr__(self, name: str) -> Any:
        return getattr(threading, name)

    def Thread(self, target: Callable[[], object], name: str = "", daemon: bool = True) -> SimThread:  # noqa: N802
        return SimThread(self._world, target, name)

    def Condition(self, lock: Any) -> SimCondition:  # noqa: N802
        return SimCondition(self._world, lock)


class SimThread:
    """A thread that runs when the world calls it. `owner` is the object whose method it runs."""

    def __init__(self, world: Runner, target: Callable[[], object], name: str) -> None:
        self.world = world
        self.target = target
        self.name = name
        self.owner: Any = getattr(target, "__self__", None)
        self.alive = False

    def start(self) -> None:
        self.alive = True

    def is_alive(self) -> bool:
        return self.alive

    def join(self, timeout: float | None = None) -> None:
        if self.alive and timeout:
            self.world.join(self)


class SimCondition:
    """The waiting of an intake: its maintenance thread stops at `wait`; whoever waits for it lets it run."""

    def __init__(self, world: Runner, lock: Any) -> None:
        self._world = world
        self._lock = lock

    def notify(self, n: int = 1) -> None:
        """Whoever waits looks again by itself."""

    notify_all = notify

    def wait(self, timeout: float | None = None) -> bool:
        raise Idle(timeout)

    def wait_for(self, predicate: Callable[[], object], timeout: float) -> bool:
        left = timeout
        while not predicate() and left > 0:
            self._lock.release()
            try:
                pause = self._world.run_beside(left)
            finally:
                self._lock.acquire()
            if predicate():
                break
            pause = max(min(pause, left), 0.001)
            self._world.clock.advance(pause)
            left -= pause
        return bool(predicate())


class Stage(ExitStack):
    """Everything that is exchanged while a world lives."""

    def exchange(self, module: Any, name: str, value: Any) -> None:
        self.enter_context(mock.patch.object(module, name, value))

    def disk(self, sim_os: SimOs, sim_fcntl: SimFcntl) -> None:
        from appliance import retire
        for module in (slots, writer, recover, retire, quarantine, layout, durable, reader, owners, space, rebuild, router,
                       dimse, engine):
            self.exchange(module, "os", sim_os)
        for module in (writer, recover):
            self.exchange(module, "fcntl", sim_fcntl)
        self.exchange(SimPath, "os", sim_os)
        self.exchange(buffers, "CAPACITY", CAPACITY)
        self.exchange(writer, "CAPACITY", CAPACITY)
        self.exchange(recover, "CAPACITY", CAPACITY)
        self.exchange(writer, "DIRECT_FROM", DIRECT_FROM)
        self.exchange(behind, "take", lambda: None)      # one thing after the other, so that a seed means one history

    def threads(self, world: Runner) -> None:
        threads = Threads(world)
        for module in (intake, lane, engine, router, confirmer):
            self.exchange(module, "threading", threads)

    def ledger(self, effect: Callable[[str], None], fault: Callable[[], apsw.Error | None]) -> None:
        """A process may die before a transaction, and inside it; the disk may refuse it."""
        plain = core.LedgerCore._attempt

        def attempt(self: core.LedgerCore, work: Callable[[core.Transaction], T]) -> T:
            effect("transaction")
            if (error := fault()) is not None:
                raise error

            def inside(transaction: core.Transaction) -> T:
                result = work(transaction)
                effect("in a transaction")
                return result
            return plain(self, inside)
        self.exchange(core.LedgerCore, "_attempt", attempt)

    def program_faults(self, tell: Callable[[str], None]) -> None:
        """What a stage caught at its top, because nobody foresaw it."""
        import traceback

        def crash(self: log.Log, message: str, **fields: object) -> None:
            tell(f"{message}: {traceback.format_exc(limit=-6)}")
        self.exchange(log.Log, "crash", crash)
        for quiet in ("info", "warning", "error", "debug"):
            self.exchange(log.Log, quiet, lambda self, message, **fields: None)


@contextmanager
def unheard() -> Iterator[None]:
    """What a dead process still tries to clean up."""
    with suppress(Exception):
        yield
