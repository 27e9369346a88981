"""What the simulated box is made of: its configuration, and the processes that run on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from appliance.clock import SECOND
from appliance.config.settings import Config, Control, Destination, Listener, Peer, Rule
from appliance.config.settings import Spool as SpoolSettings
from appliance.forward.engine import Forwarder
from appliance.forward.lane import Lane
from appliance.keeper.keeper import Keeper
from appliance.receive.services import Storage, Task
from appliance.spool.intake import Intake
from appliance.spool.ledger import Ledger
from tests.proof.simulation_oracle import Terms
from tests.proof.simulation_process import Process

HOUR = 3600 * SECOND
DAY = 24 * HOUR
KEEP_MIN_HOURS = 2.0
KEEP_MAX_DAYS = 3.0
STATUS_DAYS = 0.5
MAX_DEBT = 3
ROUTES = {"CT": ("pacs",), "MR": ("pacs", "vna"), "RES": ("pacs", "research"), "CLD": ("cloud",), "HLD": ("cloud",)}
"""Called title → destinations; HLD is held for a person."""

FAIL_OVER = {"cloud": "pacs"}
DEFAULT = "pacs"
SITES = ("pacs", "vna", "research", "cloud")
HOURS = ("19:00-06:30",)

SYNTAXES = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")
SIZES = (0, 1, 900, 3000, 6500, 9500)

_DESTINATIONS = {
    "pacs": Destination(id="pacs", address="pacs", default=True, proof="readback", called="PACS", calling="GATE"),
    "vna": Destination(id="vna", address="vna", proof="status", status_days=STATUS_DAYS, resend="never", window=2),
    "research": Destination(id="research", address="research", proof="readback", required=False, hours=HOURS, called="R",
                            calling="GATE"),
    "cloud": Destination(id="cloud", address="cloud", proof="readback", failover="pacs", failover_seconds=300.0, called="CLOUD",
                         calling="GATE", window=2),
}
TERMS = {d.id: Terms(d.proof, int(d.status_days * DAY), d.resend == "always", d.required) for d in _DESTINATIONS.values()}


@dataclass(frozen=True, slots=True)
class Setting:
    """What differs from world to world."""

    dice: int = 0
    total: int = 1 << 40
    takes_direct: bool = True
    keeps_first: bool = False
    window: int = 3
    associations: int = 1


def configuration(folder: Path, setting: Setting, generation: int = 1, without: Iterable[str] = ()) -> Config:
    """The site's configuration, with some destinations left out."""
    there = {id: d for id, d in _DESTINATIONS.items() if id not in without}
    there["pacs"] = replace(there["pacs"], window=setting.window, associations=setting.associations)
    rules = tuple(Rule(id=called.lower(), match={"called": called}, destinations=tuple(d for d in to if d in there),
                       hold=called == "HLD") for called, to in ROUTES.items())
    peers = tuple(Peer(id=name.lower(), titles=(name,), priority=priority)
                  for name, priority in (("ER", "trauma"), ("DAY", "routine"), ("OLD", "backfill")))
    return Config(listeners=(Listener(id="main"),), peers=peers, destinations=tuple(there.values()), rules=rules,
                  spool=SpoolSettings(path=str(folder / "spool"), state=str(folder / "state"), keep_min_hours=KEEP_MIN_HOURS,
                                      keep_max_days=KEEP_MAX_DAYS),
                  control=Control(run=str(folder / "run")), generation=generation)


@dataclass(slots=True)
class Underway:
    """One instance that a scanner is sending."""

    task: Task
    number: int
    uid: str
    syntax: str
    data: bytes
    called: str
    urgent: bool
    sent: int = 0


@dataclass(slots=True)
class Receiver:
    process: Process
    ledger: Ledger
    intake: Intake
    storage: Storage
    underway: list[Underway] = field(default_factory=list)


@dataclass(slots=True)
class Sender:
    """The forwarder; `due` is the boot time (ns) at which each lane looks again."""

    process: Process
    forwarder: Forwarder
    due: dict[Lane, int] = field(default_factory=dict)

    def lanes(self) -> list[Lane]:
        places = self.forwarder._places.values()
        return [lane for lane in [*(lane for place in places for lane in place.lanes), *self.forwarder._leavers]
                if lane._thread.is_alive()]


@dataclass(slots=True)
class Holder:
    """The keeper; `round_at` is the boot time (ns) of its next round."""

    process: Process
    keeper: Keeper
    round_at: int = 0


class NoIndex:
    """The index is no part of custody."""

    def __init__(self, *_: object) -> None:
        """Takes what the real one does."""

    def add(self, objects: object) -> None: ...

    def step(self, wanted: object) -> bool:
        return False

    def close(self) -> None: ...

def content(what: int) -> tuple[str, str, bytes]:
    """UID, transfer syntax and data set number `what`: six UIDs, each with two contents and one of them in two syntaxes."""
    number, variant = what // 4, what % 4
    other = variant == 2
    size = SIZES[(number + 3 * other) % len(SIZES)]
    head = b"" if number == 5 else f"STUDY=1.9.{number % 2};".encode()
    data = (head + bytes((number, 77 if other else 7)) * size)[:max(size, len(head))]
    return f"1.2.{number}", SYNTAXES[variant == 3], data
