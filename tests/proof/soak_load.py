"""Who calls the gateway during the soak: paced scanners that give up on nothing, a real peer's echo, peers that mean harm."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tests.proof.oracle import Journal
from tests.support import objects
from tests.support.dicom_mutations import mutate
from tests.support.objects import Buffer, Instance
from tests.support.scu import (
    IMPLICIT,
    VERIFICATION,
    Lost,
    Scanner,
    associate_request,
    contexts_of,
    echo_command,
    send_views,
    wire,
)

STUDY = 40
"""Objects of one study, which go over one association."""

BEHIND = 5.0
"""Seconds that a scanner may be behind its pace: what an outage cost beyond that is not made up for."""

ANSWER = 25.0
"""Seconds from the last byte within which there is a status, an abort or the end of the connection (I1)."""

HOSTILE, ECHOING = "127.0.0.66", "127.0.0.77"


def images(number: int, seed: object, patient: int) -> Instance:
    """Nine of ten are CT slices, the tenth is a report; one of five hundred is an X-ray of 30 MB."""
    if number % 500 == 0:
        return objects.dx(number, seed, patient=patient)
    return objects.sr(number, seed, patient=patient) if number % 10 == 0 else objects.ct(number, seed, patient=patient)


def reports(number: int, seed: object, patient: int) -> Instance:
    """Nine of ten are reports, the tenth is a CT slice."""
    return objects.ct(number, seed, patient=patient) if number % 10 == 0 else objects.sr(number, seed, patient=patient)


CONTEXTS = contexts_of([images(500, 0, 0), images(10, 0, 0), images(1, 0, 0)])


class Timed(Scanner):
    """Notes in `waited` how many seconds after the last byte an answer came, or the end of the connection."""

    waited = 0.0

    def exchange(self, views: Sequence[Buffer]) -> int:
        sent = None
        self.waited = 0.0
        try:
            send_views(self.sock, views)
            sent = time.monotonic()
            return self._status()
        except (OSError, Lost) as error:
            self.close()
            raise Lost(f"{type(error).__name__}: {error}") from error
        finally:
            if sent is not None:
                self.waited = time.monotonic() - sent


@dataclass
class Told:
    """What all scanners heard: seconds to each success, longest wait for any answer or end, failures by their first words."""

    journal: Journal = field(default_factory=Journal)
    answers: list[float] = field(default_factory=list)
    longest: float = 0.0
    failures: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def heard(self, waited: float, failure: str = "") -> None:
        with self.lock:
            self.longest = max(self.longest, waited)
            if failure:
                self.failures[failure] = self.failures.get(failure, 0) + 1
            else:
                self.answers.append(waited)


class PacedScanner(threading.Thread):
    """Sends `rate` objects a second, each until it was acknowledged; every fiftieth twice. `finish` ends it behind the last."""

    def __init__(self, port: int, number: int, rate: float, make: Callable[[int, object, int], Instance], seed: int,
                 told: Told) -> None:
        super().__init__(name=f"SCANNER{number}", daemon=True)
        self.own = Journal()
        self.behind = 0.0
        self._port, self._rate, self._make, self._told = port, rate, make, told
        self._seed = ("soak", seed, number)
        self._patient = 1000 * number
        self._enough, self._give_up = threading.Event(), threading.Event()
        self._scanner: Timed | None = None

    def finish(self, seconds: float) -> bool:
        """No further object; False where the last one was not acknowledged in time."""
        self._enough.set()
        self.join(seconds)
        if self.is_alive():
            self._give_up.set()
            self.join(60)
            return False
        return True

    def run(self) -> None:
        number, due = 0, time.monotonic()
        while not self._enough.is_set():
            number += 1
            due = max(due + 1 / self._rate, time.monotonic() - BEHIND)
            self.behind = max(0.0, time.monotonic() - due)
            if self._enough.wait(max(0.0, due - time.monotonic())):
                break
            instance = self._make(number, self._seed, self._patient + number // STUDY)
            entry = self._told.journal.offer(instance)
            for _ in range(2 if number % 50 == 0 else 1):
                if self._until_acknowledged(instance):
                    self._told.journal.acknowledge(entry)
                    self.own.acknowledge(entry)
            if number % STUDY == 0:
                self._release()
        self._release()

    def _release(self) -> None:
        if self._scanner is not None:
            self._scanner.release()
            self._scanner = None

    def _until_acknowledged(self, instance: Instance) -> bool:
        while not self._give_up.is_set():
            scanner = self._scanner
            try:
                if scanner is None:
                    scanner = self._scanner = Timed(self._port, CONTEXTS, calling=self.name, timeout=60.0)
                    scanner.open()
                status = scanner.store(instance)
            except Lost as error:
                assert scanner is not None
                self._scanner = None
                self._told.heard(scanner.waited, str(error).split(" source")[0][:60])
            else:
                self._told.heard(scanner.waited, f"{status:04X}" if status else "")
                if status == 0:
                    return True
            self._give_up.wait(0.1)
        return False


class Lateness(threading.Thread):
    """How late this very process is woken: what the machine, and not the gateway, adds to what is measured here."""

    def __init__(self) -> None:
        super().__init__(name="lateness", daemon=True)
        self.stop = threading.Event()
        self._seen: list[tuple[float, float]] = []

    def run(self) -> None:
        while True:
            before = time.monotonic()
            if self.stop.wait(0.05):
                return
            late = time.monotonic() - before - 0.05
            if late > 0.1:
                self._seen.append((time.monotonic(), late))

    def since(self, begin: float) -> float:
        """The sum of what it was late since then, in seconds."""
        return sum(late for at, late in self._seen[-200:] if at >= begin)


class Echo(threading.Thread):
    """A real peer that asks every half second, as a scanner's service menu does; from an address of its own."""

    def __init__(self, port: int, lateness: Lateness) -> None:
        super().__init__(name="ECHO", daemon=True)
        self.stop = threading.Event()
        self.down = threading.Event()      # set while the receiver is killed and not yet back
        self.took: list[float] = []
        self.late: list[str] = []
        self._port, self._lateness = port, lateness

    def run(self) -> None:
        while not self.stop.wait(0.5):
            begin, was_down = time.monotonic(), self.down.is_set()
            error = ""
            try:
                with _PeerScanner(ECHOING, self._port, timeout=10.0) as scanner:
                    status = scanner.echo()
                    error = "" if status == 0 else f"status {status:04X}"
            except (Lost, OSError) as lost:
                error = str(lost)
            took = time.monotonic() - begin
            if was_down or self.down.is_set():
                continue
            if not error:
                self.took.append(took)
            if error or took - self._lateness.since(begin) > 1.0:
                self.late.append(f"C-ECHO: {error or 'answered'} after {took:.2f} s")


class _PeerScanner(Scanner):
    """A scanner that calls from an address of its own."""

    def __init__(self, source: str, port: int, timeout: float) -> None:
        super().__init__(port, [(VERIFICATION, IMPLICIT)], calling="ECHO", timeout=timeout)
        self._source = source

    def open(self) -> Scanner:
        try:
            self._sock = socket.create_connection((self.address, self.port), self.timeout, (self._source, 0))
            self._sock.sendall(associate_request(self.called, self.calling, self.contexts))
            kind, body = self._pdu()
        except (OSError, Lost) as error:
            self.close()
            raise Lost(f"{type(error).__name__}: {error}") from error
        if kind != 2:
            self.close()
            raise Lost(f"PDU {kind} instead of an acceptance")
        self._read_acceptance(body)
        return self


class Hostile(threading.Thread):
    """Rows of the hazards file, one after the other, from an address of its own. What it sends never becomes an object."""

    def __init__(self, port: int, seed: int) -> None:
        super().__init__(name="HOSTILE", daemon=True)
        self.stop = threading.Event()
        self.done: dict[str, int] = {}
        self._port = port
        self._dice = random.Random(seed)
        self._open: list[socket.socket] = []
        slice_ = objects.ct(1, "hostile", side=256)
        self._object = b"".join(bytes(view) for view in wire(slice_, 1, 1, 16384))
        self._store = associate_request("DCMGATE", "HOSTILE", contexts_of([slice_]))
        self._echo = associate_request("DCMGATE", "HOSTILE", [(VERIFICATION, IMPLICIT)])

    def run(self) -> None:
        rows = (self._silent, self._drip, self._absurd, self._mutated, self._mid_object, self._burst, self._http)
        while not self.stop.wait(self._dice.uniform(0.1, 0.6)):
            row = self._dice.choice(rows)
            with suppress(OSError):     # refused, reset or cut off: what it deserves
                row()
            self.done[row.__name__[1:]] = self.done.get(row.__name__[1:], 0) + 1
            while len(self._open) > 60:
                self._open.pop(0).close()
        for sock in self._open:
            sock.close()

    def _connect(self) -> socket.socket:
        sock = socket.socket()
        sock.settimeout(2)
        sock.bind((HOSTILE, 0))
        sock.connect(("127.0.0.1", self._port))
        return sock

    def _silent(self) -> None:
        self._open += [self._connect() for _ in range(self._dice.randrange(1, 10))]

    def _drip(self) -> None:
        sock = self._connect()
        self._open.append(sock)
        sock.sendall(self._store[:self._dice.randrange(1, 7)])

    def _absurd(self) -> None:
        with self._connect() as sock:
            sock.sendall(struct.pack(">BxL", self._dice.choice((1, 4, 5)), 0xFFFFFFFF))
            for _ in range(64):
                sock.sendall(bytes(16384))

    def _mutated(self) -> None:
        """Of echoes only: a mutated object might still be one."""
        command = echo_command(1)
        talk = self._echo + struct.pack(">BxLLBB", 4, len(command) + 6, len(command) + 2, 1, 3) + command
        with self._connect() as sock:
            sock.sendall(mutate(self._dice.randrange(1 << 30), talk))
            sock.settimeout(0.3)
            sock.recv(4096)

    def _mid_object(self) -> None:
        """Gone in the middle of an object, at any byte."""
        with self._connect() as sock:
            sock.sendall(self._store)
            if sock.recv(4096)[:1] == b"\x02":
                sock.sendall(self._object[:self._dice.randrange(1, len(self._object) - 1)])

    def _burst(self) -> None:
        for _ in range(50):
            self._connect().close()

    def _http(self) -> None:
        with self._connect() as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: dcmgate\r\n\r\n")
            sock.recv(64)
