"""Read-back over TLS: the archive is asked by the same profile, certificates and checks as it is sent to."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from appliance.config.settings import Destination
from appliance.confirm.proof import Evidence, Unavailable, Verdict
from appliance.confirm.query import QueryProof
from appliance.sandbox.find import Finder
from appliance.spool.index import Located
from appliance.spool.rows import Sent
from tests.support import pki, spools
from tests.support.archives import QueryArchive, query_archive


class Place:
    """A certificate store, an authority that our certificate and the archive's come from, and what was sent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca, self.other = pki.Authority("Cloud CA"), pki.Authority("Foreign CA")
        self.server = self.ca.leaf("archive", addresses=["127.0.0.1"])
        pki.place(folder, "box", self.ca.leaf("box"), trust=[self.ca])
        pki.place(folder, "foreign", self.other.leaf("box"), trust=[self.ca])
        self.finder = Finder()

    def context(self, pair: pki.Pair, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        key, chain = pair.write(self.folder, "archive")
        context.load_cert_chain(chain, key)
        trust = self.folder / "trust.pem"
        trust.write_bytes(pki.pem(self.ca.certificate))
        context.load_verify_locations(trust)
        context.verify_mode = ssl.CERT_REQUIRED
        context.minimum_version = context.maximum_version = version
        return context

    @contextmanager
    def asking(self, archive: QueryArchive, **settings: object) -> Iterator[QueryProof]:
        destination = Destination(**{  # type: ignore[arg-type]
            "id": "archive", "address": "127.0.0.1", "port": archive.port, "called": "ARCHIVE", "calling": "DCMGATE",
            "tls": "bcp195", "certificate": "box", "proof": "readback", "connect_seconds": 10.0, "progress_seconds": 10.0,
            **settings})
        yield QueryProof(destination, lambda numbers: {n: Located(n, "", "1.2", "1.2.1") for n in numbers}, self.finder,
                         state=str(self.folder))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.finder.close()


def sent(count: int = 1) -> list[Sent]:
    return [Sent(n, "archive", 0, "", 0, spools.CT_CLASS, b"1.2.3.%d" % n, spools.EXPLICIT, 10, bytes(32), "", spools.SOURCE)
            for n in range(1, count + 1)]


def verdicts(found: list[Evidence]) -> list[Verdict]:
    return [evidence.verdict for evidence in sorted(found, key=lambda each: each.number)]


@pytest.mark.requirement("hazard: ssl bytes held back")
@pytest.mark.requirement("conformance: read-back")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_many_answers_over_tls(place: Place, version: ssl.TLSVersion) -> None:
    """400 instances, asked for twice: bytes that TLS holds back where poll does not see them are not waited for in vain."""
    with query_archive(context=place.context(place.server, version)) as archive:
        for n in range(1, 400):
            archive.put("1.2", "1.2.1", f"1.2.3.{n}")
        with place.asking(archive) as proof:
            for _ in range(2):
                assert verdicts(proof.look(sent(400))) == [Verdict.PRESENT] * 399 + [Verdict.MISSING]


def test_the_child_has_no_key_and_no_connection_of_its_own(place: Place) -> None:
    """What it is given is one end of a socket pair: it could not even reach the archive by itself."""
    with query_archive(context=place.context(place.server)) as archive, place.asking(archive) as proof:
        archive.silent.set()
        proof._destination = replace(proof._destination, progress_seconds=0.5)
        with pytest.raises(Unavailable):
            proof.look(sent())
        archive.silent.clear()
        archive.put("1.2", "1.2.1", "1.2.3.1")
        assert verdicts(proof.look(sent())) == [Verdict.PRESENT]
        child = psutil.Process(place.finder.pid)
        assert child.net_connections(kind="inet") == []
        assert not any("pem" in file.path for file in child.open_files())


REFUSED = {
    "wrong host": (lambda place: place.ca.leaf("x", addresses=["127.0.0.9"]), {}, "not valid for '127.0.0.1'"),
    "wrong name": (lambda place: place.server, {"server_name": "pacs.example.org"}, "not valid for 'pacs.example.org'"),
    "wrong authority": (lambda place: place.other.leaf("x", addresses=["127.0.0.1"]), {}, "not trusted"),
    "expired": (lambda place: place.ca.expired("x", addresses=["127.0.0.1"]), {}, "it has expired"),
    "not pinned": (lambda place: place.server, {"pins": ("ab" * 32,)}, "not one of the pins"),
    "ours is foreign": (lambda place: place.server, {"certificate": "foreign"}, "our certificate"),
}


@pytest.mark.requirement("hazard: ssl host name")
@pytest.mark.requirement("conformance: refused handshakes")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
@pytest.mark.parametrize("why", REFUSED)
def test_an_archive_that_does_not_prove_itself_is_not_asked(place: Place, why: str, version: ssl.TLSVersion) -> None:
    make, settings, words = REFUSED[why]
    with query_archive(context=place.context(make(place), version)) as archive, place.asking(archive, **settings) as proof:
        with pytest.raises(Unavailable) as refused:
            proof.look(sent())
        assert words in str(refused.value)
        assert archive.asked == []
