"""`dcmgate run|receiver|forwarder|keeper`: a stage in the foreground, until SIGTERM or Ctrl-C.

SIGTERM and SIGINT drain: nothing more is taken, what is under way is finished
within a bound. A second one ends at once; nothing that was acknowledged is lost
by that either. SIGHUP puts the configuration file in force.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import Any

from appliance.cli import exits
from appliance.cli.context import Site
from appliance.clock import SWITCH_SECONDS
from appliance.errors import DcmgateError

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


class _Signals:
    """SIGTERM, SIGINT and SIGHUP, one after the other. The C handler writes each into a pipe, so that one which comes in the
    instant before the wait begins ends it too."""

    def __init__(self) -> None:
        self._numbers, self._handler = os.pipe()
        os.set_blocking(self._handler, False)
        self._wakeup = signal.set_wakeup_fd(self._handler, warn_on_full_buffer=False)
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        self._before = {number: signal.signal(number, lambda *_: None) for number in numbers}

    def get(self) -> int:
        return os.read(self._numbers, 1)[0]

    def last(self) -> None:
        """From now on a SIGTERM or SIGINT ends the process at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: os._exit(exits.INTERRUPTED))

    def close(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._numbers)
        os.close(self._handler)


def run(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.cli.services import Box
    from appliance.telemetry import log
    from appliance.telemetry.notify import expect, notify, reloading
    log.set_up(arguments.log)
    sys.setswitchinterval(SWITCH_SECONDS)
    said = log.Log("main")
    signals = _Signals()
    expect(*(stage for stage in arguments.stages if stage in WATCHED))
    box = Box(site.config_path, arguments.stages)
    try:
        box.start()
        said.info("ready", stages=" ".join(arguments.stages), generation=box.config.generation)
        notify(READY=1, STATUS=f"generation {box.config.generation}")
        site.line({"ready": arguments.stage, "generation": box.config.generation})
        while (number := signals.get()) == signal.SIGHUP:
            reloading()
            status = "reload failed"
            try:
                box.reload()
                status = f"generation {box.config.generation}"
            except DcmgateError as e:        # a ledger that is busy, a disk that fails: no reason to end what works
                said.error("cannot look at the configuration now: what is in force stays", error=str(e))
            notify(READY=1, STATUS=status)
        signals.last()
        notify(STOPPING=1)
        said.info("draining", signal=signal.Signals(number).name)
    finally:
        box.stop()
        signals.close()
    said.info("ended")
    return exits.OK
