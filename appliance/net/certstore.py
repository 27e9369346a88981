"""The certificate store, as those who talk TLS read it: where key, chain, trust anchors and revocation lists of an id are.

    <state>/certificates/<id>/        0700
        current -> <generation>/      a link that is replaced in one step, so that no reader sees a mixed pair
        <generation>/key.pem          0600
        <generation>/chain.pem        leaf first
        trust.pem                     certification authorities, one after the other
        crl.pem                       revocation lists, if any
        pins.json                     {"pins": [SHA-256 fingerprints]}, if any

Nothing is cached here: `Store.material` looks each time, for the price of a few
`stat` calls, and its `generation` differs whenever anything has changed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

FOLDER = "certificates"
CURRENT = "current"
KEY = "key.pem"
CHAIN = "chain.pem"
TRUST = "trust.pem"
CRL = "crl.pem"


@dataclass(frozen=True, slots=True)
class Material:
    """The files of one `[[certificate]]`; None for what is not there. `generation` differs whenever one of them does."""

    id: str
    folder: Path
    key: Path | None = None
    chain: Path | None = None
    trust: Path | None = None
    crl: Path | None = None
    generation: int = 0


class Store:
    """`state` is the folder of `[spool] state`."""

    def __init__(self, state: str | Path) -> None:
        self.folder = Path(state) / FOLDER

    def material(self, id: str) -> Material:
        """What is there for that id now; everything None where nothing is. Never raises."""
        folder = self.folder / id
        try:
            pair = folder / os.readlink(folder / CURRENT)
        except OSError:
            pair = folder / CURRENT
        paths = (pair / KEY, pair / CHAIN, folder / TRUST, folder / CRL)
        marks = [_mark(path) for path in paths]
        key, chain, trust, crl = (path if mark else None for path, mark in zip(paths, marks, strict=True))
        if key is None or chain is None:
            key = chain = None
        digest = blake2b(repr((pair.name, marks)).encode(), digest_size=7)
        return Material(id, folder, key, chain, trust, crl, int.from_bytes(digest.digest()))


def _mark(path: Path) -> tuple[int, int, int] | None:
    """Differs whenever the file was replaced; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
