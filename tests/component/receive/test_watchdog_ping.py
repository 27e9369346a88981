"""The receiver feeds the watchdog from its accepting thread, and no longer once something in it hangs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.config.settings import Config, Control, Listener
from appliance.config.settings import Spool as SpoolSettings
from appliance.receive import health
from appliance.receive.guard import IDLE, Guard, now_ns
from appliance.receive.limits import Limits
from appliance.receive.receiver import Receiver
from appliance.spool.layout import Spool
from appliance.telemetry import notify
from tests.support.waiting import wait_until

TICK = 0.1


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A receiver with short ticks, and the pings that it sends."""
    spool = Spool.init(tmp_path / "spool", clock=SystemClock())
    run = tmp_path / "run"
    run.mkdir()
    config = Config(listeners=(Listener(id="a", address="127.0.0.1", ports=(0,)),),
                    spool=SpoolSettings(path=str(spool.path)), control=Control(run=str(run)))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as manager:
        manager.bind(str(run / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(run / "notify"))
        notify.expect("receiver")
        source: list[Callable[[], Config]] = [lambda: config]
        receiver = Receiver(lambda: source[0](), spool, SystemClock(), run, workers=1, limits=Limits(tick=TICK))
        receiver.start()

        def pings() -> int:
            count = 0
            while True:
                try:
                    count += manager.recv(4096).startswith(b"WATCHDOG=1")
                except BlockingIOError:
                    return count

        try:
            yield receiver, pings, source
        finally:
            receiver.stop(0)
            notify.expect()


def fed(pings: Callable[[], int], rounds: int = 20) -> int:
    """Pings in that many ticks."""
    pings()
    threading.Event().wait(rounds * TICK)
    return pings()


def test_an_idle_receiver_feeds_it(box) -> None:
    _, pings, _ = box
    wait_until(lambda: pings() > 0, 20, "a ping")
    assert fed(pings) > 3


@pytest.mark.requirement("Watchdog chain: a hung accept loop gates the ping")
def test_a_hung_accept_loop_feeds_it_no_more(box) -> None:
    receiver, pings, _ = box
    over = threading.Event()
    receiver._front.call(over.wait)
    wait_until(lambda: fed(pings) == 0, 20, "silence")
    over.set()
    wait_until(lambda: pings() > 0, 20, "a ping again")


@pytest.mark.requirement("Watchdog chain: a dead guard gates the ping")
def test_without_the_guard_nobody_feeds_it(box) -> None:
    receiver, pings, _ = box
    receiver._guard.stop()
    wait_until(lambda: fed(pings) == 0, 20, "silence")


@pytest.mark.requirement("Watchdog chain: the disk does not gate the ping")
def test_a_disk_that_keeps_the_configuration_to_itself_does_not_gate_it(box) -> None:
    _, pings, source = box
    over, inside, config = threading.Event(), threading.Event(), source[0]()

    def hangs() -> Config:
        inside.set()
        over.wait()
        return config

    source[0] = hangs
    assert inside.wait(20)
    assert fed(pings) > 3
    over.set()


@pytest.mark.requirement("Watchdog chain: a worker that stands still gates the ping")
def test_a_worker_that_stands_still_gates_it_while_the_accept_loop_goes_round(box, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver, pings, _ = box
    monkeypatch.setattr(receiver._guard, "moving", lambda: False)
    rounds = receiver._front.rounds
    wait_until(lambda: fed(pings) == 0, 20, "silence")
    assert receiver._front.rounds > rounds


@pytest.mark.requirement("hazard: a disk that hangs")
def test_a_tick_that_hangs_on_the_disk_keeps_nothing_from_being_told(box, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver, _, source = box
    asked, over = threading.Event(), threading.Event()
    fine = source[0]

    def hang() -> Config:
        asked.set()
        over.wait(60)
        return fine()

    source[0] = hang
    try:
        assert asked.wait(20)
        monkeypatch.setattr(receiver._worker.door, "stuck", lambda: "the disk has not answered")
        wait_until(lambda: health.read(receiver._run_dir).out_of_intake == "the disk has not answered", 20, "what is told")
    finally:
        over.set()


@pytest.mark.requirement("Watchdog chain: a dead thread gates the ping")
@pytest.mark.parametrize("dead", ["intake", "asker"])
def test_a_thread_of_a_worker_that_has_died_gates_it(box, dead: str) -> None:
    """Without them every image is refused for ever, while all that can be seen from outside goes round."""
    receiver, pings, _ = box
    wait_until(lambda: pings() > 0, 20, "a ping")
    if dead == "intake":
        receiver._worker.intake.error = ZeroDivisionError("a fault of the program ended the maintenance thread")
    else:
        receiver._worker.door._asker.stop()
    wait_until(lambda: fed(pings) == 0, 20, "silence")


def test_an_association_that_has_just_been_told_to_go_keeps_no_ping_back() -> None:
    """An idle one is overdue after an hour without a move: that hour is none in which it stood still."""
    class Idle:
        phase, idle_seconds, deadline, moves = IDLE, 0.0, 0, 0

        def overdue(self, phase: int) -> None: ...

        def cut(self) -> None: ...

    guard, member = Guard(Limits()), Idle()
    guard.watch(member)
    guard._marks[member].since -= 7200 * 10**9
    guard._beat = now_ns()
    guard.look(now_ns())
    assert guard._marks[member].called and guard.moving()
