"""TLS in the bench: receiving beside storescp over TLS, delivering over TLS beside plain, a tunnel beside TLS of our own.

    python -m tests.bench --only tls --only tunnel
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench import ground, report, rounds
from tests.bench.contestants import Contestant, Make, clear, files, of_destination
from tests.bench.rounds import Load
from tests.bench.sending import NotSent, Sent
from tests.support import peers, pki
from tests.support.gateway import Gateway, to_folder, to_peer
from tests.support.objects import Instance
from tests.support.waiting import free_port, wait_listening

if TYPE_CHECKING:
    from tests.bench.__main__ import Bench

LOAD = Load("ct", 1, 300)


class Certificates:
    """One authority for all who take part."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.ca = pki.Authority("Bench CA")
        self.pair = self.ca.leaf("bench", addresses=["127.0.0.1"])
        self.key, self.chain = self.pair.write(folder, "bench")
        self.trust = folder / "trust.pem"
        self.trust.write_bytes(pki.pem(self.ca.certificate))

    @property
    def options(self) -> list[str]:
        """DCMTK's."""
        return ["+tls", str(self.key), str(self.chain), "+cf", str(self.trust), "+py"]

    def place(self, folder: Path) -> None:
        pki.place(folder / "state", "box", self.pair, trust=[self.ca])


def cases(bench: Bench) -> None:
    """All that are wanted."""
    certificates = Certificates(bench.folder / "certificates")
    if bench.wanted("tls_receive_ct_k1"):
        _ratio(bench, "tls_receive_ct_k1_vs_storescp_tls", "Receive over TLS, CT (sender storescu)",
               {"dcmgate": partial(_ours, certificates=certificates),
                "storescp --fork": partial(_storescp, certificates=certificates)}, certificates, router=False)
    if bench.wanted("tls_forward_ct_k1"):
        _ratio(bench, "tls_forward_ct_k1_vs_plain", "Deliver over TLS and plain, CT",
               {"TLS": partial(_router, certificates=certificates, way="tls"),
                "plain": partial(_router, certificates=certificates, way="plain")}, None, router=True)
    if bench.wanted("tunnel_vs_in_process_tls"):
        _ratio(bench, "tunnel_vs_in_process_tls", "Deliver through a tunnel and over TLS of our own, CT",
               {"stunnel": partial(_router, certificates=certificates, way="tunnel"),
                "TLS": partial(_router, certificates=certificates, way="tls")}, None, router=True)


def _ratio(bench: Bench, case: str, title: str, makers: dict[str, Make], secure: Certificates | None, *, router: bool) -> None:
    """The first over the second, by images a second."""
    with bench.taking_part(case, makers) as running:
        if len(running) < 2:
            return
        if secure is None:
            results = rounds.compare(list(running), list(running.values()), LOAD, bench.count, bench.device)
        else:
            results = [rounds.Result(name, contestant.syncs) for name, contestant in running.items()]
            for number in range(-1, bench.count):
                for result, contestant in zip(results, running.values(), strict=True):
                    played = rounds.play(contestant, LOAD, number, bench.device, sender=partial(_storescu, bench, secure))
                    if number >= 0:
                        result.rounds.append(played)
    for name, figure in ((case, "images_per_second"), (case.replace("_vs_", "_cpu_vs_"), "cpu_seconds_per_gigabyte")):
        ratio = report.paired(*([getattr(r, figure) for r in result.rounds] for result in results))
        if ratio is not None:
            bench.ratios[name] = ratio
    bench.cases[case] = results
    bench.tables.append(report.table(title, LOAD, results, router=router))
    print(bench.tables[-1], flush=True)


def _storescu(bench: Bench, certificates: Certificates, contestant: Contestant, instances: Sequence[Instance]) -> Sent:
    place = Path(tempfile.mkdtemp(dir=bench.folder))
    sent = peers.files_of(instances, place)
    profile = peers.requestor_profile(place / "storescu.cfg", [(instances[0].sop_class, instances[0].syntax)])
    command = [peers.program("storescu"), *certificates.options, "-xf", str(profile), "Default", "127.0.0.1",
               str(contestant.port), *(str(file.path) for file in sent)]
    began, start = time.time(), time.monotonic()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600,
                          env=peers.environment(), check=False)
    seconds = time.monotonic() - start
    ground.put_tree_aside(place, bench.aside)
    if done.returncode:
        raise NotSent(f"storescu: {done.stderr[-300:]}")
    return Sent(began, seconds, len(sent), sum(i.length for i in instances), (seconds / len(sent),))


@contextmanager
def _ours(folder: Path, certificates: Certificates) -> Iterator[Contestant]:
    certificates.place(folder)
    with Gateway(folder, [to_folder(folder / "archive")], receivers=0, size=0, listener={"tls": "bcp195", "certificate": "box"},
                 extra=[("[certificate]", {"id": "box"})]) as gateway:
        gateway.start("receiver")
        yield Contestant("dcmgate", gateway.port, gateway.processes["receiver"],
                         lambda: files(gateway.spool / "objects", "*.dcm"), lambda: None, syncs="each image")


@contextmanager
def _storescp(folder: Path, certificates: Certificates) -> Iterator[Contestant]:
    with peers.storescp(folder, profile=False, options=certificates.options) as destination:
        yield of_destination(destination)


@contextmanager
def _router(folder: Path, certificates: Certificates, way: str) -> Iterator[Contestant]:
    """`dcmgate run` to one storescp: plain, over TLS, or plain into a `[[tunnel]]` of its own, Debian's stunnel, that leads
    there over TLS. Processor time and memory are those of stunnel too."""
    certificates.place(folder / "gateway")
    extra: list[tuple[str, dict[str, object]]] = [("[certificate]", {"id": "box"})]
    settings: dict[str, object] = {}
    with ExitStack() as stack:
        sink = stack.enter_context(peers.storescp(folder / "sink", profile=False,
                                                  options=[] if way == "plain" else certificates.options))
        if way == "tls":
            settings = {"tls": "bcp195", "certificate": "box"}
        elif way == "tunnel":
            peers.program("stunnel")
            settings = {"port": free_port()}
            extra.append(("[tunnel]", {"id": "pacs", "listen": f"127.0.0.1:{settings['port']}",
                                       "connect": f"127.0.0.1:{sink.port}", "certificate": "box"}))
        gateway = stack.enter_context(Gateway(folder / "gateway", [to_peer(sink, **settings)], receivers=0, size=0,
                                              extra=extra))
        process = gateway.start("run").processes["run"]
        if way == "tunnel":
            wait_listening([int(str(settings["port"]))], 30, lambda: process.poll() is None)
        yield Contestant(way, gateway.port, process, sink.arrived, lambda: clear(sink.folder), sink=sink, syncs="each image")
