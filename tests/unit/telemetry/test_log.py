"""The log escapes what a peer may have put into a field, and systemd gets its datagrams."""

from __future__ import annotations

import logging
import socket

import pytest

from appliance.telemetry import log, notify


@pytest.fixture
def lines(capsys, monkeypatch):
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)

    def said(action):
        log.set_up("info")      # inside the test: its standard error is not yet the captured one in a fixture
        action()
        return capsys.readouterr().err.splitlines()

    yield said
    logging.getLogger(log.ROOT).handlers.clear()


@pytest.mark.requirement("hazard: hostile UID")
def test_peer_bytes_in_a_field_cannot_forge_a_line_or_a_terminal_sequence(lines):
    said = lines(lambda: log.Log("receive").warning(
        "knocked", title=b"EVIL\nerror spool: gone \x1b[2J", address="127.0.0.1"))
    assert said == ['warning receive: knocked title="EVIL\\x0aerror spool: gone \\x1b[2J" address=127.0.0.1']


def test_words_of_ours_stay_readable_and_hidden_characters_do_not_pass(lines):
    said = lines(lambda: log.Log("x").info("m", why='"CT1" — nearly "ct1"', title="a\u202eb\nc"))
    assert said == ["""info x: m why="'CT1' — nearly 'ct1'" title=a\\xe2\\x80\\xaeb\\x0ac"""]


def test_debug_lines_are_not_made_when_nobody_wants_them(lines):
    class Never:
        def __str__(self) -> str:
            raise AssertionError("formatted although nobody reads it")

    assert lines(lambda: log.Log("receive").debug("x", field=Never())) == []


def test_notify_reaches_the_socket_and_is_silent_without_one(tmp_path, monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notify.notify(READY=1) is False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(tmp_path / "n"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        assert notify.notify(READY=1, STATUS="serving") is True
        assert server.recv(100) == b"READY=1\nSTATUS=serving"


@pytest.mark.parametrize(("value", "expected"), [("15000000", 15.0), ("nonsense", None), (None, None)])
def test_watchdog_interval(value, expected, monkeypatch):
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if value is None:
        monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    else:
        monkeypatch.setenv("WATCHDOG_USEC", value)
    assert notify.watchdog_seconds() == expected
