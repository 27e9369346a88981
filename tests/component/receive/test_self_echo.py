"""The receiver calls itself over its real ports; nobody but itself comes in that way, and it leaves no trace."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.receive import selfecho
from appliance.receive.limits import Limits
from appliance.receive.selfecho import SelfEcho
from tests.support.acceptor import Box, receiving
from tests.support.waiting import wait_until


@pytest.fixture(params=[1, 2])
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Box]:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    with receiving(tmp_path, workers=request.param, limits=Limits(scan=0.05, tick=0.2)) as made:
        yield made


def test_it_is_answered_over_the_real_port_and_leaves_no_trace(box: Box, caplog: pytest.LogCaptureFixture) -> None:
    echo = box.receiver._echo
    assert echo is not None
    caplog.set_level("INFO")
    assert [echo.once() for _ in range(3)] == [""] * 3
    wait_until(lambda: box.receiver.associations == 0, 20)
    assert not [record for record in caplog.records if "association ended" in record.message]
    assert echo.answered() and box.receiver.progress()


@pytest.mark.requirement("Watchdog chain: nobody is answered over the real port")
def test_without_an_answer_there_is_no_progress(box: Box) -> None:
    receiver, over = box.receiver, threading.Event()
    echo = SelfEcho(receiver._own_ports, receiver._token, every=0.05, seconds=0.2, late=0.5)
    receiver._echo = echo
    echo.start()
    try:
        wait_until(receiver.progress, 20)
        receiver._front.call(over.wait)
        wait_until(lambda: not echo.answered(), 20, "silence")
        assert not receiver.progress()
        over.set()
        wait_until(receiver.progress, 20, "an answer again")
    finally:
        over.set()
        echo.stop()


def test_the_call_of_an_earlier_receiver_is_rejected_and_leaves_no_trace(box: Box) -> None:
    stranger = SelfEcho(box.receiver._own_ports, selfecho.new_token())
    assert stranger.once() == "", "a rejection is an answer, too"
    if box.receiver._worker is not None:
        assert not box.receiver._worker.door._seen, "one of a receiver before this one, which nobody has to look at"


def test_where_no_watchdog_is_set_nobody_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    with receiving(tmp_path, workers=1) as box:
        assert box.receiver._echo is None


def test_a_port_where_nobody_answers_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        assert "no answer" in SelfEcho(lambda: [("0.0.0.0", port, False)], "x", seconds=0.2).once()
    assert SelfEcho(list, "x").once() == ""
