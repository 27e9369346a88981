"""Side door: how the box's own canaries come in to the receiver, and nobody else.

A port of 127.0.0.1 that is not announced, and a token that is new at each start
of the receiver: both stand in a file of `[control] run` that only the box's
processes can read. Nobody outside the box reaches that port, and nobody on it
gets in without the token, which goes as the passcode of a user identity (PS3.7
D.3.3.7) and is neither logged nor kept with the object.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.dicom.pdu import AssociateRequest, UserIdentity
from appliance.net import sockets

NAME = "canary.json"
WANTED = "canary.wanted"
"""A file of that name asks for the way in where no destination has canaries: the gate of an update stores one."""

USER = b"canary"
_WITH_PASSCODE = 2


@dataclass(frozen=True, slots=True, repr=False)
class SideDoor:
    """Where it is, and what opens it."""

    port: int
    token: str

    def identity(self) -> UserIdentity:
        return UserIdentity(_WITH_PASSCODE, False, USER, self.token.encode("ascii"))


def make(run: Path) -> tuple[socket.socket, SideDoor]:
    """Open it and say where it is. OSError."""
    sock = sockets.listen("127.0.0.1", 0)
    try:
        door = SideDoor(int(sock.getsockname()[1]), secrets.token_hex(16))
        beside = run / f".{NAME}.{os.getpid()}"
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640), "w") as file:
            file.write(json.dumps({"port": door.port, "token": door.token}) + "\n")
        beside.rename(run / NAME)
    except OSError:
        sock.close()
        raise
    return sock, door


def find(run: Path) -> SideDoor | None:
    """The one of the receiver that runs; None where there is none. A receiver that died leaves its file behind."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((run / NAME).read_text())
        return SideDoor(int(found["port"]), str(found["token"]))
    return None


def ask(run: Path) -> None:
    """Have one opened. OSError."""
    (run / WANTED).touch(mode=0o640)


def leave(run: Path) -> None:
    """It is not needed any more."""
    with suppress(OSError):
        (run / WANTED).unlink()


def asked(run: Path) -> bool:
    return (run / WANTED).exists()


def opens(request: AssociateRequest, token: str) -> bool:
    """Whether a request carries the token. In constant time."""
    identity = request.user_identity
    return identity is not None and identity.type == _WITH_PASSCODE and bool(token) and secrets.compare_digest(
        identity.secondary, token.encode("ascii"))
