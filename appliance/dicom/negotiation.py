"""Which presentation contexts are accepted, and with which transfer syntax (PS3.8 7.1.1.13, 9.3.3.2).

Looks only at what the peer proposed: no cross product of what exists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from appliance.dicom import uids
from appliance.dicom.pdu import (
    ACCEPTANCE,
    NO_ABSTRACT_SYNTAX,
    NO_TRANSFER_SYNTAX,
    REJECTED_PERMANENT,
    SOURCE_ACSE,
    SOURCE_USER,
    AssociateRequest,
    ContextResult,
    ProposedContext,
)

Preference = Callable[[Sequence[str]], str]
"""Picks one of the transfer syntaxes proposed in a context; empty where none will do."""

_LAST_CHOICES = (uids.DEFLATED_LE, uids.IMPLICIT_LE)

# Services that are not storage, by whole families of the standard's tree and by single UIDs.
_NOT_STORAGE_FAMILIES = (
    "1.2.840.10008.1.",            # verification, transfer syntaxes, commitment, event logging, media directory
    "1.2.840.10008.2.",            # coding schemes
    "1.2.840.10008.3.",            # application context, MPPS, detached management
    "1.2.840.10008.4.",            # service classes
    "1.2.840.10008.5.1.1.",        # print, media creation, display
    "1.2.840.10008.5.1.4.1.2.",    # query/retrieve
    "1.2.840.10008.5.1.4.20.",     # defined procedure protocol query/retrieve
    "1.2.840.10008.5.1.4.31.",     # modality worklist
    "1.2.840.10008.5.1.4.32.",     # general purpose worklist
    "1.2.840.10008.5.1.4.33.",     # instance availability notification
    "1.2.840.10008.5.1.4.34.4.",   # unified procedure step, trial
    "1.2.840.10008.5.1.4.34.5.",   # unified procedure step subscriptions
    "1.2.840.10008.5.1.4.34.6.",   # unified procedure step
    "1.2.840.10008.5.1.4.37.",     # relevant patient information
    "1.2.840.10008.5.1.4.41.",     # product characteristics
    "1.2.840.10008.5.1.4.42.",     # substance approval
    "1.2.840.10008.6.", "1.2.840.10008.7.", "1.2.840.10008.8.", "1.2.840.10008.9.", "1.2.840.10008.15.",
    "1.2.840.10008.10.",           # real-time communication
)
_NOT_STORAGE = frozenset({
    "1.2.840.10008.5.1.4.1.1.200.4", "1.2.840.10008.5.1.4.1.1.200.5", "1.2.840.10008.5.1.4.1.1.200.6",  # protocol approval
    "1.2.840.10008.5.1.4.1.1.201.1.1",                                      # storage management instance
    "1.2.840.10008.5.1.4.1.1.201.2", "1.2.840.10008.5.1.4.1.1.201.3", "1.2.840.10008.5.1.4.1.1.201.4",  # inventory
    "1.2.840.10008.5.1.4.1.1.201.5", "1.2.840.10008.5.1.4.1.1.201.6",       # inventory creation, repository query
    "1.2.840.10008.5.1.4.34.2", "1.2.840.10008.5.1.4.34.3",                 # RT machine verification, trial
    "1.2.840.10008.5.1.4.34.8", "1.2.840.10008.5.1.4.34.9",                 # RT machine verification
    "1.2.840.10008.5.1.4.38.2", "1.2.840.10008.5.1.4.38.3", "1.2.840.10008.5.1.4.38.4",  # hanging protocol query/retrieve
    "1.2.840.10008.5.1.4.39.2", "1.2.840.10008.5.1.4.39.3", "1.2.840.10008.5.1.4.39.4",  # colour palette
    "1.2.840.10008.5.1.4.43.2", "1.2.840.10008.5.1.4.43.3", "1.2.840.10008.5.1.4.43.4",  # implant templates
    "1.2.840.10008.5.1.4.44.2", "1.2.840.10008.5.1.4.44.3", "1.2.840.10008.5.1.4.44.4",
    "1.2.840.10008.5.1.4.45.2", "1.2.840.10008.5.1.4.45.3", "1.2.840.10008.5.1.4.45.4",
    "1.2.276.0.7230010.3.4.1915765545.18030.917282194.0",                   # DCMTK's private shutdown class
})
_STORAGE_IN_THOSE_FAMILIES = frozenset({
    "1.2.840.10008.5.1.1.27",                                               # stored print, retired
    "1.2.840.10008.5.1.1.29", "1.2.840.10008.5.1.1.30",                     # hardcopy images, retired
})


def is_storage(abstract: str) -> bool:
    """Whether that abstract syntax is taken for storage: any UID that is not known as another service.

    Standard, retired and private storage classes all are; so is a class that
    the standard adds after this release.
    """
    if abstract in _STORAGE_IN_THOSE_FAMILIES:
        return True
    return uids.is_uid(abstract) and abstract not in _NOT_STORAGE and not f"{abstract}.".startswith(_NOT_STORAGE_FAMILIES)


def storage_preference(syntaxes: Sequence[str]) -> str:
    """The transfer syntax to receive objects in, out of those proposed in one context; empty where none is a UID.

    Explicit LE first, because it can always be passed on or re-encoded; then
    encapsulated ones in the proposer's order, deflated, Implicit LE, private
    ones, and big-endian last.
    """
    if uids.EXPLICIT_LE in syntaxes:
        return uids.EXPLICIT_LE
    private = ""
    for syntax in syntaxes:
        if syntax in (uids.IMPLICIT_LE, uids.DEFLATED_LE, uids.EXPLICIT_BE):
            continue
        if syntax.startswith(f"{uids.TRANSFER_SYNTAX_ROOT}.") and uids.is_uid(syntax):
            return syntax
        if not private and uids.is_uid(syntax):
            private = syntax
    for syntax in _LAST_CHOICES:
        if syntax in syntaxes:
            return syntax
    return private or (uids.EXPLICIT_BE if uids.EXPLICIT_BE in syntaxes else "")


def verification_preference(syntaxes: Sequence[str]) -> str:
    """The first proposed syntax that is a UID: C-ECHO has no data set, so any will do."""
    return next((syntax for syntax in syntaxes if uids.is_uid(syntax)), "")


def unacceptable(request: AssociateRequest) -> tuple[int, int, int] | None:
    """(result, source, reason) where the upper layer itself refuses that request (PS3.8 9.3.4, AE-6); else None."""
    if not request.protocol_version & 1:
        return REJECTED_PERMANENT, SOURCE_ACSE, 2
    if request.application_context != uids.APPLICATION_CONTEXT:
        return REJECTED_PERMANENT, SOURCE_USER, 2
    return None


def negotiate(request: AssociateRequest, serves: Callable[[str], Preference | None]) -> tuple[ContextResult, ...]:
    """An answer to each proposed context, in the order of the request.

    `serves` names the preference of the service behind an abstract syntax, or
    None where no service is behind it.
    """
    return tuple(_answer(context, serves(context.abstract)) for context in request.contexts)


def _answer(context: ProposedContext, preference: Preference | None) -> ContextResult:
    # The syntax of a refused context is not significant, but the item must carry one (PS3.8 9.3.3.2).
    if preference is None:
        return ContextResult(context.id, NO_ABSTRACT_SYNTAX, uids.IMPLICIT_LE)
    syntax = preference(context.syntaxes)
    if not syntax:
        return ContextResult(context.id, NO_TRANSFER_SYNTAX, uids.IMPLICIT_LE)
    return ContextResult(context.id, ACCEPTANCE, syntax)
