"""Association PDUs as hypothesis draws them, and valid bytes with something wrong in them."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from appliance.dicom import pdu


def mutate(seed: int, data: bytes) -> bytes:
    """Some bytes flipped, cut out, doubled or made extreme, where lengths and types are most often."""
    dice = random.Random(seed)
    out = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        at = dice.randrange(len(out))
        match dice.randrange(6):
            case 0:
                out[at] ^= 1 << dice.randrange(8)
            case 1:
                out[at] = dice.choice((0, 1, 2, 127, 128, 254, 255))
            case 2:
                del out[at:at + dice.randrange(1, 9)]
            case 3:
                out[at:at] = out[at:at + dice.randrange(1, 40)]
            case 4:
                out[at:at + 4] = dice.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\1"))
            case 5:
                out[at:at] = dice.randbytes(dice.randrange(1, 9))
        if not out:
            return b"\0"
    return bytes(out)


UIDS = st.text("0123456789.", min_size=1, max_size=64)
TITLES = st.binary(min_size=16, max_size=16)
REQUESTS = st.builds(
    pdu.AssociateRequest, called=TITLES, calling=TITLES,
    contexts=st.lists(st.builds(pdu.ProposedContext, id=st.integers(0, 127).map(lambda n: 2 * n + 1), abstract=UIDS,
                                syntaxes=st.lists(UIDS, max_size=4).map(tuple)),
                      max_size=12, unique_by=lambda c: c.id).map(tuple),
    max_length=st.integers(0, 2**32 - 1), implementation_uid=st.just("") | UIDS,
    implementation_version=st.text("ABC_1", max_size=16),
    roles=st.lists(st.builds(pdu.RoleSelection, UIDS, st.booleans(), st.booleans()), max_size=3).map(tuple),
    asynchronous=st.none() | st.tuples(st.integers(0, 65535), st.integers(0, 65535)),
    user_identity=st.none() | st.builds(pdu.UserIdentity, st.integers(1, 5), st.booleans(), st.binary(max_size=30),
                                        st.binary(max_size=30)),
    extended=st.lists(st.builds(pdu.ExtendedNegotiation, UIDS, st.binary(max_size=9)), max_size=3).map(tuple),
    common_extended=st.lists(st.builds(pdu.CommonExtendedNegotiation, UIDS, UIDS, st.lists(UIDS, max_size=2).map(tuple)),
                             max_size=2).map(tuple),
    application_context=UIDS, protocol_version=st.integers(0, 65535))
ACCEPTS = st.builds(
    pdu.AssociateAccept, called=TITLES, calling=TITLES,
    contexts=st.lists(st.builds(pdu.ContextResult, id=st.integers(0, 127).map(lambda n: 2 * n + 1), result=st.integers(0, 4),
                                syntax=UIDS), max_size=12, unique_by=lambda c: c.id).map(tuple),
    max_length=st.integers(0, 2**32 - 1), implementation_uid=st.just("") | UIDS,
    implementation_version=st.text("ABC_1", max_size=16), identity_response=st.none() | st.binary(max_size=9),
    application_context=UIDS, protocol_version=st.integers(0, 65535))
