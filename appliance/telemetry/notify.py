"""Notifications to systemd (sd_notify): ready, stopping, status, watchdog.

The protocol is one datagram to the socket named by NOTIFY_SOCKET, so that it
needs no library; outside systemd every call does nothing. The watchdog ping
belongs into the loop that does the work, never into a timer thread.
"""

from __future__ import annotations

import os
import socket
import threading
import time


def notify(**fields: str | int) -> bool:
    """Send e.g. `notify(READY=1, STATUS="…")`. False where nobody listens."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    message = "\n".join(f"{key}={value}" for key, value in fields.items()).encode()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            sender.sendto(message, address)
    except OSError:
        return False
    return True


_stages: set[str] = set()
_alive: set[str] = set()
_lock = threading.Lock()


def expect(*stages: str) -> None:
    """These stages run in this process: it is alive only as long as all of them are."""
    with _lock:
        _stages.clear()
        _stages.update(stages)
        _alive.clear()


def alive(stage: str) -> None:
    """This stage's loop has gone round, and whoever works for it has moved. The last of all to say so sends the ping."""
    with _lock:
        _alive.add(stage)
        if not _alive >= _stages:
            return
        _alive.clear()
    notify(WATCHDOG=1, X_DCMGATE_STAGE=stage)      # X_: for whoever reads along, the manager ignores it


def reloading() -> None:
    """What is in force is looked at anew; READY follows. With the time, as `Type=notify-reload` wants it."""
    notify(RELOADING=1, MONOTONIC_USEC=time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)


def watchdog_seconds() -> float | None:
    """How often at least a ping is expected (WATCHDOG_USEC), or None where no watchdog is set for this process."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        return int(os.environ["WATCHDOG_USEC"]) / 1_000_000
    except (KeyError, ValueError):
        return None
