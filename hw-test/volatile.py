"""A disk with a cache that a power cut empties: what the box has not flushed is lost. For the virtual box only.

nbdkit serves the disk and keeps what is written until it is flushed; it is killed before the machine is.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gateway import GatewayStrategy
from waiting import wait_until


class VolatileDisk:
    """As long as it is open, the box has such a disk. `on` brings it to serving, `cut` takes the power away."""

    def __init__(self, box: GatewayStrategy, root: Path, folder: Path) -> None:
        self._box, self._root, self._folder = box, root, folder
        self._server: subprocess.Popen[bytes] | None = None
        self._before = ""

    def __enter__(self) -> Self:
        self._box.transition("off")
        power: Any = self._box.power
        self._before = power.extra_args
        plain = f"cache=unsafe,werror=report,rerror=report,file={self._folder}/disk.raw"
        assert plain in self._before
        self._rebuild(self._before.replace(plain, f"cache=writeback,werror=report,rerror=report,file=nbd:unix:{self._socket}"))
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._box.transition("off")      # in order: QEMU flushes
        if self._server is not None:
            self._server.terminate()
            self._server.wait(60)
        self._rebuild(self._before)

    @property
    def _socket(self) -> Path:
        return self._folder / "disk.sock"

    def on(self) -> None:
        self._socket.unlink(missing_ok=True)
        cache = self._folder / "tmp"
        cache.mkdir(exist_ok=True)
        command = [self._root / "image-build" / "enter", "--work", self._folder, "env", f"TMPDIR={cache}", "nbdkit", "-f", "-U",
                   self._socket, "--filter=cache", "file", self._folder / "disk.raw", "cache=writeback"]
        self._server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        server = self._server
        wait_until(lambda: self._socket.exists() or server.poll() is not None, 60, "nbdkit starts", every=0.1)
        assert server.poll() is None, "nbdkit does not start"
        self._box.transition("serving")

    def cut(self) -> None:
        assert self._server is not None
        self._box.target.deactivate(self._box.ssh)      # while it answers: else that takes 40 s
        self._server.kill()
        self._server.wait(60)
        power: Any = self._box.power
        os.kill(power._child.pid, 9)
        power._child.wait(60)
        power._child, power.status = None, 0
        self._box.transition("off")

    def _rebuild(self, arguments: str) -> None:
        power: Any = self._box.power
        self._box.target.deactivate(power)
        power.extra_args = arguments
        self._box.transition("off")
