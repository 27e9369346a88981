"""The real programs that the tests talk to, each as a context manager on a free port of 127.0.0.1, ready when entered.

`storescp`, `dcmrecv`, `dcmqrscp` and `orthanc` yield a `Destination`: what
arrived there is compared by (UID, transfer syntax, digest of the data set).
The senders run to their end and return what they said.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from tests.support import objects
from tests.support.objects import Instance, Key, Part10
from tests.support.waiting import free_port, wait_listening, wait_until

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"




class NoPeer(Exception):
    """A program of Debian is missing: `.ci/setup peers` installs it."""


def program(name: str) -> str:
    """Debian's program of that name, never pynetdicom's of the same name in the virtual environment."""
    found = shutil.which(name, path=SYSTEM_PATH)
    if found is None:
        raise NoPeer(f"{name} is missing: run `make test` or `.ci/setup peers`")
    return found


def environment(*, as_shipped: bool = False) -> dict[str, str]:
    """Without the variable DCMTK and Orthanc leave Nagle on and cost up to 50 ms an image."""
    kept = {key: value for key, value in os.environ.items() if key != "TCP_NODELAY"}
    return kept if as_shipped else {**kept, "TCP_NODELAY": "1"}


@contextmanager
def running(command: Sequence[str | Path], ports: Iterable[int], *, log: Path, env: dict[str, str] | None = None,
            cwd: Path | None = None, seconds: float = 30.0) -> Iterator[subprocess.Popen[bytes]]:
    """A program in a process group of its own, from the moment that it listens; killed with all its children at the end."""
    with log.open("ab") as out:
        process = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                   env=env, cwd=cwd, start_new_session=True)
    try:
        try:
            wait_listening(ports, seconds, lambda: process.poll() is None)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{command}\n{log.read_text(errors='replace')[-2000:]}") from None
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the whole group; nothing is left behind."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


@dataclass
class Destination:
    """A receiver of images. `files` is where it keeps them; `reach` is what a `[[destination]]` needs to know."""

    kind: str
    title: str
    port: int
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    http: int = 0

    def files(self) -> list[Part10]:
        found = (objects.part10(path) for path in sorted(self.folder.rglob("*"))
                 if path.is_file() and path.suffix not in (".log", ".cfg"))
        return [entry for entry in found if entry is not None]

    def arrived(self) -> list[Key]:
        """What is there now, each copy once."""
        if self.kind == "orthanc":
            return Orthanc(self.http).arrived()
        return [entry.key for entry in self.files()]

    def wait_for(self, keys: Iterable[Key], seconds: float = 60.0) -> None:
        wanted = set(keys)
        wait_until(lambda: wanted <= set(self._settled()), seconds, f"{len(wanted)} objects at {self.kind}", every=0.1)

    def _settled(self) -> list[Key]:
        try:
            return self.arrived()
        except (ValueError, OSError):   # a file that is just being written or renamed
            return []

    def clear(self) -> None:
        """Lose everything, as a PACS does."""
        for entry in self.folder.iterdir():
            if entry.is_file() and entry.suffix not in (".log", ".cfg"):
                entry.unlink()


def acceptor_profile(path: Path, classes: Iterable[str], syntaxes: Iterable[str], names: Sequence[str] = ("Default",)) -> Path:
    """A DCMTK association profile that takes every class in every syntax (asconfig.txt)."""
    lines = ["[[TransferSyntaxes]]", "[Any]"]
    lines += [f"TransferSyntax{n} = {syntax}" for n, syntax in enumerate(syntaxes, 1)]
    lines += ["[[PresentationContexts]]", "[Store]", f"PresentationContext1 = {VERIFICATION}\\Any"]
    lines += [f"PresentationContext{n} = {sop_class}\\Any" for n, sop_class in enumerate(classes, 2)]
    lines += ["[[Profiles]]"]
    for name in names:
        lines += [f"[{name}]", "PresentationContexts = Store"]
    path.write_text("\n".join(lines) + "\n")
    return path


def requestor_profile(path: Path, contexts: Iterable[tuple[str, str]]) -> Path:
    """A profile that proposes exactly these (SOP class, transfer syntax), one context each."""
    pairs = list(contexts)
    syntaxes = list(dict.fromkeys(syntax for _, syntax in pairs))
    lines = ["[[TransferSyntaxes]]"]
    for number, syntax in enumerate(syntaxes):
        lines += [f"[Only{number}]", f"TransferSyntax1 = {syntax}"]
    lines += ["[[PresentationContexts]]", "[Store]"]
    for number, (sop_class, syntax) in enumerate(pairs, 1):
        lines.append(f"PresentationContext{number} = {sop_class}\\Only{syntaxes.index(syntax)}")
    lines += ["[[Profiles]]", "[Default]", "PresentationContexts = Store"]
    path.write_text("\n".join(lines) + "\n")
    return path


VERIFICATION = "1.2.840.10008.1.1"
EVERY_SYNTAX = (
    objects.EXPLICIT, objects.IMPLICIT, objects.BIG, objects.DEFLATED, objects.RLE,
    "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91",
)
"""What DCMTK 3.6.7 and 3.6.9 both know by UID."""


def every_class() -> list[str]:
    """The classes of the corpus and of pydicom's files."""
    own = [objects.CT, objects.MULTIFRAME, objects.DX, objects.SR, objects.RAW, objects.PRIVATE]
    return list(dict.fromkeys(own + [entry.sop_class for entry in objects.bundled()]))


# --- destinations -----------------------------------------------------------------------------------------------------


@contextmanager
def storescp(folder: Path, *, fork: bool = True, port: int = 0, as_shipped: bool = False, profile: bool = True,
             options: Sequence[str] = (), more: Mapping[str, str] | None = None) -> Iterator[Destination]:
    """storescp +B: writes the data set exactly as read, each instance to a file of its own. `more`: environment."""
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    profile_of = acceptor_profile(folder / "storescp.cfg", every_class(), EVERY_SYNTAX)
    command: list[str | Path] = [program("storescp"), "+B", "+uf", *options, "-od", folder]
    command += ["--fork"] if fork else []
    command += ["-xf", profile_of, "Default"] if profile else ["+xa", "-pm"]
    command.append(str(port))
    with running(command, [port], log=folder / "storescp.log", env={**environment(as_shipped=as_shipped), **(more or {})}
                 ) as process:
        yield Destination("storescp", "STORESCP", port, folder, process)


@contextmanager
def dcmrecv(folder: Path, *, port: int = 0, as_shipped: bool = False, options: Sequence[str] = ()) -> Iterator[Destination]:
    """dcmrecv +B: one association after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    profile = acceptor_profile(folder / "dcmrecv.cfg", every_class(), EVERY_SYNTAX)
    command: list[str | Path] = [program("dcmrecv"), "+B", "+fu", "-xf", profile, "Default", *options, "-od", folder, str(port)]
    with running(command, [port], log=folder / "dcmrecv.log", env=environment(as_shipped=as_shipped)) as process:
        yield Destination("dcmrecv", "DCMRECV", port, folder, process)


@contextmanager
def dcmqrscp(folder: Path, *, port: int = 0, as_shipped: bool = False) -> Iterator[Destination]:
    """dcmqrscp +B: an archive that can be queried; one file for each SOP Instance UID."""
    store = folder / "store"
    store.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    config = folder / "dcmqrscp.cfg"
    config.write_text(f"""NetworkTCPPort  = {port}
MaxPDUSize      = 16384
MaxAssociations = 16
HostTable BEGIN
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
QRSCP {store} RW (1000, 1024mb) ANY
AETable END
""")
    profile = acceptor_profile(folder / "assoc.cfg", [*every_class(), *QUERY], EVERY_SYNTAX, ("In", "Out"))
    command: list[str | Path] = [program("dcmqrscp"), "+B", "-c", config, "-xf", profile, "In", "Out", str(port)]
    with running(command, [port], log=folder / "dcmqrscp.log", env=environment(as_shipped=as_shipped)) as process:
        yield Destination("dcmqrscp", "QRSCP", port, store, process)


QUERY = ("1.2.840.10008.5.1.4.1.2.1.1", "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.3")


@contextmanager
def orthanc(folder: Path, *, port: int = 0, http: int = 0, title: str = "ORTHANC", lua: str = "", as_shipped: bool = False,
            modalities: dict[str, tuple[str, int]] | None = None, settings: dict[str, Any] | None = None,
            modality: dict[str, Any] | None = None, more: Mapping[str, str] | None = None) -> Iterator[Destination]:
    """Orthanc on a database of its own; `modalities` are name → (title, port), `lua` its routing script.

    `settings` are added to its own, `modality` to each modality, `more` to its environment.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, http = port or free_port(), http or free_port()
    whole: dict[str, Any] = {
        "Name": title, "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"), "Plugins": [],
        "HttpPort": http, "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "HttpDescribeErrors": True,
        "DicomAet": title, "DicomPort": port, "DicomCheckCalledAet": False, "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowStore": True, "UnknownSopClassAccepted": True, "OverwriteInstances": True,
        "StorageCompression": False, "StableAge": 600, "JobsHistorySize": 10, "SaveJobs": False, "ConcurrentJobs": 4,
        "DicomScpTimeout": 30, "DicomScuTimeout": 30, "TranscodeDicomProtocol": True, "DicomModalities": {
            name: {"AET": aet, "Host": "127.0.0.1", "Port": number, "AllowStorageCommitment": False, **(modality or {})}
            for name, (aet, number) in (modalities or {}).items()},
        **(settings or {})}
    if lua:
        (folder / "route.lua").write_text(lua)
        whole["LuaScripts"] = [str(folder / "route.lua")]
    (folder / "orthanc.json").write_text(json.dumps(whole, indent=1))
    with running([program("Orthanc"), folder / "orthanc.json"], [port, http], log=folder / "orthanc.log",
                 env={**environment(as_shipped=as_shipped), **(more or {})}, seconds=60) as process:
        yield Destination("orthanc", title, port, folder / "db", process, http)


AUTO_ROUTING = """
function OnStoredInstance(instanceId, tags, metadata, origin)
  if origin['RequestOrigin'] == 'DicomProtocol' then
    SendToModality(instanceId, 'sink')
  end
end
"""


@dataclass
class Orthanc:
    """Orthanc's REST interface."""

    http: int

    def call(self, path: str, data: bytes | dict[str, Any] | None = None, *, method: str = "") -> Any:
        body = json.dumps(data).encode() if isinstance(data, dict) else data
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", data=body,
                                         method=method or ("GET" if body is None else "POST"))
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.read()

    def json(self, path: str, data: bytes | dict[str, Any] | None = None) -> Any:
        return json.loads(self.call(path, data))

    def upload(self, path: Path) -> str | None:
        """Orthanc's own id of the object; None where Orthanc cannot parse the file."""
        try:
            return str(self.json("/instances", path.read_bytes())["ID"])
        except urllib.error.HTTPError:
            return None

    def send(self, ids: Sequence[str], modality: str) -> bool:
        """Send to a modality of the configuration; False where any object failed."""
        try:
            answer = self.json(f"/modalities/{modality}/store", {"Resources": list(ids), "Synchronous": True})
        except urllib.error.HTTPError:
            return False
        return int(answer["FailedInstancesCount"]) == 0

    def arrived(self) -> list[Key]:
        return [self.key(identifier) for identifier in self.json("/instances")]

    def key(self, identifier: str) -> Key:
        raw = self.call(f"/instances/{identifier}/file")
        found = part10_of(raw)
        return found.sop_instance, found.syntax, blake3(memoryview(raw)[found.offset:]).hexdigest()

    def count(self) -> int:
        return int(self.json("/statistics")["CountInstances"])


def part10_of(raw: bytes) -> Part10:
    """The meta group of a Part 10 file in memory."""
    found = objects.part10_from(io.BytesIO(raw), Path("memory"))
    if found is None:
        raise ValueError("no Part 10 file")
    return found


@dataclass
class Archive:
    """A pynetdicom storage SCP in this process; what `refuse` names by SOP Instance UID gets that status, all else success."""

    port: int
    keys: list[Key] = field(default_factory=list)
    refuse: dict[str, int] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, keys: Iterable[Key], seconds: float = 60.0) -> None:
        wanted = set(keys)
        with self.changed:
            done = self.changed.wait_for(lambda: wanted <= set(self.keys), seconds)
            assert done, f"{len(wanted - set(self.keys))} are missing"


@contextmanager
def pynetdicom_scp(*, title: str = "PYNET", port: int = 0, context: ssl.SSLContext | None = None) -> Iterator[Archive]:
    """A stock pynetdicom acceptor of every class in every syntax."""
    from pynetdicom import AE, evt

    archive = Archive(port or free_port())

    def on_store(event: Any) -> int:
        with archive.changed:
            if str(event.request.AffectedSOPInstanceUID) in archive.refuse:
                return archive.refuse[str(event.request.AffectedSOPInstanceUID)]
            raw = event.encoded_dataset(include_meta=False)
            archive.keys.append((str(event.request.AffectedSOPInstanceUID), str(event.context.transfer_syntax),
                                 blake3(raw).hexdigest()))
            archive.changed.notify_all()
        return 0

    ae = AE(ae_title=title)
    ae.add_supported_context(VERIFICATION)
    for sop_class in every_class():
        ae.add_supported_context(sop_class, list(EVERY_SYNTAX))
    server = ae.start_server(("127.0.0.1", archive.port), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)],
                             ssl_context=context)
    try:
        yield archive
    finally:
        if server is not None:
            server.shutdown()


# --- senders ----------------------------------------------------------------------------------------------------------


def storescu(port: int, files: Sequence[Part10], folder: Path, *, called: str = "ANY-SCP", calling: str = "STORESCU",
             as_shipped: bool = False, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """All files on one association, each in its own syntax, and none stops the others."""
    profile = requestor_profile(folder / "storescu.cfg", dict.fromkeys((f.sop_class, f.syntax) for f in files))
    return _sent([program("storescu"), "-v", "-nh", "-aec", called, "-aet", calling, "-xf", profile, "Default", *options,
                  "127.0.0.1", str(port), *(f.path for f in files)], as_shipped)


def dcmsend(port: int, files: Sequence[Part10], folder: Path, *, called: str = "ANY-SCP", calling: str = "DCMSEND",
            as_shipped: bool = False, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """dcmsend, which chooses contexts itself, as many associations as it needs, and nothing is decompressed."""
    return _sent([program("dcmsend"), "-v", "-nh", "-dn", "-nuc", "-aec", called, "-aet", calling, *options,
                  "127.0.0.1", str(port), *(f.path for f in files)], as_shipped)


def _sent(command: Sequence[str | Path], as_shipped: bool) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          errors="replace", env=environment(as_shipped=as_shipped), timeout=600, check=False)


def pynetdicom_send(port: int, files: Sequence[Part10], *, called: str = "ANY-SCP", calling: str = "PYNET",
                    tls: tuple[ssl.SSLContext, str] | None = None) -> dict[Path, int]:
    """Status of each file that pynetdicom can send: the data set is decoded and encoded by pydicom on the way.

    `tls`: a context, and the name that the server's certificate has to carry.
    """
    from pydicom import dcmread
    from pynetdicom import AE

    statuses: dict[Path, int] = {}
    ae = AE(ae_title=calling)
    ae.dimse_timeout = 6
    for sop_class, syntax in dict.fromkeys((f.sop_class, f.syntax) for f in files):
        ae.add_requested_context(sop_class, syntax)
    association = None
    for file in files:
        if association is None or not association.is_established:   # an object that pydicom encodes wrongly ends it
            association = ae.associate("127.0.0.1", port, ae_title=called, tls_args=tls)
            assert association.is_established, "pynetdicom could not associate"
        try:
            answer = association.send_c_store(dcmread(file.path))
        except (ValueError, AttributeError, KeyError, TypeError, NotImplementedError):
            continue   # pydicom cannot encode it, or the context was not accepted: this peer cannot send it
        if "Status" in answer:
            statuses[file.path] = int(answer.Status)
        elif association.is_established:   # silence: nothing more can be asked of this association
            association.abort()
            association = None
    if association is not None and association.is_established:
        association.release()
    return statuses


def files_of(instances: Iterable[Instance], folder: Path) -> list[Part10]:
    """The objects as files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [objects.part10(instance.write(folder / f"{number:06d}.dcm")) for number, instance in enumerate(instances)]
    return [entry for entry in found if entry is not None]


@contextmanager
def all_destinations(folder: Path) -> Iterator[dict[str, Destination]]:
    """The four kinds at once, each empty."""
    with ExitStack() as stack:
        yield {
            "storescp": stack.enter_context(storescp(folder / "storescp")),
            "dcmrecv": stack.enter_context(dcmrecv(folder / "dcmrecv")),
            "dcmqrscp": stack.enter_context(dcmqrscp(folder / "dcmqrscp")),
            "orthanc": stack.enter_context(orthanc(folder / "orthanc")),
        }
