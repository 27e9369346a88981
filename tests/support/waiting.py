"""Waiting for conditions with a deadline, and ports of this machine."""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_pause = threading.Event()


class Late(AssertionError):
    """A condition did not come true in time."""


def wait_until(condition: Callable[[], T], seconds: float = 30.0, what: str = "", *, every: float = 0.01) -> T:
    """The first true value of `condition`, looked at every few milliseconds; Late after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Late(f"not within {seconds:g} s: {what or condition}; last seen: {value!r}")
        _pause.wait(every)


def listening(port: int) -> bool:
    """Whether anybody listens on the port; nothing is connected, so that nobody is disturbed."""
    wanted = f":{port:04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()
        except FileNotFoundError:
            continue
        for line in lines[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[1].endswith(wanted):
                return True
    return False


def wait_listening(ports: Iterable[int], seconds: float = 30.0, alive: Callable[[], bool] | None = None) -> None:
    """Until all the ports are listened on; fails at once when `alive` says that the program ended."""
    wanted = list(ports)

    def ready() -> bool:
        if alive is not None and not alive():
            raise AssertionError(f"the program ended before it listened on {wanted}")
        return all(listening(port) for port in wanted)

    wait_until(ready, seconds, f"listening on {wanted}")


_first = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw") or 0) % 8
_ports: Iterator[int] = iter(())
_reserved: dict[int, socket.socket] = {}


def free_port() -> int:
    """A port nobody listens on, below the range that the kernel takes for outgoing connections, never given twice: neither
    by this process nor, as long as it lives, by another one, which may look before anybody listens there."""
    global _ports
    while True:
        port = next(_ports, None)
        if port is None:
            block = list(range(16000 + 2000 * _first, 18000 + 2000 * _first))
            random.Random(os.getpid() ^ time.time_ns()).shuffle(block)
            _ports = iter(block)
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if _reserve(port):
            return port


def _reserve(port: int) -> bool:
    """Hold a name of the kernel's for it, which goes with the process and leaves no file. Our own ones come round again."""
    if port in _reserved:
        return True
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        holder.bind(f"\0dcmgate-tests-port-{port}")
    except OSError:
        holder.close()
        return False
    _reserved[port] = holder
    return True
