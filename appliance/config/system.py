"""What the system of the box has to know of a configuration: ports for the service manager, the firewall, time, log, tunnels.

Pure: texts from values. The units in `rootfs/` put them where they belong.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from appliance.config.hosts import host_port
from appliance.config.settings import SYSTEM_TRUST, Config
from appliance.config.site import SIDES, log_server

GROUPS = {"scanners": 1, "uplink": 2, "management": 3}
"""`[Link] Group=` of the interfaces of each side."""

SHARED = 4
"""That of an interface on which several sides are, told apart by their subnets."""

SYSTEM_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


def scanner_ports(config: Config) -> list[tuple[str, int]]:
    """(address, port) of every listener, in order, each once."""
    return sorted({(listener.address, port) for listener in config.listeners for port in listener.ports})


def sockets(config: Config) -> str:
    """`UNIT ADDRESS:PORT` a line: what the service manager listens on, for whom. The generator `dcmgate-ports` reads it.

    The manager holds the sockets while a service restarts, or before it has started.
    """
    lines = [f"receiver {_bracketed(address)}:{port}" for address, port in scanner_ports(config)]
    for unit, port in (("page", config.network.page_port), ("metrics", config.network.metrics_port)):
        if port:
            lines += [f"{unit} 0.0.0.0:{port}", f"{unit} [::]:{port}"]
    return "".join(f"{line}\n" for line in lines)


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def tunnels(config: Config) -> str:
    """Ids of the tunnels, one a line."""
    return "".join(f"{tunnel.id}\n" for tunnel in config.tunnels)


# --- firewall ------------------------------------------------------------------------------------------------------------

def firewall(config: Config) -> str:
    """Commands for `nft -f`, which are taken as a whole or not at all: the sets of ports, and which side calls from where.

    The rules themselves are those of `/etc/nftables.conf`; what is not said there or here stays closed.
    """
    lines = []
    for name, ports in _port_sets(config).items():
        lines.append(f"flush set inet dcmgate {name}")
        if ports:
            lines.append(f"add element inet dcmgate {name} {{ {', '.join(map(str, sorted(ports)))} }}")
    lines.append("flush chain inet dcmgate sides")
    lines += [f"add rule inet dcmgate sides {rule}" for side in SIDES for rule in _side(side, getattr(config.network, side))]
    return "\n".join([*lines, ""])


def _side(side: str, subnets: Iterable[str]) -> list[str]:
    """Where a packet of that side is judged. Without subnets: all that comes in on its interfaces."""
    group = GROUPS[side]
    networks = [ip_network(text) for text in subnets]
    if not networks:
        return [f"iifgroup {group} goto from_{side}"]
    rules = []
    for version, word in ((4, "ip"), (6, "ip6")):
        if of_it := [str(network) for network in networks if network.version == version]:
            rules.append(f"iifgroup {{ {group}, {SHARED} }} {word} saddr {{ {', '.join(of_it)} }} goto from_{side}")
    return [*rules, f"iifgroup {group} counter name refused_{side} drop"]


def _port_sets(config: Config) -> dict[str, set[int]]:
    """By the names of the sets in `/etc/nftables.conf`."""
    network = config.network
    reached = {_port(destination.proxy, destination.port) for destination in config.destinations if destination.type == "dimse"}
    through = {_port(tunnel.proxy or tunnel.connect, 0) for tunnel in config.tunnels} - {0}
    log = log_server(config)
    listening = {port for _, port in scanner_ports(config)}
    return {
        "scanner_ports": listening | _tunnel_ports(config, "client") | {network.page_port} - {0},
        "uplink_ports": _tunnel_ports(config, "server"),
        "management_ports": {network.metrics_port} - {0},
        "forwarder_ports": reached,
        "tunnel_ports": through,
        "keeper_ports": reached | through | _keeper(config),
        "alarm_ports": _alarms(config),
        "log_ports": {log[1]} if log else set(),
        "update_ports": _update(config),
    }


def _tunnel_ports(config: Config, side: str) -> set[int]:
    """Where tunnels listen for others than this box itself."""
    found = [host_port(tunnel.listen) for tunnel in config.tunnels if tunnel.side == side]
    return {at[1] for at in found if at and not ip_address(at[0]).is_loopback}


def _keeper(config: Config) -> set[int]:
    """For certificates, revocation lists and alarms. Where a certificate's own lists are, only it says: on the usual ports."""
    urls: list[str] = []
    proxies = []
    for certificate in config.certificates:
        wanted = [url for url in (certificate.est_url, *(certificate.crl_urls if certificate.crl_fetch else ())) if url]
        wanted += ["http:", "https:"] if certificate.crl_fetch else []
        if certificate.proxy:
            proxies.append(_port(certificate.proxy, 0))
        else:
            urls += wanted
    return ({_url_port(url) for url in urls} | set(proxies) | _alarms(config)) - {0}


def _alarms(config: Config) -> set[int]:
    ports = {_url_port(url) for url in config.alarm.webhooks}
    return ports | {_port(config.alarm.mail_server, 25)} if config.alarm.mail_to else ports


def _update(config: Config) -> set[int]:
    update = config.update
    if not update.url:
        return set()
    return {_port(update.proxy, 0) if update.proxy else _url_port(update.url)}


def _url_port(url: str) -> int:
    return urlsplit(url).port or (443 if url.startswith("https:") else 80)


def _port(text: str, otherwise: int) -> int:
    found = host_port(text)
    return found[1] if found else otherwise


# --- time, log -----------------------------------------------------------------------------------------------------------

def time_sources(config: Config) -> str:
    """Sources of chrony (chrony.conf(5), `sourcedir`)."""
    return "".join([*(f"server {name} iburst nts\n" for name in config.time.nts_servers),
                    *(f"{'server' if _is_literal(name) else 'pool'} {name} iburst\n" for name in config.time.servers)])


def _is_literal(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def log_forwarding(config: Config) -> str:
    """journal-upload.conf(5); empty where the journal is sent nowhere."""
    log = config.log
    if not log.forward:
        return ""
    store = PurePosixPath(config.spool.state) / "certificates"
    trust = log.trust or log.certificate
    lines = ["[Upload]", f"URL={log.forward.rstrip('/')}",
             f"TrustedCertificateFile={SYSTEM_BUNDLE if trust == SYSTEM_TRUST else store / trust / 'trust.pem'}"]
    if log.certificate:
        lines += [f"ServerKeyFile={store / log.certificate / 'current' / 'key.pem'}",
                  f"ServerCertificateFile={store / log.certificate / 'current' / 'chain.pem'}"]
    else:
        lines += ["ServerKeyFile=-", "ServerCertificateFile=-"]
    return "\n".join([*lines, ""])
