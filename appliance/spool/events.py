"""Events: the custody record, each row with the hash of the row before it.

    hash(n) = BLAKE3(hash(n-1) + canonical row n)

The head of the chain (`chain`, one row) is written with each transaction, so
that a removed last row shows; a ledger that was rolled back as a whole shows
against a head that is kept elsewhere (`verify(…, witness)`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import apsw
from blake3 import blake3

from appliance.errors import LedgerDamaged
from appliance.model import Custody, Source, escape
from appliance.spool.rows import ChainReport, Event

GENESIS = bytes(32)

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, sort_keys=True, check_circular=False).encode

_SOURCE_TEXTS = ("listener", "calling", "called", "address", "peer", "certificate", "implementation")


def compact(body: object) -> str:
    """JSON without spaces, keys sorted, ASCII only: one spelling for one value."""
    return _encode(body)


def parse(text: str) -> dict[str, Any]:
    """The body of an event. LedgerDamaged where it is not a JSON object."""
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise LedgerDamaged("the body of an event cannot be read", mend="Run `dcmgate spool check`.")
    return body


def unescape(text: str) -> bytes:
    """The bytes that `model.escape` made this text from."""
    if "\\" not in text:
        return text.encode("ascii")
    out = bytearray()
    at = 0
    while at < len(text):
        if text[at] == "\\":
            out.append(int(text[at + 2:at + 4], 16))
            at += 4
        else:
            out.append(ord(text[at]))
            at += 1
    return bytes(out)


def source_body(source: Source) -> dict[str, Any]:
    """A source as JSON values; empty fields are left out, raw titles are hex."""
    body: dict[str, Any] = {name: value for name in _SOURCE_TEXTS if (value := getattr(source, name))}
    if source.port:
        body["port"] = source.port
    if source.raw_calling:
        body["raw_calling"] = source.raw_calling.hex()
    if source.raw_called:
        body["raw_called"] = source.raw_called.hex()
    return body


def source_of(body: dict[str, Any]) -> Source:
    """Inverse of `source_body`."""
    return Source(**{name: body.get(name, "") for name in _SOURCE_TEXTS}, port=body.get("port", 0),
                  raw_calling=bytes.fromhex(body.get("raw_calling", "")), raw_called=bytes.fromhex(body.get("raw_called", "")))


def custody_body(custody: Custody) -> dict[str, Any]:
    """Body of `accepted`: the head's record, without its number."""
    return {"boot": custody.boot, "at": custody.since_boot, "wall": custody.wall, "class": escape(custody.sop_class),
            "uid": escape(custody.sop_instance), "syntax": custody.transfer_syntax, "length": custody.length,
            "digest": custody.digest.hex(), "source": source_body(custody.source)}


def next_hash(previous: bytes, seq: int, boot: int, at: int, wall: int, kind: str, number: int | None, destination: str,
              body: str) -> bytes:
    """Hash of a row. Fields are joined by newlines; kind and body hold none, the destination is preceded by its length."""
    text = f"{seq}\n{boot}\n{at}\n{wall}\n{kind}\n{'' if number is None else number}\n{len(destination)}\n{destination}\n{body}"
    return blake3(previous + text.encode("utf-8", "surrogatepass")).digest()


_COLUMNS = "seq, boot, at, wall, kind, number, destination, body, hash"


def insert(cursor: apsw.Cursor, rows: Iterable[Event]) -> None:
    cursor.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                       ((e.seq, e.boot, e.at, e.wall, e.kind, e.number, e.destination, e.body, e.hash) for e in rows))


def read(db: apsw.Connection, after: int = 0) -> Iterator[Event]:
    """All events behind `after`, in order. The caller keeps the transaction open meanwhile."""
    for row in db.execute(f"SELECT {_COLUMNS} FROM events WHERE seq > ? ORDER BY seq", (after,)):
        yield Event(*row)


def of_number(db: apsw.Connection, number: int) -> list[Event]:
    """The history of one object."""
    return [Event(*row) for row in db.execute(f"SELECT {_COLUMNS} FROM events WHERE number = ? ORDER BY seq", (number,))]


def verify(db: apsw.Connection, witness: tuple[int, bytes] | None = None) -> ChainReport:
    """Recompute the whole chain. At most 100 breaks are named; `witness` is a (seq, hash) seen earlier."""
    breaks: list[tuple[int, str]] = []
    rows, seq, head = 0, 0, GENESIS
    witnessed = witness is None or witness[0] == 0
    for event in read(db):
        rows += 1
        if event.seq != seq + 1:
            breaks.append((event.seq, f"rows {seq + 1} to {event.seq - 1} are missing"))
        try:
            found = next_hash(head, event.seq, event.boot, event.at, event.wall, event.kind, event.number, event.destination,
                              event.body)
        except TypeError:           # a value that is none: the file is damaged
            found = b""
        if found != event.hash and event.seq == seq + 1:
            breaks.append((event.seq, f"row {event.seq} ({event.kind}) is not the one that was written"))
        # Go on from the stored hash: one edited row is one break, not a break of all that follow.
        seq, head = event.seq, event.hash if isinstance(event.hash, bytes) else b""
        if witness is not None and event.seq == witness[0]:
            witnessed = event.hash == witness[1]
            if not witnessed:
                breaks.append((event.seq, "the ledger is not the one that was seen before"))
                witnessed = True
        if len(breaks) >= 100:
            break
    chain = db.execute("SELECT seq, hash FROM chain").fetchone()
    if chain is None:
        raise LedgerDamaged("the head of the chain is missing", mend="Run `dcmgate spool rebuild`.")
    if len(breaks) < 100 and (seq, head) != (chain[0], chain[1]):
        breaks.append((seq + 1, f"the last rows are missing: the chain ended at {chain[0]}, the rows end at {seq}"))
    if not witnessed and witness is not None and seq < witness[0]:
        breaks.append((seq + 1, f"the ledger was rolled back: row {witness[0]} was seen before, the rows end at {seq}"))
    return ChainReport(rows, chain[0], chain[1], tuple(breaks))
