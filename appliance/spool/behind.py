"""Behind: a thread with buffers of its own, lent to a large object: it writes one buffer while the next one is filled.

Only objects that do not fit in a buffer borrow one, so most associations never
have a second thread. It does one piece of work after the other, and whoever
borrowed it waits before touching the file itself.

On failure: what a piece of work raised is raised once, by the next `begin` that
has to wait or by `wait`; what was begun behind it is not done any more. Where no
thread can be had, `take` gives None, and the caller writes by itself.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

from appliance.spool.buffers import Buffer

BUFFERS = 2
"""One that is written, and one that waits: between two writes nobody has to be woken."""

KEPT = 2
"""Idle ones that are kept for the next large object; the others end, and their memory goes back to the system."""

IDLE_SECONDS = 10.0
"""After so long with nothing to do, so do those that were kept: whatever was sent here leaves nothing behind."""

_idle: list[Behind] = []    # append, pop and remove are atomic, so threads share it without a lock


class Behind:
    """`begin` as often as needed, then `wait`; for one caller at a time."""

    def __init__(self) -> None:
        self._free = [Buffer() for _ in range(BUFFERS)]
        self._full: deque[Buffer] = deque()
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        self._failed = False
        threading.Thread(target=self._run, name="behind", daemon=True).start()

    def begin(self, full: Buffer, work: Callable[[], None]) -> Buffer:
        """Have that done with a full buffer, which is not the caller's any more; an empty one to go on with.

        Waits while all buffers are full. Raises what became of earlier work; then
        the caller keeps its buffer.
        """
        if not self._free:
            self._one()
        self._full.append(full)
        self._work.put(work)
        return self._free.pop()

    def wait(self) -> None:
        """Until all of it is done. Raises what became of it."""
        while self._full:
            self._one()

    def _one(self) -> None:
        error = self._next()
        if error is None:
            return
        while self._full:
            self._next()
        self._failed = False
        raise error

    def _next(self) -> BaseException | None:
        error = self._done.get()
        self._free.append(self._full.popleft())
        return error

    def _run(self) -> None:
        while (work := self._next_work()) is not None:
            error = None
            if not self._failed:
                try:
                    work()
                except BaseException as e:  # noqa: BLE001  raised where it is waited for
                    error, self._failed = e, True
            del work                        # an idle thread keeps no object alive
            self._done.put(error)

    def _next_work(self) -> Callable[[], None] | None:
        """None at the end: it was told to, or has been idle for long and nobody can borrow it any more."""
        while True:
            try:
                return self._work.get(timeout=IDLE_SECONDS)
            except Empty:
                with suppress(ValueError):      # it is lent
                    _idle.remove(self)
                    return None

    def end(self) -> None:
        self._work.put(None)


def take() -> Behind | None:
    """One that has nothing to do; None where no thread is to be had."""
    try:
        return _idle.pop()
    except IndexError:
        pass
    try:
        return Behind()
    except RuntimeError:
        return None


def give(behind: Behind) -> None:
    """Back, after the last `wait`."""
    if len(_idle) < KEPT:
        _idle.append(behind)
    else:
        behind.end()
