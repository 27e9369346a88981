"""Ways that end somewhere, made inside a network namespace: names, routes, firewalls, lines that swallow large packets.

Each function runs by `tests.support.namespace.inside` and answers with reports as JSON, by the name of the set-up.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from appliance.config.settings import Destination
from appliance.probe.target import of_destination
from appliance.probe.walk import walk
from tests.support import peers, pki
from tests.support.names import EMPTY, FAILS, NOWHERE, SILENT, Names
from tests.support.namespace import ip
from tests.support.waiting import free_port
from tests.support.wire import Line, Wire, theirs

Reports = dict[str, dict[str, Any]]

HOP_SECONDS = 4.0
"""A hop's time in the tests: much shorter than the product's, much longer than anything that works takes."""


def destination(**settings: Any) -> Destination:
    return Destination(**{"id": "pacs", "address": "127.0.0.1", "called": "STORESCP", "calling": "DCMGATE", **settings})


def walked(places: Mapping[str, Destination], state: Path) -> Reports:
    """All of them at once: they mostly wait."""
    with ThreadPoolExecutor(len(places)) as pool:
        reports = pool.map(lambda entry: walk(of_destination(entry), state, hop_seconds=HOP_SECONDS).as_json(), places.values())
        return dict(zip(places, reports, strict=True))


def names(argument: dict[str, Any]) -> Reports:
    """Names that lead nowhere, or to two hosts of which one is dead."""
    folder = Path(argument["folder"])
    answers = {"missing": NOWHERE, "fails": FAILS, "silent": SILENT, "empty": EMPTY, "two": ("127.0.0.77", "127.0.0.1"),
               "good": ("127.0.0.1",)}
    with Names(folder) as server, ExitStack() as stack:
        server.answers.update({f"{name}.example.test": answer for name, answer in answers.items()})
        archive = stack.enter_context(peers.storescp(folder / "archive", profile=False))
        _nft("add rule inet t out ip daddr 127.0.0.77 drop")
        return walked({name: destination(address=f"{name}.example.test", port=archive.port) for name in answers}, folder)


def _nft(rule: str) -> None:
    for line in ("add table inet t", "add chain inet t out { type filter hook output priority 0; }", rule):
        done = subprocess.run([peers.program("nft"), line], capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, f"nft {line}: {done.stderr}"


def routes(argument: dict[str, Any]) -> Reports:
    """No route; a network that we are on, and a host that is off; our own routes forbid it; a firewall that swallows."""
    folder, port = Path(argument["folder"]), free_port()
    ip("link", "add", "name", "near", "type", "veth", "peer", "name", "far")
    ip("addr", "add", "10.99.0.1/24", "dev", "near")
    for end in ("near", "far"):
        ip("link", "set", end, "up")
    ip("route", "add", "blackhole", "10.98.0.0/24")
    ip("route", "add", "prohibit", "10.97.0.0/24")
    ip("route", "add", "10.96.0.0/24", "dev", "near")
    _nft(f"add rule inet t out ip daddr 127.0.0.66 tcp dport {port} drop")
    return walked({
        "no route": destination(address="192.0.2.1", port=port),
        "black-holed route": destination(address="10.98.0.1", port=port),
        "prohibited": destination(address="10.97.0.1", port=port), "nobody there": destination(address="10.99.0.9", port=port),
        "swallowed": destination(address="127.0.0.66", port=port), "no port": destination(port=port)}, folder)


def line(argument: dict[str, Any]) -> Reports:
    """A line on which large packets vanish and nobody says so; one that is as lines are; and one that is slow, but whole."""
    folder = Path(argument["folder"])
    with Wire(folder, [Line(longest=1300), Line(), Line(delay=0.3)], seed=1) as wire:
        kinds = ("black hole", "whole", "slow")
        return walked({kind: destination(address=theirs(nth), port=wire.archives[nth].port) for nth, kind in enumerate(kinds)},
                      folder)


def hole(argument: dict[str, Any]) -> Reports:
    """The same black hole in front of a TLS server, whose certificates are more than fits into a small packet."""
    folder = Path(argument["folder"])
    ca = pki.Authority("Clinic CA")
    between = ca.intermediate()
    pki.place(folder / "state", "box", trust=[ca])
    key, chain = between.leaf("pacs", addresses=["127.0.0.1"], dns=[f"pacs{n}.example.org" for n in range(60)]).write(
        folder, "server")
    with peers.storescp(folder / "archive", options=["+tls", str(key), str(chain), "-ic"]) as archive:
        entry = destination(port=archive.port, tls="bcp195", trust="box")
        good = walked({"whole": entry}, folder / "state")
        ip("link", "set", "dev", "lo", "gso_max_segs", "1")      # so that each packet is a segment, as on a line
        _nft("add rule inet t out meta length > 1300 drop")
        return {**good, **walked({"swallowed": entry}, folder / "state")}
