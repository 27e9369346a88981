"""The certificate store is written so that no reader ever sees half of it, and nobody else may read a key."""

from __future__ import annotations

import os
import ssl
import stat
import threading
from pathlib import Path

import pytest

from appliance.errors import CertificateError
from appliance.net.certstore import NEXT_KEY, REQUEST, Store, Writer
from tests.support.pki import Authority


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


def test_files_are_readable_by_their_owner_alone(state: Path) -> None:
    pair = Authority().leaf("box")
    before = os.umask(0)
    try:
        writer = Writer(state)
        writer.install("box", pair.key_pem(), pair.chain_pem())
        writer.put("box", trust=b"t", crl=b"c", request=b"r", next_key=b"k")
    finally:
        os.umask(before)
    for path in [state / "certificates", *(state / "certificates").rglob("*")]:
        if not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode == (0o700 if path.is_dir() else 0o600), path
    assert {p.name for p in (state / "certificates" / "box").iterdir()} == {
        "000001", "current", "trust.pem", "crl.pem", REQUEST, NEXT_KEY}, "and nothing temporary is left"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_writes_belongs_to_the_owner_of_the_state_folder(state: Path) -> None:
    os.chown(state, 4711, 4712)
    pair = Authority().leaf("box")
    Writer(state).install("box", pair.key_pem(), pair.chain_pem())
    paths = list((state / "certificates").rglob("*"))
    assert paths
    assert {(p.lstat().st_uid, p.lstat().st_gid) for p in paths} == {(4711, 4712)}


def test_a_reader_never_sees_a_mixed_pair(state: Path) -> None:
    """OpenSSL refuses a key that is not that of the certificate: a reader loads over and over while pairs change."""
    ca = Authority()
    pairs = [ca.leaf(f"box{n}") for n in range(2)]
    writer, store = Writer(state), Store(state)
    writer.install("box", pairs[0].key_pem(), pairs[0].chain_pem())
    faults: list[Exception] = []
    done = threading.Event()
    loaded = 0

    def read() -> None:
        nonlocal loaded
        while not done.is_set():
            material = store.material("box")
            try:
                assert material.chain is not None and material.key is not None
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(material.chain, material.key)
            except FileNotFoundError:
                continue       # two changes within one look: Contexts keeps the last good one and looks again
            except Exception as e:  # noqa: BLE001  whatever it is, it is the finding
                faults.append(e)
                return
            loaded += 1

    thread = threading.Thread(target=read)
    thread.start()
    for n in range(100):
        writer.install("box", pairs[n % 2].key_pem(), pairs[n % 2].chain_pem())
    done.set()
    thread.join(30)
    assert faults == []
    assert loaded > 10


def test_each_installation_is_another_generation_and_old_keys_go(state: Path) -> None:
    ca = Authority()
    writer, store = Writer(state), Store(state)
    seen = set()
    for n in range(4):
        pair = ca.leaf(f"box{n}")
        writer.install("box", pair.key_pem(), pair.chain_pem())
        seen.add(store.material("box").generation)
    assert len(seen) == 4
    assert sorted(p.name for p in (state / "certificates" / "box").iterdir()) == ["000003", "000004", "current"]


def test_what_an_interrupted_installation_left_does_no_harm(state: Path) -> None:
    pair = Authority().leaf("box")
    folder = state / "certificates" / "box"
    (folder / "000001").mkdir(parents=True)
    (folder / "000001" / ".key.pem").write_bytes(b"half")
    (folder / ".current").symlink_to("000001")
    assert Store(state).material("box").key is None
    Writer(state).install("box", pair.key_pem(), pair.chain_pem())
    assert sorted(p.name for p in folder.iterdir()) == ["000002", "current"]


def test_without_a_state_folder_the_mend_is_named(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="spool init"):
        Writer(tmp_path / "none").put("box", trust=b"t")


@pytest.mark.parametrize("id", ["../x", "", "a/b", "."])
def test_an_id_never_leads_out_of_the_store(state: Path, id: str) -> None:
    with pytest.raises(CertificateError):
        Writer(state).put(id, trust=b"t")
