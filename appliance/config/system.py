"""What the system of the box has to know of a configuration: listening sockets for the service manager, ports for the firewall.

Pure: texts from values. The units in `rootfs/` put them where they belong.
"""

from __future__ import annotations

from appliance.config.settings import Config


def scanner_ports(config: Config) -> list[tuple[str, int]]:
    """(address, port) of every listener, in order, each once."""
    return sorted({(listener.address, port) for listener in config.listeners for port in listener.ports})


def sockets(config: Config) -> str:
    """A drop-in of `dcmgate-receiver.socket` (systemd.socket(5)). The manager holds the sockets while the receiver restarts.

    The empty line takes back the port that the unit itself names.
    """
    lines = [f"ListenStream={f'[{address}]' if ':' in address else address}:{port}" for address, port in scanner_ports(config)]
    return "\n".join(["# Made from the configuration: do not edit.", "[Socket]", "ListenStream=", *lines, ""])


def firewall(config: Config) -> str:
    """Commands for `nft -f`: the set of ports that the scanners' side may reach is exactly that of the configuration."""
    ports = sorted({port for _, port in scanner_ports(config)})
    lines = ["flush set inet dcmgate scanner_ports"]
    if ports:
        lines.append("add element inet dcmgate scanner_ports { " + ", ".join(str(port) for port in ports) + " }")
    return "\n".join([*lines, ""])
