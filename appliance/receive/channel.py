"""Channel: messages and descriptors between the front's process and a worker process, over a Unix socket pair.

One byte says what a message is, JSON follows; SOCK_SEQPACKET keeps messages apart
and in order, and its end of file says that the other side has died, however it
died. What may be long (the configuration) goes through a memory file, pickled,
and only from the front to a worker: what talks with peers is not trusted that far.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
from array import array
from typing import Any

LONGEST = 1 << 16
"""Bytes of the longest message."""

# To a worker
CONFIGURE = b"C"     # memory file: Config
ARRIVED = b"A"       # socket: [ticket, fields of an Arrival]
STOP = b"S"          # seconds to drain
BEGIN = b"B"         # memory file: Setup
PULSE = b"P"         # its main thread shall show that it listens

# From a worker
READY = b"R"         # process number
FAILED = b"F"        # [name of the error, message, mend]
ENDED = b"E"         # ticket
REPORT = b"T"        # fields of a Report

# To the nursery
FORK = b"K"          # the worker's end of its channel
REAP = b"Z"


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a new channel."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(channel: socket.socket, kind: bytes, value: Any = None, fds: list[int] | None = None, *, wait: bool = True) -> None:
    """One message. OSError where the other side is gone; BlockingIOError where it does not read and `wait` is False."""
    flags = socket.MSG_NOSIGNAL | (0 if wait else socket.MSG_DONTWAIT)
    # Not socket.send_fds and recv_fds: they ignore their flags (Python 3.11).
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    channel.sendmsg([kind, json.dumps(value).encode()], rights, flags)


def send_long(channel: socket.socket, kind: bytes, value: Any, *, wait: bool = True) -> None:
    """One message whose value may be long."""
    fd = os.memfd_create("dcmgate-channel", os.MFD_CLOEXEC)
    with os.fdopen(fd, "wb") as file:
        pickle.dump(value, file)
        file.flush()
        send(channel, kind, None, [fd], wait=wait)


def receive(channel: socket.socket, *, wait: bool = True) -> tuple[bytes, Any, list[int]]:
    """The next message: its kind (empty at the end), its value, its descriptors. BlockingIOError where there is none."""
    flags = socket.MSG_CMSG_CLOEXEC | (0 if wait else socket.MSG_DONTWAIT)
    try:
        data, ancillary, _, _ = channel.recvmsg(LONGEST, socket.CMSG_SPACE(4 * 4), flags)
    except ConnectionResetError:
        return b"", None, []
    if not data:
        return b"", None, []
    fds = array("i")
    for level, kind, raw in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(raw[:len(raw) - len(raw) % fds.itemsize])
    return data[:1], json.loads(data[1:]), list(fds)


def long_value(fd: int) -> Any:
    """What `send_long` sent; closes the descriptor."""
    with os.fdopen(fd, "rb") as file:
        file.seek(0)
        return pickle.load(file)
