"""A worker process and the nursery that it is forked from.

The nursery is a fresh interpreter with one thread that has imported everything
and opened nothing: forking it is safe and cheap, and its children share its
memory. It forks one worker for each message and does nothing else; it ends when
the front's process does, and so do the workers.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
from dataclasses import astuple, dataclass
from pathlib import Path

from appliance.clock import SWITCH_SECONDS, SystemClock
from appliance.config.settings import Config
from appliance.errors import DcmgateError
from appliance.receive import channel as channels
from appliance.receive.front import Arrival
from appliance.receive.limits import Limits
from appliance.receive.worker import Worker
from appliance.spool.latch import Mark
from appliance.spool.layout import Spool
from appliance.telemetry import log as logs

ORPHANED = 1.0
"""Seconds that a worker gives its associations when the front's process has died."""

log = logs.Log("receive")


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker is started with. `uuid` is that of the spool which its parent has open, `mark` that of its latch when the
    receiver started: a worker that takes the place of one which died does not open intake again."""

    spool: Path
    uuid: str
    size: int
    run_dir: Path
    limits: Limits
    config: Config
    mark: Mark
    token: str = ""


def work(channel: socket.socket) -> None:
    """The whole life of a worker process."""
    kind, _, fds = channels.receive(channel)
    if kind != channels.BEGIN:
        return
    setup: Setup = channels.long_value(fds[0])
    worker: Worker | None = None

    def ended(ticket: int) -> None:
        _tell(channel, channels.ENDED, ticket)

    def tick() -> None:
        if worker is not None:
            _tell(channel, channels.REPORT, astuple(worker.report()), wait=False)

    try:
        spool = Spool.open(setup.spool, setup.uuid, size=setup.size)
        worker = Worker(spool, SystemClock(), setup.run_dir, setup.limits, setup.config, on_ended=ended, on_tick=tick,
                        mark=setup.mark, token=setup.token)
        worker.start()
    except DcmgateError as e:
        _tell(channel, channels.FAILED, (type(e).__name__, e.message, e.mend))
        return
    worker.pulse()
    _tell(channel, channels.READY, os.getpid())
    worker.stop(_serve(channel, worker))


def _serve(channel: socket.socket, worker: Worker) -> float:
    """Take what the front sends until it says stop, or is gone; returns the seconds that associations still have."""
    while True:
        kind, value, fds = channels.receive(channel)
        if kind == channels.ARRIVED:
            ticket, arrival = int(value[0]), Arrival(*value[1:])
            sock = socket.socket(fileno=fds[0])
            if not worker.take(sock, arrival, ticket):
                sock.close()
                _tell(channel, channels.ENDED, ticket)
        elif kind == channels.PULSE:
            worker.pulse()
        elif kind == channels.CONFIGURE:
            worker.configure(channels.long_value(fds[0]))
        elif kind == channels.STOP:
            return float(value)
        elif not kind:
            return ORPHANED


def _tell(channel: socket.socket, kind: bytes, value: object, *, wait: bool = True) -> None:
    """To the front; if it is gone, the end of file on the channel says so to whoever has to know."""
    try:
        channels.send(channel, kind, value, wait=wait)
    except OSError:
        return


def nursery(control: socket.socket) -> None:
    """Fork a worker for each message, until the front's process is gone."""
    gc.collect()
    gc.freeze()      # so that a collection in a child does not copy every page
    while True:
        kind, _, fds = channels.receive(control)
        _reap()
        if not kind:
            return
        if kind != channels.FORK:
            continue
        if os.fork():
            os.close(fds[0])
            continue
        status = 1
        try:
            control.close()
            work(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fds[0]))
            status = 0
        except Exception:  # noqa: BLE001 top of a worker process: the front sees its end, and starts another
            log.crash("a worker process died")
        finally:
            os._exit(status)


def _reap() -> None:
    """Collect workers that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def main() -> None:
    """The nursery's program: arguments are the descriptor of its control socket, and the level of the log if there is one."""
    # Both signals are for the front's process, which tells us; a terminal and systemd send them to all.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if len(sys.argv) > 2:
        logs.set_up(sys.argv[2])
    else:
        logging.getLogger(logs.ROOT).setLevel(logging.WARNING)
    sys.setswitchinterval(SWITCH_SECONDS)
    nursery(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, int(sys.argv[1])))

