"""The spool whose bits are flipped: objects in every state of their life, a ledger with a WAL that was not taken over yet."""

from __future__ import annotations

import shutil
from pathlib import Path

import apsw

from appliance.clock import SECOND, ManualClock
from appliance.model import Custody, Fault, Outcome
from appliance.spool import quarantine
from appliance.spool.rows import Knock
from tests.support.filled import Filled

CLOCK = ManualClock()
"""One boot for all: what is opened again writes no row of its own."""

QUOTA = 3_000_000_000

CONFIGURATION = """\
[[listener]]
id = "modality"
ports = [11112]
[[destination]]
id = "pacs"
address = "10.0.0.9"
port = 104
called = "PACS"
default = true
[[destination]]
id = "second"
address = "10.0.0.10"
port = 104
called = "SECOND"
"""


def table_rows(db: apsw.Connection) -> dict[str, list[tuple[object, ...]]]:
    """Everything that a ledger says: all tables (SQLite does not mind the case of a name), all rows, as they are stored."""
    names = [str(row[0]) for row in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")]
    return {name.lower(): sorted(db.execute(f"SELECT * FROM {name}").fetchall(), key=repr) for name in names}


class Template:
    """A spool at rest, in memory and as a folder.

    `held`: the custody record of every object whose file is there and was
    acknowledged; `custodies`: of all. `with_wal`, `settled`: the ledger byte for byte,
    before and after its WAL was taken over.
    """

    def __init__(self, folder: Path) -> None:
        work = folder / "work"
        filled = Filled(work, clock=CLOCK, size=QUOTA)
        spool, ledger = filled.spool, filled.ledger
        ledger.publish(CONFIGURATION, "test")
        retired = filled.complete(4)
        assert ledger.retiring(retired) == retired
        for number in retired:
            spool.object_path(number).unlink()
        ledger.retired(retired)
        filled.complete(3, length=2000)
        sent = filled.accept(3, length=8)
        filled.route("pacs", "second")
        filled.send("pacs")
        ledger.confirm([])
        ledger.checkpoint()
        # From here on everything is in the WAL alone.
        filled.accept(1, uid="1.2.3.777", content=b"twin" * 300)
        filled.accept(1, uid="1.2.3.777", content=b"twin" * 300)
        filled.route("pacs")
        filled.accept(2, length=40_000)
        parked = filled.accept(1)
        filled.route("second")
        ledger.claim("second", parked)
        ledger.outcomes("second", [Outcome(parked[0], Fault.OBJECT, 0xA900, "it does not match")])
        damaged = filled.accept(1)[0]
        ledger.quarantine(damaged, "a bit")
        quarantine.put(spool, damaged, "a bit")
        ledger.hold(sent[:1], "anna", "asked for")
        ledger.void([(ledger.grant(filled.owner, 4) + n, "unused") for n in range(2)])
        ledger.knocked([Knock("CT9", "GATE", "10.0.0.7", "refused", "unknown", 2, SECOND, 2 * SECOND)])
        ledger.publish(CONFIGURATION + "hours = \"08:00-18:00\"\n", "anna")
        filled.accept(2, length=300)
        self.uuid, self.size = spool.uuid, QUOTA
        self.latest = ledger.latest()
        self.rows: dict[str, list[tuple[object, ...]]] = ledger.ask(table_rows)
        numbers: list[int] = ledger.ask(lambda db: [row[0] for row in db.execute(
            "SELECT number FROM events WHERE kind = 'accepted' ORDER BY seq")])
        rows = {number: ledger.object(number) for number in numbers}
        self.custodies: list[Custody] = [row.custody for row in rows.values() if row is not None]
        self.states = {number: str(row.state) for number, row in rows.items() if row is not None}
        self.held = [custody for custody in self.custodies if spool.object_path(custody.number).exists()]
        self.with_wal = {name: (spool.path / name).read_bytes() for name in ("ledger.sqlite", "ledger.sqlite-wal")}
        self.path = folder / "spool"
        shutil.copytree(spool.path, self.path, ignore=shutil.ignore_patterns("ledger.sqlite*"))
        filled.close()      # the last one out takes the WAL over
        self.settled = {"ledger.sqlite": spool.ledger_path.read_bytes()}
        for name, content in self.with_wal.items():
            (self.path / name).write_bytes(content)
        self._spool = spool
        shutil.rmtree(work)

    def relative(self, number: int) -> Path:
        """The object's file, below the spool's folder."""
        return self._spool.object_path(number).relative_to(self._spool.path)
