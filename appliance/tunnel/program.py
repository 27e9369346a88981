"""Program: stunnel itself. It has no way to only check a configuration, so it is started with it on a port of nobody's."""

from __future__ import annotations

import fcntl
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from appliance.config.hosts import host_port
from appliance.errors import TunnelError
from appliance.net import sockets
from appliance.tunnel.setup import Setup

NAMES = ("stunnel4", "stunnel")
CHECK_SECONDS = 10.0
ACCEPTED = b"Configuration successful"
_LOUD = re.compile(r"(?:\[!\]|LOG[0-3]\[\w+\]:) (.*)")
_NOISE = ("Configuration failed", "Failed to reload")


def find() -> str:
    """Where stunnel is. TunnelError."""
    for name in NAMES:
        found = shutil.which(name, path="/usr/local/bin:/usr/bin:/bin")
        if found is not None:
            return found
    raise TunnelError("stunnel is not installed", mend="apt-get install stunnel4")


def check(setup: Setup) -> None:
    """Have stunnel take the configuration as it is, but for the port; nothing is written. TunnelError with what it says."""
    anchors = os.memfd_create("anchors", os.MFD_CLOEXEC)
    try:
        os.write(anchors, setup.anchors)
        text = re.sub(r"(?m)^accept = .*$", "accept = 127.0.0.1:0", setup.text)
        if setup.anchors:
            text = re.sub(r"(?m)^CAfile = .*$", f"CAfile = /dev/fd/{anchors}", text)
        heard = _heard(text.encode(), anchors)
    finally:
        os.close(anchors)
    if ACCEPTED not in heard:
        raise TunnelError(f"stunnel does not take the configuration of [[tunnel]] {setup.id}: {complaint(heard)}",
                          mend="`dcmgate cert check` looks at the files; else report it with `dcmgate tunnel ID --print`.")


def _heard(text: bytes, kept: int) -> bytes:
    """What stunnel says until it has taken a configuration, or has not."""
    process = subprocess.Popen([find(), "-fd", "0"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               pass_fds=(kept,), env={"PATH": "/usr/bin:/bin"})
    assert process.stdin is not None and process.stderr is not None
    heard, deadline = b"", time.monotonic() + CHECK_SECONDS
    with process.stderr as lines:
        try:
            with suppress(BrokenPipeError), process.stdin as asked:
                asked.write(text)                # shorter than a pipe takes at once
            while ACCEPTED not in heard and select.select([lines], [], [], max(0.0, deadline - time.monotonic()))[0]:
                part = os.read(lines.fileno(), 65536)
                if not part:
                    break
                heard += part
        finally:
            process.kill()
            process.wait()
    return heard


def complaint(heard: bytes) -> str:
    """What stunnel had against it, in its own words."""
    lines = [match[1] for match in _LOUD.finditer(heard.decode("utf-8", "replace"))]
    said = [line for line in lines if not line.startswith(_NOISE)]
    return "; ".join(dict.fromkeys(said[-3:])) or "it said nothing"


# --- starting -----------------------------------------------------------------------------------------------------------
#
# stunnel is given its listening socket, as systemd would (sd_listen_fds(3)): at a reload it closes one that it opened
# itself, and turns whoever calls at that moment away (measured: 2154 of 3500 connections during 72 reloads; so none).

_AS_CHILD = 'exec 3<&"$1" ; LISTEN_PID=$$ LISTEN_FDS=1 exec "$2" "$3"'
_LISTENING = 3
_ABOVE = 10


def listen(setup: Setup) -> socket.socket:
    """Its listening socket: that of the service manager where it gave us one, else a new one. TunnelError."""
    host, port = host_port(setup.listen) or ("", 0)
    try:
        return sockets.listen(host, port, sockets.inherited())
    except OSError as e:
        raise TunnelError(f"tunnel {setup.id} cannot listen on {setup.listen}: {e.strerror or e}",
                          mend="See who holds that port (`ss -ltnp`), or give it another one.") from None


def start(path: Path, listening: socket.socket, claim: int, *, stderr: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    """stunnel as a child, which ends with the thread that starts it, however that ends. Socket and claim stay the caller's."""
    kept = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE) for descriptor in (listening.fileno(), claim)]
    try:
        command = ["setpriv", "--pdeathsig", "TERM", "--", "bash", "-c", _AS_CHILD, "tunnel", str(kept[0]), find(), str(path)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, pass_fds=kept,
                                env={"PATH": "/usr/bin:/bin"})
    finally:
        for descriptor in kept:
            os.close(descriptor)


def become(path: Path, listening: socket.socket, claim: int) -> NoReturn:
    """This process is stunnel from now on. OSError."""
    program = find()
    kept = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _ABOVE) for descriptor in (listening.fileno(), claim)]
    os.dup2(kept[0], _LISTENING)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)      # until stunnel has its own handler
    os.execve(program, [program, str(path)], {"PATH": "/usr/bin:/bin", "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})


def end(process: subprocess.Popen[bytes], seconds: float = 5.0) -> None:
    """SIGTERM, and SIGKILL where that does not help."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
        return
    process.kill()
    process.wait()
