"""Names that resolve to nothing, to the wrong host, or to another one from one hour to the next: a part of `network`.

Runs in namespaces of its own, with a name server of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.proof.figures import Figures
from tests.proof.network_part import Part
from tests.proof.oracle import Journal, judge, read_store
from tests.support import objects, peers
from tests.support.badpeers import silent_after_connect
from tests.support.cutting import Proxy
from tests.support.gateway import Gateway, to_peer
from tests.support.names import EMPTY, FAILS, NOWHERE, SILENT, Answer, Names
from tests.support.nonsense import bad_destination
from tests.support.peers import Destination
from tests.support.scu import Scanner, contexts_of
from tests.support.waiting import wait_until

NAME = "pacs.example.test"


def wrong(argument: dict[str, Any]) -> dict[str, Any]:
    """One name, and everything that can be wrong with it in turn. Between any two the right answer, and all is delivered.

    Two archives, A and B: the name moves from one to the other for good while
    the first still runs, and back when the second has gone.
    """
    part = Part(Figures("network"), int(argument["seed"]), lambda line: print(line, flush=True))
    folder = Path(argument["folder"])
    journal = Journal()
    with ExitStack() as stack:
        names = stack.enter_context(Names(folder))
        first = stack.enter_context(peers.storescp(folder / "a", profile=False))
        # storescp listens on every address: each host of this story is a proxy on one of its own.
        port = stack.enter_context(Proxy(first.port)).port
        site = stack.enter_context(Gateway(folder / "site", [
            to_peer(first, id="pacs", address=NAME, port=port, connect_seconds=1.5, progress_seconds=1.5, linger_seconds=0.0)]))
        right: Answer = ("127.0.0.1",)
        names.answers[NAME] = right
        site.start()
        cases: dict[str, Answer | Callable[[ExitStack], Answer]] = {
            "no such name": NOWHERE, "server failure": FAILS, "no answer": SILENT, "no address": EMPTY,
            "a host that refuses": ("127.0.0.77",), "a dead address first": ("127.0.0.77", "127.0.0.1"),
            "a broadcast address": ("255.255.255.255",), "nonsense": ("0.0.0.1",),
            "a host of another trade": lambda s: _host(s, port, "http", "127.0.0.78"),
            "a host that says nothing": lambda s: _host(s, port, "silent", "127.0.0.79"),
            "a host that does not know our title": lambda s: _host(s, port, "rejecting", "127.0.0.80"),
        }
        for number, (name, answer) in enumerate(list(cases.items())[:argument["most"] or None]):
            with ExitStack() as case:
                names.answers[NAME] = answer(case) if callable(answer) else answer
                study = [objects.ct(number * 10 + n, "names", side=64) for n in range(2)]
                with Scanner(site.port, contexts_of(study)) as scanner:
                    for instance in study:
                        journal.offer(instance)
                        assert scanner.store(instance) == 0
                        journal.acknowledge(instance)
                keys = {instance.key for instance in study}
                if name == "a dead address first":
                    first.wait_for(keys, 30)
                else:
                    asked = names.asked
                    wait_until(lambda: names.asked > asked + 2, 30, f"{name}: it is asked again")   # noqa: B023
                    if keys & set(first.arrived()):
                        part.fail(f"{name}: delivered nevertheless")
                names.answers[NAME] = right
                try:
                    first.wait_for(keys, 30)
                except AssertionError as error:
                    part.fail(f"{name}, then the right answer: {error}")
                part.count("names_wrong")
        _moves(part, names, site, first, port, folder, journal, stack)
        site.wait_settled(30, accepted=len(journal))
        assert site.stop() == 0
        stores = read_store(folder / "a") + read_store(folder / "b")
        part.judge(judge(journal, {"both": stores}, spool=site.spool, balance=site.json("balance", "--deep", status=None)),
                   "wrong names")
    return part.figures.as_json()


def _host(stack: ExitStack, port: int, kind: str, address: str) -> Answer:
    """A bad destination at another address of the loopback net, on the port of the real one."""
    inner = stack.enter_context(silent_after_connect() if kind == "silent" else bad_destination(kind))
    stack.enter_context(Proxy(inner, port, address))
    return (address,)


def _moves(part: Part, names: Names, site: Gateway, first: Destination, port: int, folder: Path, journal: Journal,
           stack: ExitStack) -> None:
    """The archive moves to another host under load, while the old one still answers."""
    second = stack.enter_context(peers.storescp(folder / "b", profile=False))
    stack.enter_context(Proxy(second.port, port, "127.0.0.90"))
    over = threading.Event()
    failures: list[str] = []

    def scan() -> None:
        number = 1000
        while not over.is_set():
            number += 1
            instance = objects.ct(number, "names", side=64)
            journal.offer(instance)
            with Scanner(site.port, contexts_of([instance])) as scanner:
                if scanner.store(instance) != 0:
                    failures.append("refused")
                    return
            journal.acknowledge(instance)

    thread = threading.Thread(target=scan)
    thread.start()
    try:
        for answer, archive in ((("127.0.0.90",), second), (("127.0.0.1",), first), (("127.0.0.90",), second)):
            names.answers[NAME] = answer
            before = len(archive.files())
            wait_until(lambda: len(archive.files()) > before + 3, 30, "the new host is used")   # noqa: B023
            part.count("names_moved")
    finally:
        over.set()
        thread.join()
    for failure in failures:
        part.fail(failure)
