"""Those that are compared, each a context manager that yields a `Contestant` listening on 127.0.0.1."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from blake3 import blake3

from tests.bench import ground
from tests.support import peers
from tests.support.gateway import ROOT, Gateway, to_folder, to_peer
from tests.support.objects import Key, part10
from tests.support.peers import Destination, Orthanc
from tests.support.waiting import free_port


@dataclass
class Contestant:
    """One of those compared.

    `share` of the images is sent to it (slow ones get fewer, as they would take
    minutes), `late` ones take one association at a time. `keys` is what it
    holds, `clear` makes it forget that, `ready` prepares the next round.
    """

    name: str
    port: int
    process: subprocess.Popen[bytes]
    keys: Callable[[], list[Key]]
    clear: Callable[[], None]
    ready: Callable[[int], None] = lambda count: None
    bare: bool = False
    late: bool = False
    share: float = 1.0
    syncs: str = "never"
    sink: Destination | None = None
    others: Sequence[subprocess.Popen[bytes]] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def pids(self) -> list[int]:
        """Of all its processes that somebody else did not start."""
        return [self.process.pid, *(other.pid for other in self.others)]


Make = Callable[[Path], AbstractContextManager[Contestant]]

def files(folder: Path, pattern: str = "*") -> list[Key]:
    found = (part10(path) for path in folder.rglob(pattern) if path.is_file() and path.suffix not in (".log", ".cfg"))
    return [entry.key for entry in found if entry is not None]


def of_destination(destination: Destination, **settings: object) -> Contestant:
    assert destination.process is not None
    return Contestant(destination.kind, destination.port, destination.process, destination.arrived,
                      lambda: clear(destination.folder), **settings)  # type: ignore[arg-type]


def clear(folder: Path, pattern: str = "*") -> None:
    """What a round has left there is put aside (`ground`); logs and settings stay."""
    kept = (".log", ".cfg")
    ground.put_aside([path for path in folder.rglob(pattern) if path.is_file() and path.suffix not in kept],
                     folder.with_name(f"{folder.name}.aside"))


# --- receivers --------------------------------------------------------------------------------------------------------


@contextmanager
def ours(folder: Path) -> Iterator[Contestant]:
    """The receiver stage with its defaults: one process a core, at most 4; one sync an image."""
    with Gateway(folder, [to_folder(folder / "archive")], receivers=0, size=0) as gateway:
        gateway.start("receiver")
        yield Contestant("dcmgate", gateway.port, gateway.processes["receiver"],
                         lambda: files(gateway.spool / "objects", "*.dcm"), lambda: None, syncs="each image")


@contextmanager
def storescp(folder: Path, *, as_shipped: bool = False, pdu: int = 0) -> Iterator[Contestant]:
    """A process for each association; the data set goes to a file as it is read; never synced. PDUs of 16 KiB unless `pdu`
    says otherwise."""
    with peers.storescp(folder, as_shipped=as_shipped, profile=False, options=["-pdu", str(pdu)] if pdu else []) as destination:
        yield of_destination(destination)


@contextmanager
def dcmrecv(folder: Path) -> Iterator[Contestant]:
    """One association at a time."""
    with peers.dcmrecv(folder) as destination:
        yield of_destination(destination, late=True)


@contextmanager
def orthanc(folder: Path, *, as_shipped: bool = False) -> Iterator[Contestant]:
    with peers.orthanc(folder, as_shipped=as_shipped) as destination:
        yield _orthanc(destination, share=0.25)


def _orthanc(destination: Destination, *, share: float) -> Contestant:
    assert destination.process is not None
    rest = Orthanc(destination.http)

    def forget() -> None:
        for patient in rest.json("/patients"):
            rest.call(f"/patients/{patient}", method="DELETE")

    return Contestant("orthanc", destination.port, destination.process, rest.arrived, forget, share=share, syncs="file data")


@contextmanager
def _python(module: str, *arguments: object, port: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with peers.running(command, [port], log=folder / "plain.log", env=peers.environment(), cwd=ROOT) as process:
        yield process


@contextmanager
def pynetdicom(folder: Path) -> Iterator[Contestant]:
    port = free_port()
    with _python("tests.bench.plain", "receive", port, folder, port=port, folder=folder) as process:
        yield Contestant("pynetdicom", port, process, lambda: files(folder), lambda: clear(folder), share=0.2)


@contextmanager
def limit(folder: Path, processes: int, direct: bool) -> Iterator[Contestant]:
    """The bare receiver; it holds raw data sets, which are known by their digest alone."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    mode = "direct" if direct else "cached"
    command = [sys.executable, "-m", "tests.bench.limit", str(port), str(folder), str(processes), mode]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with (folder / "limit.log").open("ab") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=ROOT,
                                   env=peers.environment(), start_new_session=True,
                                   preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard)))
    assert process.stdin is not None and process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def ready(count: int) -> None:
        stdin.write(f"ready {count}\n".encode())
        stdin.flush()
        if stdout.readline() != b"ready\n":
            raise AssertionError((folder / "limit.log").read_text())

    def keys() -> list[Key]:
        return [("", "", blake3(path.read_bytes()).hexdigest()) for path in folder.rglob("*.raw") if path.stat().st_size]

    def forget() -> None:
        written = (path for path in folder.rglob("*.raw") if path.stat().st_size)
        ground.put_aside(list(written), folder.with_name(f"{folder.name}.aside"))

    try:
        ready(1)
        yield Contestant(f"limit ({mode}, {processes} process{'es' if processes > 1 else ''})", port, process, keys, forget,
                         ready, bare=True, syncs="each image")
    finally:
        peers.end(process)
        stdin.close()
        stdout.close()


RECEIVERS: dict[str, Make] = {
    "dcmgate": ours, "storescp --fork": storescp, "storescp --fork -pdu 131072": partial(storescp, pdu=131072),
    "dcmrecv": dcmrecv, "orthanc": orthanc, "pynetdicom": pynetdicom}
LIMITS = [(1, True), (1, False), (4, True), (4, False)]
"""Processes and O_DIRECT: whichever is fastest in the case at hand is the limit."""


# --- routers ----------------------------------------------------------------------------------------------------------


@contextmanager
def our_router(folder: Path, *, as_shipped: bool = False, others: Sequence[dict[str, object]] = (),
               associations: int = 0, together: bool = False) -> Iterator[Contestant]:
    """To one storescp (and `others`), over so many associations (0: as shipped); each stage a unit of its own, as on the box,
    or `together`: `dcmgate run`, everything in one process, as on a laptop."""
    with ExitStack() as stack:
        sink = stack.enter_context(_sink(folder, as_shipped))
        wanted = {"associations": associations} if associations else {}
        gateway = stack.enter_context(Gateway(folder / "gateway", [to_peer(sink, **wanted), *others], receivers=0, size=0))
        if together:
            gateway.start("run")
        else:
            gateway.start_stages()
        first, *rest = gateway.processes.values()
        yield Contestant("dcmgate", gateway.port, first, sink.arrived, lambda: clear(sink.folder), sink=sink, others=rest,
                         syncs="each image")


@contextmanager
def orthanc_router(folder: Path, *, as_shipped: bool = False) -> Iterator[Contestant]:
    """Orthanc with its auto-routing in Lua."""
    with ExitStack() as stack:
        sink = stack.enter_context(_sink(folder, as_shipped))
        destination = stack.enter_context(peers.orthanc(folder / "orthanc", lua=peers.AUTO_ROUTING, as_shipped=as_shipped,
                                                        modalities={"sink": (sink.title, sink.port)}))
        router = _orthanc(destination, share=0.35)
        forget = router.clear

        def both() -> None:
            forget()
            clear(sink.folder)

        router.sink, router.keys, router.clear = sink, sink.arrived, both
        yield router


@contextmanager
def plain_router(folder: Path, *, as_shipped: bool = False) -> Iterator[Contestant]:
    port = free_port()
    with ExitStack() as stack:
        sink = stack.enter_context(_sink(folder, as_shipped))
        process = stack.enter_context(_python("tests.bench.plain", "route", port, sink.port, port=port,
                                              folder=folder / "plain"))
        yield Contestant("pynetdicom", port, process, sink.arrived, lambda: clear(sink.folder),
                         share=0.15 if as_shipped else 0.3, sink=sink)


@contextmanager
def _sink(folder: Path, as_shipped: bool) -> Iterator[Destination]:
    with peers.storescp(folder / "sink", as_shipped=as_shipped, profile=False) as sink:
        yield sink


ROUTERS: dict[str, Callable[..., AbstractContextManager[Contestant]]] = {
    "dcmgate": our_router, "dcmgate run": partial(our_router, together=True), "orthanc": orthanc_router,
    "pynetdicom": plain_router}
