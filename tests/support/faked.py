"""A gateway whose processes have another wall clock than this machine, to be set while they run (libfaketime).

Only `CLOCK_REALTIME` is theirs: boot time and monotonic time are the machine's,
as on a box whose clock is set. Files keep their real times. Rounds of the keeper
are counted by what it tells systemd (sd_notify(3)).
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from appliance.net import kick
from tests.support.gateway import Gateway, Table

LIBRARY = "faketime/libfaketimeMT.so.1"

_SLEEP = """\
# libfaketime 0.9.10 takes the absolute CLOCK_MONOTONIC of clock_nanosleep(2) for a wall clock, whatever it is told.
import select, time
time.sleep = lambda seconds: select.select((), (), (), seconds) and None
"""


def library() -> Path | None:
    """libfaketime, or None where the package `faketime` is not installed."""
    return next(Path("/usr/lib").glob(f"*/{LIBRARY}"), None)


class FakedGateway(Gateway):
    """`wall` is what its processes believe. Commands run by it believe the same."""

    def __init__(self, folder: Path, destinations: Iterable[Table], *, wall: float, **settings: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "faketime"
        self._shim = folder / "shim"
        self._shim.mkdir()
        (self._shim / "sitecustomize.py").write_text(_SLEEP)
        self.set_wall(wall)
        super().__init__(folder, destinations, **settings)
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(str(self.run / "notify"))
        self._notified.setblocking(False)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, value, trace)
        self._notified.close()

    def wait_round(self, seconds: float = 40.0) -> None:
        """Until the keeper has gone a whole round from now on; it is kicked, so that it need not be waited for.

        It has to have a process of its own: where several stages share one, a ping bears the name of the slowest.
        """
        assert "keeper" in self.processes, "rounds of the keeper are seen where it runs alone: `start_stages`"
        for wanted in (0, 2):       # the first that ends had begun before
            rounds = 0
            end = time.monotonic() + (seconds if wanted else 0)
            while True:
                try:
                    rounds += self._notified.recv(4096) == b"WATCHDOG=1\nX_DCMGATE_STAGE=keeper"
                except BlockingIOError:
                    if rounds >= wanted:
                        break
                    assert time.monotonic() < end, f"no round of the keeper within {seconds:g} s\n{self.log_tail()}"
                    kick.send(self.run / kick.KEEPER)
                    threading.Event().wait(0.1)

    def set_wall(self, wall: float) -> None:
        """Set their clock to so many seconds since 1970. All of them see it at their next look."""
        self.step_to(wall - time.time())

    def step_to(self, offset: float) -> None:
        """Let their clock be so many seconds ahead of this machine's (less than 0: behind)."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{offset:+.3f}\n")
        os.replace(new, self._file)
        self.offset = offset

    @property
    def wall(self) -> float:
        return time.time() + self.offset

    def _environment(self) -> dict[str, str]:
        found = library()
        assert found is not None, "libfaketime is missing"
        inherited = super()._environment()
        path = f"{self._shim}{os.pathsep}{inherited['PYTHONPATH']}"
        return {**inherited, "PYTHONPATH": path, "LD_PRELOAD": str(found), "FAKETIME_TIMESTAMP_FILE": str(self._file),
                "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1",
                "NOTIFY_SOCKET": str(self.run / "notify")}
