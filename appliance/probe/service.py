"""The hops `association` and `service`: why there is no association, and what answers there if it is no DICOM server."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from contextlib import suppress

from appliance.dicom import pdu, uids
from appliance.model import escape
from appliance.net import sockets
from appliance.policy import Aborted, Failure, FailureKind, Party, Rejected, classify
from appliance.probe.report import Broken
from appliance.probe.requestor import NoAnswer, Requestor
from appliance.probe.target import Target

VERIFICATION = pdu.ProposedContext(1, uids.VERIFICATION, (uids.IMPLICIT_LE, uids.EXPLICIT_LE))
GUESS_SECONDS = 2.0


def party_of(target: Target) -> Party:
    return Party(target.id, target.host, target.port, target.called, target.calling)


def no_association(lost: NoAnswer, target: Target) -> Broken:
    """Why the other end did not take our association."""
    answer, heard = lost.answer, lost.heard
    if isinstance(answer, Rejected):
        finding = classify(answer, party_of(target))
        text, _, mend = finding.text.rpartition(" — ")
        cause = "rejected_transient"
        if answer.result == 1:
            cause = {(1, 3): "calling_title", (1, 7): "called_title"}.get((answer.source, answer.reason), "rejected")
        return Broken(cause, text, _sentence(mend.partition(" (result ")[0]), facts={"result": answer.result,
                                                                                   "source": answer.source,
                                                                                   "reason": answer.reason})
    if isinstance(answer, Aborted):
        return Broken("aborted", f"{target.place} aborts our association instead of answering it",
                      f'Many archives do so to a sender that they do not know: have "{escape(target.calling)}" entered there '
                      "with this box's address, and look in its log.")
    assert isinstance(answer, Failure)
    said = what_it_is(heard)
    facts = {"heard": escape(heard)} if heard else {}
    if said == "tls":
        return Broken("tls_where_plain", f"{target.place} speaks TLS, and {target.named} has tls = \"off\"",
                      'Write tls = "bcp195" and what it needs; or name its port without TLS.', facts=facts)
    if said:
        return Broken("not_dicom", f"{target.place} is no DICOM server: it speaks {said}",
                      "Check the address and the port: another service answers there.", facts=facts)
    if answer.kind is FailureKind.PROTOCOL:
        return Broken("not_dicom", f"{target.place} is no DICOM server: what it says is nothing of DICOM ({answer.text})",
                      "Check the address and the port: another service answers there.", facts=facts)
    if answer.kind is FailureKind.TIMEOUT:
        return Broken("no_answer", f"{target.place} takes the connection and does not answer our association request: "
                      "not a DICOM server, or one that hangs",
                      "Check the port; if it is right, restart the DICOM service there.", facts=facts)
    return Broken("closed", f"{target.place} closes the connection instead of answering our association request",
                  f'Have "{escape(target.calling)}" entered there as a sender with this box\'s address; if it is, check the '
                  "port, and whether it wants TLS.", facts=facts)


def no_service(lost: NoAnswer, target: Target) -> Broken:
    answer = lost.answer
    if isinstance(answer, Failure) and answer.kind is FailureKind.TIMEOUT:
        return Broken("no_answer", f"{target.place} takes the association and does not answer C-ECHO",
                      "It hangs behind its network side: restart the DICOM service there, and look in its log.")
    if isinstance(answer, Aborted):
        return Broken("aborted", f"{target.place} takes the association and aborts it at C-ECHO", "Look in its log.")
    return Broken("closed", f"{target.place} takes the association and ends it at C-ECHO", "Look in its log.")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def what_it_is(heard: bytes) -> str:
    """What speaks like this, if we know it; "tls" for a TLS record."""
    if heard[:1] in (b"\x15", b"\x16") and heard[1:2] == b"\3":
        return "tls"
    for start, name in ((b"HTTP/", "HTTP"), (b"SSH-", "SSH"), (b"<", "HTTP or XML"), (b"\x0b", "HL7"), (b"220", "SMTP or FTP"),
                        (b"+OK", "POP3"), (b"* OK", "IMAP"), (b"RFB ", "VNC"), (b"\x03\x00\x00", "Remote Desktop")):
        if heard.startswith(start):
            return name
    return ""


def speaks_plain_dicom(sock: socket.socket, target: Target, deadline: float) -> bool:
    """Whether a server that does not speak TLS speaks DICOM in clear text: any answer of PS3.8 counts. Closes nothing."""
    requestor = Requestor(sock)
    try:
        requestor.associate(target.called or "ANY-SCP", target.calling, [VERIFICATION], deadline)
    except NoAnswer as lost:
        return isinstance(lost.answer, (Rejected, Aborted))
    requestor.release(min(deadline, time.monotonic() + 1))
    return True


def speaks_http(sock: sockets.Stream, host: str, deadline: float) -> bytes:
    """What it answers to a question of HTTP; empty where nothing comes. Closes nothing."""
    left = max(0.1, min(GUESS_SECONDS, deadline - time.monotonic()))
    with suppress(OSError):
        sockets.set_timeouts(sock, receive=left, send=left)
        sock.sendall(f"HEAD / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode("latin-1", "replace"))
        heard = bytearray(64)
        return bytes(heard[:sock.recv_into(heard)])
    return b""


def proposals(pairs: Sequence[tuple[str, str]]) -> list[pdu.ProposedContext]:
    """One context for each (SOP class, transfer syntax), so that the answer says of each whether it is taken."""
    return [pdu.ProposedContext(2 * nth + 3, abstract, (syntax,)) for nth, (abstract, syntax) in enumerate(pairs[:127])]
