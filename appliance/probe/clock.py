"""Clock: how far this box's clock is from another, from sources that really say so; "unknown" where there is none.

Neither DICOM nor TLS tells the time of the other end (the random bytes of TLS
were a clock once, and are none any more). What tells it: chrony, the `Date` of a
server that speaks HTTP, and as a bound the dates of a certificate that the other
end has just shown.
"""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any

from appliance.clock import EARLIEST_PLAUSIBLE, SECOND
from appliance.net import sockets
from appliance.policy.certificates import Facts, date
from appliance.probe.report import Hop, State

_DATE = re.compile(rb"(?im)^date:[ \t]*([^\r\n]{10,40})")
SECONDS = 2.0
APART = 60.0
"""Seconds apart that a person should know of: certificates and logs suffer."""

Server = tuple[str, int, bool]
"""Host, port, whether it is HTTPS: one that says its time."""


def clock(servers: Sequence[Server], chain: Sequence[Facts]) -> Hop:
    """The last line of a report. Never raises; a few seconds at most."""
    found = by_chrony()
    for server in servers:
        found = found or by_http(*server)
    now = time.time_ns()
    facts: dict[str, Any] = {"now": date(now), "difference_seconds": None, "source": "unknown"}
    for one in chain[:1]:
        facts["certificate_bound"] = [date(one.not_before), date(one.not_after)]
    if found:
        facts["difference_seconds"], facts["source"] = round(found[0], 3), found[1]
        if abs(found[0]) > APART:
            return Hop("clock", State.WARNING, f"this box's clock is {_apart(found[0])}, says {found[1]}", "clock",
                       "Set the time server of this box, or its clock.", facts=facts)
        return Hop("clock", State.OK, f"{_apart(found[0])}, says {found[1]}", facts=facts)
    if now < EARLIEST_PLAUSIBLE // SECOND * SECOND:
        return Hop("clock", State.WARNING, f"this box's clock says {date(now)}, which is wrong", "clock",
                   "Set the time, or let the box reach a time server.", facts=facts)
    bound = ", within the dates of its certificate" if any(one.not_before <= now <= one.not_after for one in chain[:1]) else ""
    return Hop("clock", State.OK, f"difference unknown: nothing there tells the time; this box says {date(now)}{bound}",
               facts=facts)


def _apart(seconds: float) -> str:
    if abs(seconds) < 1:
        return "within a second"
    return f"{abs(seconds):.0f} s {'ahead' if seconds > 0 else 'behind'}"


def by_chrony() -> tuple[float, str] | None:
    """Seconds that this clock is ahead, as chrony knows it, where it runs and is synchronised."""
    program = shutil.which("chronyc")
    if program is None:
        return None
    with suppress(OSError, subprocess.SubprocessError, ValueError, IndexError):
        done = subprocess.run([program, "-c", "-n", "tracking"], capture_output=True, text=True, timeout=SECONDS, check=False,
                              stdin=subprocess.DEVNULL)
        fields = done.stdout.strip().split(",")
        if done.returncode == 0 and fields[13] == "Normal":
            return -float(fields[4]), f"chrony (from {fields[1]})"
    return None


def by_http(host: str, port: int, tls: bool) -> tuple[float, str] | None:
    """Seconds that this clock is ahead of that of a server, to a second or so. Its certificate is not looked at."""
    with suppress(OSError, ValueError, TypeError, OverflowError):
        with sockets.connect(host, port, SECONDS) as plain:
            plain.settimeout(SECONDS)
            sock = plain
            if tls:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                sock = context.wrap_socket(plain, server_hostname=host)
            with sock:
                sock.sendall(f"HEAD / HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode("ascii"))
                found = _DATE.search(_answer(sock))
        if found:
            theirs = parsedate_to_datetime(found[1].decode("ascii")).timestamp()
            return time.time() - theirs - 0.5, f"{host}:{port} (HTTP)"
    return None


def _answer(sock: socket.socket) -> bytes:
    data = b""
    while len(data) < 8192 and b"\r\n\r\n" not in data:
        more = sock.recv(4096)
        if not more:
            break
        data += more
    return data
