"""The table of design "Delivery", row by row."""

from __future__ import annotations

import socket
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import ObjectDamaged, PduError
from appliance.model import Fault
from appliance.policy import (
    Aborted,
    Answer,
    Failure,
    FailureKind,
    HttpStatus,
    NoContext,
    Party,
    Rejected,
    Status,
    classify,
    failure_of,
)

PACS = Party("pacs", "pacs.example", 11112, "PACS", "DCMGATE")
D, C, O = Fault.DESTINATION, Fault.CONFIGURATION, Fault.OBJECT  # noqa: E741


@pytest.mark.requirement("Delivery: table of answers")
@pytest.mark.parametrize(("answer", "fault"), [
    (Status(0x0000), None), (Status(0xB000), None), (Status(0xB006), None), (Status(0xB007), None), (Status(0xBFFF), None),
    (Status(0xA700), D), (Status(0xA7FF), D), (Status(0x0122, everything=True), D), (Status(0x0213), D), (Status(None), D),
    (Status(0x0122), O), (Status(0xA900), O), (Status(0xA9FF), O), (Status(0xC000), O), (Status(0xC211), O),
    (Status(0xCFFF), O),
    (Status(0x0110), O), (Status(0x0117), O), (Status(0x0124), O), (Status(0x0124, everything=True), C), (Status(0x01FF), O),
    (Status(0x0210), O), (Status(0x0211), O), (Status(0xFE00), O), (Status(0xFF00), O), (Status(0x1234), O),
    (Status(0xA800), O),
    (Rejected(1, 1, 1), C), (Rejected(1, 1, 3), C), (Rejected(1, 1, 7), C), (Rejected(1, 2, 2), C), (Rejected(1, 3, 9), C),
    (Rejected(2, 1, 1), D), (Rejected(2, 3, 1), D), (Rejected(2, 3, 2), D), (Rejected(7, 7, 7), D),
    (Aborted(0, 0), D), (Aborted(2, 6), D), (Aborted(2, 0, during_object=True), O),
    (NoContext("1.2", "1.2.840.10008.1.2"), O), (NoContext("1.2", "1.2.840.10008.1.2", everything=True), D),
    (HttpStatus(200), None), (HttpStatus(202), O), (HttpStatus(202, 0xA700), D), (HttpStatus(202, 0xB000), None),
    (HttpStatus(202, 0xC000), O), (HttpStatus(409), O), (HttpStatus(401), C), (HttpStatus(403), C), (HttpStatus(429), D),
    (HttpStatus(500), D), (HttpStatus(503), D), (HttpStatus(599), D), (HttpStatus(408), D), (HttpStatus(400), O),
    (HttpStatus(404), O), (HttpStatus(404, everything=True), C), (HttpStatus(415), O), (HttpStatus(302), O),
    (HttpStatus(204), O),
    *((Failure(kind), C if kind in (FailureKind.CERTIFICATE, FailureKind.PROXY_REFUSES) else
       O if kind is FailureKind.LOCAL_OBJECT else D) for kind in FailureKind),
])
def test_whose_fault_it_is(answer: Answer, fault: Fault | None) -> None:
    assert classify(answer, PACS).fault is fault


def test_warnings_are_kept_and_409_is_verified() -> None:
    found = classify(Status(0xB007, "odd\npixels"), PACS)
    assert found.warning and found.status == 0xB007 and "odd\\x0apixels" in found.text
    assert not classify(Status(0), PACS).warning
    assert classify(HttpStatus(409), PACS).verify and classify(HttpStatus(202, 0x0111), PACS).verify
    assert not classify(HttpStatus(202, 0xC000), PACS).verify


@pytest.mark.requirement("Delivery: an alarm that names the title")
@pytest.mark.parametrize(("answer", "words"), [
    (Rejected(1, 1, 3), ["pacs", '"DCMGATE"', "senders", "pacs.example:11112"]),
    (Rejected(1, 1, 7), ['"PACS"', "upper and lower case"]),
    (Rejected(2, 3, 2), ["limit", "by itself"]),
    (Status(0xA700), ["A700", "out of resources", "make room"]),
    (Status(0x0122), ["0122", "SOP class not supported"]),
    (NoContext("1.2.3", "1.2.840.10008.1.2.5"), ["1.2.3", "1.2.840.10008.1.2.5"]),
    (Failure(FailureKind.NAME, "Name or service not known"), ["pacs.example", "DNS", "Name or service not known"]),
    (Failure(FailureKind.REFUSED), ["pacs.example:11112", "port"]),
    (Failure(FailureKind.CERTIFICATE, "expired"), ["certificate", "expired"]),
    (Aborted(2, 1, True), ["during this object", "unrecognised PDU"]),
    (HttpStatus(403), ["403", "token"]), (HttpStatus(202), ["202", "does not say"]),
])
def test_the_sentence_names_the_thing_and_the_mend(answer: Answer, words: list[str]) -> None:
    text = classify(answer, PACS).text
    for word in words:
        assert word in text
    assert " — " in text


codes = st.integers(0, 0xFFFF)
octets = st.integers(0, 255)
answers = (st.builds(Status, st.none() | codes, st.text(max_size=10), st.booleans())
           | st.builds(Rejected, octets, octets, octets)
           | st.builds(Aborted, octets, octets, st.booleans()) | st.builds(NoContext, st.text(), st.text(), st.booleans())
           | st.builds(HttpStatus, st.integers(-1, 999), st.none() | codes, st.booleans())
           | st.builds(Failure, st.sampled_from(FailureKind), st.text()))


@given(answers)
def test_any_answer_has_a_finding_and_peer_bytes_are_escaped(answer: Answer) -> None:
    found = classify(answer, PACS)
    assert found.text.isprintable()
    assert (found.text != "") or found.fault is None


@given(answers)
@pytest.mark.requirement("I4: never a success that is none")
def test_nothing_but_success_and_warning_counts_as_stored(answer: Answer) -> None:
    if classify(answer, PACS).fault is None:
        status = answer.code if isinstance(answer, Status) else answer.failure if answer.failure is not None else 0  # type: ignore[union-attr]
        assert status == 0 or status >> 12 == 0xB


@pytest.mark.parametrize(("error", "kind"), [
    (ConnectionRefusedError(111, "x"), FailureKind.REFUSED), (TimeoutError("x"), FailureKind.TIMEOUT),
    (socket.gaierror(-2, "x"), FailureKind.NAME), (OSError(113, "x"), FailureKind.UNREACHABLE),
    (OSError(5, "x"), FailureKind.STORAGE), (OSError(28, "x"), FailureKind.FULL), (OSError("x"), FailureKind.UNREACHABLE),
    (BrokenPipeError(32, "x"), FailureKind.CLOSED), (ConnectionResetError(104, "x"), FailureKind.CLOSED),
    (ssl.SSLError(1, "wrong version number"), FailureKind.TLS),
    (ssl.SSLError(1, "tlsv1 alert unknown ca"), FailureKind.CERTIFICATE),
    (ssl.SSLCertVerificationError(1, "self-signed"), FailureKind.CERTIFICATE),
    (PduError("x"), FailureKind.PROTOCOL), (ObjectDamaged(1, "x"), FailureKind.LOCAL_OBJECT),
    (ValueError("x"), FailureKind.PROTOCOL),
])
def test_exceptions_have_a_kind(error: BaseException, kind: FailureKind) -> None:
    assert failure_of(error).kind is kind
