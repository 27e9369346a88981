"""Differential: every association PDU that both we and pynetdicom accept means the same to both."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings

from appliance.dicom import pdu
from appliance.errors import PduError
from tests.support import dicom_bytes as raw
from tests.support import dicom_oracle
from tests.support.dicom_mutations import ACCEPTS, REQUESTS, mutate


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
    if len(data) < 6 or data[0] not in dicom_oracle.KINDS or int.from_bytes(data[2:6], "big") != len(data) - 6:
        return False
    ours, other = _our_meaning(data), dicom_oracle.association(data)
    if ours is None or other is None:
        return False
    assert ours == other, data.hex()
    return True


def test_the_fixtures_mean_the_same():
    for data in (raw.ASSOCIATE_RQ, raw.ASSOCIATE_AC, raw.ASSOCIATE_RJ, raw.RELEASE_RQ, raw.RELEASE_RP, raw.ABORT):
        assert _compare(data), data.hex()


@pytest.mark.requirement("design: pynetdicom is the differential oracle")
def test_mutated_pdus_mean_the_same():
    both = 0
    for seed in range(1500):
        data = random.Random(seed).choice((raw.ASSOCIATE_RQ, raw.RICH_ASSOCIATE_RQ, raw.ASSOCIATE_AC, raw.ASSOCIATE_RJ,
                                           raw.ABORT))
        mutated = mutate(seed, data)
        both += _compare(mutated[:2] + max(len(mutated) - 6, 0).to_bytes(4, "big") + mutated[6:])
    assert both > 150


@settings(max_examples=100, deadline=None)
@given(REQUESTS | ACCEPTS)
def test_what_we_encode_means_the_same(value: pdu.AssociateRequest | pdu.AssociateAccept):
    _compare(pdu.encode(value))
