"""The virtual machine, with a console that is read all the time.

QEMU writes its serial port a byte at a time, and a Unix socket holds few hundred such writes: a console that is read only where
a test expects something soon stops whoever writes to it, PID 1 among them, and then the board's watchdog resets the machine.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import BinaryIO

import attr
from labgrid.driver import QEMUDriver
from labgrid.factory import target_factory
from pexpect import TIMEOUT

START_SECONDS = 60
"""QEMU that ends at once calls nobody."""

PAUSE = 0.01
"""Seconds in which a little more may come: what expects something looks at a page and not at a byte."""


def _log() -> BinaryIO:
    return (Path(os.environ["DCMGATE_LOG"]) / "serial").open("ab", buffering=0)


@target_factory.reg_driver
@attr.s(eq=False)
class ReadQEMUDriver(QEMUDriver):  # type: ignore[misc]  # labgrid has no types
    """QEMUDriver; what the console said since it was read last is kept here and not in the socket. All of it goes to the file
    `serial` of the suites' log, whether a test expects something or not."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self._said = bytearray()
        self._more = threading.Condition()
        self._reader: threading.Thread | None = None

    def on(self) -> None:
        if self.status:
            return
        if self._reader is not None:
            self._reader.join()      # its end of the line is gone with the machine
        self._said.clear()           # what an earlier boot said is no answer to what is expected of this one
        self._socket.settimeout(START_SECONDS)
        super().on()
        line = self._clientsocket
        line.setblocking(True)
        self._reader = threading.Thread(target=self._drain, args=(line, _log()), name="console", daemon=True)
        self._reader.start()

    def _drain(self, line: object, log: BinaryIO) -> None:
        with log:
            while True:
                try:
                    heard = line.recv(65536)  # type: ignore[attr-defined]
                except OSError:
                    return
                if not heard:
                    return
                log.write(heard)
                with self._more:
                    self._said += heard
                    self._more.notify()

    def _read(self, size: int = 1, timeout: float = 10, max_size: int | None = None) -> bytes:
        with self._more:
            if not self._more.wait_for(lambda: self._said, timeout):
                raise TIMEOUT(f"Timeout of {timeout:.2f} seconds exceeded")
        time.sleep(PAUSE)
        with self._more:
            taken = bytes(self._said[:min(max_size or 4096, 4096)])
            del self._said[:len(taken)]
        return taken
