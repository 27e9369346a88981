"""Hosts and ports as people write them."""

from __future__ import annotations

import re
from ipaddress import ip_address

_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")


def is_address(text: str) -> bool:
    """Whether a text is an IPv4 or IPv6 address, without brackets."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def is_host(text: str) -> bool:
    """Whether a text could be a host name, or is an address."""
    return (len(text) <= 253 and _HOST.fullmatch(text) is not None) or is_address(text)


def host_port(text: str) -> tuple[str, int] | None:
    """`host:port` or `[address]:port` in its two parts, brackets taken off; None where it is neither."""
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not is_address(host):
            return None
    elif ":" in host:
        return None
    if not re.fullmatch("[0-9]{1,5}", port) or not 1 <= int(port) <= 65535 or not is_host(host):
        return None
    return host, int(port)
