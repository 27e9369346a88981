"""TLS errors in words: a check to count by, a sentence for a person, and whose certificate it is about."""

from __future__ import annotations

import re
import ssl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.net import tlserrors
from appliance.net.tlserrors import OURS, THEIRS, in_words
from appliance.policy import FailureKind, Party, classify, failure_of

PARTY = Party("cloud", "pacs.example.org", 2762, "PACS", "DCMGATE")


def verification(code: int, message: str = "") -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.reason = "CERTIFICATE_VERIFY_FAILED"
    error.verify_code, error.verify_message = code, message
    return error


def other(reason: str, kind: type[ssl.SSLError] = ssl.SSLError) -> ssl.SSLError:
    error = kind(1, reason.lower())
    error.reason = reason
    return error


@pytest.mark.parametrize(("code", "check"), [
    (9, "not_yet_valid"), (10, "expired"), (18, "self_signed"), (19, "unknown_authority"), (20, "unknown_authority"),
    (21, "unknown_authority"), (23, "revoked"), (26, "wrong_purpose"), (62, "wrong_name"), (64, "wrong_name"), (66, "weak_key"),
    (68, "weak_key"), (9999, "not_trusted")])
def test_each_check_of_theirs_has_its_word(code: int, check: str) -> None:
    error = in_words(verification(code, "as OpenSSL says it"), "the certificate of 10.0.0.7")
    assert (error.check, error.certificate) == (check, THEIRS)
    assert str(error).startswith("the certificate of 10.0.0.7 is refused: ")


def test_codes_are_those_of_openssl() -> None:
    """ssl has them as names nowhere; OpenSSL's X509_V_ERR_ numbers do not change."""
    assert all(0 < code < 100 and re.fullmatch(r"[a-z_]+", check) and text for code, (check, text) in tlserrors._VERIFY.items())


@pytest.mark.parametrize("code", [9, 10])
def test_what_a_wrong_clock_would_fail_too_says_what_the_clock_says(code: int) -> None:
    assert re.search(r"this box's clock says \d{4}-\d\d-\d\d \d\d:\d\d UTC", str(in_words(verification(code), "x")))


@pytest.mark.parametrize(("reason", "check"), [
    ("SSLV3_ALERT_CERTIFICATE_EXPIRED", "expired"), ("SSLV3_ALERT_CERTIFICATE_REVOKED", "revoked"),
    ("TLSV1_ALERT_UNKNOWN_CA", "unknown_authority"), ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "missing"),
    ("SSLV3_ALERT_UNSUPPORTED_CERTIFICATE", "wrong_purpose"), ("SSLV3_ALERT_CERTIFICATE_UNKNOWN", "refused"),
    ("SSLV3_ALERT_BAD_CERTIFICATE", "refused"), ("TLSV1_ALERT_ACCESS_DENIED", "refused")])
def test_an_alert_on_a_certificate_is_about_ours(reason: str, check: str) -> None:
    error = in_words(other(reason), "x")
    assert (error.check, error.certificate) == (check, OURS)
    finding = classify(failure_of(error), PARTY)
    assert failure_of(error).kind is FailureKind.CERTIFICATE
    assert "certificate of ours" in finding.text if check == "missing" else "our certificate" in finding.text


@pytest.mark.parametrize(("reason", "check", "certificate"), [
    ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "missing", THEIRS), ("UNSUPPORTED_PROTOCOL", "protocol_version", ""),
    ("TLSV1_ALERT_PROTOCOL_VERSION", "protocol_version", ""), ("NO_SHARED_CIPHER", "no_shared_suite", ""),
    ("SSLV3_ALERT_HANDSHAKE_FAILURE", "no_shared_suite", ""), ("WRONG_VERSION_NUMBER", "not_tls", ""),
    ("HTTP_REQUEST", "not_tls", ""), ("EE_KEY_TOO_SMALL", "weak_key", THEIRS), ("UNEXPECTED_EOF_WHILE_READING", "closed", ""),
    ("DECRYPTION_FAILED_OR_BAD_RECORD_MAC", "broken", "")])
def test_the_others_have_their_words(reason: str, check: str, certificate: str) -> None:
    error = in_words(other(reason), "x")
    assert (error.check, error.certificate) == (check, certificate)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.builds(verification, st.integers(0, 100), st.text(max_size=40)),
                 st.builds(other, st.text(max_size=60),
                           st.sampled_from([ssl.SSLError, ssl.SSLEOFError, ssl.SSLZeroReturnError]))))
def test_whatever_openssl_says_becomes_one_sentence_and_one_word(error: ssl.SSLError) -> None:
    found = in_words(error, "x")
    assert re.fullmatch(r"[a-z_]+", found.check) and str(found) and found.certificate in ("", OURS, THEIRS)
    finding = classify(failure_of(found), PARTY)
    assert finding.fault is not None and "pacs.example.org:2762" in finding.text
    assert failure_of(found).check == found.check
    # A certificate in question is a person's to mend; a line that is bad is tried again for ever.
    assert failure_of(found).kind is (FailureKind.CERTIFICATE if found.certificate else FailureKind.TLS)


@pytest.mark.parametrize(("check", "word"), [("wrong_name", "server_name"), ("unknown_authority", "--trust"),
                                             ("not_pinned", "pins"), ("missing", "`certificate`")])
def test_the_mend_is_that_of_the_check(check: str, word: str) -> None:
    text = classify(failure_of(tlserrors.TlsError(check, "why", THEIRS)), PARTY).text
    assert word in text.rpartition(" — ")[2]
