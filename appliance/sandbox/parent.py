"""What the stages call: tags and recoding by a limited child, which may die of any object without harm to us."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

from appliance.errors import SandboxError
from appliance.model import Attributes
from appliance.sandbox import frames
from appliance.sandbox.process import Process

Place = tuple[int, int, int, str]
"""An object: (descriptor open for reading, offset of the data set, its length, transfer syntax)."""

_VALUE = 1024
_MOST_ANSWER = 32 << 20
_UNREADABLE = Attributes(readable=False)


class Child:
    """A limited child process. `memory` is its address space in bytes, `seconds` its time for one batch or one piece.

    One job at a time; another meanwhile raises SandboxError. The child is
    started by the first job and again after each death.
    """

    def __init__(self, memory: int, seconds: float) -> None:
        self._process = Process("appliance.sandbox.child", memory)
        self._seconds = seconds
        self._busy = threading.Lock()

    @property
    def starts(self) -> int:
        """How many processes were started so far: one, unless some died."""
        return self._process.starts

    @property
    def pid(self) -> int:
        return self._process.pid

    def tags(self, batch: list[Place], wanted: frozenset[int]) -> list[Attributes]:
        """What each object says of itself, in the order of the batch (64 objects a round trip). The descriptors stay open.

        Never raises for a bad object: one that cannot be read, or that the child
        did not survive alone either, is `readable=False`. SandboxError only
        where no child can be started at all.
        """
        with self._job():
            found: list[Attributes] = []
            for start in range(0, len(batch), frames.MOST_DESCRIPTORS):
                found += self._batch(batch[start:start + frames.MOST_DESCRIPTORS], wanted)
            return found

    def once(self, batch: list[Place], wanted: frozenset[int]) -> list[Attributes] | None:
        """The same of at most 64 objects, tried once: None where the child did not survive it, whichever of them did it."""
        with self._job():
            try:
                return self._ask(batch, wanted)
            except _Died:
                return None

    def recode(self, descriptor: int, offset: int, length: int, source: str, target: str) -> Iterator[bytes]:
        """The data set in the other syntax, piece by piece (see `dicom.recode`); SandboxError where it cannot be had.

        Pieces may come before the error: nothing is whole before the end.
        """
        with self._job():
            request = {"job": "recode", "offset": offset, "length": length, "source": source, "target": target}
            deadline = self._process.ask(json.dumps(request).encode(), [descriptor], self._seconds)
            done = False
            try:
                while not done:
                    reply = self._process.answer(1 << 20, deadline)
                    if reply[:1] == b"F":
                        done = True
                        raise SandboxError(f"cannot be recoded: {reply[1:].decode(errors='replace')}")
                    if reply[:1] == b"D":
                        yield reply[1:]
                        deadline = self._process.within(self._seconds)
                    else:
                        done = True
            finally:
                if not done:
                    self._process.kill()         # it may still be writing what nobody reads

    def close(self) -> None:
        """End the child."""
        self._process.kill()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _job(self) -> _Job:
        return _Job(self._busy)

    def _batch(self, batch: list[Place], wanted: frozenset[int]) -> list[Attributes]:
        try:
            return self._ask(batch, wanted)
        except _Died:
            pass                                 # one of them did it: each for itself, the second and last try
        found = []
        for place in batch:
            try:
                found += self._ask([place], wanted)
            except _Died:
                found.append(_UNREADABLE)
        return found

    def _ask(self, batch: list[Place], wanted: frozenset[int]) -> list[Attributes]:
        request = {"job": "tags", "objects": [place[1:] for place in batch], "wanted": sorted(wanted)}
        deadline = self._process.ask(json.dumps(request).encode(), [place[0] for place in batch], self._seconds)
        try:
            reply = self._process.answer(_MOST_ANSWER, deadline)
        except SandboxError as e:
            raise _Died(str(e)) from None
        found = _attributes(reply, len(batch))
        if found is None:
            self._process.kill()
            raise _Died("the limited child answered nonsense")
        return found


class _Died(Exception):
    """No answer to this request; the child is gone."""


class _Job:
    """One job at a time: the answers of two would mix."""

    def __init__(self, busy: threading.Lock) -> None:
        self._busy = busy

    def __enter__(self) -> None:
        if not self._busy.acquire(blocking=False):
            raise SandboxError("the limited child is busy with another job")

    def __exit__(self, *exc: object) -> None:
        self._busy.release()


def _attributes(reply: bytes, count: int) -> list[Attributes] | None:
    """The answer as values; None where it is not exactly what was asked: a child that was taken over may say anything."""
    try:
        items: Any = json.loads(reply)
        if type(items) is not list or len(items) != count:
            return None
        found = []
        for item in items:
            if item is None:
                found.append(_UNREADABLE)
                continue
            values = {int(tag): text for tag, text in item.items()}
            if not all(type(text) is str and len(text) <= _VALUE for text in values.values()):
                return None
            found.append(Attributes(values))
        return found
    except (ValueError, AttributeError, RecursionError):
        return None
