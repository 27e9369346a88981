"""Bit flips: single random bits in objects, their heads, the ledger, its WAL and SPOOL-ID, each on a copy of its own.

What a flip may do, by where it hits:

    object, head   the reader that deliveries and scrub use never gives the last piece of anything but the acknowledged
                   bytes; a start-up that finds the file without a row puts it aside
    SPOOL-ID       another spool is refused, or it is the same one
    ledger, WAL    start-up or `spool check --deep` names it; or the ledger says what it said before; or (a WAL whose last
                   part is gone) the start-up gets every object back, and nothing counts as further on than it is.
                   Where it is named, `spool rebuild` gives back every object.

Whatever happens, no exception but our own. A batch is so many flips from one seed; `state` adds batches up.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw

from appliance.dicom.part10 import HEAD
from appliance.errors import DcmgateError, LedgerError, ObjectDamaged, SpoolError
from appliance.model import Custody
from appliance.spool import recover
from appliance.spool.buffers import Buffer
from appliance.spool.check import check
from appliance.spool.layout import IDENTITY, Spool
from appliance.spool.ledger import Ledger
from appliance.spool.reader import ObjectReader
from appliance.spool.rebuild import rebuild
from tests.proof.bit_flips_spool import CLOCK, Template, table_rows
from tests.proof.figures import Budget, Figures

NAME = "bit_flips"
ABOUT = "single random bits in objects, heads, ledger, WAL and SPOOL-ID: detected or harmless, and nothing else lost"
REQUIREMENTS = ("I2", "I3", "I5")

BATCH = 400
BATCHES = 32
QUICK_BATCHES = 2
SHARES = {"data": 20, "head": 15, "ledger": 35, "wal": 25, "identity": 5}
"""Of a hundred flips, where they hit."""

NOTES = frozenset({"alarms", "knocks", "meta"})
"""Tables that are no custody: who was turned away at the door, which alarms are in force, which release wrote last."""

SLOW_SECONDS = 10.0
RANK = {"waiting": 0, "sent": 1, "confirmed": 2, "retired": 3, "duplicate": 0, "quarantined": 0, "discarded": 0}


def run(budget: Budget) -> Figures:
    done: dict[int, dict[str, Any]] = {}
    lines = budget.state / "batches.jsonl"
    if lines.exists() and not budget.quick:
        for line in lines.read_text().splitlines():
            with suppress(ValueError):
                entry = json.loads(line)
                if entry["version"] == budget.version and not entry["failures"]:
                    done[entry["seed"]] = entry
    began = time.monotonic()
    flipper = Flipper(Template(budget.folder / "template"), budget.folder / "copy")
    entries = []
    for number in range(QUICK_BATCHES if budget.quick else BATCHES):
        seed = budget.seed * 1000 + number
        if seed not in done:
            if budget.seconds and time.monotonic() - began > budget.seconds:
                break
            counts, failures = flipper.batch(seed, BATCH)
            done[seed] = {"version": budget.version, "seed": seed, "counts": counts, "failures": failures}
            budget.state.mkdir(parents=True, exist_ok=True)
            with lines.open("a") as file:
                file.write(json.dumps(done[seed]) + "\n")
            budget.say(f"{(number + 1) * BATCH} flips, {len(failures)} failures in the last {BATCH}")
        entries.append(done[seed])
    return _figures(entries, len(flipper.template.custodies))


def _figures(entries: list[dict[str, Any]], acknowledged: int) -> Figures:
    found = Figures(NAME, acknowledged=acknowledged)
    total: Counter[str] = Counter()
    for entry in entries:
        total.update(entry["counts"])
        found.failures += entry["failures"]
    found.counts = {"cases": sum(total[where] for where in SHARES), **total, "seeds": len(entries)}
    found.altered = sum("forwarded as good" in failure for failure in found.failures)
    found.lost = sum("lost:" in failure for failure in found.failures)
    return found


class Flipper:
    """Flips one bit after the other, each in a fresh copy of the template's spool."""

    def __init__(self, template: Template, copy: Path) -> None:
        self.template = template
        self._copy = copy
        self._buffer = Buffer()
        self._counts: Counter[str] = Counter()
        self._fresh()

    def batch(self, seed: int, count: int) -> tuple[dict[str, int], list[str]]:
        """Counts by place and outcome, and each failure with the place to see it again."""
        dice = random.Random(seed)
        self._counts = Counter()
        failures = []
        for _ in range(count):
            where = dice.choices(list(SHARES), list(SHARES.values()))[0]
            bit = dice.random()
            self._counts[where] += 1
            began = time.monotonic()
            try:
                wrong = self.flip(where, bit)
            except DcmgateError as error:
                wrong = f"raised where nothing may be: {error}"
            except Exception as error:  # noqa: BLE001  that is what is looked for: an exception that is not ours
                wrong = f"{type(error).__name__}: {error}"
                self._fresh()
            if time.monotonic() - began > SLOW_SECONDS:
                wrong = wrong or f"took {time.monotonic() - began:.0f} s"
            if wrong:
                failures.append(f"{where}, bit {bit!r}: {wrong}"[:600])
        return dict(self._counts), failures

    def flip(self, where: str, bit: float) -> str:
        """One flip: what is wrong with the outcome, or nothing. `bit`: 0 to 1, the place within what is flipped."""
        if where in ("ledger", "wal"):
            return self._ledger(where, bit)
        return self._identity(bit) if where == "identity" else self._object(where, bit)

    def _fresh(self) -> Spool:
        shutil.rmtree(self._copy, ignore_errors=True)
        shutil.copytree(self.template.path, self._copy)
        return self._spool()

    def _spool(self) -> Spool:
        return Spool.open(self._copy, self.template.uuid)

    def _seen(self, what: str) -> str:
        self._counts[what] += 1
        return ""

    # objects

    def _object(self, where: str, bit: float) -> str:
        held = self.template.held
        custody = held[int(bit * 7919) % len(held)]
        size = HEAD if where == "head" else max(custody.length, 1)
        place = int(bit * size * 8)
        path = self._copy / self.template.relative(custody.number)
        good = path.read_bytes()
        raw = bytearray(good)
        if where == "data" and not custody.length:
            return self._seen("harmless")
        raw[(HEAD if where == "data" else 0) + place // 8] ^= 1 << place % 8
        path.write_bytes(raw)
        try:
            return self._read_wrong(custody, good) or self._adopted_wrong(custody, good)
        finally:
            path.write_bytes(good)

    def _read_wrong(self, custody: Custody, good: bytes) -> str:
        """As a delivery reads it, with what the ledger knows, and as a rebuilt ledger would, by the head alone."""
        for known in (custody, None):
            given = b""
            try:
                with ObjectReader(self._spool(), custody.number, known) as reader:
                    for chunk in reader.chunks(4096):
                        given += chunk
            except ObjectDamaged:
                self._seen("detected")
                if given == good[HEAD:] and given:
                    return f"{custody.number}: the whole of it was given, and then called damaged"
                continue
            if given != good[HEAD:]:
                return f"{custody.number}: forwarded as good"
            self._seen("harmless")
        return ""

    def _adopted_wrong(self, custody: Custody, good: bytes) -> str:
        """As a start-up judges it where its row had not been written yet."""
        judged = recover.judge(self._spool(), custody.number, self._buffer)
        if judged.custody is not None:
            raw = (self._copy / self.template.relative(custody.number)).read_bytes()
            if judged.custody != custody or raw[HEAD:] != good[HEAD:]:
                return f"{custody.number}: adopted, forwarded as good"
            return self._seen("adopted_unharmed")
        return self._seen("put_aside") if judged.remnant else f"{custody.number}: lost: {judged.void}"

    # identity

    def _identity(self, bit: float) -> str:
        path = self._copy / IDENTITY
        good = path.read_bytes()
        raw = bytearray(good)
        place = int(bit * len(raw) * 8)
        raw[place // 8] ^= 1 << place % 8
        path.write_bytes(raw)
        try:
            spool = self._spool()
        except SpoolError:
            return self._seen("detected")
        finally:
            path.write_bytes(good)
        if (spool.uuid, spool.version) != (self.template.uuid, 1):
            return "another spool was taken for ours"
        return self._seen("quota_changed" if spool.size != self.template.size else "harmless")

    # ledger

    def _ledger(self, where: str, bit: float) -> str:
        """By `spool check` first, which changes nothing; then by a start-up; then by a rebuild."""
        name = "ledger.sqlite" if where == "ledger" else "ledger.sqlite-wal"
        files = self.template.settled if where == "ledger" and int(bit * 7919) % 2 else self.template.with_wal
        raw = bytearray(files[name])
        place = int(bit * len(raw) * 8)
        raw[place // 8] ^= 1 << place % 8
        flipped = {**files, name: bytes(raw)}
        self._put(flipped)
        try:
            report = check(self._copy, CLOCK, expected_uuid=self.template.uuid, deep=True)
            if report.sound:
                return self._sound(place)
            self._seen("detected")
            return self._started_on_damage(place, flipped)
        finally:
            self._put(self.template.with_wal)

    def _put(self, files: dict[str, bytes]) -> None:
        for old in self._copy.glob("ledger.sqlite*"):
            old.unlink()
        for name, content in files.items():
            (self._copy / name).write_bytes(content)

    def _sound(self, place: int) -> str:
        """Nothing was named. Then it says what it said, or has lost its last rows and gets back what matters."""
        db = apsw.Connection(str(self._copy / "ledger.sqlite"), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            rows = table_rows(db)
        finally:
            db.close()
        before = self.template.rows
        others = {name for name in before if rows.get(name) != before[name]}
        if others <= NOTES:
            return self._seen("harmless" if not others else "harmless_notes")
        if rows["events"] == before["events"] or not set(rows["events"]) < set(before["events"]):
            return f"byte {place // 8}: {', '.join(sorted(others))} say something else, and nothing says so"
        wrong = self._recovered()
        return f"byte {place // 8}: {wrong}" if wrong else self._seen("rolled_back_and_recovered")

    def _recovered(self) -> str:
        """Start up as a receiver does, and look for everything that was acknowledged. The objects' folder is put back after."""
        spool = self._spool()
        try:
            with Ledger.open(spool.ledger_path, CLOCK) as ledger:
                recover.recover(spool, ledger)
                missing = [c.number for c in self.template.held if (row := ledger.object(c.number)) is None
                           or (row.custody.digest, row.custody.length) != (c.digest, c.length)]
                ahead = [n for n, state in self.template.states.items() if (row := ledger.object(n)) is not None
                         and RANK[str(row.state)] > RANK[state]]
                chain = ledger.verify_chain().whole
                latest = ledger.latest()
            after = check(self._copy, CLOCK, expected_uuid=self.template.uuid, deep=True)
        finally:
            self._fresh()
        if missing:
            # The numbers of these files are not even granted: named by the balance, and by the receiver's first slots.
            return "" if not after.sound else f"lost: {missing} are unknown, and nothing says so"
        if ahead or not chain:
            return f"objects {ahead} count as further on than they are; chain whole: {chain}"
        if latest is not None and latest != self.template.latest:
            return f"another configuration is in force: {latest[1][:100]!r}"
        return "" if after.sound or after.balance is None or after.balance.unaccounted == 0 else str(after.problems[0])

    def _started_on_damage(self, place: int, flipped: dict[str, bytes]) -> str:
        """A start-up may go on or refuse, with an error of ours; a rebuild gives back every object."""
        spool = self._spool()
        try:
            with Ledger.open(spool.ledger_path, CLOCK) as ledger:
                ledger.counts()
                ledger.unrouted()
                ledger.load("pacs")
                ledger.grant(ledger.register_owner("receiver"), 8)
            self._seen("start_up_went_on")
        except LedgerError:
            self._seen("start_up_refused")
        self._put(flipped)
        try:
            rebuild(spool, CLOCK)
            with Ledger.open(spool.ledger_path, CLOCK) as ledger:
                known = {row.number: row.custody for c in self.template.held if (row := ledger.object(c.number)) is not None}
            lost = [c.number for c in self.template.held if known.get(c.number) != c]
        finally:
            for old in self._copy.glob("ledger.sqlite.old*"):
                old.unlink()
        self._seen("rebuilt")
        return f"byte {place // 8}: lost: {lost} after the rebuild" if lost else ""
