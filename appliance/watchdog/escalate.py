"""Escalate: gathers the facts, has `policy.escalation` decide, and does it: reboots, enters degraded mode, tries again later.

Run by the service manager where a unit could not be brought back, and where the
probe of the spool's disk fails. A budget is charged, written and read back
before anything is rebooted; where that fails nothing is.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from appliance.health.checks import Verdict
from appliance.health.checks import spool as spool_check
from appliance.model import Alarm, Severity
from appliance.policy.escalation import UNSPENT, Decision, Disk, Facts, Step, charge, credit, decide
from appliance.telemetry.log import Log
from appliance.watchdog import boots
from appliance.watchdog.budget import Budget, File, Variable, within

UNITS = {"receiver": "dcmgate-receiver.service", "forwarder": "dcmgate-forwarder.service", "keeper": "dcmgate-keeper.service"}
DISKS = "dcmgate-disks.service"
DEGRADED = "dcmgate-degraded.service"
NOTE = "degraded.json"
LOCK = "escalate.lock"
BLESS = "/usr/lib/systemd/systemd-bless-boot"
SECONDS = 60.0
FINDINGS = (1, 2)
"""Exit statuses of a service that say what is wrong (`cli.exits`): a bad configuration, a damaged ledger."""

log = Log("escalate")


class Machine(Protocol):
    """What is done to the machine."""

    def control(self, *words: str) -> int:
        """`systemctl` with these; its exit status."""

    def ended_with(self, unit: str) -> int:
        """The exit status of that unit's main process; 0 where a signal ended it, or nothing is known."""

    def on_trial(self) -> bool:
        """Whether the system that runs has not been found good yet: the boot loader counts its tries."""


class Real:
    """This machine."""

    def control(self, *words: str) -> int:
        try:
            return subprocess.run(["systemctl", *words], stdin=subprocess.DEVNULL, timeout=SECONDS, check=False).returncode
        except (OSError, subprocess.TimeoutExpired) as error:
            log.error("the service manager does not answer", command=" ".join(words), why=str(error))
            return 1

    def ended_with(self, unit: str) -> int:
        said = _said("systemctl", "show", "--value", "-p", "ExecMainCode", "-p", "ExecMainStatus", unit)
        code, _, status = said.partition("\n")
        return int(status) if code == str(os.CLD_EXITED) and status.isdigit() else 0

    def on_trial(self) -> bool:
        return _said(BLESS, "status") == "indeterminate"


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are: all of it given, for tests."""

    spool: Path
    state: Path = boots.STATE
    run: Path = boots.RUN


def budget(places: Places) -> Budget:
    """The board's own memory first: it hangs with no disk."""
    return Budget([Variable(), File(places.state / "budget.json")])


def look(spool: Path, probe: Callable[[], Verdict] | None = None) -> tuple[Disk, str]:
    """What is known of the spool's disk now, in a bounded time, and in words."""
    try:
        if not within(lambda: spool_check.is_there(spool)):
            return Disk.ABSENT, "there is no spool"
    except OSError:
        return Disk.FAILED, "the disk of the spool does not answer"
    verdict = (probe or spool_check.Probe(spool).look)()
    try:
        return within(lambda: spool_check.disk(spool, verdict)), verdict.text
    except OSError as error:
        return Disk.FAILED, f"the disk of the spool fails: {error}"


def escalate(unit: str, places: Places, machine: Machine, kept: Budget, disk: tuple[Disk, str] | None = None) -> Decision:
    """Restarts of that unit did not help, or the spool's probe fails ("spool"): do what follows."""
    state, words = disk if disk is not None else look(places.spool)
    with _alone(places.run):
        return _escalate(unit, places, machine, kept, state, words)


def _escalate(unit: str, places: Places, machine: Machine, kept: Budget, state: Disk, words: str) -> Decision:
    spent = kept.read()
    finding = unit in UNITS and machine.ended_with(UNITS[unit]) in FINDINGS
    facts = Facts(unit, state, spent, machine.on_trial(), finding)
    decision = decide(facts)
    if decision.step is Step.REBOOT:
        charged = {**spent, decision.fault: charge(spent.get(decision.fault, UNSPENT))}
        if kept.write(charged) == 0:
            decision = decide(replace(facts, spent=None))
    text = f"{unit}: {decision.why}" + (f" ({words})" if words and state is not Disk.GOOD else "")
    log.error("escalation", unit=unit, disk=str(state), step=str(decision.step), why=text)
    _do(decision, unit, text, places, machine)
    return decision


@contextmanager
def _alone(run: Path, seconds: float = SECONDS) -> Iterator[None]:
    """One at a time: services that fail for one reason give up together, and what the second writes of the budget would
    undo what the first has charged. Nobody waits for ever: one that hangs is passed after `seconds`."""
    try:
        lock = os.open(run / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        log.warning("not kept from others that escalate now", why=str(error))
        yield
        return
    try:
        try:
            within(lambda: fcntl.flock(lock, fcntl.LOCK_EX), seconds)
        except OSError as error:
            log.warning("not kept from others that escalate now", why=str(error))
        yield
    finally:
        os.close(lock)


def _do(decision: Decision, unit: str, text: str, places: Places, machine: Machine) -> None:
    if decision.step in (Step.REBOOT, Step.ROLL_BACK):
        try:
            boots.reboots(text if decision.fault == unit else f"{decision.fault}, met by {text}", places.state)
        except OSError as error:
            log.error("why we reboot cannot be written down", why=str(error))
        machine.control("--no-block", "reboot")
        return
    if decision.step is Step.DEGRADED:
        tell(places.run, decision.fault, text)
        machine.control("--no-block", "start", DEGRADED)
    if decision.step in (Step.DEGRADED, Step.WITHOUT):
        again = unit if unit in UNITS else "receiver"
        machine.control("--no-block", "restart", f"dcmgate-again@{again}.timer")


def again(unit: str, places: Places, machine: Machine, disk: tuple[Disk, str] | None = None) -> bool:
    """Some time has passed: try the unit once more, if there is a disk for it. False: not now, later."""
    state, words = disk if disk is not None else look(places.spool)
    if state is Disk.ABSENT:
        # Where its device is there again it can be mounted; where not, this ends in a while and stops nothing that runs.
        mount = str(places.spool).strip("/").replace("-", "\\x2d").replace("/", "-") + ".mount"
        machine.control("reset-failed", DISKS)      # it has spent its tries, and refuses more
        machine.control("start", mount)
        state, words = look(places.spool)
    if state not in (Disk.GOOD, Disk.FULL):
        log.warning("not tried again: the disk is not there yet", unit=unit, why=words)
        machine.control("--no-block", "restart", f"dcmgate-again@{unit}.timer")
        return False
    machine.control("reset-failed", UNITS[unit])
    if unit == "receiver":
        _over(places.run)
        machine.control("--no-block", "start", "dcmgate-receiver.socket", UNITS[unit])      # it ends degraded mode
    else:
        machine.control("--no-block", "start", UNITS[unit])
    return True


def healthy(kept: Budget, elapsed: int, faults: Sequence[str] = (), run: Path = boots.RUN) -> None:
    """So many powered-on nanoseconds have passed without these faults: their budgets come back, in time."""
    with _alone(run):
        spent = kept.read()
        after = {fault: one if fault in faults else credit(one, elapsed) for fault, one in spent.items()}
        if after != spent:
            kept.write(after)


def _over(run: Path) -> None:
    """Degraded mode is over, until there is a reason again."""
    if (run / NOTE).exists():
        (run / NOTE).write_text("")


def tell(run: Path, fault: str, why: str) -> None:
    """Why degraded mode begins; what else fails for it later on is no news. OSError is swallowed: it begins all the same."""
    if told(run)[0]:
        return
    try:
        beside = run / f".{NOTE}.new"
        beside.write_text(json.dumps({"fault": fault, "why": why}) + "\n")
        beside.rename(run / NOTE)
    except OSError as error:
        log.error("why degraded mode begins cannot be told", why=str(error))


def alarm(why: str) -> Alarm:
    """What people are told."""
    return Alarm("degraded", Severity.CRITICAL, f"degraded mode, scanners are turned away: {why}",
                 "Look at `dcmgate status` and at the log; what is acknowledged stays where it is.")


def told(run: Path = boots.RUN) -> tuple[str, str]:
    """(fault, why) of the last time; empty where there was none in this boot."""
    try:
        found = json.loads((run / NOTE).read_text())
        return str(found["fault"]), str(found["why"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", ""
