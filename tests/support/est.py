"""An EST server (RFC 7030) over real TLS with a real authority behind it, which can also be as bad as servers get.

    with Est(ca) as server:                       # https://localhost:PORT
        server.users["box"] = "secret"
        server.mode = "html"                      # from now on
"""

from __future__ import annotations

import ssl
import tempfile
import threading
from base64 import b64decode, b64encode
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from tests.support.pki import DAY, Authority, Pair, pem

FOREVER = 3600.0


@dataclass
class Asked:
    """One request: what it was for, the serial number of the certificate that was shown (0: none), the user, the request."""

    what: str
    shown: int = 0
    user: str = ""
    request: x509.CertificateSigningRequest | None = None


class Est:
    """`mode` says how it behaves from the next request on: "good", or one of the functions `_as_…` below without that; `only`
    restricts it to one operation ("cacerts", "simpleenroll", "simplereenroll")."""

    def __init__(self, ca: Authority, *, issuer: Authority | None = None, pair: Pair | None = None, label: str = "",
                 end: timedelta = 90 * DAY, start: timedelta = -DAY / 24, port: int = 0) -> None:
        self.ca = ca
        self.issuer = issuer or ca
        self.label = label
        self.start, self.end = start, end
        self.users: dict[str, str] = {}
        self.mode, self.only = "good", ""
        self.retry_after = "1"
        self.more: list[x509.Certificate] = []       # in /cacerts besides the authority's
        self.asked: list[Asked] = []
        self.issued: list[x509.Certificate] = []
        self.stopping = threading.Event()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_OPTIONAL
        pair = pair or ca.leaf("est", dns=["localhost"], addresses=["127.0.0.1"])
        with tempfile.TemporaryDirectory() as folder:
            key, chain = pair.write(Path(folder), "est")
            context.load_cert_chain(chain, key)
        context.load_verify_locations(cadata=pem(ca.certificate, self.issuer.certificate).decode())
        self._http = _Server(("127.0.0.1", port), _handler(self), context)
        self.port = int(self._http.server_address[1])
        self.url = f"https://localhost:{self.port}"
        self._thread = threading.Thread(target=lambda: self._http.serve_forever(0.05), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stopping.set()
        self._http.shutdown()
        self._http.server_close()

    def count(self, what: str) -> int:
        return sum(1 for one in self.asked if one.what == what)

    def issue(self, request: x509.CertificateSigningRequest) -> x509.Certificate:
        made = self.issuer.sign(request, start=self.start, end=self.end)
        self.issued.append(made)
        return made

    def pkcs7(self, *found: x509.Certificate) -> bytes:
        return pkcs7_of(*found)

    def certificates(self) -> list[x509.Certificate]:
        return [self.issuer.certificate, *([self.ca.certificate] if self.issuer is not self.ca else []), *self.more]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], context: ssl.SSLContext) -> None:
        super().__init__(address, handler)
        self.context = context

    def get_request(self) -> tuple[Any, Any]:
        sock, address = super().get_request()
        return self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Handshakes that end early are the rule here."""


def pkcs7_of(*certificates: x509.Certificate) -> bytes:
    return b64encode(pkcs7.serialize_certificates(list(certificates), Encoding.DER))


def _handler(est: Est) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Not to standard error."""

        def answer(self, status: int, body: bytes = b"", kind: str = "application/pkcs7-mime", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            if kind:
                self.send_header("Content-Type", kind)
            if kind.startswith("application/pkcs7"):
                self.send_header("Content-Transfer-Encoding", "base64")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self._serve()

        do_POST = do_GET  # noqa: N815

        def _serve(self) -> None:
            prefix = "/".join(filter(None, ("/.well-known/est", est.label)))
            base, _, what = self.path.rpartition("/")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if base != prefix:
                self.answer(404, b"no such label", "text/plain")
                return
            asked = Asked(what)
            der = self.connection.getpeercert(True)  # type: ignore[attr-defined]
            if der:
                asked.shown = x509.load_der_x509_certificate(der).serial_number
            login = self.headers.get("Authorization", "")
            if login.startswith("Basic "):
                asked.user, _, password = b64decode(login[6:]).decode().partition(":")
                if est.users.get(asked.user) != password:
                    asked.user = ""
            if body:
                asked.request = x509.load_der_x509_csr(b64decode(body))
                assert asked.request.is_signature_valid
                assert self.headers["Content-Type"] == "application/pkcs10"
            est.asked.append(asked)
            if est.mode != "good" and est.only in ("", what):
                getattr(self, f"_as_{est.mode}")(asked)
            elif what == "cacerts":
                self.answer(200, est.pkcs7(*est.certificates()))
            else:
                self._enroll(asked)

        def _enroll(self, asked: Asked) -> None:
            assert asked.request is not None
            if asked.what == "simplereenroll":
                if not asked.shown:
                    self.answer(403, b"show the certificate that is to be renewed", "text/plain")
                    return
                der: bytes = self.connection.getpeercert(True)  # type: ignore[attr-defined]
                old = x509.load_der_x509_certificate(der)
                if asked.request.subject != old.subject or _names(asked.request) != _names(old):
                    self.answer(400, b"subject and names differ from the present ones", "text/plain")     # 4.2.2
                    return
            elif not (asked.shown or asked.user):
                self.answer(401, b"who is there?", "text/plain", WWW_Authenticate='Basic realm="est"')
                return
            self.answer(200, est.pkcs7(est.issue(asked.request)), "application/pkcs7-mime; smime-type=certs-only")

        # --- as bad as servers get ------------------------------------------------------------------------------------

        def _as_silent(self, asked: Asked) -> None:
            est.stopping.wait(FOREVER)

        def _as_dripping(self, asked: Asked) -> None:
            with suppress(OSError):
                for byte in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000:
                    self.wfile.write(bytes((byte,)))
                    if est.stopping.wait(0.1):
                        return

        def _as_endless(self, asked: Asked) -> None:
            with suppress(OSError):
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/pkcs7-mime\r\n\r\n")
                while not est.stopping.is_set():
                    self.wfile.write(b"M" * 65536)

        def _as_headers(self, asked: Asked) -> None:
            with suppress(OSError):
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                for n in range(100_000):
                    self.wfile.write(b"X-%d: y\r\n" % n)

        def _as_html(self, asked: Asked) -> None:
            self.answer(200, b"<html><body>It works!</body></html>", "text/html")

        def _as_html_disguised(self, asked: Asked) -> None:
            self.answer(200, b"<html><body>It works!</body></html>")

        def _as_garbage(self, asked: Asked) -> None:
            self.answer(200, b64encode(bytes(range(256)) * 4))

        def _as_no_http(self, asked: Asked) -> None:
            self.wfile.write(b"220 mail.example.org ESMTP\r\n")

        def _as_empty(self, asked: Asked) -> None:
            self.answer(200, b"")

        def _as_cut(self, asked: Asked) -> None:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\nMIIB")

        def _as_closed(self, asked: Asked) -> None:
            """Not a word."""

        def _as_redirect(self, asked: Asked) -> None:
            self.answer(302, b"", "", Location="https://elsewhere.example.org/")

        def _as_refusing(self, asked: Asked) -> None:
            self.answer(403, b"you are not on the list", "text/plain")

        def _as_failing(self, asked: Asked) -> None:
            self.answer(503, b"later", "text/plain", Retry_After=est.retry_after)

        def _as_waiting(self, asked: Asked) -> None:
            self.answer(202, b"a person looks at it", "text/plain", Retry_After=est.retry_after)

        def _as_wrong_key(self, asked: Asked) -> None:
            self.answer(200, pkcs7_of(est.issuer.leaf("box", dns=["localhost", "box.example.org"]).certificate))

        def _as_other_names(self, asked: Asked) -> None:
            assert asked.request is not None
            self.answer(200, pkcs7_of(est.issuer.sign(asked.request, names=False)))

        def _as_wrong_chain(self, asked: Asked) -> None:
            assert asked.request is not None
            other = Authority(est.issuer.name)           # of the same name, and another
            self.answer(200, pkcs7_of(other.sign(asked.request), other.certificate))

        def _as_expired(self, asked: Asked) -> None:
            assert asked.request is not None
            self.answer(200, pkcs7_of(est.issuer.sign(asked.request, start=-3 * DAY, end=-DAY)))

        def _as_tomorrow(self, asked: Asked) -> None:
            assert asked.request is not None
            self.answer(200, pkcs7_of(est.issuer.sign(asked.request, start=DAY, end=90 * DAY)))

        def _as_shorter(self, asked: Asked) -> None:
            assert asked.request is not None
            self.answer(200, pkcs7_of(est.issuer.sign(asked.request, end=timedelta(minutes=1))))

    return Handler


def _names(holder: x509.Certificate | x509.CertificateSigningRequest) -> list[x509.GeneralName]:
    return next((list(e.value) for e in holder.extensions if isinstance(e.value, x509.SubjectAlternativeName)), [])
