"""A release is fetched in parts and goes on where it broke off; what is not signed, cut off or changed is refused."""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from appliance.config.settings import Config, Update
from appliance.policy.update import Installed, Refused
from appliance.update import fetch as fetching
from appliance.update.fetch import Broken, Folder, Web, fetch, look
from appliance.update.places import Places
from tests.support.pki import Authority, place
from tests.support.releases import Signer, make

BOX = Installed("x86-64", "0.1.0", "0.1.0")


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signer]:
    one = Signer(tmp_path_factory.mktemp("gpg"))
    yield one
    one.close()


@pytest.fixture
def places(tmp_path: Path, signer: Signer) -> Places:
    state = tmp_path / "state"
    (state / "bundle").mkdir(parents=True)
    return Places(state=state, run=tmp_path, requests=tmp_path / "requests", keyring=signer.keyring,
                  certificate=tmp_path / "none")


class Server(ThreadingHTTPServer):
    """Serves parts of files below a folder; breaks off after `bytes_left`, and counts what it sent."""

    daemon_threads = True
    folder = Path()
    bytes_left = 1 << 40
    sent = 0
    whole = False


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = self.server.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert asked is not None
        first = int(asked[1])
        part = data[first:int(asked[2]) + 1] if not self.server.whole else data
        self.send_response(200 if self.server.whole else 206)
        self.send_header("Content-Length", str(len(part)))
        if not self.server.whole:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        self.end_headers()
        part = part[:max(0, self.server.bytes_left)]
        self.server.bytes_left -= len(part)
        self.server.sent += len(part)
        self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), _Handler) as one:
        one.folder = tmp_path / "site"
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield one
        one.shutdown()


def web(server: Server) -> Web:
    return Web(f"http://127.0.0.1:{server.server_port}/v2", Config(), "/nonexistent")


def nothing(*_: object) -> None:
    pass


def test_a_release_comes_whole(places: Places, server: Server, signer: Signer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "CHUNK", 30_000)
    made = make(server.folder / "v2", "0.2.0", signer)
    heard: list[tuple[str, int, int]] = []
    assert fetch(web(server), places, BOX, lambda *a: heard.append(a)).version == "0.2.0"
    for name in ("SHA256SUMS", *[path.name for path in made.glob("dcmgate-*")]):
        assert (places.bundle / name).read_bytes() == (made / name).read_bytes()
    assert heard[-1][1:] == (100_000, 100_000)


def test_it_goes_on_where_it_broke_off(places: Places, server: Server, signer: Signer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "CHUNK", 30_000)
    monkeypatch.setattr(fetching, "PAUSE", 0.01)
    make(server.folder / "v2", "0.2.0", signer)
    server.bytes_left = 170_000
    with pytest.raises(Broken, match="cannot be fetched"):
        fetch(web(server), places, BOX, nothing)
    server.bytes_left, server.sent = 1 << 40, 0
    fetch(web(server), places, BOX, nothing)
    assert server.sent < 180_000, "what was there was not fetched again"


def test_what_another_release_left_half_is_no_harm(places: Places, server: Server, signer: Signer) -> None:
    made = make(server.folder / "v2", "0.2.0", signer)
    name = next(made.glob("*.root.raw.gz")).name
    (places.bundle / (name + ".part")).write_bytes(b"x" * 50_000)
    (places.bundle / "dcmgate-x86-64_0.1.9.efi").write_bytes(b"old")
    fetch(web(server), places, BOX, nothing)
    assert (places.bundle / name).read_bytes() == (made / name).read_bytes()
    assert not list(places.bundle.glob("*0.1.9*"))


def test_over_tls_the_server_has_to_be_who_it_says(places: Places, server: Server, signer: Signer, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "TRIES", 1)
    ours, theirs = Authority("Ours"), Authority("Theirs")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    leaf = ours.leaf("updates", addresses=["127.0.0.1"])
    chain.write_bytes(leaf.chain_pem())
    key.write_bytes(leaf.key_pem())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    make(server.folder / "v2", "0.2.0", signer)
    for id, authority in (("ours", ours), ("theirs", theirs)):
        place(tmp_path, id, trust=[authority])
    url = f"https://127.0.0.1:{server.server_port}/v2"

    def at(trust: str) -> Web:
        return Web(url, Config(update=Update(trust=trust)), tmp_path)

    assert look(at("ours"), places, BOX).version == "0.2.0"
    for trust in ("theirs", "system"):
        with pytest.raises(Broken, match="cannot be fetched from"):
            look(at(trust), places, BOX)
    with pytest.raises(Broken, match="nothing says whom to trust"):
        at("nobody")


def test_a_stick_is_a_folder(places: Places, tmp_path: Path, signer: Signer) -> None:
    assert fetch(Folder(make(tmp_path / "stick", "0.2.0", signer)), places, BOX, nothing).version == "0.2.0"


def test_an_unsigned_release_is_refused(places: Places, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"it has no SHA256SUMS\.gpg"):
        look(Folder(make(tmp_path / "stick", "0.2.0", None)), places, BOX)


def test_a_release_that_somebody_else_signed_is_refused(places: Places, tmp_path: Path) -> None:
    other = Signer(tmp_path, "other")
    try:
        with pytest.raises(Refused, match="not signed by a key that this box trusts"):
            look(Folder(make(tmp_path / "stick", "0.2.0", other)), places, BOX)
    finally:
        other.close()


def test_a_changed_list_is_refused(places: Places, tmp_path: Path, signer: Signer) -> None:
    made = make(tmp_path / "stick", "0.2.0", signer)
    sums = made / "SHA256SUMS"
    sums.write_text(sums.read_text().replace("0.2.0", "0.3.0"))
    with pytest.raises(Refused, match="not signed"):
        look(Folder(made), places, BOX)


@pytest.mark.parametrize("spoilt", ["cut", "changed"])
def test_a_file_that_is_not_what_the_list_says_is_refused(places: Places, tmp_path: Path, signer: Signer, spoilt: str) -> None:
    made = make(tmp_path / "stick", "0.2.0", signer)
    path = next(made.glob("*.root.raw.gz"))
    data = path.read_bytes()
    path.write_bytes(data[:-1000] if spoilt == "cut" else data[:500] + b"!" + data[501:])
    with pytest.raises(Refused, match="cut off or changed"):
        fetch(Folder(made), places, BOX, nothing)
    assert not list(places.bundle.glob("*.root.raw.gz*")), "nothing of it is left to go on from"


def test_another_device_and_an_older_version_are_refused(places: Places, tmp_path: Path, signer: Signer) -> None:
    with pytest.raises(Refused, match="for arm64, and this box is x86-64"):
        look(Folder(make(tmp_path / "pi", "0.2.0", signer, device="arm64")), places, BOX)
    with pytest.raises(Refused, match=r"0\.0\.9 is older than 0\.1\.0"):
        look(Folder(make(tmp_path / "old", "0.0.9", signer)), places, BOX)


def test_a_server_without_parts_is_named(places: Places, server: Server, signer: Signer,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "CHUNK", 30_000)
    monkeypatch.setattr(fetching, "PAUSE", 0.01)
    make(server.folder / "v2", "0.2.0", signer)
    server.whole = True
    with pytest.raises(Broken, match="more than 30000 bytes"):
        fetch(web(server), places, BOX, nothing)
