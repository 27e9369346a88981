"""Degraded mode: C-ECHO is answered, storage is turned away as transient, and no spool is needed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.config.settings import Config, Listener, Peer
from appliance.config.settings import Spool as SpoolSettings
from appliance.receive.degraded import Degraded
from appliance.receive.limits import Limits
from tests.support.scu import IMPLICIT, VERIFICATION, Lost, Scanner
from tests.support.waiting import wait_until

CT = "1.2.840.10008.5.1.4.1.1.2"


def configured(folder: Path, port: int = 0) -> Config:
    return Config(listeners=(Listener(id="a", address="127.0.0.1", ports=(port,), titles=("GATE",)),),
                  peers=(Peer(id="ct", titles=("CT",)),), spool=SpoolSettings(path=str(folder / "none"), state=str(folder)))


@pytest.fixture
def degraded(tmp_path: Path) -> Iterator[Degraded]:
    one = Degraded(configured(tmp_path), "the spool's disk is gone", Limits(scan=0.05, tick=0.1))
    one.start()
    yield one
    one.stop()


def port_of(degraded: Degraded) -> int:
    return degraded.addresses[0][2]


@pytest.mark.requirement("Watchdog chain: degraded mode answers out of resources")
def test_an_echo_is_answered_and_storage_is_turned_away_for_now(degraded: Degraded) -> None:
    with Scanner(port_of(degraded), [(VERIFICATION, IMPLICIT)], calling="CT", called="GATE") as scanner:
        assert scanner.echo() == 0
    for contexts in ([(CT, IMPLICIT)], [(VERIFICATION, IMPLICIT), (CT, IMPLICIT)]):
        with pytest.raises(Lost, match="rejected: result 2 source 3 reason 2"):
            Scanner(port_of(degraded), contexts, calling="CT", called="GATE").open()


def test_who_may_not_come_in_is_told_so_as_ever(degraded: Degraded) -> None:
    for calling, called in (("NOBODY", "GATE"), ("CT", "OTHER")):
        with pytest.raises(Lost, match="rejected: result 1"):
            Scanner(port_of(degraded), [(VERIFICATION, IMPLICIT)], calling=calling, called=called).open()


def test_a_port_that_is_taken_is_had_once_it_is_free(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        one = Degraded(configured(tmp_path, port), "a test", Limits(scan=0.05, tick=0.1))
        one.start()
        assert one.addresses == []
    try:
        wait_until(lambda: one.addresses == [("a", "127.0.0.1", port)], 20)
        with Scanner(port, [(VERIFICATION, IMPLICIT)], calling="CT", called="GATE") as scanner:
            assert scanner.echo() == 0
    finally:
        one.stop()
