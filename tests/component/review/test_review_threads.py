"""Threads that nobody restarts survive what nobody foresaw: alarms, control socket, the receiver's look at its settings."""

from __future__ import annotations

import http.server
import socketserver
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from appliance.config.settings import Alarms, Config
from appliance.errors import ControlError
from appliance.manage.control import ControlServer, Remote
from appliance.model import Alarm, Severity
from appliance.receive import health
from appliance.receive.guard import FIRST, Guard
from appliance.receive.limits import Limits
from appliance.telemetry.alarms import Notifier
from tests.support.acceptor import config, echo, receiving
from tests.support.scu import IMPLICIT, VERIFICATION, Lost, Scanner
from tests.support.waiting import wait_until


@contextmanager
def listening(handler: type[socketserver.BaseRequestHandler]) -> Iterator[str]:
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.requirement("Goal 4: a person is told")
def test_a_web_server_that_answers_nonsense_does_not_end_the_telling_of_alarms() -> None:
    told: list[str] = []

    class Nonsense(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            self.wfile.write(b"220 this is no web server\r\n")

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with listening(Nonsense) as bad, listening(Hook) as good:
        notifier = Notifier(retry_seconds=0.01)
        for text in ("one", "two"):
            notifier.notify(Alarms(webhooks=(bad, good)), [Alarm(text, Severity.WARNING, text, "")], [])
        wait_until(lambda: len(told) == 2, 10, "both are told where they can be")
        notifier.stop()


def test_the_subject_of_a_mail_is_one_line() -> None:
    from appliance.telemetry.alarms import Transition
    assert Transition(Alarm("x", Severity.WARNING, "first\r\nsecond", ""), True).subject.endswith("ALARM: first second")


def test_a_request_for_which_there_is_no_thread_does_not_end_the_control_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="dg-") as run:
        server = ControlServer(run, {"ping": lambda by, args: by})
        server.start()
        try:
            start = threading.Thread.start
            failed: list[int] = []

            def none_left(thread: threading.Thread) -> None:
                if thread.name == "control-asker" and not failed:
                    failed.append(1)
                    raise RuntimeError("can't start new thread")
                start(thread)

            monkeypatch.setattr(threading.Thread, "start", none_left)
            with pytest.raises(ControlError):
                Remote(run, answer_seconds=5).call("ping")
            assert failed and Remote(run, answer_seconds=5).call("ping")
        finally:
            server.stop()


def test_a_look_at_the_configuration_that_fails_is_not_the_last_one(tmp_path: Path) -> None:
    failing: list[int] = []
    with receiving(tmp_path) as box:
        source = box.receiver._source

        def broken() -> Config:
            if len(failing) < 2:
                failing.append(1)
                raise ValueError("nobody foresaw this")
            return source()

        box.receiver._source = broken
        wait_until(lambda: len(failing) == 2, 10, "two looks failed")
        box.current.append(config(generation=2))
        wait_until(lambda: box.receiver._config.generation == 2, 10, "the new configuration")


@pytest.mark.requirement("Goal 3: the scanner side works whatever happens")
def test_a_connection_that_meets_a_fault_of_the_program_is_the_only_one_that_does(tmp_path: Path) -> None:
    """The accepting thread is one for all listeners: it must not die of one connection, however odd."""
    with receiving(tmp_path) as box:
        front = box.receiver._front
        take = front._take
        met: list[int] = []

        def broken(*args: Any) -> bool:
            if len(met) < 3:
                met.append(1)
                raise ZeroDivisionError("nobody foresaw this")
            return take(*args)

        front._take = broken
        for _ in range(3):
            # What the test's log keeps of the fault keeps the connection open too: it is not waited for.
            with suppress(Lost, OSError), Scanner(box.port, [(VERIFICATION, IMPLICIT)], timeout=1.0) as scanner:
                scanner.echo()
        assert len(met) == 3 and echo(box.port) < 5
        assert front.alive and box.receiver.progress() and health.read(box.run).problems == ()
        front._stopped = True
        front.call(lambda: None)
        wait_until(lambda: "accepting thread died" in "".join(health.read(box.run).problems), 10, "else a person is told")
        assert not box.receiver.progress()


@pytest.mark.requirement("I1")
def test_a_guard_that_stumbles_over_one_association_still_watches_the_others() -> None:
    class Member:
        phase, idle_seconds, moves, deadline = FIRST, 3600.0, 0, 0

        def __init__(self) -> None:
            self.called = threading.Event()

        def overdue(self, phase: int) -> None:
            self.called.set()

        def cut(self) -> None: ...

    class Odd(Member):
        def overdue(self, phase: int) -> None:
            raise ZeroDivisionError("nobody foresaw this")

    guard, other = Guard(Limits(scan=0.01, tick=0.05)), Member()
    guard.start()
    try:
        guard.watch(Odd())
        guard.watch(other)
        assert other.called.wait(10)
        wait_until(lambda: guard.ticks > 2, 10, "it goes on")
        assert guard.moving()
    finally:
        guard.stop()
