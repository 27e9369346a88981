"""What each side of the box can reach, and what the box reaches: nothing but what the configuration says."""

from __future__ import annotations

import re
import socket
import time
from contextlib import closing
from typing import Any

import pytest
from gateway import GatewayStrategy
from network import MANAGEMENT, SCANNERS, UPLINK, address, get, open_ports, time_from
from waiting import wait_until

PORTS = [*range(1, 1025), 2375, 2762, 5355, 8000, 8080, 8443, 9100, 9464, *range(11100, 11125), 19531, 19532]


@pytest.mark.parametrize(("side", "version", "expected"), [
    (SCANNERS, 4, {80, 104, 2762, 11112, 11120}), (UPLINK, 4, set()), (MANAGEMENT, 4, {22, 9464}),
    (SCANNERS, 6, {80}), (UPLINK, 6, set()), (MANAGEMENT, 6, {22, 9464})])
def test_no_port_is_open_but_those_of_this_side(serving: GatewayStrategy, side: int, version: int, expected: set[int]) -> None:
    """The listeners are on IPv4 addresses."""
    assert open_ports(address(side, version), PORTS) == expected


def test_another_side_s_address_opens_nothing(serving: GatewayStrategy) -> None:
    """From the scanners' side the box's management address is as closed as its own one there."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"scan0")
        sock.settimeout(5)
        assert sock.connect_ex((address(MANAGEMENT), 22)) != 0


def test_refusals_are_counted(serving: GatewayStrategy) -> None:
    def refused() -> int:
        text, _ = get(f"http://{address(MANAGEMENT)}:9464/metrics")
        found = re.search(r'^dcmgate_firewall_refused_packets_total\{side="uplink"\} (\d+)$', text, re.M)
        return int(found[1]) if found else 0

    before = refused()
    open_ports(address(UPLINK), range(1, 101), 2)
    wait_until(lambda: refused() >= before + 100, 120, lambda: f"{before} refused packets, then {refused()}", every=5)


def test_scanners_have_the_time_from_it_and_nobody_else(serving: GatewayStrategy, figures: dict[str, Any]) -> None:
    told = time_from(address(SCANNERS))
    assert told is not None and abs(told - time.time()) < 120
    assert time_from(address(UPLINK), 2) is None and time_from(address(MANAGEMENT), 2) is None


def test_what_leaves_goes_where_the_configuration_leads(serving: GatewayStrategy) -> None:
    """A person may try the way to an archive, and nothing else: no port, no side."""
    def reached(side: int, port: int) -> bool:
        command = f"timeout 15 bash -c ': </dev/tcp/10.99.{side}.10/{port}' 2>/dev/null && echo yes || echo no"
        return serving.run(command) == "yes"

    with (closing(socket.create_server(("10.99.2.10", 11113))), closing(socket.create_server(("10.99.2.10", 8000))),
          closing(socket.create_server(("10.99.3.10", 11113)))):
        assert [reached(UPLINK, 11113), reached(UPLINK, 8000), reached(MANAGEMENT, 11113)] == [True, False, False]
