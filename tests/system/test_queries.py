"""Real archives are asked what they have, and know of what they stored."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.sandbox.find import Archive, Finder, Search
from tests.support import objects, peers
from tests.support.peers import Destination

pytestmark = pytest.mark.system


@contextmanager
def filled(kind: str, folder: Path) -> Iterator[tuple[Destination, list[objects.Instance]]]:
    """An archive with five slices in two series."""
    instances = [objects.ct(i, "query", series=1 + i % 2, side=16) for i in range(5)]
    sources = folder / "source"
    sources.mkdir()
    files = peers.files_of(instances, sources)
    archive = peers.orthanc(folder / kind, modalities={"us": ("DCMGATE", 104)}) if kind == "orthanc" \
        else peers.dcmqrscp(folder / kind)
    with archive as destination:
        done = peers.storescu(destination.port, files, sources, called=destination.title)
        assert done.returncode == 0, done.stderr
        yield destination, instances


@pytest.mark.requirement("conformance: read-back")
@pytest.mark.parametrize("kind", ["dcmqrscp", "orthanc"])
def test_series_of_a_real_archive(tmp_path: Path, kind: str) -> None:
    study = objects.uid("study", "query", 1)
    with filled(kind, tmp_path) as (destination, instances):
        finder = Finder()
        try:
            with socket.create_connection(("127.0.0.1", destination.port)) as sock:
                found = finder.images(
                    Archive("127.0.0.1", destination.port, destination.title, "DCMGATE", 20.0, 20.0),
                    [Search(study, objects.uid("series", "query", 1, series)) for series in (1, 2, 3)],
                    sock.fileno(), sock.close)
        finally:
            finder.close()
    assert found == [frozenset(i.sop_instance for i in instances[::2]), frozenset(i.sop_instance for i in instances[1::2]),
                     frozenset()]
