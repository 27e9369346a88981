"""Target: what is walked to, of a `[[destination]]` or a `[[tunnel]]`."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.config.hosts import host_port
from appliance.config.settings import Destination, Tunnel
from appliance.model import escape

OWN_TITLE = "DCMGATE"


@dataclass(frozen=True, slots=True)
class Target:
    """`entry` is what TLS is spoken by, None without. `called` empty: nothing is known to be called, so no association is
    asked for. `dicom` False: the far end need not speak DICOM. `listen`: (host, port) of a tunnel's near end."""

    id: str
    table: str
    host: str
    port: int
    entry: Destination | Tunnel | None = None
    proxy: str = ""
    called: str = ""
    calling: str = OWN_TITLE
    dicom: bool = True
    connect_seconds: float = 10.0
    folder: str = ""
    listen: tuple[str, int] | None = None

    @property
    def place(self) -> str:
        if self.folder:
            return self.folder
        host = escape(self.host)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def named(self) -> str:
        """How a sentence names its entry in the configuration."""
        return f"[[{self.table}]] {self.id}"


def of_destination(destination: Destination, called: str = "", calling: str = "") -> Target:
    """`called` and `calling` stand in for titles that the entry leaves to the scanner."""
    if destination.type == "folder":
        return Target(destination.id, "destination", "", 0, folder=destination.path)
    return Target(destination.id, "destination", destination.address, destination.port,
                  destination if destination.tls != "off" else None, destination.proxy, destination.called or called,
                  destination.calling or calling or OWN_TITLE, connect_seconds=destination.connect_seconds)


def of_tunnel(tunnel: Tunnel, *, through: bool = True) -> Target:
    """Side `client`: to the far end, by TLS as the tunnel does it; side `server`: to the plain server behind it.

    `through`: then once more through the tunnel's own near end, which only answers while the tunnel runs.
    """
    host, port = host_port(tunnel.connect) or ("", 0)
    client = tunnel.side == "client"
    return Target(tunnel.id, "tunnel", host, port, tunnel if client else None, tunnel.proxy if client else "",
                  tunnel.called if tunnel.check == "echo" else "", tunnel.calling, tunnel.check == "echo",
                  listen=host_port(tunnel.listen) if through else None)
