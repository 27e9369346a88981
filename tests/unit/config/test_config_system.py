"""What the image takes from a configuration: sockets that outlive the receiver, and a firewall that opens no other port."""

from __future__ import annotations

from appliance.config.settings import Config, Listener
from appliance.config.system import firewall, scanner_ports, sockets

CONFIG = Config(listeners=(Listener(id="a", ports=(11112, 104)), Listener(id="b", address="fd00::1", ports=(2762,)),
                           Listener(id="c", ports=(104,), titles=("OTHER",))))


def test_every_port_once_and_in_order():
    assert scanner_ports(CONFIG) == [("0.0.0.0", 104), ("0.0.0.0", 11112), ("fd00::1", 2762)]


def test_the_service_manager_gets_a_line_for_each_port():
    assert sockets(CONFIG).splitlines()[1:] == [
        "[Socket]", "ListenStream=", "ListenStream=0.0.0.0:104", "ListenStream=0.0.0.0:11112", "ListenStream=[fd00::1]:2762"]


def test_the_firewall_opens_these_ports_and_forgets_those_before():
    assert firewall(CONFIG).splitlines() == [
        "flush set inet dcmgate scanner_ports", "add element inet dcmgate scanner_ports { 104, 2762, 11112 }"]
    assert firewall(Config()).splitlines() == ["flush set inet dcmgate scanner_ports"]
