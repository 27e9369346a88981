"""What a configuration says of the box it runs on: sides, time, log. Everything here adds to the `Findings`; nothing raises."""

from __future__ import annotations

import re
from ipaddress import ip_network
from itertools import combinations

from appliance.config.findings import Findings, did_you_mean
from appliance.config.hosts import host_port, is_host
from appliance.config.lines import Path
from appliance.config.settings import SYSTEM_TRUST, Config

SIDES = ("scanners", "uplink", "management")
MANAGEMENT_PORTS = (22,)
_URL = re.compile(r"https://([^\s/?#@]+)/?")


def check_site(findings: Findings, config: Config) -> None:
    """`[network]`, `[time]` and `[log]`."""
    _subnets(findings, config)
    _ports(findings, config)
    for key in ("servers", "nts_servers"):
        for nth, name in enumerate(getattr(config.time, key)):
            if not is_host(name):
                findings.wrong(("time", key, nth), f'"{name[:60]}" is no host name and no address',
                               'write the name alone, for example "ntp.example.org"')
    _log(findings, config)


def log_server(config: Config) -> tuple[str, int] | None:
    """Host and port of `[log] forward`; None where there is none, or it is none."""
    match = _URL.fullmatch(config.log.forward)
    if not match:
        return None
    return host_port(match[1]) or host_port(f"{match[1]}:443")


def _subnets(findings: Findings, config: Config) -> None:
    given = []
    for side in SIDES:
        for nth, text in enumerate(getattr(config.network, side)):
            path: Path = ("network", side, nth)
            try:
                given.append((side, path, ip_network(text)))
            except ValueError:
                findings.wrong(path, f'"{text[:60]}" is no subnet', 'write for example "192.168.10.0/24"')
    for (one, _, a), (other, path, b) in combinations(given, 2):
        if one != other and a.version == b.version and a.overlaps(b):
            findings.wrong(path, f'"{b}" is in part that of the side {one} already: {a}', "let each subnet be on one side")


def _ports(findings: Findings, config: Config) -> None:
    network = config.network
    taken = {port: f'listener "{listener.id}"' for listener in config.listeners for port in listener.ports}
    taken |= {found[1]: f'tunnel "{tunnel.id}"' for tunnel in config.tunnels if (found := host_port(tunnel.listen))}
    for key, others in (("page_port", {network.metrics_port: "[network] metrics_port"}),
                        ("metrics_port", dict.fromkeys(MANAGEMENT_PORTS, "SSH"))):
        port = getattr(network, key)
        whose = (taken | others).get(port, "") if port else ""
        if whose and not findings.is_wrong(("network", key)):
            findings.wrong(("network", key), f"port {port} is already that of {whose}", "give it another one, or 0 for none")


def _log(findings: Findings, config: Config) -> None:
    log, known = config.log, [certificate.id for certificate in config.certificates]
    if not log.forward:
        for key in ("certificate", "trust"):
            if getattr(log, key):
                findings.wrong(("log", key), "is for forwarding, and there is no `forward`", "give forward, or leave it out")
        return
    if log_server(config) is None:
        findings.wrong(("log", "forward"), f'"{log.forward[:60]}" is not the URL of a collector',
                       'write https://, host and port: "https://logs.example.org:19532"')
    for key in ("certificate", "trust"):
        name = getattr(log, key)
        if name and name not in known and not (key == "trust" and name == SYSTEM_TRUST):
            findings.wrong(("log", key), f'there is no certificate "{name[:64]}"',
                           did_you_mean(name, known) if known else "add [[certificate]] with this id")
    if not log.trust and not log.certificate:
        findings.wrong(("log", "trust"), "is missing: nothing says whose certificate the collector has",
                       f'write trust = "{known[0] if known else SYSTEM_TRUST}"')
