"""Rounds of SIGKILL against the real processes under load: stages, single receiver processes, all at once, and starts.

Three scanners send without end, each object until it was acknowledged. In each
round somebody is killed after a random number of acknowledgements and started
again; now and then the start is killed, too, several times in a row.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.proof.oracle import Entry, Journal, Verdict, entry_of, judge, read_store
from tests.support import objects, peers
from tests.support.gateway import STAGES, Gateway, to_peer
from tests.support.objects import Instance, Key
from tests.support.scu import Patient, contexts_of
from tests.support.waiting import wait_until

SCANNERS = 3
_pause = threading.Event()


class Endless:
    """A source of instances for one scanner, until told that it is enough; every tenth is sent twice."""

    def __init__(self, scanner: int, journal: Journal | None = None) -> None:
        self._scanner = scanner
        self._journal = journal or Journal()
        self._number = 0
        self.made: dict[Key, Entry] = {}
        self.enough = threading.Event()

    def __call__(self) -> Instance | None:
        if self.enough.is_set():
            return None
        self._number += 1
        number = self._number - 1 if self._number % 10 == 0 else self._number
        patient = 10 * self._scanner + number // 40
        make: Callable[..., Instance] = objects.sr if number % 3 == 0 else objects.ct
        instance = make(number, ("kills", self._scanner), patient=patient)
        if instance.key not in self.made:
            self.made[instance.key] = self._journal.offer(entry_of(instance))
        return instance


def let_parked_go_on(gateway: Gateway, most: int) -> None:
    """What a person does after the alarm: an object that was under way at two crashes is parked, as it may be their cause."""
    parked = gateway.json("list", "--state", "parked")["objects"]
    assert len(parked) <= most, parked
    if parked:
        gateway.command("requeue", "--state", "parked")


class Killer:
    """Kills and starts again. `killed` names the victims, one for each SIGKILL."""

    def __init__(self, gateway: Gateway, dice: random.Random) -> None:
        self._gateway = gateway
        self._dice = dice
        self.killed: list[str] = []

    def round(self) -> None:
        """One or all stages, or a part of the receiver by itself; then the starts."""
        throw = self._dice.random()
        if throw < 0.12:
            self._kill_worker()
            return
        if throw < 0.18:
            self._kill_front()
            return
        victims = list(STAGES) if throw < 0.28 else [self._dice.choice(STAGES)]
        for victim in victims:
            self._kill(victim)
        while self._dice.random() < 0.3:
            self._gateway.launch(*victims)
            _pause.wait(self._dice.uniform(0.0, 0.6))
            for victim in victims:
                self._kill(victim, " while starting")
        self._gateway.start(*victims)

    def _kill(self, victim: str, when: str = "") -> None:
        self._gateway.kill(victim)
        self.killed.append(victim + when)

    def _kill_worker(self) -> None:
        """One of the processes that the receiver forked; it starts another by itself."""
        workers = sorted(descendants(self._gateway.pid("receiver")))
        if workers:
            os.kill(self._dice.choice(workers), signal.SIGKILL)
            self.killed.append("receiver process")


    def _kill_front(self) -> None:
        """The process that has the ports, and not those that it forked: they have to find out, and end."""
        process = self._gateway.processes.pop("receiver")
        process.kill()
        process.wait(20)
        self.killed.append("receiver front")
        self._gateway.start("receiver")


def descendants(pid: int) -> list[int]:
    """Children of a process and theirs."""
    found: list[int] = []
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return found
    for child in map(int, children):
        found += [child, *descendants(child)]
    return found


def rounds(folder: Path, count: int, seed: int) -> tuple[Verdict, list[str]]:
    """So many rounds, then peace: the verdict, and who was killed. AssertionError where something does not come up or
    settle, or where an acknowledged object was put aside."""
    dice = random.Random(seed)
    contexts = contexts_of([objects.ct(1), objects.sr(1)])
    journal = Journal()
    with (peers.storescp(folder / "storescp", profile=False) as pacs,
          Gateway(folder / "gateway", [to_peer(pacs)], receivers=2, size=0) as gateway):
        gateway.start_stages()
        killer = Killer(gateway, dice)
        sources = [Endless(number, journal) for number in range(SCANNERS)]
        scanners = [Patient(gateway.port, source, contexts=contexts, calling=f"SCANNER{n}").start()
                    for n, source in enumerate(sources)]
        try:
            for number in range(count):
                before = sum(len(scanner.journal) for scanner in scanners)
                moment = dice.randrange(1, 40)   # in acknowledged images, so that a slow machine has the same moments
                wait_until(lambda b=before, m=moment: sum(len(s.journal) for s in scanners) >= b + m, 60,   # type: ignore[misc]
                           f"scanners go on in round {number}", every=0.001)
                killer.round()
        finally:
            for source in sources:
                source.enough.set()
            for scanner in scanners:
                scanner.join()
        for scanner, source in zip(scanners, sources, strict=True):
            for key in scanner.journal:
                journal.acknowledge(source.made[key])
        return _verdict(gateway, journal, pacs, killer.killed), killer.killed


def _verdict(gateway: Gateway, journal: Journal, pacs: peers.Destination, killed: list[str]) -> Verdict:
    """When all is delivered and the stages have ended."""
    let_parked_go_on(gateway, most=sum("forwarder" in who for who in killed) // 2)
    balance: dict[str, Any] = gateway.wait_settled(180, accepted=len(journal))
    assert balance["quarantined"] == 0, balance
    for stage in STAGES:
        gateway.stop(stage)
    verdict = judge(journal, {"storescp": read_store(pacs.folder)}, spool=gateway.spool,
                    balance=gateway.json("balance", "--deep", status=None))
    wanted = len(set(journal.acknowledged))
    if verdict.delivered != wanted:
        verdict.notes.append(f"{verdict.delivered} of {wanted} data sets are at the destination")
    return verdict
