"""A real Receiver on a real spool, in this process or in one of its own, and what a test asks of it."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from appliance.clock import SystemClock
from appliance.config.settings import Config, Listener, Peer
from appliance.dicom.part10 import HEAD, parse_head
from appliance.model import Custody
from appliance.receive.limits import Limits
from appliance.receive.receiver import Receiver
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from tests.support import objects
from tests.support.scu import IMPLICIT, VERIFICATION, Scanner, associate_request, contexts_of
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]

QUICK = Limits(first_pdu=0.4, pdu=0.4, progress=0.6, store=0.5, send=0.5, closing=0.3, scan=0.05, tick=0.2)
"""Deadlines that a test can wait for."""

SLOW = Limits(scan=0.05, tick=0.2)
"""The product's own deadlines: what ends here is not ended by them."""

OPEN = Listener(id="lan", address="127.0.0.1", ports=(0,), unknown="admit")
"""Lets everybody in, on any free port."""

ECHO_SECONDS = 1.0
"""A real peer's echo is answered within this, whatever others do (hazards.md)."""


def config(*listeners: Listener, peers: Sequence[Peer] = (), generation: int = 1) -> Config:
    return Config(listeners=listeners or (OPEN,), peers=tuple(peers), generation=generation)


@dataclass
class Box:
    """One receiver and its spool."""

    receiver: Receiver
    spool: Spool
    clock: SystemClock
    run: Path
    current: list[Config] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.receiver.addresses[0][2]

    @property
    def intake(self) -> Any:
        """The intake of a receiver in this process."""
        worker = self.receiver._worker
        assert worker is not None
        return worker.intake

    @property
    def worker(self) -> Any:
        worker = self.receiver._worker
        assert worker is not None
        return worker

    def configure(self, *listeners: Listener, peers: Sequence[Peer] = ()) -> None:
        """Have a new configuration in force."""
        before = self.current[-1]
        self.current.append(replace(before, listeners=listeners or before.listeners, peers=tuple(peers),
                                    generation=before.generation + 1))
        self.receiver.reload()
        wait_until(lambda: self.receiver._config.generation == self.current[-1].generation, 10, "the new configuration")

    def ledger(self) -> Ledger:
        return Ledger.open(self.spool.ledger_path, self.clock)

    def held(self) -> list[tuple[Custody, bytes]]:
        """Every accepted object: its custody record and its data set."""
        found = []
        for number in self.spool.object_numbers():
            raw = self.spool.object_path(number).read_bytes()
            if raw[:HEAD].strip(b"\0"):
                found.append((parse_head(raw[:HEAD]), raw[HEAD:]))
        return found

    def quiet(self) -> bool:
        """Whether nothing is under way: no associations, no instances, nobody silent."""
        return not self.receiver.associations and not self.receiver.silent and self.intake.in_flight == 0


@contextmanager
def receiving(folder: Path, *configuration: Config, workers: int = 1, limits: Limits = QUICK, size: int = 0) -> Iterator[Box]:
    """A receiver in this process (`workers` 1), or with worker processes of its own."""
    clock = SystemClock()
    spool = Spool.init(folder / "spool", size=size, clock=clock)
    run = folder / "run"
    run.mkdir()
    current = list(configuration) or [config()]
    receiver = Receiver(lambda: current[-1], spool, clock, run, workers=workers, limits=limits)
    receiver.start()
    box = Box(receiver, spool, clock, run, current)
    try:
        yield box
    finally:
        receiver.stop(0.5)


@contextmanager
def echoing(port: int, *, seconds: float = ECHO_SECONDS) -> Iterator[list[float]]:
    """A well-behaved peer beside whatever the test does: each echo within `seconds`, from connect to release."""
    times: list[float] = []
    failures: list[str] = []
    stop = threading.Event()

    def run() -> None:
        while True:
            try:
                times.append(echo(port))
            except Exception as e:  # noqa: BLE001  reported by the test's own thread
                failures.append(f"{type(e).__name__}: {e}")
                return
            if stop.wait(0.02):
                return

    thread = threading.Thread(target=run, name="echoing")
    thread.start()
    try:
        yield times
    finally:
        stop.set()
        thread.join(30)
    assert not failures, failures
    assert times and max(times) <= seconds, f"slowest echo of {len(times)}: {max(times, default=0):.3f} s"


def echo(port: int, *, called: str | bytes = "DCMGATE", calling: str | bytes = "ECHO", address: str = "127.0.0.1") -> float:
    """Seconds from connect to the answer of a C-ECHO."""
    begin = time.monotonic()
    with Scanner(port, [(VERIFICATION, IMPLICIT)], called=called, calling=calling, timeout=10, address=address) as scanner:
        assert scanner.echo() == 0
        return time.monotonic() - begin


def connect(port: int, *, source: str = "127.0.0.1", timeout: float = 10.0) -> socket.socket:
    """A bare connection, from any address of the loopback network."""
    return socket.create_connection(("127.0.0.1", port), timeout, source_address=(source, 0))


def session(port: int, *instances: objects.Instance, timeout: float = 10.0) -> Scanner:
    """An association for Verification and these objects, open within a `with` block and released at its end."""
    return Scanner(port, [(VERIFICATION, IMPLICIT), *contexts_of(instances)], timeout=timeout)


def associated(port: int, *instances: objects.Instance, timeout: float = 10.0) -> Scanner:
    """The same, open at once: the test does with its socket what no scanner would."""
    return session(port, *instances, timeout=timeout).open()


def read_to_end(sock: socket.socket) -> bytes:
    """Everything until the peer closes; a reset counts as closed."""
    got = b""
    while True:
        try:
            piece = sock.recv(65536)
        except ConnectionResetError:
            return got
        if not piece:
            return got
        got += piece


def last_words(scanner: Scanner) -> bytes:
    """Everything that comes on an association until the peer closes it."""
    return scanner._rest + read_to_end(scanner.sock)


def aborted(raw: bytes) -> tuple[int, int] | None:
    """(source, reason) of the A-ABORT at the end of what a peer sent, if there is one (PS3.8 9.3.8)."""
    return (raw[-2], raw[-1]) if raw[-10:-4] == b"\x07\0\0\0\0\4" else None


def rejected(raw: bytes) -> tuple[int, int, int] | None:
    """(result, source, reason) of an A-ASSOCIATE-RJ (PS3.8 9.3.4)."""
    return (raw[7], raw[8], raw[9]) if raw[:6] == b"\x03\0\0\0\0\4" else None


def ask(port: int, contexts: Sequence[tuple[str, str]], *, called: str | bytes = "DCMGATE", calling: str | bytes = "SCANNER",
        source: str = "127.0.0.1") -> tuple[int, int, int] | None:
    """Propose an association; the reasons of its rejection, None where it is accepted."""
    with connect(port, source=source) as sock:
        sock.sendall(associate_request(called, calling, contexts))
        head = sock.recv(6, socket.MSG_WAITALL)
        assert len(head) == 6, "closed without an answer"
        body = sock.recv(struct.unpack(">L", head[2:])[0], socket.MSG_WAITALL)
        if head[0] == 2:
            sock.sendall(struct.pack(">BxLL", 7, 4, 0))
        return rejected(head + body)


def descriptors(pid: int | None = None) -> int:
    return len(os.listdir(f"/proc/{pid or os.getpid()}/fd"))


# --- a process of its own, for strace and for figures ------------------------------------------------------------------


@dataclass
class Served:
    """A receiver in a process of its own."""

    pid: int
    port: int
    folder: Path
    process: subprocess.Popen[str]
    pids: list[int]

    @property
    def spool(self) -> Spool:
        return Spool.open(self.folder / "spool")


@contextmanager
def served(folder: Path, *, workers: int = 1, limits: Limits | None = None, max_per_address: int = 32) -> Iterator[Served]:
    """`Receiver` as a program; ends when its standard input does."""
    spool = folder / "spool"
    Spool.init(spool, clock=SystemClock())
    (folder / "run").mkdir()
    names = {name: getattr(limits, name) for name in Limits.__dataclass_fields__} if limits else {}
    process = subprocess.Popen(
        [sys.executable, "-c", "from tests.support.acceptor import program; program()", str(folder), str(workers),
         json.dumps(names), str(max_per_address)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    try:
        port, pids = json.loads(process.stdout.readline())
        yield Served(process.pid, port, folder, process, pids)
    finally:
        process.stdin.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def program() -> None:
    """What `served` runs."""
    folder, workers, limits = Path(sys.argv[1]), int(sys.argv[2]), Limits(**json.loads(sys.argv[3]))
    current = config(replace(OPEN, max_per_address=int(sys.argv[4])), peers=[Peer(id="anybody")])
    receiver = Receiver(lambda: current, Spool.open(folder / "spool"), SystemClock(), folder / "run", workers=workers,
                        limits=limits)
    receiver.start()
    print(json.dumps([receiver.addresses[0][2], receiver.pids]), flush=True)
    sys.stdin.read()
    receiver.stop(1)
