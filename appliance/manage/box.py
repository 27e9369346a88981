"""What the keeper does for the box itself: it holds the recovery key until a person has written it down, and asks for a reset.

A reset is carried out by the system (`dcmgate disk reset`, as root): it ends intake, counts once more, and restarts the
box, whose initrd then wipes the disks. The request is a file that only the keeper can write.
"""

from __future__ import annotations

import hmac
import json
import os
from pathlib import Path

from appliance.disks import found
from appliance.errors import ControlError, DcmgateError
from appliance.model import DeliveryState, ObjectState
from appliance.policy.disks import Held, reset_refusal
from appliance.spool.ledger import Ledger

LETTERS = 8
"""The last group of the key: whoever can say it has the paper."""


def recovery_key(path: Path | None = None) -> str:
    """The key, while it is on the box. ControlError afterwards."""
    try:
        return (path or found.RECOVERY_KEY).read_text().strip()
    except FileNotFoundError:
        raise ControlError("the recovery key is not on the box any more", mend="it is on the paper of whoever set the box up") \
            from None
    except OSError as e:
        raise ControlError(f"the recovery key cannot be read: {e.strerror}") from e


def check_letters(letters: str, path: Path | None = None) -> None:
    """ControlError unless these are the last letters of the key."""
    if not hmac.compare_digest(recovery_key(path)[-LETTERS:].encode(), letters.strip().lower()[-LETTERS:].encode()):
        raise ControlError("these are not its last eight letters", mend="`dcmgate disk recovery-key` shows it once more")


def forget_recovery_key(path: Path | None = None) -> None:
    """It was written down. What a disk keeps of a deleted file lies on the encrypted partition that the key opens."""
    where = path or found.RECOVERY_KEY
    where.unlink(missing_ok=True)
    folder = os.open(where.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# --- factory reset -------------------------------------------------------------------------------------------------------

RESET = Path("/var/lib/dcmgate/factory-reset.json")
"""The request; a unit of the system waits for it."""

_OWED = (DeliveryState.WAITING, DeliveryState.SENDING, DeliveryState.DEFERRED, DeliveryState.HELD, DeliveryState.PARKED)


def held_now(ledger: Ledger) -> Held:
    """What a reset would destroy: deliveries that are owed, or not confirmed yet; objects not routed yet, or damaged."""
    try:
        counts = ledger.counts()
    except DcmgateError as e:
        return Held(problem=e.message)
    owed = sum(queue.count for (_, state), queue in counts.queues.items() if state in _OWED)
    unconfirmed = sum(queue.count for (_, state), queue in counts.queues.items() if state is DeliveryState.SENT)
    return Held(owed + counts.unrouted, unconfirmed, counts.states[ObjectState.QUARANTINED])


def in_words(held: Held) -> str:
    """For the record: numbers alone, nothing of a patient."""
    return held.problem or f"{held.undelivered} not delivered, {held.unconfirmed} not confirmed, {held.damaged} in quarantine"


def check_reset(held: Held, *, override: bool, reason: str) -> None:
    """ControlError where the box may not be made new now."""
    if refusal := reset_refusal(held, override=override, reason=reason):
        raise ControlError(f"the box is not made new: {refusal}",
                           mend='deliver them first, or take it on yourself: --override --reason "..."')


def ask_for_reset(by: str, reason: str, held: Held, *, override: bool) -> None:
    """Leave the request for the system, durably."""
    said = {"by": by, "reason": reason.strip(), "override": override, "held": in_words(held)}
    new = RESET.with_suffix(".new")
    with new.open("w") as file:
        json.dump(said, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(RESET)


def take_request(owner: int) -> dict[str, str | bool]:
    """The request, once; it is gone then. ControlError where nobody asked, or where the file is not the keeper's."""
    try:
        handle = os.open(RESET, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as e:
        raise ControlError("nobody has asked for a reset", mend="`dcmgate factory-reset`") from e
    with open(handle) as file:
        is_ours = os.fstat(handle).st_uid == owner
        said = json.load(file)
    RESET.unlink()
    if not is_ours:
        raise ControlError("the request for a reset is not the keeper's")
    return {"by": str(said["by"]), "reason": str(said["reason"]), "override": said["override"] is True}
