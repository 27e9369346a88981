"""EST (RFC 7030): the authority's certificates, and a certificate for a request, over TLS that proves the server.

One request, one connection. Whatever the server does, within the deadline there
is an answer that was parsed, or an `EstError` that says at which step it went
wrong and why: HTML, redirects, endless answers, alerts, silence. Whether what it
has issued may be used is judged elsewhere (`net.enrolment`).
"""

from __future__ import annotations

import binascii
import ssl
import time
from base64 import b64encode
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from appliance.errors import CertificateError
from appliance.net.certificates import UNREADABLE
from appliance.net.proxy import Proxy
from appliance.net.secure import Context
from appliance.net.tlserrors import OURS
from appliance.net.web import Answer, WebError, ask

LARGEST = 1 << 20
"""Bytes of an answer; an authority's certificates are a few thousand."""

MOST = 64
"""Certificates in one answer."""

_TOLD = {"connect": "See whether the server runs, and whether this box may reach it.",
         "proxy": "See `dcmgate proxy password`, and whether the proxy leads there.",
         "tls": "See whose trust anchors count (est_trust), and the name in est_url.",
         "answer": "See whether est_url and est_label are right, and the server's log.",
         "refused": "See the server's log; other user or password: est_user, `dcmgate cert enroll ID --password-file FILE`."}


class EstError(CertificateError):
    """It did not come to a certificate. `step`: `time`, `trust`, `connect`, `proxy`, `tls`, `cacerts`, `enroll`, `check`,
    `store`, `alone` (somebody else is at it) or `wait` (202: it is being decided on); `again`: seconds until the server wants
    to be asked again, 0: it does not say; `refused`: it does not take what we proved ourselves by."""

    def __init__(self, step: str, message: str, *, mend: str = "", again: float = 0.0, refused: bool = False) -> None:
        super().__init__(message, mend=mend)
        self.step = step
        self.again = again
        self.refused = refused


@dataclass(frozen=True, slots=True)
class Server:
    """`url` and `label` as configured; `user` and `password` for HTTP's basic authentication, only ever sent within TLS that
    has proven the server."""

    url: str
    label: str = ""
    user: str = ""
    password: str = ""
    proxy: Proxy | None = None

    def cacerts(self, context: Context, deadline: float) -> list[x509.Certificate]:
        """The authority's certificates (4.1). EstError. `deadline` in monotonic seconds."""
        answer = self._ask("cacerts", "GET", context, deadline, {})
        if answer.status != 200:
            raise self._said("cacerts", answer)
        return self._certificates("cacerts", answer)

    def enroll(self, context: Context, request: x509.CertificateSigningRequest, deadline: float, *, renew: bool
               ) -> list[x509.Certificate]:
        """What it issues for a request (4.2.1, or 4.2.2 where `renew`: then `context` shows the present certificate).
        EstError."""
        body = b64encode(request.public_bytes(Encoding.DER))
        headers = {"Content-Type": "application/pkcs10", "Content-Transfer-Encoding": "base64"}
        if self.user and not renew:
            login = b64encode(f"{self.user}:{self.password}".encode()).decode("ascii")
            headers["Authorization"] = f"Basic {login}"
        answer = self._ask("simplereenroll" if renew else "simpleenroll", "POST", context, deadline, headers,
                           b"\n".join(body[at:at + 64] for at in range(0, len(body), 64)) + b"\n")
        if answer.status == 202:
            raise EstError("wait", f"the authority has the request and has not decided ({answer.said()})",
                           mend="It is asked again by itself; if it takes long, ask the authority.", again=retry_after(answer))
        if answer.status != 200:
            raise self._said("enroll", answer)
        return self._certificates("enroll", answer)

    def _ask(self, what: str, method: str, context: Context, deadline: float, headers: dict[str, str], body: bytes = b""
             ) -> Answer:
        url = "/".join(filter(None, (self.url.rstrip("/"), ".well-known/est", self.label, what)))
        try:
            return ask(method, url, deadline=deadline, largest=LARGEST, context=context, proxy=self.proxy, headers=headers,
                       body=body)
        except WebError as e:
            step = e.step if e.step != "answer" else "cacerts" if what == "cacerts" else "enroll"
            raise EstError(step, e.text, mend=_TOLD[e.step], refused=e.tls is not None and e.tls.certificate == OURS) from None
        except ValueError as e:
            raise EstError("connect", str(e), mend="Correct est_url.") from None

    def _said(self, step: str, answer: Answer) -> EstError:
        if 300 <= answer.status < 400:
            return EstError(step, f"the server sends us elsewhere ({answer.said()}): not followed", mend=_TOLD["answer"])
        refused = answer.status in (401, 403)
        text = f"the server refuses it: {answer.said()}" if answer.status < 500 else f"the server cannot: {answer.said()}"
        return EstError(step, text, mend=_TOLD["refused" if refused else "answer"], refused=refused, again=retry_after(answer))

    def _certificates(self, step: str, answer: Answer) -> list[x509.Certificate]:
        """What is in a certs-only PKCS#7, in base64 as the RFC has it, or as it is (RFC 8951)."""
        kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind and kind not in ("application/pkcs7-mime", "application/octet-stream"):
            raise EstError(step, f"the server answers with {kind[:60]}, not with certificates", mend=_TOLD["answer"])
        try:
            der = answer.body if answer.body[:1] == b"\x30" else binascii.a2b_base64(
                b"".join(answer.body.split()), strict_mode=True)
            found = pkcs7.load_der_pkcs7_certificates(der)
            for one in found[:MOST]:
                one.fingerprint(hashes.SHA256()), one.subject, one.issuer, one.extensions, one.public_key()
        except UNREADABLE as e:
            raise EstError(step, f"what the server answers are no certificates: {' '.join(str(e).split())[:100]}",
                           mend=_TOLD["answer"]) from None
        if not 0 < len(found) <= MOST:
            raise EstError(step, f"the server answers with {len(found)} certificates", mend=_TOLD["answer"])
        return found


def unproven_context() -> Context:
    """For fetching certificates that are then known by their fingerprint, and for nothing else."""
    context = Context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def retry_after(answer: Answer) -> float:
    """Seconds of Retry-After, a number or a date (RFC 9110, 10.2.3); 0 where there is none."""
    text = answer.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        now = answer.headers.get("date", "")
        seen = parsedate_to_datetime(now).timestamp() if now else time.time()
        return max(0.0, parsedate_to_datetime(text).timestamp() - seen) if text else 0.0
    except (ValueError, OverflowError):
        return 0.0
