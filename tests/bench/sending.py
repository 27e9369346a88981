"""The scanner of the bench: k processes that start at one moment, each with one association and everything prepared.

The same for every contestant; the limit gets the same bytes without DICOM.
Each answer is timed from the first byte of its request.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from tests.support.objects import Buffer, Instance
from tests.support.scu import Scanner, contexts_of, send_views


class NotSent(Exception):
    """A contestant failed: there is nothing to compare."""


@dataclass(frozen=True)
class Sent:
    """One round: when it began on the wall clock, how long it took, and each answer's time in seconds."""

    began: float
    seconds: float
    images: int
    bytes: int
    answers: tuple[float, ...]

    def answer(self, part: float) -> float:
        """The answer's time that `part` of all do not exceed, in seconds."""
        ordered = sorted(self.answers)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


Talk = Callable[[Sequence[Buffer]], None]


class Dicom:
    """C-STORE on one association."""

    def __init__(self, port: int, instances: Sequence[Instance], max_send: int, nodelay: bool) -> None:
        self._scanner = Scanner(port, contexts_of(instances), called="ANY-SCP", calling="BENCH", timeout=120.0,
                                max_send=max_send, nodelay=nodelay)
        self._instances = instances

    def open(self) -> list[list[Buffer]]:
        self._scanner.open()
        return [self._scanner.prepare(instance) for instance in self._instances]

    def talk(self, views: Sequence[Buffer]) -> None:
        status = self._scanner.exchange(views)
        if status != 0:
            raise NotSent(f"status {status:04X}")

    def close(self) -> None:
        self._scanner.release()


class Bare:
    """Length and bytes, one byte back (`limit`)."""

    def __init__(self, port: int, instances: Sequence[Instance]) -> None:
        self._port = port
        self._instances = instances
        self._sock: socket.socket

    def open(self) -> list[list[Buffer]]:
        self._sock = socket.create_connection(("127.0.0.1", self._port), 120.0)
        self._sock.settimeout(None)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return [[struct.pack(">Q", instance.length), *instance.parts] for instance in self._instances]

    def talk(self, views: Sequence[Buffer]) -> None:
        send_views(self._sock, views)
        if not self._sock.recv(1):
            raise NotSent("the limit closed the connection")

    def close(self) -> None:
        self._sock.close()


def _child(link: Connection, peer: Dicom | Bare, late: bool) -> None:
    """One association; `late` peers take one at a time, so that theirs begins when it is their turn."""
    try:
        prepared = [] if late else peer.open()
        gc.disable()
        link.send("ready")
        link.recv()
        begin = time.monotonic()
        if late:
            prepared = peer.open()
        answers = []
        for views in prepared:
            start = time.perf_counter()
            peer.talk(views)
            answers.append(time.perf_counter() - start)
        end = time.monotonic()
        peer.close()
        link.send((begin, end, answers))
    except Exception as error:  # noqa: BLE001 - the parent reports it
        link.send(f"{type(error).__name__}: {error}")
    finally:
        link.close()
        os._exit(0)


def send(port: int, instances: Sequence[Instance], k: int, *, bare: bool = False, late: bool = False, max_send: int = 131072,
         nodelay: bool = True, beside: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Sent:
    """All instances over k associations at once; NotSent where any was not acknowledged with 0000.

    `beside` runs while they are sent (a sampler of memory, say).
    """
    context = multiprocessing.get_context("fork")
    links, children = [], []
    for number in range(k):
        mine = instances[number::k]
        peer: Dicom | Bare = Bare(port, mine) if bare else Dicom(port, mine, max_send, nodelay)
        link, other = context.Pipe()
        child = context.Process(target=_child, args=(other, peer, late), daemon=True)
        child.start()
        other.close()
        links.append(link)
        children.append(child)
    try:
        for link in links:
            if (said := link.recv()) != "ready":
                raise NotSent(str(said))
        with beside():
            began = time.time()
            for link in links:
                link.send("go")
            results = [link.recv() for link in links]
    except EOFError:
        raise NotSent("a sender died") from None
    finally:
        for child in children:
            child.join(5)
            if child.is_alive():
                child.kill()
    for result in results:
        if isinstance(result, str):
            raise NotSent(result)
    first, last = min(r[0] for r in results), max(r[1] for r in results)
    return Sent(began, last - first, len(instances), sum(instance.length for instance in instances),
                tuple(answer for result in results for answer in result[2]))
