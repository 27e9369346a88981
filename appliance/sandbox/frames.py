"""Messages between us and a limited child: length, payload, and descriptors that come along (SCM_RIGHTS)."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import time

from appliance.errors import SandboxError

MOST_DESCRIPTORS = 64
READY = b"R"
"""What a child sends when its limits are in force and it can take requests."""

_LENGTH = 4


def send(sock: socket.socket, payload: bytes, descriptors: list[int] | None = None) -> None:
    """Send one message. OSError (TimeoutError too) as the socket raises it."""
    data = len(payload).to_bytes(_LENGTH, "big") + payload
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    sent = sock.sendmsg([data], rights)
    if sent < len(data):
        sock.sendall(memoryview(data)[sent:])


def receive(sock: socket.socket, most: int, deadline: float | None = None) -> tuple[bytes, list[int]]:
    """One message of at most `most` bytes and the descriptors that came with it, which the caller closes.

    An empty payload with no descriptors: the other side has closed. `deadline`
    is a time of CLOCK_MONOTONIC in seconds. SandboxError for a message that is
    too long or ends early, TimeoutError behind the deadline.
    """
    descriptors: list[int] = []
    with contextlib.ExitStack() as failed:
        failed.callback(close_all, descriptors)
        head = _exactly(sock, _LENGTH, deadline, descriptors)
        if not head:
            return b"", []
        length = int.from_bytes(head, "big")
        if not 0 < length <= most:
            raise SandboxError(f"message of {length} bytes, at most {most} are allowed")
        payload = _exactly(sock, length, deadline, descriptors)
        if len(payload) < length:
            raise SandboxError("message ended early")
        failed.pop_all()
        return payload, descriptors


def close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _exactly(sock: socket.socket, n: int, deadline: float | None, descriptors: list[int]) -> bytes:
    """n bytes, or fewer where the other side closes in between and nothing came yet."""
    data = bytearray()
    while len(data) < n:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("deadline")
            sock.settimeout(left)
        part, ancillary, _, _ = sock.recvmsg(min(n - len(data), 1 << 18), socket.CMSG_SPACE(4 * MOST_DESCRIPTORS))
        for level, kind, rights in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(rights[:len(rights) - len(rights) % numbers.itemsize])
                descriptors.extend(numbers)
        if not part:
            if data:
                raise SandboxError("message ended early")
            return b""
        data += part
    return bytes(data)
