"""Asking: questions whose answer may have to come from the disk, and for which nobody waits longer than he wants to.

A disk that hangs keeps whoever reads a file of it, and be it one page of the
ledger. Such questions are put by a thread of their own, one after the other;
while it is kept, whoever asks hears so at once.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from appliance.clock import SECOND
from appliance.errors import SpoolFault
from appliance.receive.guard import now_ns

T = TypeVar("T")


class _Question:
    __slots__ = ("answer", "answered", "error", "put")

    def __init__(self, put: Callable[[], Any]) -> None:
        self.put = put
        self.answer: Any = None
        self.error: Exception | None = None
        self.answered = threading.Event()


class Asker:
    """`ask` from any thread, between `start` and `stop`."""

    def __init__(self) -> None:
        self._questions: queue.SimpleQueue[_Question | None] = queue.SimpleQueue()
        self._since = 0
        self._thread = threading.Thread(target=self._run, name="asker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """A question that the disk still keeps is left to the end of the process."""
        self._questions.put(None)
        self._thread.join(1.0)

    @property
    def alive(self) -> bool:
        """Whether there is somebody to ask: a disk that keeps him does not count as his death."""
        return self._thread.is_alive()

    def ask(self, put: Callable[[], T], seconds: float) -> T:
        """What `put` returns or raises. SpoolFault where that takes longer than `seconds`, or others have waited so long."""
        since = self._since
        if since and now_ns() - since > seconds * SECOND:
            raise SpoolFault("the disk does not answer")
        question = _Question(put)
        self._questions.put(question)
        if not question.answered.wait(seconds):
            raise SpoolFault("the disk does not answer")
        if question.error is not None:
            raise question.error
        return question.answer  # type: ignore[no-any-return]

    def _run(self) -> None:
        while (question := self._questions.get()) is not None:
            self._since = now_ns()
            try:
                question.answer = question.put()
            except Exception as error:  # noqa: BLE001  top of the thread: it is raised again where it was asked for
                question.error = error
            self._since = 0
            question.answered.set()
