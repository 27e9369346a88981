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
import socket
import sys
from contextlib import suppress
from types import FrameType
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
    """Signals, one after the other. The C handler writes a byte for each, so that one which comes in the instant before the
    wait begins ends it too: a wait for a queue alone would sleep on."""

    def __init__(self) -> None:
        self._numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._bytes, self._handler = socket.socketpair()
        self._handler.setblocking(False)
        self._before = signal.set_wakeup_fd(self._handler.fileno(), warn_on_full_buffer=False)

    def put(self, number: int) -> None:
        """For the handler."""
        self._numbers.put(number)

    def get(self) -> int:
        while True:
            with suppress(queue.Empty):
                return self._numbers.get_nowait()
            self._bytes.recv(64)

    def close(self) -> None:
        signal.set_wakeup_fd(self._before)
        self._bytes.close()
        self._handler.close()


def run(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.cli.services import Box
    from appliance.telemetry import log
    from appliance.telemetry.notify import expect, notify, reloading
    log.set_up(arguments.log)
    sys.setswitchinterval(SWITCH_SECONDS)
    said = log.Log("main")
    signals = _Signals()
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
        while (number := signals.get()) == signal.SIGHUP:
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
        signals.close()
    said.info("ended")
    return exits.OK
