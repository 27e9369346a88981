"""A limited child process as its parent sees it: started when needed, killed behind a deadline, never trusted."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time

from appliance.errors import SandboxError
from appliance.sandbox import frames

START_SECONDS = 20.0
"""Time for a child to say that it is ready: a busy Raspberry Pi takes seconds to start Python."""


class Process:
    """One child running `module` with an address space of `memory` bytes. For one thread at a time.

    Its stdin and stdout are one Unix socket pair, its environment is empty or as given,
    stderr goes nowhere: what a hostile object makes it say is of no use.
    """

    def __init__(self, module: str, memory: int, environment: dict[str, str] | None = None) -> None:
        self._environment = environment or {}
        self._module = module
        self._memory = memory
        self._sock: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    @property
    def pid(self) -> int:
        """Process id of the child, 0 where none runs."""
        return self._process.pid if self._process else 0

    def ask(self, payload: bytes, descriptors: list[int], seconds: float) -> float:
        """Send a request; the deadline (CLOCK_MONOTONIC, seconds) of its answer. A child that is dead already is replaced.

        SandboxError where no child can be started, or none takes the request.
        """
        if self._sock is not None and not self._send(payload, descriptors, seconds):
            self.kill()
        if self._sock is None:
            self._start()
            if not self._send(payload, descriptors, seconds):
                self.kill()
                raise SandboxError("the limited child does not take requests")
        return self.within(seconds)

    def _send(self, payload: bytes, descriptors: list[int], seconds: float) -> bool:
        """False where the child is gone or does not read. OSError for a descriptor that is none."""
        assert self._sock is not None
        self._sock.settimeout(seconds)
        try:
            frames.send(self._sock, payload, descriptors)
        except (BrokenPipeError, ConnectionError, TimeoutError):
            return False
        return True

    def within(self, seconds: float) -> float:
        """A deadline from now."""
        return time.monotonic() + seconds

    def answer(self, most: int, deadline: float) -> bytes:
        """The next message, at most `most` bytes. SandboxError, and no child is left, where none comes in time."""
        if self._sock is None:
            raise SandboxError("the limited child is gone")
        try:
            payload, descriptors = frames.receive(self._sock, most, deadline)
        except SandboxError:
            self.kill()
            raise
        except OSError as e:
            self.kill()
            late = isinstance(e, TimeoutError)
            raise SandboxError("the limited child took too long" if late else f"the limited child is gone: {e}") from None
        frames.close_all(descriptors)            # it has no reason to send any
        if not payload:
            status = self.kill()
            raise SandboxError(f"the limited child died (status {status})")
        return payload

    def kill(self) -> int | None:
        """End the child at once; its exit status where it has one. The next request starts another."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()                           # without effect where it died by itself: then its status tells of what
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(5)
        return None                              # stuck in the kernel: dies when the disk answers

    def _start(self) -> None:
        self.kill()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        command = [sys.executable, "-I", "-m", self._module, str(self._memory), str(os.getpid())]
        try:
            self._process = subprocess.Popen(command, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.DEVNULL,
                                             cwd="/", env=self._environment, start_new_session=True)
        except OSError as e:
            ours.close()
            raise SandboxError(f"the limited child cannot be started: {e}", mend="look at memory and process limits") from None
        finally:
            theirs.close()
        self._sock = ours
        self.starts += 1
        try:
            self.answer(len(frames.READY), self.within(START_SECONDS))
        except SandboxError as e:
            raise SandboxError(f"the limited child does not start: {e.message}",
                               mend="look at `child_memory` in [limits], and at memory and process limits") from None
