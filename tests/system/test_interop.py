"""Every sender to every destination: what arrives through the gateway is what arrives without it.

For each sender all files go directly to each of the four destinations, and once
to the gateway, which delivers to four fresh ones. Compared are (UID, transfer
syntax, digest of the data set), so that a destination that alters or refuses an
object is held only against itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.model import DeliveryState
from appliance.spool.ledger import Ledger
from tests.support import objects, peers
from tests.support.gateway import Gateway, to_peer
from tests.support.objects import Key, Part10
from tests.support.peers import Destination, Orthanc
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]

Send = Callable[[int, str, list[Part10], Path], None]
"""Sends files to (port, called title); the folder is for what the sender needs."""


def _storescu(port: int, title: str, files: list[Part10], folder: Path) -> None:
    peers.storescu(port, files, folder, called=title)


def _dcmsend(port: int, title: str, files: list[Part10], folder: Path) -> None:
    peers.dcmsend(port, files, folder, called=title)


def _pynetdicom(port: int, title: str, files: list[Part10], folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peers.pynetdicom_send(port, files, called=title)


def _orthanc(port: int, title: str, files: list[Part10], folder: Path) -> None:
    """Each file is uploaded, sent by an association of its own, and deleted: several share one UID."""
    with peers.orthanc(folder / "sender", title="SENDER", modalities={"peer": (title, port)}) as sender:
        rest = Orthanc(sender.http)
        for file in files:
            identifier = rest.upload(file.path)
            if identifier is not None:
                rest.send([identifier], "peer")
                rest.call(f"/instances/{identifier}", method="DELETE")


SENDERS: dict[str, Send] = {"storescu": _storescu, "dcmsend": _dcmsend, "orthanc": _orthanc, "pynetdicom": _pynetdicom}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Part10]:
    """All of pydicom's files, and one object for each thing that routers get wrong."""
    return objects.sendable() + peers.files_of(objects.specials("interop"), tmp_path_factory.mktemp("specials"))


@pytest.fixture
def direct(tmp_path: Path) -> Iterator[dict[str, Destination]]:
    with peers.all_destinations(tmp_path / "direct") as found:
        yield found


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[dict[str, Destination]]:
    with peers.all_destinations(tmp_path / "behind") as found:
        yield found


def _least(sender: str) -> int:
    """How many of the files a sender must have been able to send, lest the test prove nothing."""
    return {"storescu": 150, "dcmsend": 150, "orthanc": 140, "pynetdicom": 145}[sender]


OVERWRITING = ("dcmqrscp", "orthanc")
"""Archives that keep one object for each UID. Some of pydicom's files share one: which of them stays depends on which the
archive took last, and the gateway tries again what it refused at first."""


def _same(found: set[Key], wanted: set[Key], sent: set[Key], parked: set[str], *, overwrites: bool) -> bool:
    """The same objects byte for byte; of several with one UID, an overwriting archive has one of those that were sent.

    Or none, where it refused one of them (`parked`, by UID): dcmqrscp deletes what it had when the next cannot be stored, and
    which comes last is not the same when a refused one is tried again.
    """
    if not overwrites:
        return found == wanted
    versions: dict[str, set[Key]] = {}
    for key in sent | wanted:
        versions.setdefault(key[0], set()).add(key)
    several = {uid for uid, keys in versions.items() if len(keys) > 1}
    return ({key for key in found if key[0] not in several} == {key for key in wanted if key[0] not in several}
            and {key[0] for key in found} ^ {key[0] for key in wanted} <= several & parked
            and all(key in versions[key[0]] for key in found if key[0] in several))


def _parked(gateway: Gateway, destination: str) -> set[str]:
    """UIDs that it refused for good."""
    with closing(Ledger.open(gateway.spool / "ledger.sqlite", SystemClock(), read_only=True)) as ledger:
        rows = [ledger.object(delivery.number) for delivery in ledger.stuck(DeliveryState.PARKED, destination)]
        return {row.custody.uid_text for row in rows if row is not None}


@pytest.mark.requirement("conformance: data sets as received")
@pytest.mark.requirement("I3")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sender", SENDERS)
def test_what_arrives_through_the_gateway_is_what_arrives_directly(
        sender: str, files: list[Part10], direct: dict[str, Destination], behind: dict[str, Destination],
        tmp_path: Path) -> None:
    send = SENDERS[sender]
    wanted: dict[str, set[Key]] = {}

    def directly(kind: str) -> None:
        place = tmp_path / f"sender-{kind}"
        place.mkdir()
        send(direct[kind].port, direct[kind].title, files, place)
        wanted[kind] = set(direct[kind].arrived())
    with ThreadPoolExecutor(2) as pool:              # they wait for programs more than they work
        list(pool.map(directly, direct))
    assert len(direct["storescp"].arrived()) >= _least(sender)

    with Gateway(tmp_path / "gateway", [to_peer(d) for d in behind.values()]) as gateway:
        gateway.start()
        place = tmp_path / "sender-gateway"
        place.mkdir()
        send(gateway.port, "DCMGATE", files, place)
        found: dict[str, set[Key]] = {}
        sent = wanted["storescp"] | wanted["dcmrecv"]

        def all_there() -> bool:
            for kind, destination in behind.items():
                try:
                    found[kind] = set(destination.arrived())
                except (OSError, ValueError):   # a file that is being written
                    return False
            return all(_same(found[kind], wanted[kind], sent, _parked(gateway, kind), overwrites=kind in OVERWRITING)
                       for kind in wanted)

        try:
            wait_until(all_there, 240, "the same at all destinations", every=0.5)
        except AssertionError:
            problems = {kind: (sorted(wanted[kind] - found[kind])[:5], sorted(found[kind] - wanted[kind])[:5])
                        for kind in wanted if kind not in found
                        or not _same(found[kind], wanted[kind], sent, _parked(gateway, kind),
                                     overwrites=kind in OVERWRITING)}
            raise AssertionError(f"missing, too many: {problems}\n{gateway.balance(status=None)}\n"
                                 f"{gateway.log_tail()}") from None
        assert gateway.balance()["unaccounted"] == 0


@pytest.mark.timeout(600)
@pytest.mark.xdist_group("serial")
@pytest.mark.parametrize("sender", SENDERS)
def test_an_object_of_400_mb(sender: str, tmp_path: Path) -> None:
    large = peers.files_of([objects.multiframe(1, sender)], tmp_path / "large")
    with peers.storescp(tmp_path / "direct") as direct:
        SENDERS[sender](direct.port, direct.title, large, tmp_path)
        wanted = direct.arrived()
    assert len(wanted) == 1
    (direct.folder / direct.files()[0].path.name).unlink()
    with (peers.storescp(tmp_path / "storescp") as one, peers.dcmrecv(tmp_path / "dcmrecv") as two,
          Gateway(tmp_path / "gateway", [to_peer(one), to_peer(two)]) as gateway):
        gateway.start()
        SENDERS[sender](gateway.port, "DCMGATE", large, tmp_path)
        gateway.wait_settled(120, accepted=1)
        assert one.arrived() == wanted
        assert two.arrived() == wanted


@pytest.mark.timeout(600)
@pytest.mark.xdist_group("serial")
@pytest.mark.parametrize("kind", ["dcmqrscp", "orthanc"])
def test_an_object_of_400_mb_to_an_archive(kind: str, tmp_path: Path) -> None:
    large = peers.files_of([objects.multiframe(1, kind)], tmp_path / "large")
    make = {"dcmqrscp": peers.dcmqrscp, "orthanc": peers.orthanc}[kind]
    with make(tmp_path / kind) as archive, Gateway(tmp_path / "gateway", [to_peer(archive)]) as gateway:
        gateway.start()
        _storescu(gateway.port, "DCMGATE", large, tmp_path)
        gateway.wait_settled(120, accepted=1)
        assert archive.arrived() == [large[0].key]
