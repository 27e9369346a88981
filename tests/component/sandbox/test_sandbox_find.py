"""Queries by a limited child: right answers, and an end in every case."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import psutil
import pytest

from appliance.errors import SandboxError
from appliance.sandbox import find
from appliance.sandbox.find import Archive, Finder, Search, _parse
from tests.support.archives import QueryArchive, mute_listener, query_archive
from tests.support.waiting import wait_until


@pytest.fixture
def archive() -> Iterator[QueryArchive]:
    with query_archive() as archive:
        yield archive


@pytest.fixture
def finder() -> Iterator[Finder]:
    finder = Finder()
    yield finder
    finder.close()


def whom(archive: QueryArchive) -> Archive:
    return Archive("127.0.0.1", archive.port, "ARCHIVE", "DCMGATE", connect_seconds=10.0, progress_seconds=10.0)


def images(finder: Finder, archive: Archive, searches: Sequence[Search]) -> list[frozenset[str] | str]:
    with socket.create_connection((archive.address, archive.port)) as sock:
        return finder.images(archive, searches, sock.fileno(), sock.close)


@pytest.mark.requirement("conformance: read-back")
def test_series_and_single_instances(archive: QueryArchive, finder: Finder) -> None:
    for i in range(300):
        archive.put("1.2", "1.2.1", f"1.2.1.{i}")
    archive.put("1.2", "1.2.2", "1.2.2.1")
    searches = [Search("1.2", "1.2.1"), Search("1.2", "1.2.2"), Search("9.9", "9.9.9"),
                Search(uids=("1.2.1.7", "1.2.2.1", "8.8"))]
    assert images(finder, whom(archive), searches) == [
        frozenset(f"1.2.1.{i}" for i in range(300)), frozenset({"1.2.2.1"}), frozenset(), frozenset({"1.2.1.7", "1.2.2.1"})]
    assert archive.asked[0] == ("1.2", "1.2.1", ())
    assert set(archive.titles) == {("ARCHIVE", "DCMGATE")}
    pid = finder.pid
    assert images(finder, whom(archive), searches[1:2]) == [frozenset({"1.2.2.1"})]
    assert finder.pid == pid
    assert psutil.Process(pid).memory_info().rss < 120 << 20


def test_a_refused_query_is_said_for_each(archive: QueryArchive, finder: Finder) -> None:
    archive.status = 0xA700
    assert images(finder, whom(archive), [Search("1.2", "1.2.1")] * 2) == ["query refused with status A700"] * 2


def test_an_archive_that_closes_at_once(finder: Finder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=lambda: listener.accept()[0].close(), daemon=True).start()
        with pytest.raises(SandboxError, match="gives no answer"):
            images(finder, Archive("127.0.0.1", listener.getsockname()[1], "A", "B", 2.0, 2.0), [Search("1", "2")])


@pytest.mark.requirement("hazard: destination never answers")
def test_a_silent_peer_costs_a_bounded_time(finder: Finder) -> None:
    with mute_listener() as port, pytest.raises(SandboxError):
        images(finder, Archive("127.0.0.1", port, "A", "B", 0.5, 0.5), [Search("1", "2")])


@pytest.mark.requirement("hazard: destination never answers")
def test_silence_in_a_query_costs_a_bounded_time(archive: QueryArchive, finder: Finder) -> None:
    archive.silent.set()
    begun = time.monotonic()
    with pytest.raises(SandboxError, match="silent"):
        images(finder, replace(whom(archive), progress_seconds=0.5), [Search("1", "2")])
    assert time.monotonic() - begun < 30, "hard deadline"


@pytest.mark.requirement("hazard: answers without end")
def test_answers_without_end_are_cut_off(archive: QueryArchive, finder: Finder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "MOST_UIDS", 200)
    archive.endless = True
    with pytest.raises(SandboxError, match="more than 200"):
        images(finder, whom(archive), [Search("1", "2")])


def test_a_child_that_dies_is_an_error_and_the_next_query_gets_another(archive: QueryArchive, finder: Finder) -> None:
    archive.put("1.2", "1.2.1", "1.2.1.1")
    archive.silent.set()

    def kill() -> None:
        wait_until(lambda: archive.asked)
        os.kill(finder.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(SandboxError):
        images(finder, whom(archive), [Search("1.2", "1.2.1")])
    killer.join()
    archive.silent.clear()
    assert images(finder, whom(archive), [Search("1.2", "1.2.1")]) == [frozenset({"1.2.1.1"})]


@pytest.mark.parametrize("reply", [b"", b"[]", b"{}", b'{"uids":[1]}', b'{"uids":"1.2"}', b'{"refused":1}', b"[" * 100000])
@pytest.mark.requirement("hazard: child taken over by an object")
def test_nonsense_from_the_child_is_not_believed(reply: bytes) -> None:
    assert _parse(reply) is None
