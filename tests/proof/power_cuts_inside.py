"""What a gateway under power cuts is told from inside its processes: a machine of its own, short periods, a forgetful archive.

Nothing of what it writes to the disk is done otherwise than in the field. A
machine that was switched on again has another boot id and counts its time from
nothing; retention, proofs and checkpoints take fractions of a second; the folder
destination loses some objects right after it said that it has them.

MISTAKES are breakages of the product, made on purpose to see that the instrument
finds them. All of it reaches the real processes by `sitecustomize`, see `prepare`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = "DCMGATE_POWER_CUTS"

_HOOK = """import os
if "DCMGATE_POWER_CUTS" in os.environ:
    from tests.proof import power_cuts_inside
    power_cuts_inside.begin()
"""
_GATEWAY = ("appliance.cli.main", "appliance.receive.process")
_FORGETS_ONE_OF = 6


@dataclass(frozen=True, slots=True)
class Inside:
    """`boot`: id of this boot of the machine, `since`: when it began (CLOCK_BOOTTIME, ns). `direct`: whether objects go
    around the page cache. `times`: file that gets a line "wall ns, reference" for each object that the archive has for
    good; `forgotten`: folder with one file for each that it lost, "" where it loses nothing. `short_log`: whether a
    checkpoint also cuts the ledger's WAL short soon. `mistakes`: names of MISTAKES."""

    boot: str
    since: int
    direct: bool
    times: str
    forgotten: str
    short_log: bool = False
    mistakes: tuple[str, ...] = field(default=())

    def environment(self, hooks: Path) -> dict[str, str]:
        """For the processes of the gateway; `hooks` is the folder that `prepare` made."""
        return {VARIABLE: json.dumps(asdict(self)), "PYTHONPATH": f"{hooks}:{ROOT}"}


def now() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def prepare(folder: Path) -> Path:
    """Make the folder that brings all this into a process that is started with it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_HOOK)
    return folder


def begin() -> None:
    """In a process of the gateway, before its program. One that cannot be prepared must not run at all."""
    if not any(name in word for word in sys.orig_argv for name in _GATEWAY):
        return
    try:
        settings = json.loads(os.environ[VARIABLE])
        apply(Inside(**{**settings, "mistakes": tuple(settings["mistakes"])}))
    except BaseException:  # noqa: BLE001 Python goes on without its sitecustomize
        traceback.print_exc()
        os._exit(99)


def apply(inside: Inside) -> None:
    """From now on this process is that machine's."""
    _the_clock(inside.boot, inside.since)
    _short_periods(short_log=inside.short_log)
    if not inside.direct:
        _through_the_cache()
    _the_archive(Path(inside.times), Path(inside.forgotten) if inside.forgotten else None)
    for name in inside.mistakes:
        MISTAKES[name]()


def _the_clock(boot: str, since: int) -> None:
    from appliance.clock import SECOND, SystemClock

    def boot_ns(_: SystemClock) -> int:
        return SECOND + now() - since

    def boot_id(_: SystemClock) -> str:
        return boot

    SystemClock.boot_ns = boot_ns  # type: ignore[method-assign, assignment]
    SystemClock.boot_id = boot_id  # type: ignore[method-assign, assignment]


def _short_periods(*, short_log: bool) -> None:
    from appliance.confirm import confirmer, proof
    from appliance.keeper import keeper
    from appliance.spool import keeping
    proof.PAUSES = (0, 0, 0)  # type: ignore[assignment]
    confirmer.POLL_SECONDS = 0.2
    keeper.LEAST_SECONDS, keeper.ROUND_SECONDS = 0.05, 0.2
    keeper.CHECKPOINT_SECONDS, keeper.SWEEP_SECONDS = 0.4, 0.8
    keeper.REMNANTS_SECONDS = keeper.WITNESS_SECONDS = 1.0
    if short_log:
        keeping.CHECKPOINT_TRUNCATE_PAGES = 300


def _through_the_cache() -> None:
    from appliance.spool.intake import Intake
    real = Intake.start

    def start(self: Intake) -> None:
        self.direct = False
        real(self)

    Intake.start = start  # type: ignore[method-assign]


def _the_archive(times: Path, forgotten: Path | None) -> None:
    """Its own account of what it has, and the first delivery of every sixth object: stored, answered for, and gone."""
    from appliance.model import Custody
    from appliance.net.archive import Archive
    real = Archive.write

    def write(self: Archive, custody: Custody, chunks: Iterable[bytes | memoryview]) -> str:
        reference = real(self, custody, chunks)
        if forgotten is not None and custody.digest[0] % _FORGETS_ONE_OF == 0:
            with suppress(FileExistsError):
                os.close(os.open(forgotten / custody.digest.hex(), os.O_CREAT | os.O_EXCL))
                (self.path / reference).unlink()
                return reference
        fd = os.open(times, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(fd, f"{time.time_ns()} {reference}\n".encode())
        finally:
            os.close(fd)
        return reference

    Archive.write = write  # type: ignore[method-assign]


# --- mistakes ---------------------------------------------------------------------------------------------------------


def _objects_not_synced() -> None:
    _instead("appliance.spool.writer", "fdatasync", lambda fd: None)


def _status_before_the_sync() -> None:
    def fdatasync(fd: int) -> None:
        copy = os.dup(fd)

        def later() -> None:
            os.fdatasync(copy)
            os.close(copy)

        threading.Timer(0.02, later).start()

    _instead("appliance.spool.writer", "fdatasync", fdatasync)


def _ledger_not_full() -> None:
    from appliance.spool import schema
    real = schema.connect

    def connect(*arguments: Any, **settings: Any) -> Any:
        db = real(*arguments, **settings)
        db.execute("PRAGMA synchronous = NORMAL")
        return db

    schema.connect = connect


def _checkpoint_not_synced() -> None:
    """The database gets its pages, the log begins anew, and only then, at some time, the disk gets the pages."""
    from appliance.spool.keeping import KeepingVerbs
    real = KeepingVerbs.checkpoint

    def checkpoint(self: KeepingVerbs) -> tuple[int, int]:
        with self._lock:
            self._db.execute("PRAGMA synchronous = OFF")
            try:
                return real(self)
            finally:
                self._db.execute("PRAGMA synchronous = FULL")

    KeepingVerbs.checkpoint = checkpoint  # type: ignore[method-assign]


def _confirmed_without_proof() -> None:
    """Whoever said that it has an object is believed."""
    from appliance.confirm.watch import ByEvidence
    from appliance.spool.rows import Confirmation

    def step(self: ByEvidence) -> int:
        sent = self._ledger.to_confirm(self._destination.id)
        self._more = False
        return self._ledger.confirm([Confirmation(each.number, each.destination, "it said so") for each in sent])

    ByEvidence.step = step  # type: ignore[method-assign]


def _retired_before_confirmed() -> None:
    from appliance.spool.core import Transaction
    from appliance.spool.keeping import KeepingVerbs
    from appliance.spool.rows import Retirable

    def retirable(self: KeepingVerbs, now_powered_on: int, age: int, limit: int = 256) -> list[Retirable]:
        return [Retirable(*row) for row in self._select(
            "SELECT number, length, NULL FROM objects WHERE file = 0 AND state IN ('sent', 'confirmed') LIMIT ?", (limit,))]

    def retiring(self: KeepingVerbs, numbers: Sequence[int]) -> list[int]:
        def work(t: Transaction) -> list[int]:
            for number in numbers:
                t.append("retiring", number)
            return list(numbers)
        return self._write(work) if numbers else []

    KeepingVerbs.retirable = retirable  # type: ignore[method-assign]
    KeepingVerbs.retiring = retiring  # type: ignore[method-assign]


def _deleted_before_the_row() -> None:
    from appliance.spool.keeping import KeepingVerbs
    from appliance.spool.layout import Spool
    real = KeepingVerbs.retiring

    def retiring(self: KeepingVerbs, numbers: Sequence[int]) -> list[int]:
        spool = Spool.open(self.path.parent)
        for number in numbers:
            spool.object_path(number).unlink(missing_ok=True)
            fd = os.open(spool.shard(number), os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
        return real(self, numbers)

    KeepingVerbs.retiring = retiring  # type: ignore[method-assign]


def _deletions_not_synced() -> None:
    from appliance import retire
    retire.sync_folder = lambda path: None  # type: ignore[attr-defined]


def _slots_not_synced() -> None:
    _instead("appliance.spool.slots", "fsync", lambda fd: None)


def _over_long_adopted() -> None:
    """Start-up takes an object as it lies there, with what follows its data set."""
    from appliance.spool import recover
    real = recover._adopt
    recover._adopt = lambda fd, custody, size: real(fd, custody, 0)


def _digest_not_checked_at_start() -> None:
    from appliance.spool import recover
    recover._digest_problem = lambda fd, custody, buffer: ""


def _adopted_by_high_water() -> None:
    """Start-up looks only at numbers behind the highest that has a row."""
    from appliance.spool.custody import CustodyVerbs
    real = CustodyVerbs.open_numbers

    def open_numbers(self: CustodyVerbs, owner: int) -> list[int]:
        highest = int(self._select("SELECT coalesce(max(number), 0) FROM objects")[0][0])
        return [number for number in real(self, owner) if number > highest]

    CustodyVerbs.open_numbers = open_numbers  # type: ignore[method-assign]


def _deletion_not_finished() -> None:
    from appliance.retire import Retirer
    Retirer.finish = lambda self: 0  # type: ignore[method-assign]


def _instead(module: str, call: str, function: Callable[..., Any]) -> None:
    """Another function in place of that call of `os`, in one module."""
    import importlib

    from tests.support.disk import FaultyOs
    other = FaultyOs()
    other.stand_in(call, function)
    vars(importlib.import_module(module))["os"] = other


MISTAKES: Mapping[str, Callable[[], None]] = {
    "objects not synced": _objects_not_synced,
    "status before the sync": _status_before_the_sync,
    "ledger not FULL": _ledger_not_full,
    "checkpoint not synced": _checkpoint_not_synced,
    "confirmed without proof": _confirmed_without_proof,
    "retired before confirmed": _retired_before_confirmed,
    "deleted before the row": _deleted_before_the_row,
    "deletions not synced": _deletions_not_synced,
    "deletion not finished": _deletion_not_finished,
    "slots not synced": _slots_not_synced,
    "over-long adopted": _over_long_adopted,
    "digest not checked at start": _digest_not_checked_at_start,
    "only behind the high-water mark": _adopted_by_high_water,
}
"""Name → what it breaks."""
