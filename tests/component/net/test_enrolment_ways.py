"""Enrolment beside the usual: through a real proxy, with OpenSSL's own authority behind the server, and who takes it up."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.clock import SystemClock
from appliance.config.settings import Certificate, Destination
from appliance.net import certificates, crl, enrolment, revocation
from appliance.net.certstore import Store, Writer
from appliance.net.enrolment import Enrolment
from appliance.net.est import EstError
from appliance.net.tls import Client
from tests.support import proxies
from tests.support.est import Est
from tests.support.peers import program
from tests.support.pki import Authority, Pair, pem, place


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


def entry_at(server: Est, **settings: object) -> Certificate:
    return Certificate(id="box", names=("box.example.org",), est_url=server.url, **settings)  # type: ignore[arg-type]


def box_of(ca: Authority, **dates: timedelta) -> Pair:
    return ca.leaf("box", dns=["box.example.org"], **dates)


# --- who takes it up ----------------------------------------------------------------------------------------------------


class Cloud:
    """A server that wants certificates, and gives tickets: serial number of what each connection has shown, and whether it
    was a session resumed."""

    def __init__(self, ca: Authority, folder: Path) -> None:
        key, chain = ca.leaf("cloud", addresses=["127.0.0.1"]).write(folder, "cloud")
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(chain, key)
        self._context.load_verify_locations(cadata=pem(ca.certificate).decode())
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.shown: list[tuple[int, bool]] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(plain,), daemon=True).start()

    def _talk(self, plain: socket.socket) -> None:
        with self._context.wrap_socket(plain, server_side=True) as sock:
            der = sock.getpeercert(True) or b""
            self.shown.append((x509.load_der_x509_certificate(der).serial_number, bool(sock.session_reused)))
            while data := sock.recv(100):
                sock.sendall(data)

    def close(self) -> None:
        self._listening.close()


def test_a_destination_takes_it_up_and_what_is_up_stays_up(state: Path, tmp_path: Path) -> None:
    """A session that was resumed would go on showing the old one."""
    ca = Authority()
    cloud = Cloud(ca, tmp_path)
    try:
        with Est(ca) as server:
            entry = entry_at(server)
            writer = Writer(state)
            first = box_of(ca)
            writer.put("box", trust=pem(ca.certificate))
            writer.install("box", first.key_pem(), first.chain_pem())
            destination = Destination(id="cloud", address="127.0.0.1", port=cloud.port, tls="bcp195", certificate="box")
            client = Client(Store(state), destination, "127.0.0.1")

            def connect() -> object:
                sock = socket.create_connection(("127.0.0.1", cloud.port), 10)
                secure = client.wrap(sock, time.monotonic() + 10, "the cloud's certificate")
                return secure

            def talks(secure: object) -> bool:
                secure.sendall(b"ping")  # type: ignore[attr-defined]
                return bool(secure.recv_into(bytearray(4)) == 4)  # type: ignore[attr-defined]

            old = connect()
            assert talks(old)
            client.keep(old)  # type: ignore[arg-type]
            resumed = connect()
            assert talks(resumed)
            assert cloud.shown == [(first.certificate.serial_number, False), (first.certificate.serial_number, True)]
            Enrolment(entry, writer, SystemClock()).run()
            new = connect()
            assert talks(new)
            assert cloud.shown[2] == (server.issued[0].serial_number, False)
            assert talks(old) and talks(resumed), "what was up goes on"
            for secure in (old, resumed, new):
                secure.close()  # type: ignore[attr-defined]
    finally:
        cloud.close()


# --- through a proxy ----------------------------------------------------------------------------------------------------


def test_through_a_proxy_that_wants_a_password(state: Path, tmp_path: Path) -> None:
    """EST by CONNECT, lists over http by asking the proxy for them: Debian's tinyproxy."""
    ca = Authority()
    with Est(ca) as server, _pages({"/ca.crl": ca.revoke(ca.leaf("gone")).crl()}) as port, \
            proxies.tinyproxy(tmp_path / "proxy", ports=[server.port]) as proxy:
        writer = Writer(state)
        present = box_of(ca)
        writer.put("box", trust=pem(ca.certificate))
        writer.install("box", present.key_pem(), present.chain_pem())
        entry = entry_at(server, proxy=proxy.place)
        entry = replace(entry, est_url=f"https://127.0.0.1:{server.port}")
        with pytest.raises(EstError) as caught:
            Enrolment(entry, writer, SystemClock()).run()
        assert caught.value.step == "proxy"
        assert "password" in caught.value.message
        assert server.asked == []
        proxies.password(state, proxy.place)
        Enrolment(entry, writer, SystemClock()).run()
        assert proxy.asked(server.port) >= 2
        assert [one.what for one in server.asked] == ["cacerts", "simplereenroll"]
        assert "1 revoked" in revocation.fetch(f"http://127.0.0.1:{port}/ca.crl", entry, writer)[0]
        assert "GET http://127.0.0.1" in proxy.log.read_text()


@contextmanager
def _pages(pages: dict[str, bytes]) -> Iterator[int]:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(pages[self.path])

        def log_message(self, format: str, *args: object) -> None:
            """Not to standard error."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=lambda: server.serve_forever(0.05), daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


# --- a second opinion ---------------------------------------------------------------------------------------------------


class OpensslCa(Est):
    """What is issued is made by `openssl ca`, which reads our requests, writes PKCS#7 and lists: none of it is ours or of the
    library that we use."""

    def __init__(self, ca: Authority, folder: Path) -> None:
        super().__init__(ca)
        self.folder = folder
        folder.mkdir()
        ca.write(folder, "ca")
        for name, text in (("index.txt", ""), ("serial", "1000\n"), ("crlnumber", "01\n")):
            (folder / name).write_text(text)
        (folder / "ca.cnf").write_text(f"""[ca]
default_ca = it
[it]
database = {folder}/index.txt
serial = {folder}/serial
crlnumber = {folder}/crlnumber
new_certs_dir = {folder}
certificate = {folder}/ca.pem
private_key = {folder}/ca.key
default_md = sha256
default_days = 30
default_crl_days = 7
policy = any
copy_extensions = copy
unique_subject = no
[any]
commonName = supplied
""")

    def openssl(self, *arguments: str) -> bytes:
        done = subprocess.run([program("openssl"), *arguments], cwd=self.folder, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def issue(self, request: x509.CertificateSigningRequest) -> x509.Certificate:
        (self.folder / "request.pem").write_bytes(request.public_bytes(Encoding.PEM))
        self.openssl("ca", "-batch", "-config", "ca.cnf", "-in", "request.pem", "-out", "issued.pem", "-notext")
        made = x509.load_pem_x509_certificate((self.folder / "issued.pem").read_bytes())
        self.issued.append(made)
        return made

    def pkcs7(self, *found: x509.Certificate) -> bytes:
        (self.folder / "found.pem").write_bytes(pem(*found))
        text = self.openssl("crl2pkcs7", "-nocrl", "-certfile", "found.pem")
        return b"".join(line + b"\r\n" for line in text.splitlines() if b"-----" not in line)

    def revoke_and_list(self, which: x509.Certificate) -> None:
        (self.folder / "gone.pem").write_bytes(pem(which))
        self.openssl("ca", "-batch", "-config", "ca.cnf", "-revoke", "gone.pem")
        self.openssl("ca", "-batch", "-config", "ca.cnf", "-gencrl", "-out", "list.pem")


def test_openssl_as_the_authority_and_its_lists(state: Path, tmp_path: Path) -> None:
    ca = Authority()
    with OpensslCa(ca, tmp_path / "ca") as server:
        server.users["box"] = "secret"
        place(state, "box", trust=[ca])
        writer = Writer(state)
        writer.note("box", est_password=b"secret\n")
        issued = []
        for _ in range(2):
            Enrolment(entry_at(server, est_user="box"), writer, SystemClock()).run()
            found = enrolment.present(writer, "box")
            assert found is not None and found.facts.names == ("dns:box.example.org",)
            issued.append(found.certificate)
        assert [one.what for one in server.asked if one.request] == ["simpleenroll", "simplereenroll"]
        server.revoke_and_list(issued[0])
        bundle = certificates.Bundle()
        certificates.read(tmp_path / "ca" / "list.pem", bundle)
        revocation.take(writer, "box", bundle.lists)
        lists = crl.load(state / "certificates" / "box" / "crl.pem")
        assert [lists.revoked([one.public_bytes(Encoding.DER)]) for one in issued] == [0, -1]
        for one, good in zip(issued, (False, True), strict=True):
            (tmp_path / "one.pem").write_bytes(pem(one))
            done = subprocess.run([program("openssl"), "verify", "-crl_check", "-CAfile", "ca/ca.pem", "-CRLfile",
                                   "ca/list.pem",
                                   "one.pem"], cwd=tmp_path, capture_output=True, timeout=60, check=False)
            assert (done.returncode == 0) == good, done.stderr
        assert bundle.lists[0].next_update_utc is not None
        assert bundle.lists[0].next_update_utc > datetime.now(UTC)
