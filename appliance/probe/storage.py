"""The line `storage`: which SOP classes a destination takes, in which transfer syntaxes, and whether what waits fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from appliance.dicom import uids
from appliance.dicom.indications import AcceptedContext
from appliance.probe.report import Hop, State
from appliance.probe.target import Target

Pair = tuple[str, str]
"""A SOP class and a transfer syntax."""

_ROOT = "1.2.840.10008.5.1.4.1.1."
CLASSES: Mapping[str, str] = {_ROOT + tail: name for tail, name in {
    "1": "CR", "1.1": "DX", "1.2": "Mammography", "2": "CT", "2.1": "Enhanced CT", "4": "MR", "4.1": "Enhanced MR",
    "3.1": "US Multi-frame", "6.1": "US", "7": "Secondary Capture", "12.1": "XA", "12.2": "RF", "13.1.3": "Tomosynthesis",
    "20": "NM", "128": "PET", "88.11": "Basic Text SR", "88.22": "Enhanced SR", "88.67": "Dose SR",
    "104.1": "Encapsulated PDF", "11.1": "Presentation State", "77.1.4": "VL Photographic",
    "481.1": "RT Image", "481.2": "RT Dose", "481.3": "RT Structures",
    "481.5": "RT Plan"}.items()}
"""Storage classes that sites have, with short names."""

SYNTAXES = (uids.EXPLICIT_LE, uids.IMPLICIT_LE, uids.JPEG_LOSSLESS_SV1, uids.JPEG_2000_LOSSLESS, uids.JPEG_LS_LOSSLESS)
MOST = 127


def proposed(wanted: Iterable[Pair]) -> list[Pair]:
    """What is asked for: what waits first, then what sites have; as many as fit beside Verification."""
    usual = ((abstract, syntax) for syntax in SYNTAXES for abstract in CLASSES)
    valid = (pair for pair in wanted if uids.is_uid(pair[0]) and uids.is_uid(pair[1]))
    return list(dict.fromkeys([*valid, *usual]))[:MOST]


def judge(target: Target, contexts: Mapping[int, AcceptedContext], wanted: Sequence[Pair]) -> Hop:
    """What was taken, and whether something waits that was not."""
    taken: dict[str, list[str]] = {}
    for context in contexts.values():
        if context.abstract != uids.VERIFICATION:
            taken.setdefault(context.abstract, []).append(context.syntax)
    facts = {"accepted": {abstract: sorted(syntaxes) for abstract, syntaxes in sorted(taken.items())}}
    refused = [pair for pair in dict.fromkeys(wanted) if not _fits(pair, taken)]
    if refused:
        named = ", ".join(f"{CLASSES.get(abstract, abstract)} in {uids.syntax_name(syntax)}"
                          for abstract, syntax in refused[:4])
        return Hop("storage", State.WARNING, f"it does not take what waits for it: {named}{' …' if len(refused) > 4 else ''}",
                   "not_taken", "Have these allowed there, or route them elsewhere.",
                   facts={**facts, "refused": [list(pair) for pair in refused]})
    if not taken:
        return Hop("storage", State.WARNING, "it takes no storage class at all that was proposed", "no_storage",
                   f"Have storage allowed there for {target.calling}.", facts=facts)
    usual = sum(abstract in taken for abstract in CLASSES)
    syntaxes = {syntax for found in taken.values() for syntax in found}
    return Hop("storage", State.OK, f"it takes {usual} of {len(CLASSES)} usual storage classes; " +
               ", ".join(uids.syntax_name(syntax) for syntax in SYNTAXES if syntax in syntaxes), facts=facts)


def _fits(pair: Pair, taken: Mapping[str, Sequence[str]]) -> bool:
    """Explicit and Implicit VR Little Endian stand in for one another: they are re-encoded while sending."""
    abstract, syntax = pair
    has = taken.get(abstract, ())
    return syntax in has or (syntax in uids.RECODABLE and not uids.RECODABLE.isdisjoint(has))
