"""A disk that fails on purpose: stands in for the `os` module of one of the spool's modules."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any


class FaultyOs:
    """`os`, with chosen calls replaced. `fail(name, errno, after=n)` lets n calls through, then raises for ever.

    `calls` lists (thread name, function name) of every watched call, in order.
    """

    def __init__(self, *watched: str) -> None:
        self._watched = frozenset(watched)
        self._faults: dict[str, list[int]] = {}
        self._stand_ins: dict[str, Callable[..., Any]] = {}
        self.calls: list[tuple[str, str]] = []

    def fail(self, name: str, errno: int, *, after: int = 0) -> None:
        self._faults[name] = [errno, after]

    def heal(self) -> None:
        self._faults.clear()

    def stand_in(self, name: str, function: Callable[..., Any]) -> None:
        self._stand_ins[name] = function

    def names(self, thread: str | None = None) -> list[str]:
        return [name for who, name in self.calls if thread is None or who == thread]

    def __getattr__(self, name: str) -> Any:
        real = self._stand_ins.get(name) or getattr(os, name)
        if name not in self._watched and name not in self._faults:
            return real

        def call(*args: Any, **kw: Any) -> Any:
            self.calls.append((threading.current_thread().name, name))
            fault = self._faults.get(name)
            if fault is not None:
                if fault[1] <= 0:
                    raise OSError(fault[0], os.strerror(fault[0]))
                fault[1] -= 1
            return real(*args, **kw)

        return call
