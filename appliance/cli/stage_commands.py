"""`dcmgate run|receiver|forwarder|keeper`: a stage in the foreground, until SIGTERM or Ctrl-C.

SIGTERM and SIGINT drain: nothing more is taken, what is under way is finished
within a bound. A second one ends at once; nothing that was acknowledged is lost
by that either. SIGHUP puts the configuration file in force.
"""

from __future__ import annotations

import argparse
import os
import queue
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Any

from appliance.cli import exits
from appliance.cli.context import Site
from appliance.clock import SWITCH_SECONDS
from appliance.errors import DcmgateError

LOOK_SECONDS = 5.0

STAGES = {
    "run": ("everything in one process", ("keeper", "tunnels", "forwarder", "receiver")),
    "receiver": ("take associations from scanners", ("receiver",)),
    "forwarder": ("route, and deliver to destinations", ("forwarder",)),
    "keeper": ("confirm, retire, alarms, configuration, control socket", ("keeper",)),
}


WATCHED = {"keeper", "forwarder", "receiver"}
"""Stages whose own loop feeds the watchdog."""


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    for name, (text, stages) in STAGES.items():
        one = commands.add_parser(name, help=text, parents=[common])
        one.add_argument("--log", metavar="LEVEL", choices=("debug", "info", "warning", "error"), default="info",
                         help="least level of what is logged (default: info)")
        one.set_defaults(run=run, stages=stages, stage=name)


def _next(signals: queue.SimpleQueue[int]) -> int:
    """The next signal. One that comes just before the wait begins interrupts nothing: so it is looked again now and then."""
    while True:
        with suppress(queue.Empty):
            return signals.get(timeout=LOOK_SECONDS)


def run(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.cli.services import Box
    from appliance.telemetry import log
    from appliance.telemetry.notify import expect, notify, reloading
    log.set_up(arguments.log)
    sys.setswitchinterval(SWITCH_SECONDS)
    said = log.Log("main")
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    stopping = False

    def caught(number: int, _frame: FrameType | None) -> None:
        if stopping and number != signal.SIGHUP:
            os._exit(exits.INTERRUPTED)
        signals.put(number)

    before = {number: signal.signal(number, caught) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    expect(*(stage for stage in arguments.stages if stage in WATCHED))
    box = Box(site.config_path, arguments.stages)
    try:
        box.start()
        said.info("ready", stages=" ".join(arguments.stages), generation=box.config.generation)
        notify(READY=1, STATUS=f"generation {box.config.generation}")
        site.line({"ready": arguments.stage, "generation": box.config.generation})
        while (number := _next(signals)) == signal.SIGHUP:
            reloading()
            status = "reload failed"
            try:
                box.reload()
                status = f"generation {box.config.generation}"
            except DcmgateError as e:        # a ledger that is busy, a disk that fails: no reason to end what works
                said.error("cannot look at the configuration now: what is in force stays", error=str(e))
            notify(READY=1, STATUS=status)
        stopping = True
        notify(STOPPING=1)
        said.info("draining", signal=signal.Signals(number).name)
    finally:
        box.stop()
        for number, handler in before.items():
            signal.signal(number, handler)
    said.info("ended")
    return exits.OK
