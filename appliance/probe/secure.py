"""The hop `tls`: what was agreed on, and on failure which check failed, whose certificate it was about, and the mend.

`look` shakes hands once more without checking anything, to be able to say what
is there: the chain, the protocol that an old server speaks. Nothing of DICOM is
ever said on such a connection.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from appliance.config.settings import LEGACY
from appliance.net.certstore import Material
from appliance.net.secure import Secure, chain_of
from appliance.net.tls import PROFILES
from appliance.net.tlserrors import OURS, TlsError, clock_says
from appliance.policy.certificates import Facts, covers, date, typed
from appliance.probe.report import Broken
from appliance.probe.target import Target


@dataclass(frozen=True, slots=True)
class Seen:
    """What a server shows to anybody. `chain` as it sent it, DER."""

    protocol: str
    suite: str
    chain: tuple[bytes, ...]


def look(sock: socket.socket, host: str, ours: Material | None, deadline: float) -> Seen:
    """Shake hands by any version of TLS that this OpenSSL has. OSError (ssl.SSLError is one)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = PROFILES[LEGACY].lowest      # as old as it may be: this is only to be able to say so
    if ours is not None and ours.chain is not None and ours.key is not None:
        with suppress(OSError, ValueError):
            context.load_cert_chain(ours.chain, ours.key, password="")
    sock.settimeout(max(0.1, deadline - time.monotonic()))
    with context.wrap_socket(sock, server_hostname=host) as secure:
        cipher = secure.cipher()
        return Seen(secure.version() or "", cipher[0] if cipher else "", chain_of(secure))


def agreed(secure: Secure) -> dict[str, Any]:
    return {"protocol": secure.version, "suite": secure.suite, "resumed": secure.resumed}


def chain_facts(chain: Sequence[bytes]) -> list[Facts]:
    """What the certificates say; those that cannot be read are left out."""
    from cryptography import x509

    from appliance.net.certificates import facts
    found = []
    for der in chain:
        with suppress(ValueError):
            found.append(facts(x509.load_der_x509_certificate(der)))
    return found


def as_json(chain: Sequence[Facts]) -> list[dict[str, Any]]:
    return [{"subject": one.subject, "issuer": one.issuer, "names": list(one.names), "not_before": date(one.not_before),
             "not_after": date(one.not_after), "sha256": one.fingerprint, "key": f"{one.key} {one.bits}"} for one in chain]


# --- failures -----------------------------------------------------------------------------------------------------------

def failure(error: TlsError, target: Target, chain: Sequence[Facts], facts: dict[str, Any]) -> Broken:
    """The hop's failure, with what mends it. `chain`: what the server shows, where that is known."""
    facts = {**facts, "check": error.check, "certificate": error.certificate}
    cause = f"our_certificate_{error.check}" if error.certificate == OURS else error.check
    mend = (_of_ours(error, target) if error.certificate == OURS else _of_theirs(error, target, chain))
    said = ""
    if chain and error.certificate and error.certificate != OURS:
        leaf = chain[0]
        said = f" — it shows {leaf.subject}, issued by {leaf.issuer}, valid {date(leaf.not_before)} to {date(leaf.not_after)}"
    return Broken(cause, f"{error.text}{said}", mend, facts=facts)


def _trust_of(target: Target) -> str:
    entry = target.entry
    return (entry.trust or entry.certificate) if entry is not None else ""


def _of_theirs(error: TlsError, target: Target, chain: Sequence[Facts]) -> str:
    anchors, id = _trust_of(target), target.id
    if error.check == "expired":
        return f"Have the certificate renewed there; if {clock_says()} and that is wrong, set the clock of this box."
    if error.check == "not_yet_valid":
        return f"Compare the clocks: {clock_says()}. If it is right, the certificate was made too early, or by a wrong clock."
    if error.check in ("unknown_authority", "not_trusted", "bad_chain", "bad_signature"):
        top = chain[-1].issuer if chain else "its authority"
        if anchors == "system":
            return f"Name a [[certificate]] in `trust` of {target.named}, with the certificate of {top} as its trust anchor."
        return (f"Get the certificate of {top} by a way that you trust, and `dcmgate cert install {anchors} --trust --add` it; "
                "or have the missing intermediate certificate configured there.")
    if error.check == "self_signed":
        return (f"Have a certificate of an authority installed there; or compare the fingerprint by another way, and "
                f"`dcmgate cert install {anchors} --trust --add` that very certificate.")
    if error.check == "wrong_name":
        names = ", ".join(name.partition(":")[2] for name in chain[0].names) if chain else ""
        entry = target.entry
        wanted = (entry.server_name if entry is not None else "") or target.host
        carried = f"it carries {names}" if names else "it carries no names"
        fits = chain and not covers(chain[0].names, typed(wanted))
        return (f"{target.named} expects the name {wanted}, and {carried}: call it by such a name, or write one in "
                "`server_name` — if you are sure that this is the right host." if fits or not chain else
                "Have a certificate with the right name issued there.")
    if error.check == "revoked":
        return "Its authority has taken it back: ask there why, and have a new one installed. Do not send until then."
    if error.check in ("crl_expired", "no_crl", "bad_crl", "crl_not_yet_valid"):
        return f"`dcmgate cert install {anchors}` with the authority's new revocation list."
    if error.check == "not_pinned":
        return (f"Ask whether the certificate was changed there. If so, compare the fingerprint by another way, and write the "
                f"new one in `pins` (`dcmgate cert pin {id}` shows it).")
    if error.check == "protocol_version":
        return "Have TLS 1.2 or 1.3 switched on there: older versions are not safe on the way out, and are not offered."
    if error.check in ("no_shared_suite", "weak_key"):
        return "Have the suites of BCP 195 (ECDHE with AES-GCM) and a key of 2048 bits or more (EC: 256) configured there."
    if error.check == "wrong_purpose":
        return "Have a certificate for servers (extended key usage serverAuth) installed there."
    if error.check == "closed":
        return "It may want another protocol at this port, or refuses this box: look in its log, and check the port."
    if error.check == "not_tls":
        return 'Check the port; if it speaks without TLS by intent, write tls = "off" (then images go in clear text).'
    return "Look in the log of the other end."


def _of_ours(error: TlsError, target: Target) -> str:
    entry = target.entry
    id = entry.certificate if entry is not None else ""
    if error.check == "missing" or not id:
        return (f"Write `certificate` in {target.named}: the other end wants one of ours." if not id else
                f"See `dcmgate cert show {id}`: the other end got none of ours.")
    if error.check == "expired":
        return f"Renew it: `dcmgate cert request {id}`, have it signed, `dcmgate cert install {id}`. Else its clock is wrong."
    if error.check == "revoked":
        return f"`dcmgate cert request {id} --new`, have it signed, `dcmgate cert install {id}`."
    if error.check == "unknown_authority":
        return f"Have the authority of our certificate trusted there; `dcmgate cert show {id}` names it."
    return f"Ask at the other end which certificates it takes; `dcmgate cert show {id}` shows ours."
