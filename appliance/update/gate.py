"""Gate: whether a version on trial is good. Looks at the box from outside its services, as scanners and a clinic would.

`look` gathers the signs, `policy.update.complaints` judges. It waits where
waiting helps: for services on their way, for the uplink.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from appliance.clock import SystemClock
from appliance.config.settings import Config, Listener
from appliance.dicom import pdu, uids
from appliance.errors import DcmgateError
from appliance.health.testobject import data_set, new_uid
from appliance.net import sidedoor, sockets
from appliance.policy import Rejected
from appliance.policy.canary import CALLING, SOP_CLASS, title_of
from appliance.policy.update import Signs, starting
from appliance.probe.requestor import NoAnswer, Requestor
from appliance.spool.balance import balance
from appliance.spool.layout import open_configured
from appliance.spool.ledger import Ledger
from appliance.update.install import reached

UNITS = ("dcmgate-receiver.service", "dcmgate-forwarder.service", "dcmgate-keeper.service")
SERVICE_SECONDS = 240.0
DOOR_SECONDS = 60.0
ANSWER_SECONDS = 60.0
UPLINK_SECONDS = 300.0
PAUSE = 2.0

NOWHERE = title_of("")
"""No destination has this title: a canary that calls it is kept and accounted for, and goes nowhere."""


def look(config: Config, before: Sequence[str]) -> Signs:
    """All signs of a box that is set up. Never raises for what it finds."""
    services = _services()
    run = Path(config.control.run)
    failed = failed_units()
    answered = stored = discrepancy = ""
    unaccounted = 0
    if all(state == "active" for state in services.values()):
        answered = _answered(config.listeners)
        stored = _stored(config, run)
        unaccounted, discrepancy = _balance(config)
    now = _reached(run, before) if before else ()
    return Signs(services=services, failed_units=failed, answered=answered, stored=stored, unaccounted=unaccounted,
                 discrepancy=discrepancy, before=tuple(before), reached=now)


def _systemctl(*words: str) -> list[str]:
    try:
        done = subprocess.run(["systemctl", *words], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines()


def _services() -> dict[str, str]:
    deadline = time.monotonic() + SERVICE_SECONDS
    while True:
        states = _systemctl("is-active", *UNITS)
        found = dict(zip(UNITS, states or ["unknown"] * len(UNITS), strict=False))
        if not starting(found) or time.monotonic() > deadline:
            return found
        time.sleep(PAUSE)


def failed_units() -> tuple[str, ...]:
    """Units of the system that have failed."""
    lines = _systemctl("list-units", "--failed", "--plain", "--no-legend", "--no-pager")
    return tuple(line.split()[0] for line in lines if line.split())


def _answered(listeners: Sequence[Listener]) -> str:
    """Why a port of scanners does not answer. One that refuses us, who are no scanner, does answer."""
    for listener in listeners:
        for port in listener.ports:
            address = "127.0.0.1" if listener.address == "0.0.0.0" else "::1" if listener.address == "::" else listener.address
            try:
                with sockets.connect(address, port, ANSWER_SECONDS) as sock:
                    if listener.tls == "off":
                        _associate(sock, (listener.titles or ("DCMGATE",))[0])
            except OSError as e:
                return f"nobody answers on {port}: {e.strerror or e}"
            except NoAnswer as lost:
                return f"no answer of DICOM on {port}: {lost.answer}"
    return ""


def _associate(sock: sockets.Stream, title: str) -> None:
    deadline = time.monotonic() + ANSWER_SECONDS
    requestor = Requestor(sock)
    try:
        requestor.associate(title, CALLING, [pdu.ProposedContext(1, uids.VERIFICATION, (uids.IMPLICIT_LE,))], deadline)
    except NoAnswer as lost:
        if not isinstance(lost.answer, Rejected):
            raise
        return
    requestor.release(min(deadline, time.monotonic() + 2.0))


def _stored(config: Config, run: Path) -> str:
    """Why a test object that no rule can route could not be stored, as a scanner stores."""
    deadline = time.monotonic() + DOOR_SECONDS
    try:
        sidedoor.ask(run)
        while (door := sidedoor.find(run)) is None:
            if time.monotonic() > deadline:
                return "the receiver has no way in for it"
            time.sleep(PAUSE)
        uid, spool = new_uid(), open_configured(config.spool)
        data = data_set(uid, spool.uuid, "", 0)
        with sockets.connect("127.0.0.1", door.port, ANSWER_SECONDS) as sock:
            requestor, until = Requestor(sock), time.monotonic() + ANSWER_SECONDS
            requestor.associate(NOWHERE, CALLING, [pdu.ProposedContext(1, SOP_CLASS, (uids.EXPLICIT_LE,))], until,
                                door.identity())
            context = next(iter(requestor.contexts.values()), None)
            if context is None:
                return "the receiver takes no Secondary Capture"
            status = requestor.store(context, uid, data, until)
            requestor.release(min(until, time.monotonic() + 2.0))
            return "" if status == 0 else f"the receiver answers {status:04X}"
    except OSError as e:
        return f"the receiver cannot be reached: {e.strerror or e}"
    except NoAnswer as lost:
        return f"the receiver does not go along: {lost.answer}"
    except DcmgateError as e:
        return e.message
    finally:
        sidedoor.leave(run)


def _balance(config: Config) -> tuple[int, str]:
    try:
        spool = open_configured(config.spool)
        ledger = Ledger.open(spool.ledger_path, SystemClock(), read_only=True)
        try:
            found = balance(spool, ledger)
        finally:
            ledger.close()
    except DcmgateError as e:
        return 1, e.message
    return found.unaccounted, str(found.discrepancies[0]) if found.discrepancies else ""


def _reached(run: Path, before: Sequence[str]) -> tuple[str, ...]:
    deadline = time.monotonic() + UPLINK_SECONDS
    while not (set(found := reached(run)) & set(before)) and time.monotonic() < deadline:
        time.sleep(PAUSE)
    return found
