"""The state machine of the upper layer: PS3.8 table 9-10, cell by cell, for both roles.

Whatever a cell says is in ACTIONS; an empty cell is a `StateError`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from appliance.dicom.pdu import UNEXPECTED_PDU
from appliance.errors import StateError


class State(IntEnum):
    """States of an association (PS3.8 tables 9-1 to 9-5)."""

    STA1 = 1    # idle
    STA2 = 2    # connection open; awaiting A-ASSOCIATE-RQ
    STA3 = 3    # awaiting the local answer to it
    STA4 = 4    # awaiting the connection
    STA5 = 5    # awaiting A-ASSOCIATE-AC or -RJ
    STA6 = 6    # ready for data transfer
    STA7 = 7    # awaiting A-RELEASE-RP
    STA8 = 8    # awaiting the local answer to A-RELEASE-RQ
    STA9 = 9    # release collision, requestor: awaiting the local answer
    STA10 = 10  # release collision, acceptor: awaiting A-RELEASE-RP
    STA11 = 11  # release collision, requestor: awaiting A-RELEASE-RP
    STA12 = 12  # release collision, acceptor: awaiting the local answer
    STA13 = 13  # awaiting the connection's end


class Evt(IntEnum):
    """Events (PS3.8 table 9-10, first column)."""

    ASSOCIATE_REQUEST = 1      # local
    CONNECTED = 2
    ASSOCIATE_AC = 3
    ASSOCIATE_RJ = 4
    CONNECTION_INDICATION = 5
    ASSOCIATE_RQ = 6
    ACCEPT = 7                 # local
    REJECT = 8                 # local
    P_DATA_REQUEST = 9         # local
    P_DATA = 10
    RELEASE_REQUEST = 11       # local
    RELEASE_RQ = 12
    RELEASE_RP = 13
    RELEASE_RESPONSE = 14      # local
    ABORT_REQUEST = 15         # local
    ABORT = 16
    CLOSED = 17
    ARTIM_EXPIRED = 18
    INVALID_PDU = 19


_TABLE_9_10 = """
        Sta1  Sta2  Sta3  Sta4  Sta5  Sta6  Sta7  Sta8  Sta9  Sta10 Sta11 Sta12 Sta13
Evt1    AE-1  -     -     -     -     -     -     -     -     -     -     -     -
Evt2    -     -     -     AE-2  -     -     -     -     -     -     -     -     -
Evt3    -     AA-1  AA-8  -     AE-3  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-6
Evt4    -     AA-1  AA-8  -     AE-4  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-6
Evt5    AE-5  -     -     -     -     -     -     -     -     -     -     -     -
Evt6    -     AE-6  AA-8  -     AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-7
Evt7    -     -     AE-7  -     -     -     -     -     -     -     -     -     -
Evt8    -     -     AE-8  -     -     -     -     -     -     -     -     -     -
Evt9    -     -     -     -     -     DT-1  -     AR-7  -     -     -     -     -
Evt10   -     AA-1  AA-8  -     AA-8  DT-2  AR-6  AA-8  AA-8  AA-8  AA-8  AA-8  AA-6
Evt11   -     -     -     -     -     AR-1  -     -     -     -     -     -     -
Evt12   -     AA-1  AA-8  -     AA-8  AR-2  AR-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-6
Evt13   -     AA-1  AA-8  -     AA-8  AA-8  AR-3  AA-8  AA-8  AR-10 AR-3  AA-8  AA-6
Evt14   -     -     -     -     -     -     -     AR-4  AR-9  -     -     AR-4  -
Evt15   -     -     AA-1  AA-2  AA-1  AA-1  AA-1  AA-1  AA-1  AA-1  AA-1  AA-1  -
Evt16   -     AA-2  AA-3  -     AA-3  AA-3  AA-3  AA-3  AA-3  AA-3  AA-3  AA-3  AA-2
Evt17   -     AA-5  AA-4  AA-4  AA-4  AA-4  AA-4  AA-4  AA-4  AA-4  AA-4  AA-4  AR-5
Evt18   -     AA-2  -     -     -     -     -     -     -     -     -     -     AA-2
Evt19   -     AA-1  AA-8  -     AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-8  AA-7
"""


class Action(NamedTuple):
    """What a cell does: the next state (of a requestor, of an acceptor) and the ARTIM timer (None: left as it is)."""

    requestor: State
    acceptor: State
    artim: bool | None = None
    violation: bool = False


ACTIONS = {
    "AE-1": Action(State.STA4, State.STA4),
    "AE-2": Action(State.STA5, State.STA5),
    "AE-3": Action(State.STA6, State.STA6),
    "AE-4": Action(State.STA1, State.STA1),
    "AE-5": Action(State.STA2, State.STA2, artim=True),
    "AE-6": Action(State.STA3, State.STA3, artim=False),  # a refusal by the layer itself is the user's reject(): Sta13
    "AE-7": Action(State.STA6, State.STA6),
    "AE-8": Action(State.STA13, State.STA13, artim=True),
    "DT-1": Action(State.STA6, State.STA6),
    "DT-2": Action(State.STA6, State.STA6),
    "AR-1": Action(State.STA7, State.STA7),
    "AR-2": Action(State.STA8, State.STA8),
    "AR-3": Action(State.STA1, State.STA1),
    "AR-4": Action(State.STA13, State.STA13, artim=True),
    "AR-5": Action(State.STA1, State.STA1, artim=False),
    "AR-6": Action(State.STA7, State.STA7),
    "AR-7": Action(State.STA8, State.STA8),
    "AR-8": Action(State.STA9, State.STA10),
    "AR-9": Action(State.STA11, State.STA11),
    "AR-10": Action(State.STA12, State.STA12),
    "AA-1": Action(State.STA13, State.STA13, artim=True, violation=True),  # not with Evt15, the local A-ABORT
    "AA-2": Action(State.STA1, State.STA1, artim=False),
    "AA-3": Action(State.STA1, State.STA1),
    "AA-4": Action(State.STA1, State.STA1),
    "AA-5": Action(State.STA1, State.STA1, artim=False),
    "AA-6": Action(State.STA13, State.STA13),
    "AA-7": Action(State.STA13, State.STA13, violation=True),
    "AA-8": Action(State.STA13, State.STA13, artim=True, violation=True),
}


def _read_table(text: str) -> dict[tuple[State, Evt], str]:
    head, *rows = text.strip("\n").splitlines()
    states = [State(int(name[3:])) for name in head.split()]
    cells: dict[tuple[State, Evt], str] = {}
    for row in rows:
        event, *names = row.split()
        cells.update({(state, Evt(int(event[3:]))): name
                      for state, name in zip(states, names, strict=True) if name != "-"})
    return cells


TABLE = _read_table(_TABLE_9_10)
"""(state, event) → name of the action; cells that the standard leaves empty are missing."""


def action(state: State, event: Evt) -> str:
    """The name of the action in that cell. An empty cell: StateError."""
    name = TABLE.get((state, event))
    if name is None:
        raise StateError(f"{event.name} is not possible in {state.name}", reason=UNEXPECTED_PDU)
    return name
