"""The judge of the proof: was anything that a sender was told "success" for lost, altered or left unaccounted?

Threefold, and by nobody's word but the sender's: the sender's journal (what was
acknowledged, with a SHA-256 of its own), the destination's store, and what the
spool still holds, whose files are read here by the page of the format
(`appliance/man/spool-format.md`) and without a line of the product. `dcmgate
balance` is asked last, and its sums are added up again.

    journal = Journal(path)                       # path None: in memory
    journal.offer(instance); journal.acknowledge(instance)
    verdict = judge(journal, {"pacs": read_store(folder)}, spool=path, balance=balance_of(path, scratch))
    verdict.holds; verdict.as_text()
"""

from __future__ import annotations

import binascii
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from blake3 import blake3

from tests.support import objects
from tests.support.gateway import toml
from tests.support.objects import Instance

ROOT = Path(__file__).resolve().parents[2]
HEAD = 4096
NAMED = 20
"""At most so many notes of one kind."""

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One data set, as its sender knows it. `sha256` in hex over the data set alone, `length` in bytes."""

    instance: str
    syntax: str
    sha256: str
    length: int

    def __str__(self) -> str:
        return f"{self.instance} ({self.length} bytes, {self.sha256[:12]})"


def entry_of(instance: Instance) -> Entry:
    """What a sender writes down of an object of `tests.support.objects`."""
    digest = hashlib.sha256()
    for part in instance.parts:
        digest.update(part)
    return Entry(instance.sop_instance, instance.syntax, digest.hexdigest(), instance.length)


class Journal:
    """A sender's notes. Thread-safe; in a file they are only ever appended, a line each, and survive the sender's own end.

    `offer` before an object is sent, `acknowledge` when its success status was
    read. Where senders offer everything, an object at a destination that nobody
    sent counts as altered. The same object acknowledged twice is two entries.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.offered: list[Entry] = []
        self.acknowledged: list[Entry] = []
        self._lock = threading.Lock()
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        *lines, torn = path.read_bytes().split(b"\n")
        if torn:   # it was being written when its sender died
            os.truncate(path, path.stat().st_size - len(torn))
        for line in lines:
            kind, *values = json.loads(line)
            (self.acknowledged if kind == "+" else self.offered).append(Entry(*values))

    def offer(self, instance: Instance | Entry) -> Entry:
        return self._add("?", self.offered, instance)

    def acknowledge(self, instance: Instance | Entry) -> Entry:
        return self._add("+", self.acknowledged, instance)

    def _add(self, kind: str, entries: list[Entry], instance: Instance | Entry) -> Entry:
        entry = instance if isinstance(instance, Entry) else entry_of(instance)
        with self._lock:
            entries.append(entry)
            if self.path is not None:
                line = json.dumps([kind, entry.instance, entry.syntax, entry.sha256, entry.length], separators=(",", ":"))
                fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
                try:
                    os.write(fd, line.encode() + b"\n")
                finally:
                    os.close(fd)
        return entry

    def __len__(self) -> int:
        return len(self.acknowledged)


# --- a destination's store --------------------------------------------------------------------------------------------


def read_store(folder: Path) -> list[Entry]:
    """Every Part 10 file below a folder (storescp, dcmrecv, dcmqrscp, a pynetdicom SCP that writes files), one entry each."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in (".log", ".cfg", ".jsonl"):
            with path.open("rb") as file:
                part10 = objects.part10_from(file, path)
                if part10 is not None:
                    found.append(_entry(file, part10.sop_instance, part10.syntax, part10.offset))
    return found


def read_archive(folder: Path) -> list[Entry]:
    """A destination of type "folder": its objects, and not what it is only just writing."""
    return read_store(folder / "objects")


def read_bytes(raw: bytes) -> Entry:
    """A Part 10 file in memory, as Orthanc gives it (`/instances/<id>/file`). ValueError where it is none."""
    file = io.BytesIO(raw)
    part10 = objects.part10_from(file, Path("memory"))
    if part10 is None:
        raise ValueError("no Part 10 file")
    return _entry(file, part10.sop_instance, part10.syntax, part10.offset)


def _entry(file: BinaryIO, instance: str, syntax: str, offset: int) -> Entry:
    digest, length = hashlib.sha256(), 0
    file.seek(offset)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        length += len(chunk)
    return Entry(instance, syntax, digest.hexdigest(), length)


# --- what the spool holds ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Held:
    """One object file of the spool. `fault` says why it is no intact object; `excess`: bytes after its data set."""

    path: Path
    number: int
    entry: Entry | None
    fault: str = ""
    excess: int = 0

    @property
    def intact(self) -> bool:
        return self.entry is not None and not self.fault


def read_spool(spool: Path) -> list[Held]:
    """Every object file that was written to; ready slots (empty, or zeros where the head should be) are left out."""
    found = (read_object(path) for path in sorted((spool / "objects").glob("*/*.dcm")))
    return [held for held in found if held is not None]


def read_quarantine(spool: Path) -> list[Held]:
    found = (read_object(path) for path in sorted((spool / "quarantine").glob("*.dcm")))
    return [held for held in found if held is not None]


def read_object(path: Path) -> Held | None:
    """One file by the page of the format; None for a slot that nothing was written to, or a file that went meanwhile."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
            if not head.strip(b"\0"):
                return None
            number = int(path.name[:16], 16)
            try:
                record = _record(head)
            except (ValueError, KeyError, TypeError, struct.error) as e:
                return Held(path, number, None, f"head: {e}")
            return _held(file, path, number, record)
    except FileNotFoundError:
        return None


def _record(head: bytes) -> dict[str, Any]:
    """The custody record of a head. ValueError says what is wrong with it."""
    if len(head) != HEAD or head[:132] != bytes(128) + b"DICM":
        raise ValueError("no head of 128 zero bytes, DICM and file meta group")
    if binascii.crc32(head[:-4] + bytes(4)) != struct.unpack("<I", head[-4:])[0]:
        raise ValueError("CRC")
    at = 132
    while at < HEAD:
        group, element, vr, size = struct.unpack_from("<HH2sH", head, at)
        at += 8
        if vr.decode("latin-1") in objects.LONG:
            size, at = struct.unpack_from("<I", head, at)[0], at + 4
        if (group, element) == (2, 0x0102):
            record = json.loads(head[at:HEAD - 4].rstrip(b"\0"))
            if record["v"] != 1:
                raise ValueError(f"record of version {record['v']}")
            return dict(record)
        at += size
    raise ValueError("no custody record")


def _text(value: Any) -> str:
    return bytes.fromhex(value["hex"]).decode("latin-1") if isinstance(value, dict) else str(value)


def _held(file: BinaryIO, path: Path, number: int, record: Mapping[str, Any]) -> Held:
    length = int(record["length"])
    sha, own, left = hashlib.sha256(), blake3(), length
    while left and (chunk := file.read(min(left, _CHUNK))):
        sha.update(chunk)
        own.update(chunk)
        left -= len(chunk)
    excess = os.fstat(file.fileno()).st_size - HEAD - length
    # PS3.5 9.1: a UID of odd length is padded with a NUL on the way; the sender noted it without.
    entry = Entry(_text(record["instance"]).rstrip("\0 "), _text(record["syntax"]), sha.hexdigest(), length - left)
    fault = ""
    if record["number"] != number:
        fault = f"it is the file of number {record['number']}"
    elif left:
        fault = f"{left} bytes of its data set are missing"
    elif own.hexdigest() != record["blake3"]:
        fault = "its data set has another digest than its head"
    return Held(path, number, entry, fault, max(0, excess))


# --- dcmgate balance --------------------------------------------------------------------------------------------------


def balance_of(spool: Path, scratch: Path, *options: str, seconds: float = 120.0) -> dict[str, Any]:
    """What `dcmgate balance --json` says of a spool by itself; `scratch` takes the configuration that it needs.

    AssertionError where the command fails or does not answer.
    """
    uuid = json.loads((spool / "SPOOL-ID").read_bytes())["uuid"]
    config = scratch / "balance.toml"
    config.write_text(toml([("[listener]", {"id": "nobody", "ports": [11112]}),
                            ("[destination]", {"id": "nowhere", "type": "folder", "path": scratch, "default": True}),
                            ("spool", {"path": spool, "uuid": uuid, "state": scratch}), ("control", {"run": scratch})]))
    done = subprocess.run([sys.executable, "-m", "appliance.cli.main", "--config", str(config), "--json", "balance", *options],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False, cwd=ROOT,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
        if "unaccounted" not in answer:
            raise ValueError("no balance")
    except ValueError:
        raise AssertionError(f"dcmgate balance: exit status {done.returncode}\n{done.stdout}\n{done.stderr}") from None
    return answer


STATES = ("waiting", "sent", "confirmed", "retired", "duplicate", "quarantined", "discarded")


def _unaccounted(balance: Mapping[str, Any], acknowledged: int, notes: list[str]) -> int:
    """What the balance owns up to, what its sums do not, and what it never heard of."""
    wrong = int(balance["unaccounted"])
    notes += [f"unaccounted: {line}" for line in balance["discrepancies"][:NAMED]]
    granted = sum(int(balance[name]) for name in ("free", "in_flight", "void", "accepted", "derived"))
    accepted = sum(int(balance[name]) for name in STATES)
    for name, left, right in (("granted", int(balance["granted"]), granted), ("accepted", int(balance["accepted"]), accepted)):
        if left != right:
            wrong += abs(left - right)
            notes.append(f"unaccounted: {left} {name}, its parts are {right}")
    known = int(balance["accepted"]) + int(balance["in_flight"])
    if known < acknowledged:
        wrong += acknowledged - known
        notes.append(f"unaccounted: {acknowledged} acknowledged, {known} accepted or in flight")
    return wrong


# --- the verdict ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Verdict:
    """`acknowledged`: answers of success; the others as the proof counts them. `notes` name what is wrong, and what is odd.

    `delivered`, `held`: of the different data sets that were acknowledged, how many
    are at every destination, and how many are intact in the spool; `set_aside`: how
    many are in quarantine and nowhere else, which is no loss, but needs a reason.
    """

    acknowledged: int = 0
    lost: int = 0
    altered: int = 0
    unaccounted: int = 0
    notes: list[str] = field(default_factory=list)
    delivered: int = 0
    held: int = 0
    set_aside: int = 0

    @property
    def holds(self) -> bool:
        return not (self.lost or self.altered or self.unaccounted)

    def as_text(self) -> str:
        return "; ".join([f"{self.acknowledged} acknowledged, {self.lost} lost, {self.altered} altered,"
                          f" {self.unaccounted} unaccounted", *self.notes])

    def add(self, other: Verdict) -> None:
        """Sum up with the verdict on another case."""
        for name in ("acknowledged", "lost", "altered", "unaccounted", "delivered", "held", "set_aside"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.notes += other.notes


def judge(journal: Journal | Iterable[Entry], destinations: Mapping[str, Sequence[Entry]], *, spool: Path | None = None,
          balance: Mapping[str, Any] | None = None, ledger_kept: bool = True, held: Sequence[Held] | None = None) -> Verdict:
    """The verdict on one case. `destinations`: what each of them has that must get everything; may be empty.

    lost: acknowledged, and at some destination it is not, nor intact in the spool
    (or in quarantine). altered: at a destination with bytes that nobody sent under
    that UID and transfer syntax, or (where everything offered is in the journal)
    nobody sent at all. unaccounted: by `balance` (the answer of `dcmgate balance
    --json`, None: not asked), or accepted fewer times than acknowledged;
    `ledger_kept` False: the ledger was rebuilt and may not know what was retired.
    `held`: what `read_spool` said of that spool, where it was asked already.
    """
    acknowledged = list(journal.acknowledged if isinstance(journal, Journal) else journal)
    offered = list(journal.offered) if isinstance(journal, Journal) else []
    verdict = Verdict(acknowledged=len(acknowledged))
    stores = {name: set(entries) for name, entries in destinations.items()}
    if held is None:
        held = read_spool(spool) if spool is not None else []
    aside = read_quarantine(spool) if spool is not None else []
    _count_lost(verdict, acknowledged, stores, held, aside)
    _count_altered(verdict, acknowledged + offered, stores, everything=bool(offered))
    if balance is not None:
        verdict.unaccounted += _unaccounted(balance, len(acknowledged) if ledger_kept else 0, verdict.notes)
    return verdict


def _count_lost(verdict: Verdict, acknowledged: Iterable[Entry], stores: Mapping[str, set[Entry]], held: Sequence[Held],
                aside: Sequence[Held]) -> None:
    in_spool = {h.entry for h in held if h.intact}
    set_aside = {h.entry for h in aside if h.intact}
    faults = {h.entry.instance: f"{h.path.name}: {h.fault}" for h in (*held, *aside) if h.entry is not None and h.fault}
    for entry in dict.fromkeys(acknowledged):
        missing = [name for name, store in stores.items() if entry not in store]
        verdict.delivered += bool(stores) and not missing
        if entry in in_spool:
            verdict.held += 1
        elif not stores or missing:
            if entry in set_aside:
                verdict.set_aside += 1
                verdict.notes.append(f"in quarantine only: {entry}")
            else:
                verdict.lost += 1
                where = f"not at {', '.join(missing)}, " if missing else ""
                verdict.notes.append(f"lost: {entry}: {where}not in the spool {faults.get(entry.instance, '')}".rstrip())
    del verdict.notes[3 * NAMED:]


def _count_altered(verdict: Verdict, sent: Iterable[Entry], stores: Mapping[str, set[Entry]], *, everything: bool) -> None:
    known = set(sent)
    names = Counter(entry.instance for entry in known)
    for entry, name in _each(stores):
        if entry in known:
            continue
        if names[entry.instance] or everything:
            verdict.altered += 1
            if verdict.altered <= NAMED:
                verdict.notes.append(f"altered: {entry} at {name}, which nobody sent so")


def _each(stores: Mapping[str, set[Entry]]) -> Iterator[tuple[Entry, str]]:
    for name, store in stores.items():
        for entry in sorted(store, key=lambda e: (e.instance, e.sha256)):
            yield entry, name
