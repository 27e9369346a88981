"""What the image takes from a configuration: sockets that outlive a service, a firewall that opens no other port, time, log."""

from __future__ import annotations

import pytest

from appliance.config import load
from appliance.config.settings import (
    Alarms,
    Certificate,
    Config,
    Destination,
    Listener,
    Logging,
    Network,
    Time,
    Tunnel,
    Update,
)
from appliance.config.system import firewall, log_forwarding, scanner_ports, sockets, time_sources, tunnels

CONFIG = Config(listeners=(Listener(id="a", ports=(11112, 104)), Listener(id="b", address="fd00::1", ports=(2762,)),
                           Listener(id="c", ports=(104,), titles=("OTHER",))),
                destinations=(Destination(id="pacs", address="pacs", port=11113),
                              Destination(id="far", address="far", port=2762, proxy="proxy:3128"),
                              Destination(id="usb", type="folder", path="/srv/a", port=999)),
                tunnels=(Tunnel(id="ris", listen="10.1.1.1:11115", connect="ris:2763"),
                         Tunnel(id="self", listen="127.0.0.1:11116", connect="ris:2764", proxy="proxy:3129"),
                         Tunnel(id="in", side="server", listen="0.0.0.0:2765", connect="127.0.0.1:104")))


def set_of(config: Config, name: str) -> set[int]:
    """The ports that the script puts in a set, where it has emptied it before."""
    lines = firewall(config).splitlines()
    at = lines.index(f"flush set inet dcmgate {name}")
    found = lines[at + 1]
    begin = f"add element inet dcmgate {name} {{ "
    return {int(port) for port in found.removeprefix(begin).rstrip(" }").split(", ")} if found.startswith(begin) else set()


def sides(config: Config) -> list[str]:
    begin = "add rule inet dcmgate sides "
    return [line.removeprefix(begin) for line in firewall(config).splitlines() if line.startswith(begin)]


def test_every_port_once_and_in_order():
    assert scanner_ports(CONFIG) == [("0.0.0.0", 104), ("0.0.0.0", 11112), ("fd00::1", 2762)]


def test_the_service_manager_gets_a_line_for_each_port():
    assert sockets(CONFIG).splitlines() == [
        "receiver 0.0.0.0:104", "receiver 0.0.0.0:11112", "receiver [fd00::1]:2762", "page 0.0.0.0:80", "page [::]:80",
        "metrics 0.0.0.0:9464", "metrics [::]:9464"]
    assert sockets(Config(network=Network(page_port=0, metrics_port=0))) == ""


def test_each_side_gets_its_ports_and_no_other():
    assert set_of(CONFIG, "scanner_ports") == {80, 104, 2762, 11112, 11115}
    assert set_of(CONFIG, "uplink_ports") == {2765}
    assert set_of(CONFIG, "management_ports") == {9464}


def test_what_was_open_before_is_closed():
    assert set_of(Config(network=Network(page_port=0, metrics_port=0)), "scanner_ports") == set()
    assert set_of(Config(network=Network(page_port=0, metrics_port=0)), "management_ports") == set()


def test_each_service_may_call_only_where_the_configuration_leads():
    assert set_of(CONFIG, "forwarder_ports") == {11113, 3128}
    assert set_of(CONFIG, "tunnel_ports") == {2763, 3129, 104}
    assert set_of(CONFIG, "keeper_ports") == {11113, 3128, 2763, 3129, 104}
    assert set_of(CONFIG, "log_ports") == set()
    enrolled = Config(certificates=(Certificate(id="box", est_url="https://est.example.org:8443"),),
                      log=Logging(forward="https://logs.example.org:19532", certificate="box"))
    assert set_of(enrolled, "keeper_ports") == {8443, 80, 443}
    assert set_of(enrolled, "log_ports") == {19532}


def test_without_subnets_a_side_is_its_interfaces():
    assert sides(Config()) == [
        "iifgroup 1 goto from_scanners", "iifgroup 2 goto from_uplink", "iifgroup 3 goto from_management"]


def test_with_subnets_others_are_refused_and_one_port_can_have_several_sides():
    assert sides(Config(network=Network(scanners=("10.1.0.0/16", "fd00:1::/64"), management=("10.3.0.0/24",)))) == [
        "iifgroup { 1, 4 } ip saddr { 10.1.0.0/16 } goto from_scanners",
        "iifgroup { 1, 4 } ip6 saddr { fd00:1::/64 } goto from_scanners",
        "iifgroup 1 counter name refused_scanners drop",
        "iifgroup 2 goto from_uplink",
        "iifgroup { 3, 4 } ip saddr { 10.3.0.0/24 } goto from_management",
        "iifgroup 3 counter name refused_management drop"]


def test_an_instance_for_each_tunnel():
    assert tunnels(CONFIG).split() == ["ris", "self", "in"]
    assert tunnels(Config()) == ""


def test_time_comes_from_several_servers_and_some_prove_who_they_are():
    config = Config(time=Time(servers=("192.0.2.1", "ntp.example.org"), nts_servers=("nts.example.org",)))
    assert time_sources(config).splitlines() == [
        "server nts.example.org iburst nts", "server 192.0.2.1 iburst", "pool ntp.example.org iburst"]
    assert len(time_sources(Config()).splitlines()) >= 3


def test_the_journal_goes_to_the_collector_with_our_certificate():
    assert log_forwarding(Config()) == ""
    text = log_forwarding(Config(log=Logging(forward="https://logs:19532/", certificate="box", trust="system")))
    assert text.splitlines() == [
        "[Upload]", "URL=https://logs:19532", "TrustedCertificateFile=/etc/ssl/certs/ca-certificates.crt",
        "ServerKeyFile=/var/lib/dcmgate/certificates/box/current/key.pem",
        "ServerCertificateFile=/var/lib/dcmgate/certificates/box/current/chain.pem"]


BASE = """
[[listener]]
id = "a"
ports = 11112
[[destination]]
id = "pacs"
default = true
address = "pacs"
"""


@pytest.mark.parametrize(("text", "key"), [
    ('[network]\nscanners = ["10.1.0.1/16"]', "network.scanners"),
    ('[network]\nscanners = ["10.1.0.0/16"]\nuplink = ["10.1.2.0/24"]', "network.uplink"),
    ("[network]\npage_port = 11112", "network.page_port"),
    ("[network]\nmetrics_port = 22", "network.metrics_port"),
    ("[network]\nmetrics_port = 80", "network.page_port"),
    ('[time]\nservers = ["ntp example"]', "time.servers"),
    ('[log]\nforward = "http://logs:19532"\ntrust = "system"', "log.forward"),
    ('[log]\nforward = "https://logs:19532"', "log.trust"),
    ('[log]\ntrust = "system"', "log.trust"),
    ('[log]\nforward = "https://logs:19532"\ncertificate = "none"', "log.certificate"),
])
def test_what_a_site_cannot_mean_is_named(text, key):
    found = load.check(BASE + text, "x.toml")
    assert len(found) == 1 and found[0].key.startswith(key), [str(error) for error in found]
    assert found[0].mend


def test_the_defaults_are_good():
    assert load.check(BASE, "x.toml") == []


def test_alarms_go_out_where_somebody_is_to_be_told():
    told = Config(alarm=Alarms(mail_to=("a@example.org",), mail_server="mail:587", webhooks=("https://x.example.org/y",)))
    assert set_of(told, "alarm_ports") == {587, 443} == set_of(told, "keeper_ports")
    assert set_of(Config(), "alarm_ports") == set()


def test_updates_are_fetched_from_where_the_configuration_says():
    assert set_of(Config(), "update_ports") == set()
    assert set_of(Config(update=Update(url="https://u.example.org/x")), "update_ports") == {443}
    assert set_of(Config(update=Update(url="http://u.example.org:8080/x")), "update_ports") == {8080}
    assert set_of(Config(update=Update(url="https://u.example.org/x", proxy="proxy:3128")), "update_ports") == {3128}
