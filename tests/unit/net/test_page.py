"""The page and the figures: what is answered, and that hostile callers keep nobody else from an answer."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import closing

import pytest

from appliance.net import page


def written(path, colour="green", sentence="All <well> & good.", age=0.0):
    path.write_text(json.dumps({"colour": colour, "sentence": sentence,
                                "at": time.clock_gettime(time.CLOCK_BOOTTIME) - age}))


def test_the_page_says_one_sentence_and_no_more(tmp_path):
    written(tmp_path / "v")
    body = page.page(tmp_path / "v").body.decode()
    assert "<h1>Green</h1><p>All &lt;well&gt; &amp; good.</p>" in body and page.COLOURS["green"] in body
    assert "<script" not in body and "<form" not in body and "http" not in body.replace('http-equiv="refresh"', "")


@pytest.mark.parametrize("spoil", [
    lambda path: None, lambda path: path.write_text("{"), lambda path: written(path, age=61),
    lambda path: written(path, colour="blue"), lambda path: path.write_text('{"colour": "green"}')])
def test_whoever_does_not_report_is_red(tmp_path, spoil):
    spoil(tmp_path / "v")
    assert page.verdict(tmp_path / "v") == page.SILENT


@pytest.mark.parametrize(("request_", "status"), [
    (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200), (b"HEAD / HTTP/1.0\r\n\r\n", 200), (b"GET /?a HTTP/1.1\r\n\r\n", 200),
    (b"GET /metrics HTTP/1.1\r\n\r\n", 404), (b"GET /../etc HTTP/1.1\r\n\r\n", 404), (b"POST / HTTP/1.1\r\n\r\n", 405),
    (b"GET / HTTP/2\r\n\r\n", 405), (b"\x16\x03\x01\r\n\r\n", 400), (b"\r\n\r\n", 400)])
def test_one_place_and_two_methods(request_, status):
    answer = page.respond(request_, "page")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert bool(body) == (status == 200 and request_.startswith(b"GET"))


@pytest.fixture
def server(tmp_path, monkeypatch):
    written(tmp_path / "v")
    monkeypatch.setattr(page, "PAGES", {"page": ("/", lambda: page.page(tmp_path / "v"))})
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)
    one = page.Server([listening], "page", idle=60)
    thread = threading.Thread(target=one.run, daemon=True)
    thread.start()
    yield listening.getsockname()
    one.stop()
    thread.join(5)
    listening.close()
    assert not thread.is_alive()


def ask(address, source="127.0.0.1"):
    with closing(socket.create_connection(address, 5, source_address=(source, 0))) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        found = b""
        while part := sock.recv(65536):
            found += part
        return found


def test_silent_callers_of_one_address_keep_nobody_else_waiting(server):
    silent = [socket.create_connection(server, 5, source_address=("127.0.0.2", 0)) for _ in range(40)]
    try:
        began = time.monotonic()
        assert ask(server).startswith(b"HTTP/1.1 200")
        assert time.monotonic() - began < 3
    finally:
        for sock in silent:
            sock.close()


def test_who_says_too_much_or_too_slowly_is_closed(server, monkeypatch):
    with closing(socket.create_connection(server, 10)) as sock:
        sock.settimeout(15)
        with pytest.raises(OSError):
            for _ in range(2000):
                sock.sendall(b"x" * 4096)
    with closing(socket.create_connection(server, 10)) as sock:
        sock.settimeout(3 * page.SECONDS)
        sock.sendall(b"GET / HT")
        assert sock.recv(1) == b""
    assert ask(server).startswith(b"HTTP/1.1 200")


def test_it_ends_when_nobody_asks():
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        thread = threading.Thread(target=page.Server([listening], "page", idle=0.1).run, daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive()
