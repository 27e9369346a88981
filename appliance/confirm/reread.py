"""Proof by reading again: is the object in the folder, and is its data set the one that was acknowledged?"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from appliance.config.settings import Destination
from appliance.confirm.proof import Evidence, Unavailable, Verdict
from appliance.net.archive import Archive
from appliance.spool.rows import Sent

_NO_FILE = frozenset({errno.ELOOP, errno.EISDIR})
"""What stands there is no file: the object is not there. Any other failure is the archive's."""


class RereadProof:
    """One folder destination."""

    def __init__(self, destination: Destination) -> None:
        self._path = Path(destination.path)

    def close(self) -> None:
        """Nothing is kept open."""

    def look(self, sent: Sequence[Sent]) -> list[Evidence]:
        try:
            with Archive(self._path) as archive:
                return [self._one(archive, each) for each in sent]
        except OSError as error:
            raise Unavailable(error.strerror or str(error)) from None

    def _one(self, archive: Archive, sent: Sent) -> Evidence:
        try:
            digest = archive.read_back(sent.reference)
        except ValueError:
            return Evidence(sent.number, Verdict.UNKNOWN, "it is not known where in the folder it was put")
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
            digest = None
        if digest is None:
            return Evidence(sent.number, Verdict.MISSING, f"{sent.reference} is not there, or not whole")
        if digest != sent.digest:
            return Evidence(sent.number, Verdict.MISSING, f"{sent.reference} has another digest")
        return Evidence(sent.number, Verdict.PRESENT, f"read again: {sent.reference}, digest equal")
