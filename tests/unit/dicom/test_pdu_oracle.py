"""Differential: every association PDU that both we and pynetdicom accept means the same to both."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from pynetdicom import pdu as theirs

from appliance.dicom import pdu
from appliance.errors import PduError
from tests.support import dicom_bytes as raw
from tests.support.dicom_mutations import ACCEPTS, REQUESTS, mutate

KINDS = {1: theirs.A_ASSOCIATE_RQ, 2: theirs.A_ASSOCIATE_AC, 3: theirs.A_ASSOCIATE_RJ, 5: theirs.A_RELEASE_RQ,
         6: theirs.A_RELEASE_RP, 7: theirs.A_ABORT_RQ}


def _uid(value: object) -> str:
    """pynetdicom takes off one NUL or none; we take off all padding."""
    return str(value or "").rstrip("\0 ")


def _their_meaning(data: bytes) -> dict[str, Any] | None:
    """What pynetdicom makes of it; None where it refuses (with whatever exception)."""
    try:
        decoded = KINDS[data[0]]()
        decoded.decode(data)
        if data[0] == 3:
            return {"reject": (decoded.result, decoded.source, decoded.reason_diagnostic)}
        if data[0] == 7:
            return {"abort": (decoded.source, decoded.reason_diagnostic)}
        if data[0] in (5, 6):
            return {}
        user = decoded.user_information
        contexts = [(c.context_id, _uid(c.abstract_syntax), [_uid(s) for s in c.transfer_syntax]) if data[0] == 1
                    else (c.context_id, c.result, _uid(c.transfer_syntax) if c.result == 0 else "")
                    for c in decoded.presentation_context]
        version = user.implementation_version_name
        return {"application": _uid(decoded.application_context_name), "contexts": contexts,
                "called": decoded.called_ae_title.strip() if data[0] == 1 else None,
                "calling": decoded.calling_ae_title.strip() if data[0] == 1 else None,
                "max": user.maximum_length or 0, "uid": _uid(user.implementation_class_uid), "version": (version or "").strip(),
                "roles": sorted((_uid(r.uid), bool(r.scu_role), bool(r.scp_role))
                                for r in user.role_selection.values())}
    except Exception:  # noqa: BLE001 - an oracle may fail in any way it likes
        return None


def _our_meaning(data: bytes) -> dict[str, Any] | None:
    try:
        value = pdu.decode(data[0], data[6:])
    except PduError:
        return None
    match value:
        case pdu.AssociateReject():
            return {"reject": (value.result, value.source, value.reason)}
        case pdu.Abort():
            return {"abort": (value.source, value.reason)}
        case pdu.ReleaseRequest() | pdu.ReleaseReply():
            return {}
        case pdu.AssociateRequest():
            contexts: list[Any] = [(c.id, c.abstract, list(c.syntaxes)) for c in value.contexts]
        case pdu.AssociateAccept():
            contexts = [(c.id, c.result, c.syntax if c.result == 0 else "") for c in value.contexts]
    request = isinstance(value, pdu.AssociateRequest)
    return {"application": value.application_context, "contexts": contexts,
            "called": pdu.title_text(value.called).strip() if request else None,
            "calling": pdu.title_text(value.calling).strip() if request else None,
            "max": value.max_length, "uid": value.implementation_uid, "version": value.implementation_version,
            "roles": sorted((r.uid, r.scu, r.scp) for r in value.roles)}


def _compare(data: bytes) -> bool:
    """True where both accepted it (and then agreed)."""
    if len(data) < 6 or data[0] not in KINDS or int.from_bytes(data[2:6], "big") != len(data) - 6:
        return False
    ours, other = _our_meaning(data), _their_meaning(data)
    if ours is None or other is None:
        return False
    assert ours == other, data.hex()
    return True


def test_the_fixtures_mean_the_same():
    for data in (raw.ASSOCIATE_RQ, raw.ASSOCIATE_AC, raw.ASSOCIATE_RJ, raw.RELEASE_RQ, raw.RELEASE_RP, raw.ABORT):
        assert _compare(data), data.hex()


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.requirement("design: pynetdicom is the differential oracle")
def test_mutated_pdus_mean_the_same():
    both = 0
    for seed in range(1500):
        data = random.Random(seed).choice((raw.ASSOCIATE_RQ, raw.RICH_ASSOCIATE_RQ, raw.ASSOCIATE_AC, raw.ASSOCIATE_RJ,
                                           raw.ABORT))
        mutated = mutate(seed, data)
        both += _compare(mutated[:2] + max(len(mutated) - 6, 0).to_bytes(4, "big") + mutated[6:])
    assert both > 150


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@settings(max_examples=100, deadline=None)
@given(REQUESTS | ACCEPTS)
def test_what_we_encode_means_the_same(value: pdu.AssociateRequest | pdu.AssociateAccept):
    _compare(pdu.encode(value))
