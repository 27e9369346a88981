"""Runner: the tunnels of `dcmgate run` as children of one thread, each started again with a growing pause when it ends.

On a box systemd does this, with a sandbox for each. Taking up what has changed
in configuration and store is not done here: `watch` does it for both.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from appliance.clock import SECOND, Clock
from appliance.config.settings import Config, Tunnel
from appliance.errors import DcmgateError
from appliance.telemetry.log import Log
from appliance.tunnel import program
from appliance.tunnel.place import Place
from appliance.tunnel.setup import Maker

LOOK_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 60.0
STEADY_SECONDS = 60.0
"""One that has lived so long begins anew with the shortest pause."""

_LINE = re.compile(r"\d{4}\.\d\d\.\d\d \d\d:\d\d:\d\d LOG([0-7])\[\w+\]: (.*)")

_log = Log("tunnel")


@dataclass(slots=True)
class _Child:
    """One tunnel: its process if it runs, and when it may be started again (boot ns)."""

    process: subprocess.Popen[bytes] | None = None
    began: int = 0
    pause: float = 0.5
    due: int = 0
    trouble: str = ""
    reader: threading.Thread | None = field(default=None, repr=False)


class Runner:
    """`start`, `stop`. `config` gives the configuration in force."""

    def __init__(self, config: Callable[[], Config], clock: Clock, run: Path | None = None) -> None:
        self._config = config
        self._clock = clock
        self._run = Path(config().control.run) if run is None else run
        self._children: dict[str, _Child] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        # The children end with this thread (PR_SET_PDEATHSIG): it starts them, and lives as long as they may.
        self._thread = threading.Thread(target=self._work, name="tunnels", daemon=True)
        self._thread.start()

    def stop(self, seconds: float = 10.0) -> bool:
        """End all; False if the thread did not end in that time."""
        self._stop.set()
        if self._thread is None:
            return True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                self._step()
            except Exception:  # noqa: BLE001  top of the thread: the other tunnels are to be looked after
                _log.crash("looking after the tunnels failed")
            self._clock.wait(self._stop, LOOK_SECONDS)
        for child in self._children.values():
            if child.process is not None:
                child.process.terminate()
        for child in self._children.values():
            self._end(child)

    def _step(self) -> None:
        config = self._config()
        wanted = {tunnel.id: tunnel for tunnel in config.tunnels}
        for id in [id for id in self._children if id not in wanted]:
            self._end(self._children.pop(id))
            _log.info("tunnel is not in the configuration any more", tunnel=id)
        for id, tunnel in wanted.items():
            self._look_after(tunnel, self._children.setdefault(id, _Child()), config)

    def _look_after(self, tunnel: Tunnel, child: _Child, config: Config) -> None:
        now = self._clock.boot_ns()
        if child.process is not None:
            status = child.process.poll()
            if status is None:
                return
            self._end(child)
            if now - child.began > STEADY_SECONDS * SECOND:
                child.pause = 0.5
            _log.error("stunnel ended", tunnel=tunnel.id, status=status, again_in=child.pause)
            self._put_off(child, now)
        if now < child.due:
            return
        try:
            self._start(tunnel, child, config)
            child.trouble = ""
        except (DcmgateError, OSError) as e:
            if str(e) != child.trouble:
                _log.error("tunnel cannot be started", tunnel=tunnel.id, error=str(e))
            child.trouble = str(e)
            self._put_off(child, now)

    def _put_off(self, child: _Child, now: int) -> None:
        child.due = now + int(child.pause * SECOND)
        child.pause = min(LONGEST_PAUSE_SECONDS, child.pause * 2)

    def _start(self, tunnel: Tunnel, child: _Child, config: Config) -> None:
        place = Place(self._run, tunnel.id)
        claim = place.claim()
        try:
            setup = Maker(config.spool.state, self._run).setup(tunnel)
            program.check(setup)
            with program.listen(setup) as listening:
                process = program.start(place.write(setup), listening, claim)
            place.sign(claim, process.pid, setup)
        finally:
            os.close(claim)
        child.process, child.began = process, self._clock.boot_ns()
        child.reader = threading.Thread(target=_pass_on, args=(process, tunnel.id), name=f"tunnel-{tunnel.id}", daemon=True)
        child.reader.start()
        _log.info("tunnel runs", tunnel=tunnel.id, pid=process.pid, listen=tunnel.listen, connect=tunnel.connect)

    def _end(self, child: _Child) -> None:
        if child.process is not None:
            program.end(child.process)
            child.process = None
        if child.reader is not None:
            child.reader.join(2.0)
            child.reader = None


def _pass_on(process: subprocess.Popen[bytes], id: str) -> None:
    """What stunnel says, into our log: errors and warnings as such, connections as details."""
    assert process.stderr is not None
    with process.stderr as lines:
        for raw in lines:
            line = raw.decode("utf-8", "replace").rstrip()
            match = _LINE.match(line)
            level, text = (int(match[1]), match[2]) if match else (6, line)
            say = _log.error if level <= 3 else _log.warning if level == 4 else _log.debug
            say(text[:500], tunnel=id)
