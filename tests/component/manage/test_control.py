"""The control socket: who asks is the kernel's word, every message is bounded, and no asker can stop the keeper."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import ControlError, KeeperAbsent, KeeperUnreachable, UsageError
from appliance.manage.control import (
    ASKERS,
    LARGEST_REQUEST,
    SOCKET,
    ControlServer,
    Either,
    Local,
    Remote,
    is_answering,
    user_name,
)
from tests.support.waiting import wait_until

ME = user_name(os.getuid())


def echo(by: str, args: dict[str, Any]) -> Any:
    return {"by": by, "args": args}


def refuse(by: str, args: dict[str, Any]) -> Any:
    raise UsageError("that cannot be", mend="do something else")


def fail(by: str, args: dict[str, Any]) -> Any:
    raise ZeroDivisionError("a bug")


def long_answer(by: str, args: dict[str, Any]) -> Any:
    return "x" * (17 << 20)


VERBS = {"echo": echo, "refuse": refuse, "fail": fail, "long": long_answer}


@pytest.fixture
def run() -> Iterator[Path]:
    """A folder whose sockets another user may reach (pytest's own are closed to others)."""
    with tempfile.TemporaryDirectory(prefix="dcmgate-run-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def server(run: Path) -> Iterator[ControlServer]:
    server = ControlServer(run, VERBS, silence_seconds=0.3)
    server.start()
    yield server
    server.stop()


def raw(server: ControlServer, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(server.path))
        with suppress(BrokenPipeError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(ConnectionResetError):
            while chunk := sock.recv(65536):
                answer += chunk
        return answer


def test_a_verb_is_answered_and_knows_who_asked(server: ControlServer, run: Path) -> None:
    assert Remote(run).call("echo", by="mallory", numbers=["1"]) == {"by": ME, "args": {"by": "mallory", "numbers": ["1"]}}


@pytest.mark.requirement("hazard: unauthenticated defaults")
@pytest.mark.requirement("who asks is taken from the socket, never from an argument")
@pytest.mark.skipif(os.getuid() != 0, reason="needs to become another user")
@pytest.mark.parametrize("uid", [65534, 3_000_000_001])
def test_the_name_is_that_of_the_user_at_the_other_end(server: ControlServer, uid: int) -> None:
    os.chmod(server.path, 0o666)
    script = ("import socket,sys;s=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1]);"
              "s.sendall(b'{\"verb\":\"echo\",\"args\":{\"by\":\"root\"}}\\n');sys.stdout.write(s.makefile().readline())")
    done = subprocess.run(["/usr/bin/env", "python3", "-S", "-c", script, str(server.path)], user=uid, capture_output=True,
                          text=True, timeout=30, check=True, cwd="/")
    assert json.loads(done.stdout)["result"]["by"] == user_name(uid)
    assert user_name(3_000_000_001) == "uid:3000000001"


def test_several_requests_on_one_connection(server: ControlServer) -> None:
    answers = raw(server, b'{"verb":"echo"}\n{"verb":"echo","args":{"a":1}}\n').splitlines()
    assert [json.loads(a)["result"]["args"] for a in answers] == [{}, {"a": 1}]


def test_a_refusal_carries_its_mend(server: ControlServer, run: Path) -> None:
    with pytest.raises(ControlError) as caught:
        Remote(run).call("refuse")
    assert (caught.value.message, caught.value.mend) == ("that cannot be", "do something else")
    with pytest.raises(ControlError, match=r"no verb.*knows echo, fail"):
        Remote(run).call("reboot")


def test_a_broken_verb_does_not_silence_the_keeper(server: ControlServer, run: Path) -> None:
    with pytest.raises(ControlError, match="ZeroDivisionError"):
        Remote(run).call("fail")
    assert Remote(run).call("echo")["by"] == ME


@pytest.mark.parametrize("data", [
    b"no json\n", b"{}\n", b"[]\n", b'{"verb":1}\n', b'{"verb":"echo","args":[]}\n', b'{"verb":"echo"', b"\xff\xfe\n",
    b"[" * 100_000 + b"\n", b'{"verb":"echo","args":{"n":' + b"9" * 5000 + b"}}\n",
])
def test_what_cannot_be_understood_is_answered_with_an_error(server: ControlServer, data: bytes) -> None:
    answers = raw(server, data).splitlines()
    assert json.loads(answers[0])["ok"] is False


def test_a_request_is_bounded_in_size(server: ControlServer, run: Path) -> None:
    answer = raw(server, b"x" * (LARGEST_REQUEST + 100_000))
    assert b"longer than" in answer or answer == b""      # it may hang up before it was told everything
    with pytest.raises(ControlError, match=r"the request is longer than.*several parts"):
        Remote(run).call("echo", text="x" * LARGEST_REQUEST)


def test_an_answer_is_bounded_in_size(server: ControlServer, run: Path) -> None:
    with pytest.raises(ControlError, match="the answer is longer than"):
        Remote(run).call("long")


def test_silent_askers_are_cut_off_and_stop_nobody(server: ControlServer, run: Path) -> None:
    silent = []
    for _ in range(ASKERS + 4):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10)
        sock.connect(str(server.path))
        silent.append(sock)
    for sock in silent:
        with suppress(ConnectionResetError):
            assert sock.recv(1) == b""
        sock.close()


    def answered() -> bool:
        with suppress(KeeperUnreachable):                 # the last place may be given back a moment later
            return bool(Remote(run).call("echo")["by"] == ME)
        return False

    wait_until(answered, 10)


def test_a_request_that_trickles_in_has_one_deadline(server: ControlServer) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(server.path))
        pause = threading.Event()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(200):                          # 0.3 s without end, if each byte had its own
                sock.sendall(b" ")
                pause.wait(0.05)


def test_a_second_keeper_is_refused_and_a_dead_ones_socket_is_taken_over(run: Path) -> None:
    first = ControlServer(run, VERBS)
    first.start()
    second = ControlServer(run, VERBS)
    with pytest.raises(ControlError, match="another keeper answers"):
        second.start()
    first.stop()
    assert (run / SOCKET).exists() and not is_answering(run / SOCKET)
    second.start()
    assert Remote(run).call("echo")["by"] == ME
    assert sorted(p.name for p in run.iterdir()) == [SOCKET]
    second.stop()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ControlError, match=r"cannot listen at .*file/keeper.sock.*\[control\] run"):
        ControlServer(tmp_path / "file", VERBS).start()


def test_without_a_keeper_the_verbs_are_done_here(tmp_path: Path) -> None:
    with pytest.raises(KeeperAbsent, match="no keeper answers at"):
        Remote(tmp_path).call("echo")
    opened = []

    def verbs() -> dict[str, Any]:
        opened.append(1)
        return VERBS

    either = Either(tmp_path, verbs)
    assert either.call("echo", a=1) == {"by": ME, "args": {"a": 1}}
    either.call("echo")
    assert opened == [1]
    with pytest.raises(ControlError, match="no verb"):
        Local(VERBS).call("reboot")


def test_with_a_keeper_the_spool_is_not_opened_here(server: ControlServer, run: Path) -> None:
    def verbs() -> dict[str, Any]:
        raise AssertionError("opened beside a running keeper")

    assert Either(run, verbs).call("echo")["by"] == ME


def test_a_keeper_that_hangs_or_hangs_up_is_said_so(run: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(run / SOCKET))
        listener.listen(4)
        with pytest.raises(KeeperUnreachable, match=r"did not answer within 0.1 s"):
            Remote(run, answer_seconds=0.1).call("echo")

        def hang_up() -> None:
            listener.accept()[0].close()                  # the one that gave up
            connection = listener.accept()[0]
            connection.recv(1000)
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(KeeperUnreachable, match="gave no answer"):
            Remote(run).call("echo")
        thread.join()


