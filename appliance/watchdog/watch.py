"""Watch: the stage that looks after the box itself: checks in turn, verdicts for others to read, the status LED, the budget.

A process of its own, which opens neither spool nor ledger: a disk that hangs keeps
only the child of its probe. It pings the watchdog from its round. A spool whose
probe fails again and again is asked to be escalated, by a file that a path unit
waits for: this process has no right to reboot anything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from appliance.clock import SECOND, Clock
from appliance.health.checks import State, Verdict, clock, memory, temperature, verdict, wear
from appliance.telemetry.log import Log
from appliance.telemetry.notify import alive

ROUND_SECONDS = 1.0
SPOOL_SECONDS = 30.0
AGAIN_SECONDS = 10.0
"""After a probe that failed."""

OTHERS_SECONDS = 60.0

FAILURES = 3
"""Probes that fail in a row; then it is a fault."""

REQUEST = "spool-fails"
HEALTHY = "healthy"

log = Log("watch")


class Watch:
    """`start`, then `stop`, once. `probe`: the spool's (None: nothing to probe yet); `light` is told the worst state each
    round. `degraded`: why there is degraded mode, empty while there is none; `tell` has it told when that begins or ends."""

    def __init__(self, folder: Path, system: Clock, probe: Callable[[], Verdict | None],
                 light: Callable[[State, int], None] = lambda state, round: None,
                 degraded: Callable[[], str] = lambda: "", tell: Callable[[str, bool], None] = lambda why, on: None) -> None:
        self._folder = folder
        self._clock = system
        self._probe = probe
        self._light = light
        self._degraded = degraded
        self._tell = tell
        self._why = ""
        self._stopping = threading.Event()
        self._due = {"spool": 0, "others": 0}
        self._verdicts: dict[str, Verdict] = {}
        self._failures = 0
        self._asked = False
        self._rounds = 0
        self._probing: threading.Thread | None = None
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(5)

    @property
    def verdicts(self) -> Sequence[Verdict]:
        return tuple(self._verdicts.values())

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.round()
            except Exception:  # noqa: BLE001  top of the thread: one check that fails keeps the others from nothing
                log.crash("a round of checks failed")
            alive("watch")
            self._clock.wait(self._stopping, ROUND_SECONDS)

    def round(self) -> None:
        """What is due."""
        self._rounds += 1
        now = self._clock.boot_ns()
        if now >= self._due["others"]:
            self._due["others"] = now + int(OTHERS_SECONDS * SECOND)
            for found in (temperature.look(), wear.look(), memory.look(), clock.look(self._clock)):
                self._take(found)
        if now >= self._due["spool"] and (self._probing is None or not self._probing.is_alive()):
            self._due["spool"] = now + int(SPOOL_SECONDS * SECOND)
            self._probing = threading.Thread(target=self._look_at_spool, name="probe", daemon=True)
            self._probing.start()
        order = (State.UNKNOWN, State.GOOD, State.POOR, State.BAD)
        worst = max((each.state for each in self._verdicts.values()), key=order.index, default=State.UNKNOWN)
        self._light(State.BAD if self._why else worst, self._rounds)
        self._tell_of_degraded_mode()

    def _tell_of_degraded_mode(self) -> None:
        """Its own process may call nobody (firewall), and does not know when it is over."""
        why, before = self._degraded(), self._why
        if why == before:
            return
        self._why = why
        if before:
            self._tell(before, False)
        if why:
            self._tell(why, True)

    def _look_at_spool(self) -> None:
        try:
            found = self._probe()
        except Exception:  # noqa: BLE001  top of the thread: the next probe is due as ever
            log.crash("the spool's disk could not be probed")
            return
        if found is None:
            return
        self._failures = self._failures + 1 if found.state is State.BAD else 0
        if self._failures:
            self._due["spool"] = self._clock.boot_ns() + int(AGAIN_SECONDS * SECOND)
        self._take(found)
        if self._failures >= FAILURES and not self._asked:
            self._asked = True
            log.error("the spool's disk fails: escalation is asked for", why=found.text)
            self._ask(found)
        elif not self._failures:
            self._asked = False

    def _ask(self, found: Verdict) -> None:
        try:
            (self._folder / REQUEST).write_text(found.text + "\n")
        except OSError as error:
            log.error("escalation cannot be asked for", why=str(error))

    def _take(self, found: Verdict) -> None:
        before = self._verdicts.get(found.check)
        self._verdicts[found.check] = found
        if before != found:
            verdict.write(self._folder, self.verdicts)
        if (before.state if before is not None else State.GOOD) is not found.state and found.state is not State.UNKNOWN:
            say = log.error if found.state is State.BAD else log.warning if found.state is State.POOR else log.info
            say("a check has another result", check=found.check, state=str(found.state), why=found.text)
