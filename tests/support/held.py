"""Objects as the spool holds them, without a spool's intake: what a transport reads."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import cast

from blake3 import blake3

from appliance.dicom import uids
from appliance.dicom.part10 import build_head
from appliance.model import Custody, Priority, Source
from appliance.spool.layout import Spool
from appliance.spool.rows import Queued


class Held:
    """A folder with objects; `spool` is what `ObjectReader` and a transport ask for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = 0
        path.mkdir(exist_ok=True)

    @property
    def spool(self) -> Spool:
        return cast(Spool, self)

    def object_path(self, number: int) -> Path:
        return self.path / f"{number:016x}.dcm"

    def is_there(self) -> bool:
        return True

    def open_object(self, number: int) -> int:
        return os.open(self.object_path(number), os.O_RDONLY | os.O_CLOEXEC)

    def keep(self, data: bytes, *, sop_class: str | bytes = uids.CT_IMAGE_STORAGE, uid: bytes = b"",
             syntax: str = uids.EXPLICIT_LE, calling: str = "CT1", called: str = "GATE", priority: Priority = Priority.ROUTINE,
             destination: str = "pacs") -> Queued:
        """An object in custody, and its delivery as a lane loads it."""
        self.number += 1
        number = self.number
        source = Source(listener="main", calling=calling, called=called, address="127.0.0.1")
        raw_class = sop_class.encode() if isinstance(sop_class, str) else sop_class
        custody = Custody(number, 1, number, number, raw_class, uid or f"1.2.3.{number}".encode(), syntax, len(data),
                          blake3(data).digest(), source)
        self.object_path(number).write_bytes(build_head(custody) + data)
        return Queued(number, destination, number, priority, "study", len(data), raw_class, custody.sop_instance, syntax,
                      custody.digest, 1, 0, 0, 0, source)

    def damage(self, queued: Queued, offset: int = -1) -> None:
        """Flip a bit of the data set."""
        path = self.object_path(queued.number)
        raw = bytearray(path.read_bytes())
        raw[offset] ^= 1
        path.write_bytes(raw)


def other(queued: Queued, **changes: object) -> Queued:
    return replace(queued, **changes)  # type: ignore[arg-type]
