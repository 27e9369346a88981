"""Canary: how a test object of ours is told from an image, and which destination it is for. Pure.

It is one by the way it came in, and by nothing that a peer can say: through the
receiver's side door, whose listener no configuration can name. Its called title
says which destination it is for; its titles, UIDs and patient are marks for
people only.
"""

from __future__ import annotations

from hashlib import blake2b

from appliance.dicom import uids
from appliance.model import Source

LISTENER = ":canary"
"""Listener in the custody record; a colon is not allowed in the id of a `[[listener]]`."""

CALLING = "DCMGATE-CANARY"
PATIENT = "DCMGATE-CANARY^TEST"
PATIENT_ID = "DCMGATE-CANARY"
FLAG = "canary"
"""Of objects in the ledger."""

SOP_CLASS = uids.SECONDARY_CAPTURE_IMAGE_STORAGE


def is_canary(source: Source) -> bool:
    return source.listener == LISTENER


def title_of(destination: str) -> str:
    """The called title by which a canary for that destination comes in: 16 characters."""
    return blake2b(destination.encode(), digest_size=8).hexdigest().upper()
