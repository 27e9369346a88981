"""A root shell in the device, for what no person may do there: stop a process, panic the kernel, break a disk.

`RootShellProtocol` is what the suites know. The image has no such thing: the
virtual machine gets one from outside, by a second serial port and a word of its
firmware (SMBIOS) to systemd's stub, which only who makes the machine can say. A
bench has none, and its suites leave out what needs one.
"""

from __future__ import annotations

import abc
import base64
import re
import socket
import time
from pathlib import Path

import attr
from labgrid.driver import Driver
from labgrid.factory import target_factory


class RootShellProtocol(abc.ABC):
    @abc.abstractmethod
    def run(self, command: str, seconds: float = 60.0) -> str:
        """The command's output. RuntimeError where it fails, TimeoutError where it does not end."""

    @abc.abstractmethod
    def fire(self, command: str) -> None:
        """Begin a command of which no answer will come."""

    def put(self, source: Path, target: str) -> None:
        """A small file."""
        text = base64.b64encode(source.read_bytes()).decode()
        self.run(f"rm -f {target}.b64")
        for start in range(0, len(text), 2000):      # a line of a terminal has 4096 bytes
            self.run(f"echo {text[start:start + 2000]} >>{target}.b64")
        self.run(f"base64 -d {target}.b64 >{target}")


@target_factory.reg_driver
@attr.s(eq=False)
class SerialRootShell(Driver, RootShellProtocol):
    """A shell at the other end of a Unix socket, which is the virtual machine's second serial port."""

    bindings = {"power": "QEMUDriver"}  # noqa: RUF012  labgrid's way
    path = attr.ib(validator=attr.validators.instance_of(str))
    _count = 0

    @Driver.check_active
    def run(self, command: str, seconds: float = 60.0) -> str:
        self._count += 1
        mark = f"mark{self._count}x{int(time.monotonic())}"
        end = time.monotonic() + seconds
        heard = b""
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(self.path)
            begin = f"\x15stty -echo; PS1=; PS2=; echo; echo {mark}-be''gin; "
            line.sendall(f"{begin}( {command}\n) 2>&1; echo {mark}-e''nd $?\n".encode())
            pattern = re.compile(rf"{mark}-begin\r?\n(.*?)\r?\n?{mark}-end (\d+)".encode(), re.DOTALL)
            while not (found := pattern.search(heard)):
                line.settimeout(max(end - time.monotonic(), 0.01))
                try:
                    more = line.recv(65536)
                except TimeoutError:
                    raise TimeoutError(f"{command!r} does not end: {heard[-500:]!r}") from None
                if not more:
                    raise RuntimeError(f"the line is gone in {command!r}")
                heard += more
        text = found[1].decode(errors="replace").replace("\r\n", "\n").strip("\n")
        if int(found[2]):
            raise RuntimeError(f"{command!r} ended with {int(found[2])}: {text}")
        return text

    @Driver.check_active
    def fire(self, command: str) -> None:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(self.path)
            line.sendall(f"\x15{command}\n".encode())
            time.sleep(1)
