"""`dcmgate` as a fork of a process that has imported everything: a start costs milliseconds instead of a third of a second.

    with nursery() as starts:
        process = starts.start(["--config", …, "receiver"], log)     # as subprocess.Popen: pid, poll, wait, terminate, kill

What runs is the program's own `main` with a session, a log and an exit status of
its own; the interpreter's start is all that is left out. The nursery is a process
with one thread, which forks for each start a minder, and that the program: the
minder waits for its end and tells the status.
"""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_MOST = 1 << 16


class WarmProcess:
    """One program. As a `subprocess.Popen` as far as it goes; for one thread at a time."""

    def __init__(self, arguments: Sequence[str], pid: int, line: socket.socket) -> None:
        self.args = list(arguments)
        self.pid = pid
        self.returncode: int | None = None
        self._line = line

    def poll(self) -> int | None:
        """The exit status; negative: the signal that ended it; None: it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._line.settimeout(timeout or (None if timeout is None else 1e-6))
            try:
                told = self._line.recv(64)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0) from None
            self.returncode = int(told or b"-9")      # nobody to tell it: the minder was killed with it
            self._line.close()
        return self.returncode

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Nursery:
    """Starts programs. Any thread may ask."""

    def __init__(self, address: str) -> None:
        self._address = address

    def start(self, arguments: Sequence[str], log: Path, environment: dict[str, str] | None = None,
              errors: Path | None = None) -> WarmProcess:
        """`dcmgate` with these arguments, in a session of its own; what it says is added to the log, or to two."""
        line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)    # its process's to close
        line.connect(self._address)
        settings = [f"{name}={value}" for name, value in (environment or {}).items()]
        line.sendall("\0".join([str(log), str(errors or ""), *settings, "", *arguments]).encode())
        line.settimeout(30)
        return WarmProcess(arguments, int(line.recv(64)), line)

    def run(self, arguments: Sequence[str], answer: Path, seconds: float = 120.0) -> tuple[int, str, str]:
        """A command to its end: exit status, and what it printed and complained. `answer`: a file for this, in a folder of the
        caller's; it takes one beside it."""
        errors = answer.with_suffix(".errors")
        for path in (answer, errors):
            path.unlink(missing_ok=True)
        process = self.start(arguments, answer, errors=errors)
        try:
            status = process.wait(seconds)
        finally:
            process.kill()
        return status, answer.read_text(), errors.read_text()


@contextmanager
def nursery() -> Iterator[Nursery]:
    """A process that forks; it ends with the block, and what it started is its user's to end."""
    address = f"\0dcmgate-warm-{os.getpid()}-{os.urandom(4).hex()}"
    process = subprocess.Popen([sys.executable, "-m", "tests.support.warm", address[1:]], cwd=ROOT, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n", "the nursery does not come up"
        yield Nursery(address)
    finally:
        process.terminate()
        process.wait(20)
        process.stdin.close()
        process.stdout.close()


# --- the nursery's own process ----------------------------------------------------------------------------------------


def _serve(name: str) -> None:
    import appliance
    for module in pkgutil.walk_packages(appliance.__path__, "appliance."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"\0{name}")
    listener.listen(64)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)       # minders are nobody's to wait for
    print("ready", flush=True)
    while True:
        line, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _mind(line)
        line.close()


def _mind(line: socket.socket) -> None:
    """In the minder: start the program, and tell its pid and, in the end, its status."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.setsid()
        words = line.recv(_MOST).decode().split("\0")
        at = words.index("", 2)
        pid = os.fork()
        if pid == 0:
            _be(line, words[0], words[1], dict(word.split("=", 1) for word in words[2:at]), words[at + 1:])
        line.sendall(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        line.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    finally:
        os._exit(0)


def _be(line: socket.socket, log: str, errors: str, environment: dict[str, str], arguments: list[str]) -> None:
    status: Any = 1
    try:
        os.setsid()
        line.close()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ.update(environment)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in ((1, log), (2, errors or log)):
            out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(out, number)
            os.close(out)
        sys.argv = ["dcmgate", *arguments]
        from appliance.cli.main import main
        status = main(arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 as the interpreter does with what nobody caught
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


if __name__ == "__main__":
    _serve(sys.argv[1])
