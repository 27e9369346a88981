"""The life of a gateway under load, on a disk that records every write and flush.

Real processes (two receivers behind one port, forwarder, keeper) on a new file
system; three scanners; two destinations outside of the disk: storescp, and an
archive folder that loses some of what it said that it has. Each stage is killed
and started again meanwhile, so that recovery is part of the record.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.proof import power_cuts_inside as inside
from tests.proof.oracle import Entry, entry_of, read_object
from tests.proof.power_cuts_inside import Inside
from tests.support import objects, peers
from tests.support.crash import RecordedDisk, State, run
from tests.support.gateway import Gateway, Table, to_folder
from tests.support.objects import Instance
from tests.support.scu import Lost, Scanner, send_views
from tests.support.waiting import wait_until

SCANNERS = 3
CONTEXTS = [(objects.CT, objects.EXPLICIT), (objects.SR, objects.EXPLICIT), (objects.DX, objects.EXPLICIT)]
MARKER = "DCMGATE-ARCHIVE"
RETENTION = {"keep_min_hours": 0.0, "keep_max_days": 1.0 / 86400}
"""A confirmed object is kept for a second."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A copy at a destination, there for good from `since` on (wall ns, 0: from the beginning); `path` is its file."""

    entry: Entry
    since: int
    path: Path


@dataclass(slots=True)
class Recording:
    """What is known of a recorded disk. Positions count its records; `end`: it was put away properly by then.

    `acknowledged`: each success with the position at which its sender had it.
    `stores`: by destination id, what it has for good.
    """

    disk: RecordedDisk
    start: int = 0
    end: int = 0
    offered: list[Entry] = field(default_factory=list)
    acknowledged: list[tuple[int, Entry]] = field(default_factory=list)
    stores: dict[str, list[Stored]] = field(default_factory=dict)

    def promised(self, state: State) -> list[Entry]:
        """What had been acknowledged when the power failed."""
        return [entry for position, entry in self.acknowledged if position <= state.crash]

    def there(self, when: int) -> dict[str, list[Stored]]:
        """What each destination had by then (wall ns)."""
        return {name: [copy for copy in copies if copy.since <= when] for name, copies in self.stores.items()}


# --- the scanners -----------------------------------------------------------------------------------------------------


def instances(scanner: int, count: int, seed: int) -> Iterator[Instance]:
    """Objects of all sizes, in series as scanners send them; some are sent twice, some again with other content."""
    dice = random.Random(f"{seed} {scanner}")
    sent: list[tuple[int, int, int]] = []
    for number in range(count):
        kind = dice.random()
        patient = 100 * scanner + number // 8
        if sent and kind < 0.1:
            yield _one(*dice.choice(sent), seed=seed)                       # the technologist presses the button again
            continue
        if sent and kind < 0.2:
            before, whose, side = dice.choice(sent)
            number, patient, side = before, whose, side + 2                 # same UID, other content
        else:
            side = 0 if kind < 0.45 else -1 if kind > 0.94 else dice.choice((32, 120, 260, 300, 400))
        if side > 0:
            sent.append((number, patient, side))
        yield _one(number, patient, side, seed=seed)


def _one(number: int, patient: int, side: int, *, seed: int) -> Instance:
    if side == 0:
        return objects.sr(number, seed, patient=patient, size=3000 + 7000 * (number % 4))
    if side < 0:
        return objects.dx(number, seed, patient=patient, size=1_300_000)    # more than one buffer
    return objects.ct(number, seed, patient=patient, side=side)


class Scanning:
    """One scanner that goes on until all was acknowledged; now and then an association breaks in the middle of an object."""

    def __init__(self, recording: Recording, port: int, name: int, count: int, seed: int) -> None:
        self.given_up = ""
        self.acknowledged = 0
        self._recording = recording
        self._port = port
        self._name = name
        self._instances = instances(name, count, seed)
        self._dice = random.Random(f"{seed} {name} breaks")
        self.thread = threading.Thread(target=self._run, name=f"scanner-{name}", daemon=True)

    def _run(self) -> None:
        scanner: Scanner | None = None
        deadline = time.monotonic() + 120
        for instance in self._instances:
            entry = entry_of(instance)
            self._recording.offered.append(entry)
            breaks = self._dice.random() < 0.06
            while True:
                if time.monotonic() > deadline:
                    self.given_up = f"scanner {self._name} got no success for {entry} any more"
                    return
                try:
                    if scanner is None:
                        scanner = Scanner(self._port, CONTEXTS, calling=f"SCANNER{self._name}").open()
                    if breaks:
                        breaks = False
                        views = scanner.prepare(instance)
                        send_views(scanner.sock, views[:1 + len(views) // 2])
                        scanner.close()
                        scanner = None
                        continue
                    if scanner.store(instance) == 0:
                        # Read after the answer: what is recorded up to here happened before it, or did not count for it.
                        self._recording.acknowledged.append((self._recording.disk.position, entry))
                        self.acknowledged += 1
                        break
                except (Lost, OSError):
                    scanner = None
                time.sleep(0.02)
        if scanner is not None:
            scanner.release()


# --- the gateway ------------------------------------------------------------------------------------------------------


def destinations(port: int, archive: Path) -> list[dict[str, object]]:
    """storescp, believed at once; and a folder that has to be read back."""
    return [{"id": "pacs", "type": "dimse", "address": "127.0.0.1", "port": port, "called": "STORESCP", "calling": "DCMGATE",
             "default": True, "status_days": 0.0, "window": 8}, to_folder(archive)]


class RecordedGateway(Gateway):
    """Its spool lies elsewhere than its other files, and its processes are told of `Inside`."""

    def __init__(self, folder: Path, mount: Path, given: Sequence[Table], told: Inside, *, receivers: int) -> None:
        self._told = told
        self._hooks = inside.prepare(folder / "hooks")
        super().__init__(folder, given, receivers=receivers, spool={"path": mount / "spool", **RETENTION})
        self.spool = mount / "spool"

    def _environment(self) -> dict[str, str]:
        return {**super()._environment(), **self._told.environment(self._hooks)}


@contextmanager
def recorded_life(work: Path, kind: str, *, seed: int, direct: bool, count: int,
                  mistakes: tuple[str, ...] = ()) -> Iterator[Recording]:
    """`count` objects of each scanner, from their acceptance to their retirement. `work` is a new folder; the record is
    complete, and nothing runs any more, when this is entered."""
    archive, folder, pacs = work / "archive", work / "gateway", work / "pacs"
    (work / "forgotten").mkdir()
    told = Inside(f"boot-{seed}", inside.now(), direct, str(work / "times"), str(work / "forgotten"), seed % 2 == 0,
                  mistakes)
    with peers.storescp(pacs, profile=False) as destination:
        disk = RecordedDisk(work, kind)
        recording = Recording(disk)
        with disk, RecordedGateway(folder, disk.mount, destinations(destination.port, archive), told, receivers=2) as gateway:
            run("sync", "-f", str(disk.mount))
            recording.start = disk.position
            _live(recording, gateway, seed, count)
        recording.end = disk.position
    recording.stores = {"pacs": received(pacs), "archive": kept(work / "times", archive)}
    yield recording


def _live(recording: Recording, gateway: Gateway, seed: int, count: int) -> None:
    dice = random.Random(seed)
    gateway.start_stages()
    scanners = [Scanning(recording, gateway.port, name, count, seed) for name in range(SCANNERS)]
    for scanner in scanners:
        scanner.thread.start()
    whole = SCANNERS * count
    for share, victims in ((0.3, ("receiver",)), (0.6, ("keeper", "forwarder")), (0.85, ("forwarder", "receiver"))):
        moment = int(whole * (share + dice.random() * 0.1))
        wait_until(lambda m=moment: sum(s.acknowledged for s in scanners) >= m or any(s.given_up for s in scanners),  # type: ignore[misc]
                   120, "scanners go on", every=0.005)
        for victim in victims:
            gateway.kill(victim)
        gateway.start(*victims)
    for scanner in scanners:
        scanner.thread.join(150)
        assert not scanner.thread.is_alive() and not scanner.given_up, scanner.given_up or "a scanner hangs"
    _let_go_on(gateway)
    for stage in ("receiver", "forwarder", "keeper"):
        gateway.stop(stage)


def _let_go_on(gateway: Gateway) -> None:
    """Until everything was delivered and most of it retired: what lies between is in the record."""
    found: dict[str, Any] = {}

    def done() -> bool:
        found.update(gateway.balance(status=None))
        if found["waiting"] or found["sent"]:
            _be_the_person(gateway)
            return False
        return bool(found["retired"] + found["duplicate"] >= found["accepted"] * 0.9)

    try:
        wait_until(done, 60, "everything is delivered and retired", every=0.3)
    except AssertionError as error:
        raise AssertionError(f"{error}; {found}; {gateway.log_tail(1500)}") from None


def _be_the_person(gateway: Gateway) -> None:
    """What is for a person to decide: objects killed twice at, and content that the ledger heard of only after later content
    of its UID. What waits for its turn (held by `order`) has to go on by itself."""
    if gateway.json("list", "--state", "parked")["objects"]:
        gateway.command("requeue", "--state", "parked")
    for entry in gateway.json("list", "--state", "held")["objects"]:
        if any(delivery["reason"] == "late" for delivery in entry["deliveries"]):
            gateway.command("release", entry["number"])


# --- what the destinations have ---------------------------------------------------------------------------------------


def received(folder: Path) -> list[Stored]:
    """What storescp wrote, each reception to a file of its own. A file's last change is no later than storescp's answer."""
    found = []
    for path in sorted(folder.iterdir()):
        part10 = objects.part10(path) if path.is_file() and path.suffix not in (".log", ".cfg") else None
        if part10 is not None:
            found.append(Stored(entry_of(part10.instance()), path.stat().st_ctime_ns, path))
    return found


def kept(times: Path, archive: Path) -> list[Stored]:
    """What the archive keeps, by its own account of the time, as its files are now."""
    since: dict[str, int] = {}
    if times.exists():
        for line in times.read_text().splitlines():
            when, reference = line.split()
            since.setdefault(reference, int(when))
    found = []
    for reference, first in since.items():
        held = read_object(archive / reference)
        if held is not None and held.entry is not None:
            found.append(Stored(held.entry, first, archive / reference))
    return found


def rebuilt_archive(target: Path, archive: Path, copies: Sequence[Stored]) -> None:
    """The archive folder as it was with these copies; their files are linked, as nobody changes one in place."""
    for name in ("incoming", *(f"objects/{shard:02x}" for shard in range(256))):
        (target / name).mkdir(parents=True)
    os.link(archive / MARKER, target / MARKER)
    for place, path in {copy.path.relative_to(copy.path.parents[2]): copy.path for copy in copies}.items():
        os.link(path, target / place)
