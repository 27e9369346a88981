"""Lines of a test's own between two network namespaces: real TCP, with loss, delay, a rate, and a plug to pull.

Each line is a pair of tun devices, one on our side (10.77.N.1) and one on the
peer's (10.77.N.2); a thread carries the packets. The peer's side is a process in
a second network namespace, which runs the archives. To be used within
`tests.support.namespace.inside`.
"""

from __future__ import annotations

import fcntl
import heapq
import itertools
import json
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tests.support import peers
from tests.support.namespace import ROOT, ip
from tests.support.peers import Destination

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MTU = 1500


def ours(line: int) -> str:
    return f"10.77.{line}.1"


def theirs(line: int) -> str:
    return f"10.77.{line}.2"


def _tun(line: int, address: str) -> int:
    """The descriptor of a new tun device with that address, up."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    name = f"wire{line}"
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH14x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    ip("addr", "add", f"{address}/24", "dev", name)
    ip("link", "set", name, "up", "mtu", str(MTU))
    return fd


@dataclass(slots=True)
class Line:
    """What a line does to packets. Change it at any time.

    `loss`, `twice`, `flips`: shares of packets that are lost, come twice, or have
    one bit turned over (TCP's checksum finds every such). `delay` one way and
    `jitter`, seconds; `rate` bytes/s each way, 0 as fast as it goes; `queue`: bytes
    that wait for their turn at that rate, more are lost. `up` False: the plug is pulled.
    """

    loss: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    rate: float = 0.0
    queue: int = 256 * 1024
    twice: float = 0.0
    flips: float = 0.0
    longest: int = 0
    """Bytes of the longest packet that gets through, 0: any. Nobody is told of those that do not: a path-MTU black hole."""
    up: bool = True
    carried: list[int] = field(default_factory=lambda: [0, 0])
    """Bytes of packets that were handed over, to the peer and back."""
    packets: int = 0
    lost: int = 0
    first_at: float = 0.0
    """When the first large packet was handed over to the peer since this was set to 0 (monotonic)."""
    last_at: float = 0.0
    free_at: list[float] = field(default_factory=lambda: [0.0, 0.0])


class Wire:
    """`lines`, and `archives` at their far ends: archive N is to be reached at `theirs(N)`."""

    def __init__(self, folder: Path, lines: Sequence[Line], *, seed: int = 0) -> None:
        self.lines = list(lines)
        self._chance = random.Random(seed)
        self._stack = ExitStack()
        self._over = threading.Event()
        near, far = socket.socketpair()
        self._peer = subprocess.Popen(
            ["unshare", "--net", sys.executable, "-m", "tests.support.wire", str(far.fileno()), str(folder), str(len(lines))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, pass_fds=[far.fileno()])
        self._stack.callback(self._end_peer)
        far.close()
        with near:
            near.settimeout(30)
            _, remote, _, _ = socket.recv_fds(near, 1, len(lines))
        assert len(remote) == len(lines), "the peer's side has not come up"
        self._ends: dict[int, tuple[int, int, int]] = {}    # descriptor → line, direction, the other end's descriptor
        for number, fd in enumerate(remote):
            near_fd = _tun(number, ours(number))
            os.set_blocking(fd, False)
            self._ends[near_fd] = (number, 0, fd)
            self._ends[fd] = (number, 1, near_fd)
        assert self._peer.stdout is not None
        ports = json.loads(self._peer.stdout.readline())
        self.archives = [Destination("storescp", "STORESCP", port, folder / f"archive{number}")
                         for number, port in enumerate(ports)]
        self._thread = threading.Thread(target=self._carry, name="wire", daemon=True)
        self._thread.start()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join(10)
        self._stack.close()
        for fd in self._ends:
            os.close(fd)

    def _end_peer(self) -> None:
        assert self._peer.stdin is not None and self._peer.stdout is not None
        self._peer.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._peer.wait(10)
        self._peer.kill()
        self._peer.wait(10)
        self._peer.stdout.close()

    def replace(self, number: int) -> None:
        """The archive at the end of a line is killed and started anew, on its port and folder."""
        assert self._peer.stdin is not None and self._peer.stdout is not None
        self._peer.stdin.write(f"{number}\n")
        self._peer.stdin.flush()
        assert self._peer.stdout.readline() == "replaced\n"

    def _carry(self) -> None:
        poll = select.epoll()
        for fd in self._ends:
            poll.register(fd, select.EPOLLIN)
        on_their_way: list[tuple[float, int, int, int, bytes]] = []
        order = itertools.count()
        while not self._over.is_set():
            wait = min(0.05, max(0.0, on_their_way[0][0] - time.monotonic())) if on_their_way else 0.05
            for fd, _ in poll.poll(wait):
                number, direction, other = self._ends[fd]
                for _ in range(64):
                    try:
                        packet = os.read(fd, 65536)
                    except BlockingIOError:
                        break
                    for due, data in self._fate(self.lines[number], direction, packet):
                        heapq.heappush(on_their_way, (due, next(order), number, other, data))
            now = time.monotonic()
            while on_their_way and on_their_way[0][0] <= now:
                _, _, number, other, data = heapq.heappop(on_their_way)
                line = self.lines[number]
                if not line.up:
                    line.lost += 1
                    continue
                direction = 1 - self._ends[other][1]
                with suppress(OSError):     # its queue is full: the packet is lost
                    os.write(other, data)
                    line.carried[direction] += len(data)
                    if direction == 0 and len(data) > MTU // 2:
                        line.first_at = line.first_at or now
                        line.last_at = now
        poll.close()

    def _fate(self, line: Line, direction: int, packet: bytes) -> list[tuple[float, bytes]]:
        """When this packet arrives: never, once or twice; and what is left of it."""
        line.packets += 1
        now = time.monotonic()
        chance = self._chance.random
        if not line.up or chance() < line.loss or (line.longest and len(packet) > line.longest):
            line.lost += 1
            return []
        if line.rate:
            start = max(now, line.free_at[direction])
            if (start - now) * line.rate > line.queue:
                line.lost += 1
                return []
            line.free_at[direction] = now = start + len(packet) / line.rate
        if chance() < line.flips:
            at = self._chance.randrange(20, len(packet))
            packet = packet[:at] + bytes([packet[at] ^ 1 << self._chance.randrange(8)]) + packet[at + 1:]
        copies = 2 if chance() < line.twice else 1
        return [(now + line.delay + line.jitter * chance(), packet) for _ in range(copies)]


def main(control: int, folder: Path, lines: int) -> None:
    """The peer's side."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    ip("link", "set", "lo", "up")
    with socket.socket(fileno=control) as sock:
        descriptors = [_tun(number, theirs(number)) for number in range(lines)]
        socket.send_fds(sock, [b"!"], descriptors)
    for fd in descriptors:
        os.close(fd)      # the devices live as long as the other side holds them
    with ExitStack() as stack:
        stacks = [stack.enter_context(ExitStack()) for _ in range(lines)]
        archives = [stacks[number].enter_context(peers.storescp(folder / f"archive{number}", profile=False))
                    for number in range(lines)]
        print(json.dumps([archive.port for archive in archives]), flush=True)
        for line in sys.stdin:
            number = int(line)
            stacks[number].close()
            stacks[number].enter_context(
                peers.storescp(folder / f"archive{number}", profile=False, port=archives[number].port))
            print("replaced", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
