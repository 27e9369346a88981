"""Limits: every bound of the acceptor that no setting names, so that a test can shorten them. Times in seconds."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on peers and on ourselves. Time-outs are for lack of progress; none bounds the whole of a transfer."""

    first_pdu: float = 10.0
    """From the accepted connection to the last byte of the A-ASSOCIATE-RQ."""

    pdu: float = 30.0
    """From the first to the last byte of each later PDU."""

    progress: float = 60.0
    """Between two PDUs of one message."""

    store: float = 18.0
    """The disk's time for one object: then the guard answers A700, in sight of the 25 s after the last byte (I1)."""

    send: float = 30.0
    """The peer's time to take an answer."""

    closing: float = 3.0
    """The peer's time to close after A-RELEASE-RP, A-ASSOCIATE-RJ or A-ABORT (ARTIM, PS3.8 9.1.4)."""

    scan: float = 1.0
    """How often the guard looks while anything is under way; a deadline is late by this much at most."""

    tick: float = 10.0
    """How often configuration, space and workers are looked at; the only thing that an idle receiver does."""

    pending: int = 1024
    """Connections without a valid PDU header, in all: each costs a descriptor and no thread."""

    pending_per_address: int = 64
    """The same from one address."""

    refused: int = 256
    """Rejected connections that are given `closing` to read the reason; beyond, they are closed at once."""

    drain: int = 1 << 30
    """Bytes of a data set that are read and dropped after a failure, so that the status can be heard; then A-ABORT."""

    discard: int = MIB
    """Bytes that are read and dropped from a peer that was told to go."""

    restarts: int = 5
    """Restarts of one worker within `restart_window`; then it waits for the window to pass."""

    restart_window: float = 60.0
    """See `restarts`."""

    ready: float = 60.0
    """A worker's time to open its intake (recovery included)."""
