"""Line: the hops `name` and `tcp`: which addresses a name has, which of them answer, and over which way from here."""

from __future__ import annotations

import errno
import socket
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any

from appliance.model import escape
from appliance.net import sockets
from appliance.net.sockets import Address
from appliance.probe.report import Broken

MOST_ADDRESSES = 8
RESOLVERS = Path("/etc/resolv.conf")
ROUTES = Path("/proc/net/route")
_IP_MTU, _IPV6_MTU = 14, 24      # ip(7), ipv6(7): what the kernel takes for the path MTU of a connected socket


@dataclass(frozen=True, slots=True)
class Dialled:
    """What became of connecting to one address: `sock` where it answered, else `cause` and `text`."""

    address: Address
    milliseconds: float
    sock: socket.socket | None = None
    cause: str = ""
    text: str = ""

    @property
    def host(self) -> str:
        return str(self.address[1][0])


# --- name ---------------------------------------------------------------------------------------------------------------

def look_up(host: str, seconds: float) -> list[Address]:
    """Every address of a name, of both families, each once. Broken."""
    try:
        return list(dict.fromkeys(sockets.resolve(host, seconds)))[:MOST_ADDRESSES]
    except socket.gaierror as e:
        servers = name_servers()
        asked = f"; the name servers of this box are {', '.join(servers)}" if servers else "; this box has no name server"
        name = escape(host)
        facts = {"name_servers": servers}
        if e.errno == socket.EAI_AGAIN:
            raise Broken("no_resolver", f"nobody says what address {name} has: {e.strerror or e}{asked}",
                         "Check the name servers of this box and the way to them, or write the address itself.",
                         facts=facts) from None
        if e.errno in (socket.EAI_NODATA, getattr(socket, "EAI_ADDRFAMILY", -9)):
            raise Broken("no_address", f"the name {name} exists and has no address{asked}",
                         "Have an address entered for it in DNS, or write the address itself.", facts=facts) from None
        if e.errno == socket.EAI_FAIL:
            raise Broken("no_resolver", f"the name servers fail at {name}{asked}",
                         "Look at the name server, or write the address itself.", facts=facts) from None
        raise Broken("no_such_name", f"there is no host of the name {name}{asked}",
                     "Check the spelling of the name, and whether these name servers know names of that network.",
                     facts=facts) from None


def name_servers() -> list[str]:
    """Those of this box."""
    with suppress(OSError):
        words = (line.split() for line in RESOLVERS.read_text(errors="replace").splitlines())
        return [escape(found[1]) for found in words if len(found) > 1 and found[0] == "nameserver"][:3]
    return []


# --- tcp ----------------------------------------------------------------------------------------------------------------

def dial(addresses: Sequence[Address], port: int, seconds: float, *, every: bool) -> list[Dialled]:
    """Connect. `every`: to each address at once; else to one after the other until one answers. In their order."""
    if not every or len(addresses) == 1:
        found: list[Dialled] = []
        deadline = time.monotonic() + seconds
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            found.append(_dial(address, port, max(0.1, (deadline - time.monotonic()) / left)))
            if found[-1].sock is not None:
                break
        return found
    results: dict[int, Dialled] = {}

    def one(nth: int, address: Address) -> None:
        results[nth] = _dial(address, port, seconds)

    threads = [threading.Thread(target=one, args=each, daemon=True) for each in enumerate(addresses)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[nth] for nth in sorted(results)]


def _dial(address: Address, port: int, seconds: float) -> Dialled:
    began = time.monotonic()
    try:
        sock = sockets.connect_to(address, port, seconds)
    except OSError as e:
        return Dialled(address, _since(began), None, *_why(e, str(address[1][0]), seconds))
    return Dialled(address, _since(began), sock)


def _since(began: float) -> float:
    return (time.monotonic() - began) * 1000


def _why(error: OSError, address: str, seconds: float) -> tuple[str, str]:
    if isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
        return "timeout", f"{address} does not answer within {seconds:.3g} s"
    if isinstance(error, ConnectionRefusedError):
        return "refused", f"{address} refuses the connection"
    if error.errno in (errno.ENETUNREACH, errno.EINVAL, errno.ENETDOWN, errno.EADDRNOTAVAIL):
        return "no_route", f"this box has no route to {address} ({error.strerror})"
    if error.errno == errno.EHOSTUNREACH:
        if _is_near(address):
            return "host_unreachable", f"nobody on this network has the address {address}"
        return "host_unreachable", f"a router on the way says that {address} cannot be reached"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "forbidden", f"this box is not allowed to connect to {address} ({error.strerror})"
    return "unreachable", f"{address} cannot be reached ({error.strerror or error})"


_MENDS = {
    "refused": "Check that the service runs there and that the port is right; a firewall may refuse in its place.",
    "timeout": "Check that the host is on and the address right, and that each firewall on the way lets {source} through to "
               "port {port}.",
    "no_route": "Check the address, netmask and default gateway of this box (`ip route`).",
    "host_unreachable": "Check that the host is on, its cable, and its address.",
    "forbidden": "Look at this box's own firewall (`nft list ruleset`) and routes.",
    "unreachable": "Check cable, address and route.",
}


def none_answers(dialled: Sequence[Dialled], port: int) -> Broken:
    """The failure of the hop where no address answered; the first address speaks for all, unless another one says more."""
    order = ("refused", "forbidden", "host_unreachable", "no_route", "unreachable", "timeout")
    worst = min(dialled, key=lambda each: order.index(each.cause))
    facts = tcp_facts(dialled, port, None)
    source = facts["way"].get("source") or "this box"
    text = "; ".join(f"{each.text}" for each in dialled)
    return Broken(worst.cause, f"{text} (port {port})", _MENDS[worst.cause].format(port=port, source=source), facts=facts)


def tcp_facts(dialled: Sequence[Dialled], port: int, sock: socket.socket | None) -> dict[str, Any]:
    """Each address with what became of it, and the way from here to the first that answered (else to the first)."""
    chosen = next((each for each in dialled if each.sock is not None), dialled[0])
    return {"addresses": [{"address": each.host, "answer": each.cause or "connected",
                           "milliseconds": round(each.milliseconds, 1)} for each in dialled],
            "way": way_to(chosen.address, port), **(path_facts(sock) if sock is not None else {})}


def path_facts(sock: socket.socket) -> dict[str, Any]:
    """What the kernel knows of the path of a connected socket, in bytes."""
    facts: dict[str, Any] = {}
    with suppress(OSError):
        if sock.family == socket.AF_INET6:
            facts["path_mtu"] = sock.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
        else:
            facts["path_mtu"] = sock.getsockopt(socket.IPPROTO_IP, _IP_MTU)
    with suppress(OSError):
        facts["segment"] = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    return facts


def way_to(address: Address, port: int) -> dict[str, str]:
    """From which address, by which interface and gateway the kernel would send. No packet leaves for it."""
    family, parts = address
    found = {"source": "", "interface": "", "gateway": ""}
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asker:
        asker.connect((parts[0], port, *parts[1:]))
        found["source"] = str(asker.getsockname()[0])
    here = found["source"] == parts[0] or str(parts[0]).startswith("127.")
    if family == socket.AF_INET and not here:
        found["interface"], found["gateway"] = _route(str(parts[0]))
    if found["source"] and not found["interface"]:
        found["interface"] = _interface_of(found["source"])
    return found


def _interface_of(source: str) -> str:
    import psutil
    return next((name for name, entries in psutil.net_if_addrs().items()
                 for entry in entries if entry.address.partition("%")[0] == source), "")


def _routes() -> list[tuple[str, int, int, int]]:
    """(interface, destination, gateway, mask) of the IPv4 routes that lead somewhere."""
    found = []
    with suppress(OSError, ValueError, IndexError):
        for line in ROUTES.read_text().splitlines()[1:]:
            name, to, gateway, flags, _, _, _, mask = line.split()[:8]
            if int(flags, 16) & 1 and not int(flags, 16) & 0x200:
                found.append((name, *(socket.ntohl(int(part, 16)) for part in (to, gateway, mask))))
    return found      # type: ignore[return-value]


def _route(address: str) -> tuple[str, str]:
    wanted = struct.unpack("!I", socket.inet_aton(address))[0]
    routes = [route for route in _routes() if wanted & route[3] == route[1]]
    if not routes:
        return "", ""
    name, _, gateway, _ = max(routes, key=lambda route: route[3])
    return name, str(IPv4Address(gateway)) if gateway else ""


def _is_near(address: str) -> bool:
    """Whether an IPv4 address is on a network that this box is on itself."""
    with suppress(OSError, ValueError):
        wanted = IPv4Address(address)
        return any(not gateway and mask and wanted in ip_network(f"{IPv4Address(to)}/{IPv4Address(mask)}")
                   for _, to, gateway, mask in _routes())
    return False


def close_all(dialled: Sequence[Dialled], but: socket.socket | None = None) -> None:
    for each in dialled:
        if each.sock is not None and each.sock is not but:
            with suppress(OSError):
                each.sock.close()
