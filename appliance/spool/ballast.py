"""The ballast: room that is given up so that the ledger can be written, and objects deleted, on a full disk."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

NAME = "ballast"
"""Name of the file, beside the ledger; laid down by `Spool.init` and again by `Spool.fill_ballast`."""


def is_there(folder: Path) -> bool:
    """Whether there is a ballast to give up."""
    with suppress(OSError):
        return os.stat(folder / NAME).st_size > 0
    return False


def give_up(folder: Path) -> bool:
    """Free the ballast's room. False where there was none, or it cannot be freed."""
    path = folder / NAME
    with suppress(OSError):
        if os.stat(path).st_size:
            os.truncate(path, 0)
            return True
    return False
