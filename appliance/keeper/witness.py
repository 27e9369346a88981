"""The witness: the head of the ledger's chain, kept outside the spool, so that a ledger rolled back as a whole is noticed."""

from __future__ import annotations

import json
from pathlib import Path

from appliance.errors import SpoolFault
from appliance.spool.durable import write_whole
from appliance.spool.ledger import Ledger

NAME = "ledger-head"


class Witness:
    """One file in `[spool] state`. It is not written while it contradicts the ledger."""

    def __init__(self, folder: Path, uuid: str) -> None:
        self.path = Path(folder) / NAME
        self._uuid = uuid
        self._last: tuple[int, bytes] | None = None

    def agrees(self, ledger: Ledger) -> bool:
        """Whether the ledger still holds the head that was seen last. No file, or one of another spool, says nothing."""
        seen = self._read()
        return seen is None or ledger.witnessed(seen)

    def keep(self, ledger: Ledger) -> None:
        """Write the head of now. SpoolFault where the folder does not let us."""
        head = ledger.head()
        if head == self._last:
            return
        text = json.dumps({"spool": self._uuid, "seq": head[0], "hash": head[1].hex()}) + "\n"
        try:
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            write_whole(self.path, text)
        except OSError as error:
            raise SpoolFault(f"the ledger's head cannot be kept in {self.path.parent}: {error.strerror}",
                             mend="Let the keeper write to `[spool] state`.") from error
        self._last = head

    def _read(self) -> tuple[int, bytes] | None:
        try:
            found = json.loads(self.path.read_text())
            return (int(found["seq"]), bytes.fromhex(found["hash"])) if found["spool"] == self._uuid else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
