"""A site of the command line: configuration, spool and ledger in a folder, filled by hand; `dcmgate` runs in this process."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from appliance.cli.main import main
from appliance.clock import SystemClock
from appliance.model import Attributes, Custody, Outcome, Priority, number_text
from appliance.spool.index import Index, study_key
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from appliance.spool.rows import Routing
from tests.support.spools import accept, intake_of

STUDY = "1.2.826.0.1.3680043.9.1"

CONFIG = """\
[[listener]]
id = "in"
address = "127.0.0.1"
ports = {port}
unknown = "admit"

[[destination]]
id = "pacs"
address = "127.0.0.1"
port = 9
default = true

[[destination]]
id = "second"
address = "127.0.0.1"
port = 9

[spool]
path = "{folder}/spool"
state = "{folder}/state"
receivers = 1

[control]
run = "{run}"
"""


class CliSite:
    """`run` is a short path, because a socket's may have 107 bytes only."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], port: int = 11112) -> None:
        self.folder = folder
        self.run = Path(tempfile.mkdtemp(prefix="dg-"))
        self.config = folder / "dcmgate.toml"
        self.config.write_text(CONFIG.format(folder=folder, run=self.run, port=port))
        self.err = ""
        self._capsys = capsys

    def close(self) -> None:
        shutil.rmtree(self.run, ignore_errors=True)

    def __call__(self, *argv: str, status: int = 0) -> str:
        """What a command prints; its standard error is in `err`. AssertionError where its exit status is another one."""
        self._capsys.readouterr()
        found = main(["--config", str(self.config), *argv])
        out, self.err = self._capsys.readouterr()
        assert found == status, f"dcmgate {' '.join(argv)}: {found}\n{out}\n{self.err}"
        return out

    def json(self, *argv: str, status: int = 0) -> Any:
        return json.loads(self("--json", *argv, status=status))

    def spool(self) -> Spool:
        return Spool.open(self.folder / "spool")

    def ledger(self) -> Ledger:
        return Ledger.open(self.folder / "spool" / "ledger.sqlite", SystemClock())

    def kinds(self, *wanted: str) -> list[dict[str, Any]]:
        """The bodies of all events of these kinds, in order."""
        with self.ledger() as ledger:
            return [json.loads(e.body) for e in ledger.events(0, 100_000) if e.kind in wanted]

    def fill(self, datas: Sequence[bytes], *, name: str = "DOE^JANE", patient: str = "P1", accession: str = "A1",
             study: str = STUDY, routed: bool = True) -> list[Custody]:
        """Accept these data sets, route them to `pacs` and `second` as one study, and take them into the index."""
        spool = self.spool()
        with intake_of(spool) as intake:
            custodies = [accept(intake, data, f"1.2.3.{n}".encode()) for n, data in enumerate(datas, 1)]
        if routed:
            with self.ledger() as ledger, Index.open(spool.index_path) as index:
                ledger.route([Routing(c.number, 1, ("rule1",), ("pacs", "second"), Priority.ROUTINE, False, study_key(study))
                              for c in custodies])
                attributes = Attributes({0x0020000D: study, 0x00100010: name, 0x00100020: patient, 0x00080050: accession,
                                         0x00080020: "20260101", 0x00080060: "CT", 0x0020000E: study + ".1"})
                index.add([(c.number, attributes) for c in custodies])
                index.set_complete(True)
        return custodies

    def sent(self, destination: str, *numbers: int) -> None:
        """As if the destination had taken these objects."""
        with self.ledger() as ledger:
            ledger.claim(destination, numbers)
            ledger.outcomes(destination, [Outcome(n, None, 0) for n in numbers])

    def states(self, number: int) -> dict[str, str]:
        with self.ledger() as ledger:
            return {d.destination: d.state.value for d in ledger.deliveries(number)}


def texts(custodies: Sequence[Custody]) -> list[str]:
    """Their numbers as people write them."""
    return [number_text(c.number) for c in custodies]
