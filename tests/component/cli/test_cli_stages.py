"""Stages as processes, the trial sender, and the live table: as an operator starts, reloads and stops them."""

from __future__ import annotations

import getpass
import os
import pty
import select
import signal
import socket
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pydicom.data
import pytest

from appliance.cli import exits
from tests.support.gateway import COMMAND, ROOT, Gateway, to_folder
from tests.support.waiting import free_port, listening, wait_until

CT = str(pydicom.data.get_testdata_file("CT_small.dcm"))
MR = str(pydicom.data.get_testdata_file("MR_small.dcm"))


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gateway]:
    with Gateway(tmp_path / "site", [to_folder(tmp_path / "archive")]) as gate:
        yield gate


def log_has(gate: Gateway, stage: str, text: str) -> bool:
    return text in gate.log(stage).read_text()


def test_what_is_sent_arrives_and_is_seen_everywhere(gate: Gateway, tmp_path: Path) -> None:
    gate.start("receiver", "forwarder")
    (tmp_path / "notes.txt").write_text("no image")
    place = f"127.0.0.1:{gate.port}"
    assert gate.json("send", place)["status"] == 0
    told = gate.json("send", place, CT, "--calling", "CT1", MR, str(tmp_path / "notes.txt"))
    assert (told["stored"], told["failed"], told["skipped"]) == (2, 0, 1)
    assert [o["status"] for o in told["objects"]] == [0, 0]
    wait_until(lambda: gate.json("status")["destinations"][0]["sent"] == 2, 20)
    status = gate.json("status")
    assert status["forwarder"] and not status["keeper"] and status["rate_in"] > 0 and status["destinations"][0]["rate"] > 0
    assert status["destinations"][0]["state"] == "up" and len(status["studies"]) == 2
    assert len(list((tmp_path / "archive").rglob("*.dcm"))) == 2
    assert [s["source"] for s in gate.json("peers")["sent"]] == ["CT1@127.0.0.1"]
    assert gate.balance()["unaccounted"] == 0
    assert [gate.stop(name) for name in ("receiver", "forwarder")] == [0, 0]
    assert "no forwarder runs" in gate.command("status")


def test_what_is_refused_is_a_finding(gate: Gateway) -> None:
    gate.start("receiver")
    text = gate.command("send", f"127.0.0.1:{gate.port}", CT, "--quiet")
    assert text.startswith("1 of 1 stored, ")
    gate.stop("receiver")
    gate.command("send", f"127.0.0.1:{gate.port}", CT, status=exits.UNREACHABLE)


def test_a_reload_opens_a_port_and_a_bad_file_closes_none(gate: Gateway) -> None:
    gate.start("receiver")
    port = free_port()
    good = gate.config.read_text()
    gate.config.write_text(good.replace(f"[{gate.port}]", f"[{gate.port}, {port}]"))
    assert gate.json("reload") == {"generation": 2, "changed": True}
    os.kill(gate.pid("receiver"), signal.SIGHUP)
    wait_until(lambda: listening(port), 10)
    gate.config.write_text("listener = 3 x")
    gate.command("reload", status=exits.FINDING)
    os.kill(gate.pid("receiver"), signal.SIGHUP)
    assert gate.json("send", f"127.0.0.1:{port}", MR)["stored"] == 1
    gate.stop("receiver")
    gate.config.write_text(good.replace("[control]", "[contrl]"))
    gate.start("receiver")                                      # the last good generation, found by what is left of the file
    assert listening(port) and log_has(gate, "receiver", "the last good generation stays in force")
    assert gate.stop("receiver") == 0


def test_the_whole_gateway_in_one_process(gate: Gateway, tmp_path: Path) -> None:
    gate.start("run")
    assert gate.json("send", f"127.0.0.1:{gate.port}", CT, MR)["stored"] == 2
    wait_until(lambda: gate.json("status")["destinations"][0]["confirmed"] == 2, 30)
    status = gate.json("status")
    assert status["keeper"] and status["forwarder"] and [a for a in status["alarms"] if a["key"] != "space"] == []
    number = gate.json("list", "--objects")["objects"][0]["number"]
    assert gate.json("discard", number, "--reason", "phantom")["discarded"] == [number]     # done by the keeper
    history = gate.json("show", number)["objects"][0]["history"]
    discarded = next(event for event in history if event["kind"] == "discarded")
    assert discarded["body"] == {"by": getpass.getuser(), "reason": "phantom"}
    wait_until(lambda: not gate.json("show", number)["objects"][0]["file"], 40)
    gate.config.write_text(gate.config.read_text() + "[limits]\nchild_secs = 3\n")
    gate.command("reload", status=exits.REFUSED)
    os.kill(gate.pid(), signal.SIGHUP)
    alarm = wait_until(lambda: [a for a in gate.json("status")["alarms"] if a["key"] != "space"], 40)[0]
    assert "child_secs" in alarm["text"] + alarm["mend"]
    assert gate.json("send", f"127.0.0.1:{gate.port}", CT)["stored"] == 1
    gate.command("run", status=exits.REFUSED, seconds=60)                                   # one keeper for each spool
    assert gate.balance()["unaccounted"] == 0
    assert gate.stop() == 0


def test_a_port_that_is_taken_is_one_line(gate: Gateway) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", gate.port))
        other.listen()
        done = subprocess.run([*COMMAND, "--config", str(gate.config), "receiver"], capture_output=True, text=True, cwd=ROOT,
                              timeout=60, check=False)
    assert done.returncode == exits.FINDING
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"dcmgate: listener.modality.ports: cannot listen on 127.0.0.1:{gate.port}: ")
    assert "Traceback" not in done.stderr


def test_a_second_forwarder_is_refused(gate: Gateway) -> None:
    gate.start("forwarder")
    gate.command("forwarder", status=exits.USAGE, seconds=60)
    assert gate.stop("forwarder") == 0


def test_ctrl_c_drains_too(gate: Gateway) -> None:
    gate.start("receiver")
    process = gate.processes.pop("receiver")
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert log_has(gate, "receiver", "draining signal=SIGINT")


def test_readiness_is_told_to_systemd(gate: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        path = str(gate.run / "notify")
        systemd.bind(path)
        systemd.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        said = (message for message in iter(lambda: systemd.recv(1000), b"") if not message.startswith(b"WATCHDOG=1"))
        gate.start("receiver")
        assert next(said).startswith(b"READY=1\n")
        os.kill(gate.pid("receiver"), signal.SIGHUP)
        assert next(said).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert next(said).startswith(b"READY=1\n")
        gate.stop("receiver")
        assert next(said) == b"STOPPING=1"


def test_the_live_table_is_drawn_until_ctrl_c(gate: Gateway) -> None:
    gate.start("receiver", "forwarder")
    gate.json("send", f"127.0.0.1:{gate.port}", CT, MR)
    main, other = pty.openpty()
    termios.tcsetwinsize(other, (40, 160))      # so that no column is cut short
    command = [*COMMAND, "--config", str(gate.config), "status", "--interval", "0.1"]
    # A shell's background command has SIGINT ignored, and so has what it starts.
    process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, cwd=ROOT, start_new_session=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
                               env={**os.environ, "TERM": "xterm", "COLUMNS": "160"})
    os.close(other)
    try:
        seen = read_until(main, lambda text: text.count("\x1b[H") > 3 and "2 objects" in text and "1/1" in text)
        process.send_signal(signal.SIGINT)
        seen += read_until(main, lambda text: "\x1b[?1049l" in text)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait(10)
        os.close(main)
    assert "\x1b[?1049h" in seen and "█" in seen and "archive" in seen and "Traceback" not in seen


def read_until(fd: int, good: object, seconds: float = 30.0) -> str:
    """What a terminal shows until it is good."""
    text, end = b"", time.monotonic() + seconds
    while not good(text.decode("utf-8", "replace")):  # type: ignore[operator]
        if not select.select([fd], [], [], max(0.0, end - time.monotonic()))[0]:
            screens = text.decode("utf-8", "replace").split("\x1b[H")
            pytest.fail(f"not within its time; the last of {len(screens) - 1} screens:\n{screens[-1]}")
        try:
            text += os.read(fd, 65536)
        except OSError:                                         # the other end is closed
            assert good(text.decode("utf-8", "replace")), text[-2000:]  # type: ignore[operator]
    return text.decode("utf-8", "replace")
