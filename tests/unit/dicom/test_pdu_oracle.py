"""Differential: every association PDU that both we and pynetdicom accept means the same to both."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings

from appliance.dicom import pdu
from tests.proof.fuzz_targets import association_meaning
from tests.support import dicom_bytes as raw
from tests.support import dicom_oracle
from tests.support.dicom_mutations import ACCEPTS, REQUESTS, mutate


def _compare(data: bytes) -> bool:
    """True where both accepted it (and then agreed)."""
    if len(data) < 6 or data[0] not in dicom_oracle.KINDS or int.from_bytes(data[2:6], "big") != len(data) - 6:
        return False
    ours, other = association_meaning(data[0], data[6:]), dicom_oracle.association(data)
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
