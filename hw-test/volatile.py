"""A disk with a cache that a power cut empties: what the box has not flushed is lost. For the virtual box only.

nbdkit serves the disk and keeps what is written until it is flushed; it is killed before the machine is.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from gateway import GatewayStrategy
from waiting import wait_until


class VolatileDisk:
    """`on` brings the box to serving on such a disk, and it has that until it is switched off; `cut` takes the power away."""

    def __init__(self, box: GatewayStrategy, root: Path, folder: Path) -> None:
        self._box, self._root, self._folder = box, root, folder
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def _socket(self) -> Path:
        return self._folder / "disk.sock"

    def on(self) -> None:
        if self._server is None:
            self._box.transition("off")
            self._socket.unlink(missing_ok=True)
            cache = self._folder / "tmp"
            cache.mkdir(exist_ok=True)
            command = [self._root / "image-build" / "enter", "--work", self._folder, "env", f"TMPDIR={cache}", "nbdkit", "-f",
                       "-U", self._socket, "--filter=cache", "file", self._folder / "disk.raw", "cache=writeback"]
            server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
            wait_until(lambda: self._socket.exists() or server.poll() is not None, 60, "nbdkit starts", every=0.1)
            assert server.poll() is None, "nbdkit does not start"
            power: Any = self._box.power
            plain = f"cache=unsafe,werror=report,rerror=report,file={self._folder}/disk.raw"
            before = power.extra_args
            assert plain in before
            self._rebuild(before.replace(plain, f"cache=writeback,werror=report,rerror=report,file=nbd:unix:{self._socket}"))
            self._server = server   # only now: where any of that failed, the next call begins anew, and not on the plain disk
            self._box.when_off = lambda: self._gone(before)
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

    def _gone(self, arguments: str) -> None:
        """It was switched off, and QEMU has flushed; or its power was cut."""
        assert self._server is not None
        self._server.terminate()
        self._server.wait(60)
        self._server = None
        self._rebuild(arguments)

    def _rebuild(self, arguments: str) -> None:
        power: Any = self._box.power
        self._box.target.deactivate(power)
        power.extra_args = arguments
        self._box.target.activate(power)
