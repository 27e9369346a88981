"""`dcmgate diagnose` on the command line: exit statuses, JSON, without a spool or a gateway; it writes nothing and says nothing
of patients."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest
from blake3 import blake3

from tests.support import peers
from tests.support.sites import CliSite
from tests.support.waiting import free_port

DATA = [b"\x10\x00\x10\x00PN\x08\x00DOE^JANE"] * 3


def to(site: CliSite, port: int, more: str = "") -> None:
    """Let `pacs` be there."""
    text = site.config.read_text()
    site.config.write_text(text.replace('id = "pacs"\naddress = "127.0.0.1"\nport = 9\n',
                                        f'id = "pacs"\naddress = "127.0.0.1"\nport = {port}\ncalled = "PYNET"\n{more}'))
    if (site.folder / "spool").exists():
        site("reload")


def snapshot(folder: Path) -> dict[str, str]:
    """Every file but those that SQLite makes to read at all."""
    return {str(path): blake3(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.endswith(("-shm", "-wal"))}


@contextmanager
def listening_in() -> Iterator[tuple[int, list[bytes]]]:
    """A server that answers nothing; the port, and what it was told."""
    heard: list[bytes] = []
    server = socket.create_server(("127.0.0.1", free_port()))

    def serve() -> None:
        try:
            while True:
                sock, _ = server.accept()
                sock.settimeout(30)
                threading.Thread(target=take, args=(sock,), daemon=True).start()
        except OSError:
            return

    def take(sock: socket.socket) -> None:
        try:
            while data := sock.recv(65536):
                heard.append(data)
        except OSError:
            pass
        sock.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1], heard
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(5)


def test_a_good_destination(site: CliSite) -> None:
    with peers.pynetdicom_scp() as archive:
        to(site, archive.port)
        assert "pacs answers" in site("diagnose", "pacs")
        report = site.json("diagnose", "pacs")
    assert report["reached"] and report["failed"] == ""
    assert [hop["hop"] for hop in report["hops"]] == ["configuration", "name", "tcp", "association", "service", "path",
                                                      "storage", "clock"]


def test_a_hop_that_fails_is_exit_status_1(site: CliSite) -> None:
    to(site, free_port())
    text = site("diagnose", "pacs", status=1)
    assert "the way to pacs ends at: tcp" in text and "refuses the connection" in text and "→ Check" in text
    report = site.json("diagnose", "pacs", status=1)
    assert (report["failed"], report["cause"]) == ("tcp", "refused")


def test_an_id_that_is_not_there(site: CliSite) -> None:
    site("diagnose", "pac", status=2)
    assert 'did you mean "pacs"' in site.err


def test_it_works_before_there_is_a_spool(bare: CliSite) -> None:
    to(bare, free_port())
    assert "ends at: tcp" in bare("diagnose", "pacs", status=1)
    assert "by the file alone" in bare.err
    assert not (bare.folder / "spool").exists()


@pytest.mark.requirement("diagnosis: no patient data, nothing written")
def test_it_writes_nothing_and_says_nothing_of_patients(site: CliSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("appliance.probe.walk"), "HOP_SECONDS", 2.0)
    site.fill(DATA)
    with listening_in() as (port, heard):
        to(site, port)
        before = snapshot(site.folder / "spool")
        assert site.json("diagnose", "pacs", status=1)["cause"] == "no_answer"
        assert snapshot(site.folder / "spool") == before
    told = b"".join(heard)
    assert b"PYNET" in told
    assert b"DOE" not in told and b"JANE" not in told and b"1.2.3." not in told


def test_what_waits_is_what_has_to_be_taken(site: CliSite) -> None:
    """And the titles of the queue stand in where the entry leaves them to the scanner."""
    site.fill(DATA)
    with peers.pynetdicom_scp() as archive:
        to(site, archive.port)
        report = site.json("diagnose", "pacs")
    storage = next(hop for hop in report["hops"] if hop["hop"] == "storage")
    with site.ledger() as ledger:
        waiting = ledger.load("pacs")[0]
    named = [waiting.sop_class.decode(), waiting.syntax]
    taken = storage["facts"]["accepted"].get(named[0], [])
    assert taken or named in storage["facts"]["refused"]
