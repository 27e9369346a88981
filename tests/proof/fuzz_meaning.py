"""Differential targets on data sets: what pydicom reads to its last byte without a warning means the same to us.

Where pydicom takes a liberty that says nothing about us, the comparison leaves
it out, with the reason here; everything else that differs is a finding.
"""

from __future__ import annotations

from typing import Any

from pydicom.charset import python_encoding
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from appliance.dicom import elements, uids
from appliance.dicom.elements import PIXEL_REPRESENTATION, read_tags, reader
from appliance.dicom.recode import recode
from appliance.errors import FormatError
from appliance.sandbox.dictionary import vr_of
from tests.proof.fuzz_targets import SYNTAXES, WANTED, Target, compared, same
from tests.support import corpus, dicom_oracle


def element_meaning(data: bytes) -> None:
    """Tags of a data set, against pydicom."""
    if not data:
        return
    syntax, body = SYNTAXES[data[0] % 3], data[1:]
    try:
        ours = read_tags(body, syntax, WANTED, vr_of)
    except FormatError:
        return
    theirs = dicom_oracle.data_set(body, syntax)
    # We stop behind the last wanted tag: elements ascend (PS3.5 7.1), and pydicom does not mind when they do not.
    if theirs is None or (tags := list(theirs.keys())) != sorted(tags):
        return
    if not _repertoires(theirs) <= set(python_encoding):
        return
    compared["element_meaning"] += bool(ours)
    signs_unknown = _signs_unknown(theirs)
    for element in theirs:
        tag = int(element.tag)
        if tag in WANTED and tag in ours and not (signs_unknown and " or " in vr_of(tag, "")):
            meant = _text(element)
            if meant is not None:
                mine, yours = _plain(ours[tag], element.VR), _plain(meant, element.VR)
                same((hex(tag), mine), (hex(tag), yours), "pydicom reads this value otherwise")
    missing = {hex(tag) for tag in WANTED if tag in theirs and tag not in ours and _text(theirs[tag]) is not None}
    same(missing, set(), "pydicom finds tags that we do not")
    same({hex(tag) for tag in ours if tag not in theirs}, set(), "we find tags that pydicom does not")


def _repertoires(found: Dataset) -> set[str]:
    """Its Specific Character Sets. Where PS3.3 C.12.1.1.2 has not got one, pydicom takes a codec of Python's by that name."""
    value = found.get("SpecificCharacterSet") or ""
    return set(value if isinstance(value, (MultiValue, list)) else [value])


def _signs_unknown(found: Dataset) -> bool:
    """A Pixel Representation without a value says nothing of signs (Type 1: PS3.3 C.7.6.3); pydicom takes it for "signed"."""
    return PIXEL_REPRESENTATION in found and found[PIXEL_REPRESENTATION].value in (None, "")


def _plain(text: str, vr: str) -> str:
    """Trailing empty components and padding around values are no part of their meaning (PS3.5 6.2, 6.2.1).

    Of an AE pydicom strips control characters as well, which have no place there.
    """
    padding = "\0 \t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0" if vr == "AE" else "\0 "
    return "\\".join(value.strip(padding).rstrip("^=" + padding) for value in text.split("\\"))


def _text(element: DataElement) -> str | None:
    """pydicom's value as our text; None where it is bulk, a sequence, or no fair comparison."""
    value: Any = element.value
    if element.VR in ("SQ", "OB", "OW", "OD", "OF", "OL", "OV", "UN"):
        return None
    if element.VR in ("DS", "FL", "FD"):      # the same number may be spelled in two ways
        return None
    if value is None:
        return ""
    many = value if isinstance(value, (MultiValue, list)) else [value]
    text = "\\".join(_one(one) for one in many)
    return None if len(text) >= elements.MAX_VALUE or "\ufffd" in text else text


def _one(value: Any) -> str:
    original = getattr(value, "original_string", None)
    if type(value).__name__ == "BaseTag":
        return f"{value.group:04X},{value.element:04X}"
    return original if isinstance(original, str) else str(value)


def recoding_meaning(data: bytes) -> None:
    """Recoding, against pydicom: it reads the same elements before and after."""
    if not data:
        return
    source, target = (uids.IMPLICIT_LE, uids.EXPLICIT_LE) if data[0] & 1 else (uids.EXPLICIT_LE, uids.IMPLICIT_LE)
    body = data[1:]
    try:
        out = b"".join(recode(reader(body), len(body), source, target, vr_of))
    except FormatError:
        return
    before, after = dicom_oracle.data_set(body, source), dicom_oracle.data_set(out, target)
    if before is None or not _by_the_dictionary(before, no_ambiguous=source == uids.EXPLICIT_LE):
        return
    compared["recoding_meaning"] += bool(len(before))
    if after is None:
        same("refused", "read", f"pydicom reads it before and not after: {out.hex()[:2000]}")
        return
    same(_elements(after), _elements(before), "pydicom reads other elements after recoding")


def _by_the_dictionary(found: Dataset, *, no_ambiguous: bool) -> bool:
    """Whether every VR is the dictionary's: any other is gone once it was Implicit, by its sender's fault.

    Ambiguous ones are left out there as well: which it was shows only where Pixel Representation agrees with it.
    """
    # Where elements do not ascend (PS3.5 7.1), Pixel Representation may come after what it is for.
    no_ambiguous = no_ambiguous or _signs_unknown(found) or list(found.keys()) != sorted(found.keys())
    for element in found:
        known = vr_of(int(element.tag), "")
        if element.tag.is_private or element.VR not in known.split(" or ") or (no_ambiguous and " or " in known):
            return False
        if element.VR == "SQ" and not all(_by_the_dictionary(item, no_ambiguous=no_ambiguous) for item in element.value):
            return False
    return True


def _elements(found: Dataset) -> list[tuple[int, str]]:
    return [(int(element.tag), repr(element)) for element in corpus.without_group_lengths(found)]


MEANINGS: dict[str, Target] = {"element_meaning": element_meaning, "recoding_meaning": recoding_meaning}
