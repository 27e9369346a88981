"""Negotiation: which classes are storage, which syntax is taken, and what each proposed context is answered."""

from __future__ import annotations

from dataclasses import replace

import pydicom.uid
import pytest
from pydicom._uid_dict import UID_dictionary
from pynetdicom import sop_class

from appliance.dicom import negotiation, pdu, uids
from tests.support import dicom_bytes as raw
from tests.support.upper_drive import serves

STORAGE = {uid for uid, (name, kind, *_) in UID_dictionary.items()
           if kind == "SOP Class" and "Storage" in name and "Commitment" not in name and "Directory" not in name}
UNNAMED = {"1.2.840.10008.5.1.4.1.1.12.77", "1.2.840.10008.5.1.4.1.1.40"}  # retired with their names; under the storage arc


@pytest.mark.requirement("PS3.4 annex B, PS3.6 annex A: every standard and retired storage class")
def test_storage_classes_are_accepted():
    assert len(STORAGE) > 200
    assert {uid for uid in STORAGE if not negotiation.is_storage(uid)} == set()
    assert all(negotiation.is_storage(uid) for uid in sop_class._STORAGE_CLASSES.values())


@pytest.mark.requirement("PS3.6 annex A: no other service passes for storage")
def test_everything_else_in_the_standards_list_is_not():
    others = set(UID_dictionary) - STORAGE - UNNAMED
    assert len(others) > 200
    assert {uid for uid in others if negotiation.is_storage(uid)} == set()


@pytest.mark.parametrize("private", ["1.2.840.113619.4.30", "1.3.12.2.1107.5.9.1", "1.3.46.670589.5.0.1", "2.25.1",
                                     "1.2.840.10008.5.1.4.1.1.9999.1", "1.2.840.100081.1"])
def test_private_and_future_classes_are_accepted(private: str):
    assert negotiation.is_storage(private)


@pytest.mark.parametrize("text", ["", ".", "abc", "1.2\n3", "../1.2", "1" * 65, "1.2.840.10008.1.1",
                                  "1.2.840.10008.1.1.5", "１.2"])
def test_what_is_no_uid_is_not_storage(text: str):
    assert not negotiation.is_storage(text)


J2K, RLE, PRIVATE = uids.JPEG_2000_LOSSLESS, uids.RLE_LOSSLESS, "1.2.840.113619.5.2"


@pytest.mark.requirement("conformance: presentation contexts")
@pytest.mark.parametrize(("proposed", "chosen"), [
    ((uids.IMPLICIT_LE, RLE, uids.EXPLICIT_LE), uids.EXPLICIT_LE),
    ((uids.IMPLICIT_LE, RLE, J2K), RLE),
    ((uids.IMPLICIT_LE, J2K, RLE), J2K),
    ((uids.IMPLICIT_LE, uids.DEFLATED_LE), uids.DEFLATED_LE),
    ((PRIVATE, uids.EXPLICIT_BE, uids.IMPLICIT_LE), uids.IMPLICIT_LE),
    ((uids.EXPLICIT_BE, PRIVATE), PRIVATE),
    ((uids.EXPLICIT_BE,), uids.EXPLICIT_BE),
    ((uids.ENCAPSULATED_UNCOMPRESSED_LE, uids.IMPLICIT_LE), uids.ENCAPSULATED_UNCOMPRESSED_LE),
    (("not a uid", "1.2.840.10008.1.2.x"), ""),
    ((), ""),
])
def test_the_syntax_that_objects_are_received_in(proposed: tuple[str, ...], chosen: str):
    assert negotiation.storage_preference(proposed) == chosen


def test_every_known_syntax_is_taken_where_it_is_the_only_one():
    for syntax in pydicom.uid.AllTransferSyntaxes:
        assert negotiation.storage_preference((syntax,)) == syntax


@pytest.mark.requirement("conformance: presentation contexts")
def test_each_context_is_answered():
    request = pdu.decode(1, raw.ASSOCIATE_RQ[6:])
    assert isinstance(request, pdu.AssociateRequest)
    request = replace(request, contexts=(*request.contexts, pdu.ProposedContext(5, uids.STUDY_ROOT_FIND, (uids.IMPLICIT_LE,)),
                                         pdu.ProposedContext(7, uids.CT_IMAGE_STORAGE, ()),
                                         pdu.ProposedContext(9, uids.CT_IMAGE_STORAGE, (uids.EXPLICIT_BE,))))
    assert negotiation.negotiate(request, serves) == (
        pdu.ContextResult(1, 0, uids.IMPLICIT_LE), pdu.ContextResult(3, 0, uids.EXPLICIT_LE),
        pdu.ContextResult(5, 3, uids.IMPLICIT_LE), pdu.ContextResult(7, 4, uids.IMPLICIT_LE),
        pdu.ContextResult(9, 0, uids.EXPLICIT_BE))


def test_what_the_layer_itself_refuses():
    request = pdu.decode(1, raw.ASSOCIATE_RQ[6:])
    assert isinstance(request, pdu.AssociateRequest)
    assert negotiation.unacceptable(request) is None
    assert negotiation.unacceptable(replace(request, protocol_version=2)) == (1, 2, 2)
    assert negotiation.unacceptable(replace(request, protocol_version=3)) is None
    assert negotiation.unacceptable(replace(request, application_context="1.2.3")) == (1, 1, 2)


def test_our_own_uids_are_well_made():
    for uid in (uids.IMPLEMENTATION_UID, uids.PRIVATE_INFORMATION_CREATOR):
        assert pydicom.uid.UID(uid).is_valid
        assert uids.is_uid(uid)
    assert 1 <= len(uids.IMPLEMENTATION_VERSION) <= 16
    assert uids.syntax_name(uids.EXPLICIT_LE) == "Explicit VR Little Endian"
    assert uids.syntax_name("1.2.3") == "1.2.3"
