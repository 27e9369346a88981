"""The plan of the bench: which cases, who takes part, what is written.

    python -m tests.bench [--quick] [--only WORD]... [--rounds N] [--write FILE]

BENCH_DIR names the folder on the disk that is measured (default: build/).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench import contestants, ground, report, rounds, secure
from tests.bench.contestants import Contestant, Make
from tests.bench.rounds import Load, Refused, Result, say
from tests.bench.sending import NotSent, Sent, send
from tests.support import badpeers, peers
from tests.support.gateway import ROOT
from tests.support.measure import Device, device_of
from tests.support.objects import Instance

RECEIVE = [Load("ct", 1, 300), Load("ct", 4, 800), Load("ct", 16, 800), Load("sr", 1, 600), Load("sr", 4, 1600),
           Load("sr", 16, 3200), Load("dx", 1, 8), Load("dx", 4, 12), Load("mf", 1, 1)]
ROUTE = [Load("ct", 1, 300), Load("ct", 4, 400), Load("sr", 1, 600)]

class Bench:
    """One run: the folder, the disk, and what has been found so far."""

    def __init__(self, folder: Path, device: Device, count: int, only: Sequence[str]) -> None:
        self.folder, self.device, self.count, self.only = folder, device, count, only
        self.cases: dict[str, Sequence[Result]] = {}
        self.ratios: dict[str, float] = {}
        self.tables: list[str] = []

    def wanted(self, case: str) -> bool:
        return not self.only or any(word in case for word in self.only)

    @property
    def aside(self) -> Path:
        """Where what is done with waits for the end of the run (`ground`)."""
        return self.folder / "aside"

    @contextmanager
    def taking_part(self, case: str, makers: dict[str, Make]) -> Iterator[dict[str, Contestant]]:
        """All contestants of a case, running; one that cannot start is left out, ours excepted."""
        whole = self.folder / case
        whole.mkdir(parents=True)
        ground.spread(whole)
        with ExitStack() as stack:
            found = {}
            for name, make in makers.items():
                place = whole / name.replace(" ", "_")
                place.mkdir()
                try:
                    found[name] = stack.enter_context(make(place))
                except peers.NoPeer as error:
                    say(f"  {name} does not take part: {error}")
            yield found
        ground.put_tree_aside(whole, self.aside)

    def report(self, case: str, title: str, load: Load, results: Sequence[Result], *, router: bool = False) -> None:
        self.cases[case] = results
        self.ratios.update(report.ratios(case, results))
        self.tables.append(report.table(title, load, results, router=router))
        print(self.tables[-1], flush=True)

    # cases

    def receive(self, load: Load) -> None:
        """Receivers beside the limit."""
        case = f"receive_{load.name}"
        makers: dict[str, Make] = {**contestants.RECEIVERS}
        makers.update({_limit(*way): partial(contestants.limit, processes=way[0], direct=way[1]) for way in contestants.LIMITS})
        with self.taking_part(case, makers) as running:
            ways = {_limit(*way): running.pop(_limit(*way)) for way in contestants.LIMITS}
            chosen = rounds.best(ways, load, self.device)
            field = {"dcmgate": running["dcmgate"], chosen: ways[chosen], **running}
            results = rounds.compare(list(field), list(field.values()), load, self.count, self.device)
            rounds.check_flushes(results, load)
            if load.kind == "ct":
                traced = rounds.check_syncs(field["dcmgate"], load, self.folder / "strace.log")
                results[0].notes.append(f"{traced:.2f} fsync and fdatasync calls an image (strace)")
        self.report(case, f"Receive, {_what(load)}", load, results)

    def receive_small_pdus(self) -> None:
        """The same with a scanner that never sends more than 16 KiB at once."""
        load = Load("ct", 1, 300)
        makers: dict[str, Make] = {"dcmgate": contestants.ours, "storescp --fork": contestants.storescp}
        self._with_sender("receive_ct_k1_pdu16k", "Receive, CT, scanner with PDUs of 16 KiB", load, makers,
                          lambda c, i: _own(c, i, load, max_send=16384))

    def receive_as_shipped(self) -> None:
        """storescu, storescp and Orthanc as Debian ships them: Nagle on, PDUs of 16 KiB."""
        load = Load("ct", 1, 200)
        makers: dict[str, Make] = {
            "dcmgate": contestants.ours, "storescp --fork": partial(contestants.storescp, as_shipped=True),
            "orthanc": partial(contestants.orthanc, as_shipped=True)}
        self._with_sender("receive_ct_k1_as_shipped", "Receive, CT, DCMTK and Orthanc as shipped (sender storescu)", load,
                          makers, self._storescu)

    def route(self, load: Load) -> None:
        """Scanner → router → storescp."""
        case = f"route_{load.name}"
        makers: dict[str, Make] = {**contestants.ROUTERS}
        for name, together in (("dcmgate", False), ("dcmgate run", True)):
            makers[name] = partial(contestants.our_router, associations=load.k if load.k > 2 else 0, together=together)
        with self.taking_part(case, makers) as running:
            results = rounds.compare(list(running), list(running.values()), load, self.count, self.device)
            rounds.check_flushes(results, load)
        self.report(case, f"Route, {_what(load)}", load, results, router=True)

    def route_as_shipped(self) -> None:
        """storescu → router → storescp, both as Debian ships them."""
        load = Load("ct", 1, 200)
        makers: dict[str, Make] = {name: partial(make, as_shipped=True) for name, make in contestants.ROUTERS.items()}
        case = "route_ct_k1_as_shipped"
        self._with_sender(case, "Route, CT, DCMTK and Orthanc as shipped (storescu to storescp)", load, makers,
                          self._storescu, router=True)
        if f"{case}_vs_pynetdicom" in self.ratios:
            self.ratios[f"{case}_vs_naive"] = self.ratios[f"{case}_vs_pynetdicom"]

    def _with_sender(self, case: str, title: str, load: Load, makers: dict[str, Make],
                     sender: Callable[[Contestant, Sequence[Instance]], Sent], *, router: bool = False) -> None:
        with self.taking_part(case, makers) as running:
            results = [Result(name, contestant.syncs) for name, contestant in running.items()]
            for number in range(-1, self.count):
                for result, contestant in zip(results, running.values(), strict=True):
                    small = Load(load.kind, load.k, load.count // 4) if number < 0 else load
                    try:
                        played = rounds.play(contestant, small, number, self.device, sender=sender)
                    except (NotSent, AssertionError, OSError) as error:
                        say(f"  {result.name}: {error}")
                        continue
                    if number >= 0:
                        result.rounds.append(played)
                say(f"  {case} round {number + 1}/{self.count}: " + ", ".join(
                    f"{r.name} {r.rounds[-1].images_per_second:.0f}/s" for r in results if r.rounds))
        self.report(case, title, load, results, router=router)

    def _storescu(self, contestant: Contestant, instances: Sequence[Instance]) -> Sent:
        """DCMTK's sender, Nagle on; of its answers only the mean is known."""
        place = Path(tempfile.mkdtemp(dir=self.folder))
        files = peers.files_of(instances, place)
        profile = peers.requestor_profile(place / "storescu.cfg", [(instances[0].sop_class, instances[0].syntax)])
        command = [peers.program("storescu"), "-xf", str(profile), "Default", "127.0.0.1", str(contestant.port),
                   *(str(file.path) for file in files)]
        began = time.time()
        start = time.monotonic()
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600,
                              env=peers.environment(as_shipped=True), check=False)
        seconds = time.monotonic() - start
        ground.put_tree_aside(place, self.aside)
        if done.returncode:
            raise NotSent(f"storescu: {done.stderr[-300:]}")
        return Sent(began, seconds, len(files), sum(i.length for i in instances), (seconds / len(files),))

    def isolation(self) -> None:
        """One destination alone, and beside one that fails: the rate at the good one."""
        load = Load("ct", 1, 300)
        for kind in ("refusing", "black-holed", "hung"):
            if not self.wanted(f"isolation_{kind}"):
                continue
            case = f"isolation_{kind}"
            with badpeers.FAILING[kind]() as port:
                bad: dict[str, Any] = {"id": "bad", "type": "dimse", "address": "127.0.0.1", "port": port, "called": "BAD",
                                       "calling": "DCMGATE", "default": True}
                makers: dict[str, Make] = {"alone": contestants.our_router,
                                           "beside": partial(contestants.our_router, others=[bad])}
                with self.taking_part(case, makers) as running:
                    results = rounds.compare(list(running), list(running.values()), load, max(5, self.count), self.device)
            ratio = report.paired([r.images_per_second for r in results[1].rounds],
                                  [r.images_per_second for r in results[0].rounds])
            if ratio is not None:
                self.ratios[case] = ratio
            self.cases[case] = results
            self.tables.append(report.table(f"A good destination alone, and beside one that is {kind}", load, results,
                                            router=True))
            print(self.tables[-1], flush=True)


def _own(contestant: Contestant, instances: Sequence[Instance], load: Load, *, max_send: int) -> Sent:
    return send(contestant.port, instances, load.k, max_send=max_send)


def _limit(processes: int, direct: bool) -> str:
    """The name of one way of being the limit."""
    return f"limit ({'O_DIRECT' if direct else 'page cache'}, {processes} process{'es' if processes > 1 else ''})"


def _what(load: Load) -> str:
    kinds = {"ct": "CT of 0.5 MB", "sr": "SR of 20 kB", "dx": "DX of 30 MB", "mf": "multi-frame of 400 MB"}
    return f"{kinds[load.kind]}, k = {load.k}"


def main() -> int:
    arguments = argparse.ArgumentParser(prog="make bench", description=__doc__)
    arguments.add_argument("--quick", action="store_true", help="two rounds, and the main cases only")
    arguments.add_argument("--only", action="append", default=[], metavar="WORD", help="cases whose name has this word")
    arguments.add_argument("--rounds", type=int, default=0)
    arguments.add_argument("--write", type=Path, default=ROOT / "build" / "bench.json")
    given = arguments.parse_args()
    base = Path(os.environ.get("BENCH_DIR", ROOT / "build"))
    base.mkdir(parents=True, exist_ok=True)
    device = device_of(base)
    if device is None:
        say(f"bench: no disk can be told under {base}; BENCH_DIR names a folder on a real one")
        return 1
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=base))
    ground.spread(folder)
    bench = Bench(folder, device, given.rounds or (2 if given.quick else 5), given.only)
    where = report.machine(base, device)
    heading = "\n".join(["## Bench", "", *(f"- {name.replace('_', ' ')}: {value}" for name, value in where.items()), "",
                         "DCMTK and Orthanc run with TCP_NODELAY=1 unless \"as shipped\"; the scanner's PDUs are as long as "
                         "each receiver allows. As a router \"dcmgate\" is its three units, as on the box, and \"dcmgate run\" "
                         "everything in one process. Only rows of one table may be compared.", ""])
    print(heading, flush=True)
    begin = time.monotonic()
    try:
        plan(bench, quick=given.quick)
    except Refused as error:
        say(f"bench: refused to report: {error}")
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    closing = report.verdicts(bench.ratios)
    print(closing, flush=True)
    report.write(given.write, where, bench.cases, bench.ratios)
    given.write.with_suffix(".md").write_text("\n".join([heading, *bench.tables, closing]))
    say(f"bench: {time.monotonic() - begin:.0f} s; written: {given.write} and {given.write.with_suffix('.md').name}")
    return 0


def plan(bench: Bench, *, quick: bool) -> None:
    """Every case that is wanted, one after the other."""
    for load in RECEIVE:
        if bench.wanted(f"receive_{load.name}") and not (quick and not bench.only and load.name not in QUICK):
            bench.receive(load)
    for name, case in (("receive_ct_k1_pdu16k", bench.receive_small_pdus),
                       ("receive_ct_k1_as_shipped", bench.receive_as_shipped)):
        if bench.wanted(name) and not (quick and not bench.only):
            case()
    for load in ROUTE:
        if bench.wanted(f"route_{load.name}") and not (quick and not bench.only and load.name not in QUICK):
            bench.route(load)
    if bench.wanted("route_ct_k1_as_shipped"):
        bench.route_as_shipped()
    if not quick or bench.only:
        secure.cases(bench)
        bench.isolation()


QUICK = ("ct_k1", "ct_k4", "sr_k16")

if __name__ == "__main__":
    sys.exit(main())
