"""The watchdog is fed by the loop that does the work, and by nothing else."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.telemetry import notify


class Manager:
    """Stands in for systemd at the other end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._sock.bind(str(path))

    def heard(self) -> list[str]:
        """Everything that was said since the last question."""
        said = []
        while True:
            try:
                said.append(self._sock.recv(4096).decode())
            except BlockingIOError:
                return said

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    one = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    notify.expect()
    yield one
    notify.expect()
    one.close()


def test_a_stage_alone_in_its_process_pings_with_each_round(manager: Manager) -> None:
    notify.expect("keeper")
    notify.alive("keeper")
    notify.alive("keeper")
    assert manager.heard() == ["WATCHDOG=1\nX_DCMGATE_STAGE=keeper"] * 2


def test_where_several_run_in_one_process_none_speaks_for_the_others(manager: Manager) -> None:
    notify.expect("keeper", "forwarder", "receiver")
    for _ in range(5):
        notify.alive("keeper")
        notify.alive("forwarder")
    assert manager.heard() == []          # the receiver hangs
    notify.alive("receiver")
    assert manager.heard() == ["WATCHDOG=1\nX_DCMGATE_STAGE=receiver"]
    notify.alive("keeper")
    assert manager.heard() == []


def test_a_reload_says_when_as_notify_reload_wants_it(manager: Manager) -> None:
    notify.reloading()
    assert [line.partition("=")[0] for line in manager.heard()[0].splitlines()] == ["RELOADING", "MONOTONIC_USEC"]
