"""What went wrong in TLS, in words: which check, and whose certificate.

OpenSSL says it in codes and in names of alerts; a person has to know whether to
mend something here or there. An alert on certificates is what the other end
thinks of ours, a failed verification what we think of theirs.
"""

from __future__ import annotations

import ssl
import time

OURS = "ours"
THEIRS = "theirs"


class TlsError(OSError):
    """TLS failed. `check` is a word for it (`expired`, `wrong_name`, `protocol_version` …) to count by; `certificate` says
    whose certificate it is about ("ours", "theirs", "" where it is about none); `text` is a sentence."""

    def __init__(self, check: str, text: str, certificate: str = "") -> None:
        super().__init__(text)
        self.check = check
        self.text = text
        self.certificate = certificate

    def __str__(self) -> str:
        return self.text


# X509_V_ERR_* (openssl-verification-options(1)): check and words
_VERIFY: dict[int, tuple[str, str]] = {
    2: ("unknown_authority", "its issuer is not here"),
    3: ("no_crl", "there is no revocation list of its issuer"),
    7: ("bad_signature", "its signature is wrong"),
    8: ("bad_crl", "the signature of its issuer's revocation list is wrong"),
    9: ("not_yet_valid", "it is not valid yet"),
    10: ("expired", "it has expired"),
    11: ("crl_not_yet_valid", "its issuer's revocation list is not in force yet"),
    12: ("crl_expired", "its issuer's revocation list is out of date"),
    18: ("self_signed", "it is self-signed, and not itself trusted"),
    19: ("unknown_authority", "the authority at the top of its chain is not trusted"),
    20: ("unknown_authority", "it was issued by an authority that is not trusted, or an intermediate certificate is missing"),
    21: ("unknown_authority", "it was issued by an authority that is not trusted, or an intermediate certificate is missing"),
    22: ("bad_chain", "its chain is too long"),
    23: ("revoked", "it has been revoked"),
    24: ("bad_chain", "a certificate above it is none of an authority"),
    26: ("wrong_purpose", "it is not meant for this side of TLS (extended key usage)"),
    27: ("unknown_authority", "its authority is not trusted for this"),
    62: ("wrong_name", "it is not made out to this host name"),
    64: ("wrong_name", "it is not made out to this address"),
    66: ("weak_key", "its key is too short"),
    67: ("weak_key", "the key of a certificate above it is too short"),
    68: ("weak_key", "a signature in its chain is of a kind that is broken (MD5 or SHA-1)"),
}

# Alerts on our certificate (RFC 8446, 6.2), by a part of OpenSSL's reason
_ALERTS: tuple[tuple[str, str, str], ...] = (
    ("CERTIFICATE_EXPIRED", "expired", "it takes our certificate for expired"),
    ("CERTIFICATE_REVOKED", "revoked", "it takes our certificate for revoked"),
    ("UNKNOWN_CA", "unknown_authority", "it does not trust the authority that issued our certificate"),
    ("CERTIFICATE_REQUIRED", "missing", "it asks for a certificate of ours, and we showed none"),
    ("UNSUPPORTED_CERTIFICATE", "wrong_purpose", "our certificate is of a kind that it does not take"),
    ("CERTIFICATE_UNKNOWN", "refused", "it refuses our certificate and does not say why"),
    ("BAD_CERTIFICATE", "refused", "it refuses our certificate, or asks for one and we showed none"),
    ("ACCESS_DENIED", "refused", "our certificate is good, but not allowed there"),
)

_OTHERS: tuple[tuple[str, str, str], ...] = (
    ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "missing", "it shows no certificate, and one is required"),
    ("UNSUPPORTED_PROTOCOL", "protocol_version", "it speaks only versions of TLS that are not allowed here"),
    ("PROTOCOL_VERSION", "protocol_version", "the other end takes none of the versions of TLS that are allowed here"),
    ("VERSION_TOO_LOW", "protocol_version", "it speaks only versions of TLS that are not allowed here"),
    ("NO_SHARED_CIPHER", "no_shared_suite", "it offers no cipher suite that is allowed here"),
    ("NO_SHARED_GROUP", "no_shared_suite", "it offers no key exchange group that is allowed here"),
    ("NO_SUITABLE_KEY_SHARE", "no_shared_suite", "it offers no key exchange group that is allowed here"),
    ("NO_SUITABLE_SIGNATURE_ALGORITHM", "no_shared_suite", "it offers no signature algorithm that goes with our certificate"),
    ("NO_SHARED_SIGNATURE_ALGORITHMS", "no_shared_suite", "it offers no signature algorithm that goes with our certificate"),
    ("WRONG_CIPHER_RETURNED", "no_shared_suite", "it chose a cipher suite that is not allowed here"),
    ("DH_KEY_TOO_SMALL", "weak_key", "its key exchange is too short"),
    ("EE_KEY_TOO_SMALL", "weak_key", "a key is too short"),
    ("INSUFFICIENT_SECURITY", "no_shared_suite", "the other end asks for stronger cipher suites"),
    ("HANDSHAKE_FAILURE", "no_shared_suite", "the other end finds no common cipher suite, or misses a certificate of ours"),
    ("WRONG_VERSION_NUMBER", "not_tls", "what answers does not speak TLS"),
    ("HTTP_REQUEST", "not_tls", "it speaks HTTP, not TLS"),
    ("HTTPS_PROXY_REQUEST", "not_tls", "it speaks HTTP, not TLS"),
    ("UNKNOWN_PROTOCOL", "not_tls", "it does not speak TLS"),
    ("UNEXPECTED_EOF", "closed", "the connection was closed in the middle of the handshake"),
    ("UNRECOGNIZED_NAME", "wrong_name", "the other end does not know the name by which it was called"),
)


def clock_says() -> str:
    """For the two checks that a wrong clock fails too."""
    return time.strftime("this box's clock says %Y-%m-%d %H:%M UTC", time.gmtime())


def in_words(error: ssl.SSLError, whose: str) -> TlsError:
    """What OpenSSL said; `whose` are the words for the other end's certificate ("the certificate of 10.0.0.7")."""
    if isinstance(error, ssl.SSLCertVerificationError):
        check, text = _VERIFY.get(error.verify_code, ("not_trusted", error.verify_message or "it does not hold"))
        if check == "wrong_name" and error.verify_message:
            text = error.verify_message.rstrip(".")
        if check in ("expired", "not_yet_valid"):
            text += f"; {clock_says()}"
        return TlsError(check, f"{whose} is refused: {text}", THEIRS)
    reason = (error.reason or str(error)).upper()
    if "ALERT" in reason:
        for part, check, text in _ALERTS:
            if part in reason:
                return TlsError(check, text, OURS)
    for part, check, text in _OTHERS:
        if part in reason:
            certificate = THEIRS if check in ("missing", "weak_key") else ""
            return TlsError(check, text, certificate)
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return TlsError("closed", "the connection was closed in the middle of TLS")
    return TlsError("broken", f"TLS broke off: {reason.replace('_', ' ').lower()}")
