"""Faults: whose fault a failed delivery is, in one sentence that names the thing and the mend (design, Delivery).

Every way in which an attempt can end is one of the `Answer` classes; `classify`
maps it to a `Finding`. What happens next is decided by `decisions.decide_after`.

Two refusals cannot be judged by themselves: a status or a missing context that
says "not this SOP class" is the object's fault when others get through, and the
destination's when nothing does. The caller says which (`everything`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from appliance.model import Fault, Outcome, escape


@dataclass(frozen=True, slots=True)
class Party:
    """Who talks to whom, for the sentence: the destination's id, host and port, and the AE titles in use."""

    destination: str
    host: str = ""
    port: int = 0
    called: str = ""
    calling: str = ""

    @property
    def place(self) -> str:
        return f"{escape(self.host)}:{self.port}" if self.host else self.destination


@dataclass(frozen=True, slots=True)
class Status:
    """A C-STORE response (PS3.7 9.1.1, PS3.4 B.2.3); None: the answer carried no status, which is never a success."""

    code: int | None
    comment: str = ""
    everything: bool = False


@dataclass(frozen=True, slots=True)
class Rejected:
    """A-ASSOCIATE-RJ (PS3.8 9.3.4)."""

    result: int
    source: int
    reason: int


@dataclass(frozen=True, slots=True)
class Aborted:
    """A-ABORT by the peer (PS3.8 9.3.8). `during_object`: while its data was sent or its answer awaited."""

    source: int
    reason: int
    during_object: bool = False


@dataclass(frozen=True, slots=True)
class NoContext:
    """The peer accepted no presentation context for this SOP class, or not with a syntax that carries the object."""

    sop_class: str
    syntax: str
    everything: bool = False


@dataclass(frozen=True, slots=True)
class HttpStatus:
    """A STOW-RS answer (PS3.18 10.5). `failure` is the Failure Reason (0008,1197) of this instance in a 202's or 409's body."""

    code: int
    failure: int | None = None
    everything: bool = False


class FailureKind(StrEnum):
    """What broke, where the peer gave no answer in its own protocol."""

    NAME = "name"                # the host name has no address
    UNREACHABLE = "unreachable"  # no route, network or host down
    REFUSED = "refused"          # nothing listens there
    TIMEOUT = "timeout"          # no progress for too long
    CLOSED = "closed"            # closed or reset by the peer
    TLS = "tls"                  # the handshake failed
    CERTIFICATE = "certificate"  # ours is refused, or theirs is not trusted
    PROXY = "proxy"              # the HTTP proxy is not there, or cannot reach the far end
    PROXY_REFUSES = "proxy refuses"  # it does not take our password, or does not lead there
    PROTOCOL = "protocol"        # what came back breaks PS3.7 or PS3.8
    LOCAL_OBJECT = "object"      # the object itself cannot be read or written there: damaged, too long for the target
    STORAGE = "storage"          # folder: missing, no marker, I/O error
    FULL = "full"                # folder: no room


@dataclass(frozen=True, slots=True)
class Failure:
    """The connection or the target broke. `text` is what the system said; `check` which check of TLS failed, where one did."""

    kind: FailureKind
    text: str = ""
    check: str = ""


Answer = Status | Rejected | Aborted | NoContext | HttpStatus | Failure


@dataclass(frozen=True, slots=True)
class Finding:
    """Whose fault it is (None: the destination has the object) and one sentence for a person.

    `warning`: stored, with a warning that is kept. `verify`: it may already be
    there; a query decides (equal counts as sent), and only if it cannot be asked does `fault` count.
    """

    fault: Fault | None
    text: str = ""
    warning: bool = False
    verify: bool = False
    status: int | None = None

    def outcome(self, number: int, reference: str = "") -> Outcome:
        """This finding as the outcome of one object."""
        return Outcome(number, self.fault, self.status, self.text, self.warning, reference)


def classify(answer: Answer, party: Party) -> Finding:
    """Whose fault this answer is. Never raises; whatever no row of the table names is the object's fault."""
    if isinstance(answer, Status):
        return _status(answer, party)
    if isinstance(answer, Rejected):
        return _rejected(answer, party)
    if isinstance(answer, Aborted):
        return _aborted(answer, party)
    if isinstance(answer, NoContext):
        return _no_context(answer, party)
    if isinstance(answer, HttpStatus):
        return _http(answer, party)
    return _failure(answer, party)


# PS3.4 B.2.3 and PS3.7 annex C: (fault, what it means, the mend). 0122 and 0124 depend on whether anything gets through.
_STATUS: dict[int, tuple[Fault, str, str]] = {
    0x0105: (Fault.OBJECT, "no such attribute", "look at the object"),
    0x0106: (Fault.OBJECT, "invalid attribute value", "look at the object"),
    0x0110: (Fault.OBJECT, "processing failure", "look in the destination's log"),
    0x0111: (Fault.OBJECT, "duplicate SOP instance", "compare it with what the destination holds under this UID"),
    0x0112: (Fault.OBJECT, "no such SOP instance", "look in the destination's log"),
    0x0115: (Fault.OBJECT, "invalid argument value", "look at the object"),
    0x0117: (Fault.OBJECT, "invalid SOP instance UID", "the scanner made a UID that breaks PS3.5 9.1"),
    0x0118: (Fault.OBJECT, "no such SOP class", "allow this SOP class there"),
    0x0119: (Fault.OBJECT, "class and instance contradict each other", "look at the object"),
    0x0122: (Fault.OBJECT, "SOP class not supported", "allow this SOP class there, or route it elsewhere"),
    0x0124: (Fault.OBJECT, "not authorised", "allow our calling title to store there"),
    0x0210: (Fault.OBJECT, "duplicate invocation", "look in the destination's log"),
    0x0211: (Fault.OBJECT, "unrecognised operation", "the destination does not store; check address and port"),
    0x0212: (Fault.OBJECT, "mistyped argument", "look in the destination's log"),
    # Named like A7xx by PS3.7 annex C: nothing is wrong with the object, so it is not parked for it.
    0x0213: (Fault.DESTINATION, "resource limitation", "make room there"),
}


def _status(answer: Status, party: Party) -> Finding:
    code = answer.code
    if code is None:
        return Finding(Fault.DESTINATION, f"{party.destination} answered without a status — look in its log")
    said = f" ({escape(answer.comment)})" if answer.comment.strip() else ""
    if code == 0x0000:
        return Finding(None, status=code)
    if code & 0xF000 == 0xB000:
        meaning = {0xB000: "coerced data elements", 0xB006: "discarded elements",
                   0xB007: "says that the data set does not match the SOP class"}.get(code, "warns")
        return Finding(None, f"{party.destination} stored it and {meaning}, status {code:04X}{said}", True, status=code)
    fault, meaning, mend = _STATUS.get(code, (Fault.OBJECT, "", "look in the destination's log"))
    if code & 0xFF00 == 0xA700:
        fault, meaning, mend = Fault.DESTINATION, "out of resources", "make room there"
    elif code & 0xFF00 == 0xA900:
        fault, meaning, mend = Fault.OBJECT, "data set does not match the SOP class", "look at the object"
    elif code & 0xF000 == 0xC000:
        fault, meaning, mend = Fault.OBJECT, "cannot understand", "look in the destination's log"
    elif code == 0xFE00:
        meaning = "cancelled"
    elif code & 0xFF00 == 0xFF00:
        meaning = "pending, which C-STORE does not have"
    elif not meaning:
        meaning = "refused" if code & 0xFF00 == 0x0100 else "a status that C-STORE does not have"
    if answer.everything and code == 0x0122:
        fault, mend = Fault.DESTINATION, "it takes nothing from us: check that storage is enabled there"
    if answer.everything and code == 0x0124:
        fault = Fault.CONFIGURATION
    return Finding(fault, f"{party.destination} answered {code:04X}, {meaning}{said} — {mend}", status=code)


def _rejected(answer: Rejected, party: Party) -> Finding:
    """PS3.8 table 9-21. Only `result` decides the class; source and reason make the sentence."""
    called, calling = f'"{escape(party.called)}"', f'"{escape(party.calling)}"'
    at = f"{party.destination} ({party.place})"
    code = f"(result {answer.result}, source {answer.source}, reason {answer.reason})"
    if answer.result == 1:
        why = {
            (1, 2): f"{at} does not know the DICOM application context — is it a DICOM node?",
            (1, 3): f"{at} does not recognise our calling title {calling} — add {calling} with this box's address to its "
                    f"list of senders, or correct `calling` of [[destination]] {party.destination}",
            (1, 7): f"{at} does not recognise the called title {called} — correct `called` of [[destination]] "
                    f"{party.destination}; upper and lower case count",
            (2, 2): f"{at} does not support protocol version 1 — is it a DICOM node?",
        }.get((answer.source, answer.reason),
              f"{at} rejects our association for good, {calling} to {called} — ask its administrator whether these titles "
              f"and this address are allowed")
        return Finding(Fault.CONFIGURATION, f"{why} {code}")
    why = {
        (3, 1): f"{at} is congested for the moment",
        (3, 2): f"{at} has reached a limit of its own, such as associations at once or disk space",
    }.get((answer.source, answer.reason), f"{at} rejects our association for the moment")
    return Finding(Fault.DESTINATION, f"{why} — it is tried again by itself {code}")


_ABORT_REASONS = {0: "no reason given", 1: "unrecognised PDU", 2: "unexpected PDU", 4: "unrecognised PDU parameter",
                  5: "unexpected PDU parameter", 6: "invalid PDU parameter value"}


def _aborted(answer: Aborted, party: Party) -> Finding:
    """An abort in the middle of an object may well be that object's doing: it gets its five tries while others succeed."""
    why = "by its application" if answer.source == 0 else _ABORT_REASONS.get(answer.reason, f"reason {answer.reason}")
    if answer.during_object:
        return Finding(Fault.OBJECT, f"{party.destination} aborted the association during this object ({why}) — "
                                     f"look in the destination's log")
    return Finding(Fault.DESTINATION, f"{party.destination} aborted the association ({why}) — it is tried again by itself")


def _no_context(answer: NoContext, party: Party) -> Finding:
    what = f"{escape(answer.sop_class)} in {escape(answer.syntax)}"
    if answer.everything:
        return Finding(Fault.DESTINATION, f"{party.destination} accepts no presentation context at all, last for {what} — "
                                          f"check that storage is enabled there")
    return Finding(Fault.OBJECT, f"{party.destination} accepts no presentation context for {what} — allow it there, or "
                                 f"route it elsewhere")


def _http(answer: HttpStatus, party: Party) -> Finding:
    code = answer.code
    at = f"{party.destination} ({party.place})"
    if code == 200:
        return Finding(None, status=code)
    if code in (202, 409) and answer.failure is not None:
        inner = _status(Status(answer.failure, everything=answer.everything), party)
        # 0111 in the body is what 409 says without one.
        return Finding(inner.fault, inner.text, inner.warning, answer.failure == 0x0111, answer.failure)
    if code == 202:
        return Finding(Fault.OBJECT, f"{at} answered 202 but does not say what became of this object — look in its log",
                       status=code)
    if code == 409:
        return Finding(Fault.OBJECT, f"{at} answered 409, conflict: it may already be there — compare it with what the "
                                     f"destination holds", verify=True, status=code)
    if code in (401, 403):
        return Finding(Fault.CONFIGURATION, f"{at} answered {code}: our certificate or token is not allowed to store — have "
                                            f"it allowed there", status=code)
    if code in (408, 429) or 500 <= code <= 599:
        return Finding(Fault.DESTINATION, f"{at} answered {code} — it is tried again by itself", status=code)
    if code == 404 and answer.everything:
        return Finding(Fault.CONFIGURATION, f"{at} answered 404 — correct the address of [[destination]] "
                                            f"{party.destination}", status=code)
    return Finding(Fault.OBJECT, f"{at} answered {code} for this object — look in its log", status=code)


_FAILURES: dict[FailureKind, tuple[Fault, str, str]] = {
    FailureKind.NAME: (Fault.DESTINATION, "the host name {host} has no address", "check the name, and this box's DNS server"),
    FailureKind.UNREACHABLE: (Fault.DESTINATION, "{place} cannot be reached", "check cable, route and firewall"),
    FailureKind.REFUSED: (Fault.DESTINATION, "{place} refuses the connection", "check that it runs, and its port"),
    FailureKind.TIMEOUT: (Fault.DESTINATION, "{place} makes no progress", "check that it runs, and firewalls in between"),
    FailureKind.CLOSED: (Fault.DESTINATION, "{place} closed the connection", "look in its log; it is tried again by itself"),
    FailureKind.TLS: (Fault.DESTINATION, "the TLS handshake with {place} failed", "check that it speaks TLS 1.2 or 1.3 there"),
    FailureKind.CERTIFICATE: (Fault.CONFIGURATION, "a certificate is refused between us and {place}",
                              "renew it, or have its authority trusted"),
    FailureKind.PROXY: (Fault.DESTINATION, "{place} is not reached through its proxy", "check the proxy, and that it may reach "
                        "that host and port"),
    FailureKind.PROXY_REFUSES: (Fault.CONFIGURATION, "the proxy does not let us through to {place}", "correct its password "
                                "(`dcmgate proxy password`), or have it allow that host and port"),
    FailureKind.PROTOCOL: (Fault.DESTINATION, "{place} does not answer as a DICOM node does", "check address and port"),
    FailureKind.LOCAL_OBJECT: (Fault.OBJECT, "the object cannot be sent to {place}", "look at the object"),
    FailureKind.STORAGE: (Fault.DESTINATION, "the folder of {destination} cannot be written", "check that it is mounted"),
    FailureKind.FULL: (Fault.DESTINATION, "the folder of {destination} is full", "make room there"),
}


def _failure(answer: Failure, party: Party) -> Finding:
    fault, what, mend = _FAILURES[answer.kind]
    sentence = what.format(host=escape(party.host), place=f"{party.destination} ({party.place})", destination=party.destination)
    said = f" ({escape(answer.text)})" if answer.text.strip() else ""
    return Finding(fault, f"{sentence}{said} — {_MENDS.get(answer.check, mend)}")


# Where the check that failed says more about the mend than the kind of failure does.
_MENDS = {
    "wrong_name": "give the name that its certificate carries in `server_name`, or have it certified for this one",
    "unknown_authority": "have the authority that issued it trusted (`dcmgate cert install --trust`)",
    "self_signed": "have it certified by an authority that is trusted here",
    "revoked": "have it certified anew",
    "not_pinned": "if it was changed there on purpose, write its new fingerprint in `pins` (`dcmgate cert pin` shows it)",
    "wrong_purpose": "have it certified for this side of TLS",
    "missing": "give the destination a `certificate`, and have it trusted there",
    "no_certificate": "`dcmgate cert show` says what is there; request or install one",
    "no_trust": "install the authorities with `dcmgate cert install --trust`",
    "no_shared_suite": "have one of the suites on the page `conformance` allowed there",
    "not_tls": "check the port, and that TLS is spoken there",
}


# Linux errno values, written out because the pure layer imports no system module.
_ERRNO: dict[int, FailureKind] = {
    111: FailureKind.REFUSED, 110: FailureKind.TIMEOUT, 11: FailureKind.TIMEOUT, 104: FailureKind.CLOSED,
    32: FailureKind.CLOSED, 103: FailureKind.CLOSED, 100: FailureKind.UNREACHABLE, 101: FailureKind.UNREACHABLE,
    112: FailureKind.UNREACHABLE, 113: FailureKind.UNREACHABLE, 28: FailureKind.FULL, 122: FailureKind.FULL,
    5: FailureKind.STORAGE, 30: FailureKind.STORAGE,
}
_NAMED: dict[str, FailureKind] = {
    "TlsError": FailureKind.TLS, "ProxyError": FailureKind.PROXY,
    "gaierror": FailureKind.NAME, "herror": FailureKind.NAME, "TimeoutError": FailureKind.TIMEOUT,
    "SSLCertVerificationError": FailureKind.CERTIFICATE, "SSLZeroReturnError": FailureKind.CLOSED,
    "SSLEOFError": FailureKind.CLOSED, "SSLError": FailureKind.TLS,
    "ConnectionRefusedError": FailureKind.REFUSED, "ConnectionResetError": FailureKind.CLOSED,
    "BrokenPipeError": FailureKind.CLOSED, "ConnectionAbortedError": FailureKind.CLOSED,
    "ProtocolError": FailureKind.PROTOCOL, "ObjectDamaged": FailureKind.LOCAL_OBJECT,
}
_CERTIFICATE_ALERTS = ("certificate", "unknown ca", "unknown_ca", "access denied", "access_denied")


def failure_of(error: BaseException) -> Failure:
    """The failure that an exception of a socket, of TLS, of DNS or of our own stands for."""
    text = str(error) or type(error).__name__
    names = [kind.__name__ for kind in type(error).__mro__]
    for name in names:
        kind = _NAMED.get(name)
        if name == "TlsError":       # it says whose certificate it is about, if it is about one
            kind = FailureKind.CERTIFICATE if getattr(error, "certificate", "") else kind
        elif name == "ProxyError":
            kind = FailureKind.PROXY_REFUSES if getattr(error, "settled", False) else kind
        elif kind is FailureKind.TLS and any(word in text.lower() for word in _CERTIFICATE_ALERTS):
            kind = FailureKind.CERTIFICATE
        if kind is not None:
            return Failure(kind, text, str(getattr(error, "check", "")) if name == "TlsError" else "")
    if isinstance(error, OSError):
        return Failure(_ERRNO.get(error.errno or 0, FailureKind.UNREACHABLE), text)
    return Failure(FailureKind.PROTOCOL, text)
