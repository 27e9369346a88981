"""Watch: the keeper's part. Whoever runs the tunnels, what has changed is taken up, and "up" is proven by traffic.

At each round of the keeper: where configuration or certificate store say
something else than what a running stunnel was given, it is checked and handed
over: connections that are up stay, new ones go by the new one. A setup that
cannot be made or that stunnel does not take leaves the last one in
force, and is the tunnel's trouble. The looks at the far ends run in threads, one
for each tunnel, so that one that hangs keeps nobody waiting.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from appliance.clock import SECOND, Clock
from appliance.config.settings import Config, Tunnel
from appliance.errors import DcmgateError
from appliance.model import Alarm
from appliance.telemetry.log import Log
from appliance.tunnel import health, program
from appliance.tunnel.health import Condition, State
from appliance.tunnel.place import Place, Running
from appliance.tunnel.setup import Maker, Setup
from appliance.tunnel.through import HOP, Found, learn, prove

EVERY_SECONDS = 300.0
AGAIN_SECONDS = 8.0
"""After a failure, and so at the keeper's next round: the second in a row makes it down."""

DOWN_SECONDS = 60.0

SETTLE_SECONDS = 2.0
"""After a start or a reload, before it is looked at."""

_log = Log("tunnel")


@dataclass(slots=True)
class _Seen:
    """One tunnel as it was last."""

    condition: Condition
    due: int = 0
    asked: int = -1 << 62
    entry: Tunnel | None = None
    pid: int = 0
    trouble: Found | None = None
    looking: threading.Thread | None = field(default=None, repr=False)


class Watch:
    """`step` at each round. `look` proves one tunnel; tests put something else in its place."""

    def __init__(self, config: Callable[[], Config], clock: Clock, run: Path, *,
                 look: Callable[[Tunnel, str], Found] = prove) -> None:
        self._config = config
        self._clock = clock
        self._run = run
        self._look = look
        self._seen: dict[str, _Seen] = {}
        self._maker: Maker | None = None
        self._state = ""
        self._published: list[Condition] = []
        self._lock = threading.Lock()

    def step(self) -> None:
        """Take up what has changed, start the looks that are due, publish. OSError where the run folder cannot be used."""
        config = self._config()
        if self._maker is None or self._state != config.spool.state:
            self._maker, self._state = Maker(config.spool.state, self._run), config.spool.state
        wanted = {tunnel.id: tunnel for tunnel in config.tunnels}
        with self._lock:
            self._seen = {id: self._seen.get(id) or _Seen(Condition(id)) for id in wanted}
        now = self._clock.boot_ns()
        for id, tunnel in wanted.items():
            seen = self._seen[id]
            self._take_up(tunnel, seen, self._maker, now)
            if now >= seen.due and (seen.looking is None or not seen.looking.is_alive()):
                seen.looking = threading.Thread(target=self._prove, args=(tunnel, seen), name=f"tunnel-{id}", daemon=True)
                seen.looking.start()
        self._publish()

    def alarms(self) -> list[Alarm]:
        """Of the tunnels in the configuration."""
        with self._lock:
            return health.alarms(self._conditions())

    def _conditions(self) -> list[Condition]:
        return [replace(seen.condition, pid=seen.pid, stale=seen.trouble.text if seen.trouble and seen.pid else "",
                        stale_mend=seen.trouble.mend if seen.trouble else "") for _, seen in sorted(self._seen.items())]

    def join(self, seconds: float) -> None:
        """Wait for the looks that are under way (tests)."""
        for seen in list(self._seen.values()):
            if seen.looking is not None:
                seen.looking.join(seconds)

    # --- what has changed ---------------------------------------------------------------------------------------------

    def _take_up(self, tunnel: Tunnel, seen: _Seen, maker: Maker, now: int) -> None:
        place = Place(self._run, tunnel.id)
        running = place.running()
        pid = running.pid if running else 0
        if not pid if seen.entry is None else (pid, tunnel) != (seen.pid, seen.entry):
            seen.due = now + int(SETTLE_SECONDS * SECOND)
        seen.pid, seen.entry = pid, tunnel
        try:
            setup = maker.setup(tunnel)
            if running is None and now >= seen.due:
                program.check(setup)                 # it may be that what keeps it from running
            elif running is not None and setup.digest != running.digest:
                self._hand_over(place, running, setup, seen, now)
        except (DcmgateError, OSError) as e:
            self._in_trouble(tunnel, seen, e)
            return
        seen.trouble = None
        if not pid:
            seen.trouble = Found(False, f"no stunnel runs for tunnel {tunnel.id}", HOP, "not_running",
                                 f"Look at its log (`journalctl -u dcmgate-tunnel@{tunnel.id}`) and start it.")

    def _hand_over(self, place: Place, running: Running, setup: Setup, seen: _Seen, now: int) -> None:
        if not running.ours and now < seen.asked + int(DOWN_SECONDS * SECOND):
            return
        program.check(setup)
        if running.ours:
            place.take_up(running, setup)
        else:
            place.ask()
            seen.asked = now
        _log.info("tunnel takes up what has changed", tunnel=setup.id, pid=running.pid)
        seen.due = now + int(SETTLE_SECONDS * SECOND)

    def _in_trouble(self, tunnel: Tunnel, seen: _Seen, error: DcmgateError | OSError) -> None:
        text, mend = (error.message, error.mend) if isinstance(error, DcmgateError) else (str(error), "")
        found = Found(False, text, HOP, "setup", mend)
        if seen.trouble != found:
            _log.error("tunnel cannot be set up: what it had stays in force", tunnel=tunnel.id, error=str(error))
        seen.trouble = found

    # --- proof --------------------------------------------------------------------------------------------------------

    def _prove(self, tunnel: Tunnel, seen: _Seen) -> None:
        try:
            if tunnel.pins and tunnel.side == "client":
                self._learn(tunnel)
            found = seen.trouble if seen.trouble and not seen.pid else self._look(tunnel, self._state)
        except Exception as e:  # noqa: BLE001  top of the thread: an unforeseen fault is the tunnel's trouble, and tried again
            _log.crash("looking at a tunnel failed", tunnel=tunnel.id)
            found = Found(False, f"it cannot be looked at: {type(e).__name__}: {e}", HOP, "fault", "Report it with the log.")
        self._judge(seen, found)

    def _learn(self, tunnel: Tunnel) -> None:
        """A server may show a new certificate whose fingerprint has been written as a pin."""
        try:
            if learn(tunnel, self._state):
                _log.info("certificate with one of the pins is known now", tunnel=tunnel.id)
        except (DcmgateError, OSError) as e:
            _log.debug("no certificate was fetched", tunnel=tunnel.id, error=str(e))

    def _judge(self, seen: _Seen, found: Found) -> None:
        before, wall = seen.condition, self._clock.wall_ns()
        if found.up:
            state = State.UP
        else:
            state = State.DOWN if before.state in (State.RETRYING, State.DOWN) else State.RETRYING
        condition = Condition(before.tunnel, state, found.hop, found.cause, found.text, found.mend,
                              before.since if state is before.state else wall, wall, round(found.milliseconds, 1), seen.pid)
        if state is not before.state or found.cause != before.cause:
            say = _log.info if found.up else _log.warning
            say(f"tunnel is {state}", tunnel=before.tunnel, hop=found.hop, cause=found.cause, why=found.text)
        with self._lock:
            seen.condition = condition
        pause = {State.UP: EVERY_SECONDS, State.RETRYING: AGAIN_SECONDS}.get(state, DOWN_SECONDS)
        seen.due = self._clock.boot_ns() + int(pause * SECOND)
        self._publish()

    def _publish(self) -> None:
        with self._lock:
            conditions = self._conditions()
            if conditions != self._published:
                health.write(self._run, conditions)
                self._published = conditions
