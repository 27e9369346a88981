"""Who comes in: peers by title and address, unknown ones, several ports and titles, limits, and the room in the spool."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.config.settings import Listener, Peer
from appliance.errors import ConfigError
from appliance.receive.receiver import Receiver
from appliance.spool.rows import Knock
from tests.support import objects
from tests.support.acceptor import QUICK, Box, ask, config, connect, echo, read_to_end, receiving, rejected, session
from tests.support.scu import IMPLICIT, VERIFICATION, Lost, Scanner, associate_request
from tests.support.waiting import free_port, wait_until

ECHO = [(VERIFICATION, IMPLICIT)]
STORE = [(VERIFICATION, IMPLICIT), (objects.SR, objects.EXPLICIT)]
CALLING_NOT_RECOGNISED = (1, 1, 3)
CALLED_NOT_RECOGNISED = (1, 1, 7)
LOCAL_LIMIT = (2, 3, 2)

STRICT = Listener(id="lan", address="127.0.0.1", ports=(0,), titles=("DCMGATE", "STORE2"), unknown="refuse")
HOLDING = Listener(id="lan", address="127.0.0.1", ports=(0,), unknown="hold")
PEERS = (Peer(id="ct", titles=("CT1",), addresses=("127.0.0.1", "127.0.1.0/24")),
         Peer(id="blank", titles=("",), addresses=("127.0.2.2",)),
         Peer(id="banned", titles=("BAD",), action="refuse"),
         Peer(id="new", titles=("NEW",), action="hold"))


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Box]:
    with receiving(tmp_path, config(STRICT, peers=PEERS)) as box:
        yield box


def knocks(box: Box, count: int = 1) -> list[Knock]:
    """Who is remembered, once there are that many."""
    with contextlib.closing(box.ledger()) as ledger:
        return wait_until(lambda: found if len(found := ledger.knocks()) >= count else [], 10, "knocks")


@pytest.mark.requirement("conformance: titles")
def test_a_known_peer_comes_in_by_any_of_our_titles_and_leaves_no_note(strict: Box):
    assert ask(strict.port, STORE, calling="CT1", called="DCMGATE") is None
    assert ask(strict.port, STORE, calling="CT1", called="STORE2") is None
    assert ask(strict.port, STORE, calling=" CT1", called="DCMGATE ") is None        # spaces around do not count
    strict.worker.door.stop()
    with contextlib.closing(strict.ledger()) as ledger:
        assert ledger.knocks() == []


@pytest.mark.requirement("conformance: titles")
@pytest.mark.parametrize(("source", "calling", "answer"), [
    ("127.0.1.77", "CT1", None), ("127.0.3.1", "CT1", CALLING_NOT_RECOGNISED), ("127.0.2.2", "", None),
    ("127.0.0.1", "", CALLING_NOT_RECOGNISED), ("127.0.0.1", "BAD", CALLING_NOT_RECOGNISED), ("127.9.9.9", "NEW", None)])
def test_title_and_address_belong_together(strict: Box, source: str, calling: str, answer: tuple[int, int, int] | None):
    assert ask(strict.port, STORE, calling=calling, source=source) == answer


@pytest.mark.requirement("hazard: unauthenticated defaults")
@pytest.mark.requirement("conformance: unknown peers")
@pytest.mark.requirement("conformance: rejections")
def test_an_unknown_peer_is_refused_and_the_near_miss_named(strict: Box):
    assert ask(strict.port, STORE, calling="ct1") == CALLING_NOT_RECOGNISED
    knock, = knocks(strict)
    assert (knock.title, knock.called, knock.address) == ("ct1", "DCMGATE", "127.0.0.1")
    assert (knock.verdict, knock.count) == ("reject", 1)
    assert "upper and lower case" in knock.text and "ct" in knock.text
    assert "proposes 1 storage contexts, Verification" in knock.text


@pytest.mark.requirement("conformance: rejections")
def test_a_wrong_called_title_is_refused_and_the_near_miss_named(strict: Box):
    assert ask(strict.port, STORE, calling="CT1", called="DCM GATE") == CALLED_NOT_RECOGNISED
    knock, = knocks(strict)
    assert "a space" in knock.text and "DCMGATE" in knock.text


def test_who_knocks_again_is_counted_and_many_are_bounded(strict: Box):
    for _ in range(3):
        ask(strict.port, ECHO, calling="ct1")
    wait_until(lambda: knocks(strict)[0].count == 3, 10, "counted")
    door = strict.worker.door
    with contextlib.closing(strict.ledger()) as ledger:
        for n in range(3000):
            door._remember(Knock(f"T{n}", "X", "127.0.0.1", "reject", "a flood"))
        assert len(door._knocks) <= 512
        wait_until(lambda: not door._knocks, 10, "written")
        assert len(ledger.knocks(10_000)) <= 1024


@pytest.mark.requirement("conformance: unknown peers")
def test_unknown_peers_are_held_where_the_listener_says_so(tmp_path: Path):
    report = objects.sr(1)
    with receiving(tmp_path, config(HOLDING, peers=PEERS)) as box:
        with session(box.port, report) as scanner:
            assert scanner.store(report) == 0
        with Scanner(box.port, STORE, calling="NEW") as scanner:
            assert scanner.store(objects.sr(2)) == 0
        by_title = {custody.source.calling: custody.source for custody, _ in box.held()}
        # The router holds what came from nobody on a holding listener, and from a peer whose action is hold.
        assert (by_title["SCANNER"].peer, by_title["SCANNER"].listener) == ("", "lan")
        assert by_title["NEW"].peer == "new"
        assert {knock.verdict for knock in knocks(box, 2)} == {"hold"}


def test_one_command_admits_who_knocked(strict: Box):
    assert ask(strict.port, STORE, calling="MR7") == CALLING_NOT_RECOGNISED
    knock, = knocks(strict)
    with contextlib.closing(strict.ledger()) as ledger:
        ledger.admit(knock.title, knock.address, "a test")
    assert ask(strict.port, STORE, calling="MR7") is None
    assert ask(strict.port, STORE, calling="MR7", source="127.0.0.9") == CALLING_NOT_RECOGNISED


def test_the_custody_record_says_where_an_object_came_from(strict: Box):
    report = objects.sr(1)
    with Scanner(strict.port, STORE, calling="CT1", called="STORE2") as scanner:
        assert scanner.store(report) == 0
    (custody, _), = strict.held()
    source = custody.source
    assert (source.listener, source.peer, source.calling, source.called) == ("lan", "ct", "CT1", "STORE2")
    assert (source.raw_calling, source.address, source.port) == (b"CT1".ljust(16), "127.0.0.1", strict.port)
    assert source.implementation == "DCMGATE_TESTS"


@pytest.mark.requirement("conformance: titles")
def test_a_range_of_ports_and_several_listeners(tmp_path: Path):
    ports = tuple(free_port() for _ in range(3))
    first = Listener(id="range", address="127.0.0.1", ports=ports, unknown="admit")
    second = Listener(id="strict", address="127.0.0.2", ports=(ports[0],), titles=("OTHER",), unknown="admit")
    with receiving(tmp_path, config(first, second)) as box:
        assert sorted(box.receiver.addresses) == sorted(
            [("range", "127.0.0.1", port) for port in ports] + [("strict", "127.0.0.2", ports[0])])
        for port in ports:
            echo(port)
        echo(ports[0], address="127.0.0.2", called="OTHER")
        with pytest.raises(Lost, match="result 1 source 1 reason 7"):
            echo(ports[0], address="127.0.0.2", called="DCMGATE")


def test_a_port_that_is_taken_is_an_error_that_names_it(tmp_path: Path):
    with receiving(tmp_path / "one") as first, pytest.raises(ConfigError, match=f"127.0.0.1:{first.port}"):
        other = Listener(id="lan", address="127.0.0.1", ports=(first.port,))
        Receiver(lambda: config(other), first.spool, first.clock, tmp_path, workers=1, limits=QUICK).start()


def test_a_new_configuration_opens_and_closes_ports_and_leaves_the_rest_alone(tmp_path: Path):
    stays, goes, comes = (free_port() for _ in range(3))
    before = Listener(id="lan", address="127.0.0.1", ports=(stays, goes), unknown="admit")
    with receiving(tmp_path, config(before)) as box, Scanner(goes, ECHO) as inside, connect(stays) as silent, \
            connect(stays) as blocker:
        assert inside.echo() == 0
        blocker_port = blocker.getsockname()[1]
        box.configure(Listener(id="lan", address="127.0.0.1", ports=(stays, comes), unknown="refuse"), peers=PEERS)
        wait_until(lambda: sorted(port for _, _, port in box.receiver.addresses) == sorted((stays, comes)), 10, "ports")
        assert inside.echo() == 0                                    # who is in stays in, even where the port is gone
        assert ask(comes, ECHO, calling="CT1") is None
        assert ask(stays, ECHO, calling="ANYBODY") == CALLING_NOT_RECOGNISED
        silent.sendall(associate_request("X", "CT1", ECHO))          # the listener that stayed lost nobody
        assert silent.recv(1) == b"\x02"
        with pytest.raises(OSError):
            connect(goes, timeout=1)
        box.configure(Listener(id="lan", address="127.0.0.1", ports=(stays, blocker_port), unknown="admit"))
        wait_until(lambda: box.receiver.problems, 10, "a problem")
        assert str(blocker_port) in box.receiver.problems[0]
        echo(stays)


@pytest.mark.requirement("conformance: association policies")
@pytest.mark.requirement("conformance: rejections")
@pytest.mark.requirement("hazard: own counters per address")
def test_more_associations_than_allowed_are_rejected_as_transient(tmp_path: Path):
    tight = Listener(id="lan", address="127.0.0.1", ports=(0,), unknown="admit", max_associations=3, max_per_address=2)
    with receiving(tmp_path, config(tight)) as box:
        with Scanner(box.port, ECHO), Scanner(box.port, ECHO):
            assert ask(box.port, ECHO) == LOCAL_LIMIT                 # this address is full
            with connect(box.port, source="127.0.0.2") as other:
                other.sendall(associate_request("DCMGATE", "OTHER", ECHO))
                assert other.recv(1) == b"\x02"
                assert ask(box.port, ECHO, source="127.0.0.3") == LOCAL_LIMIT
        wait_until(lambda: box.receiver.associations == 0, 10, "places given back")
        assert ask(box.port, ECHO) is None


@pytest.mark.requirement("hazard: own counters per address")
def test_a_rejected_peer_hears_the_reason_even_if_it_sent_more_than_that(tmp_path: Path):
    tight = Listener(id="lan", address="127.0.0.1", ports=(0,), unknown="admit", max_associations=1)
    with receiving(tmp_path, config(tight)) as box, Scanner(box.port, ECHO) as inside:
        for _ in range(20):
            with connect(box.port) as sock:
                sock.sendall(associate_request("DCMGATE", "CT1", ECHO) + bytes(50_000))
                assert rejected(read_to_end(sock)) == LOCAL_LIMIT
        assert inside.echo() == 0


def test_every_place_is_given_back(tmp_path: Path):
    tight = Listener(id="lan", address="127.0.0.1", ports=(0,), unknown="admit", max_associations=1, max_per_address=1)
    with receiving(tmp_path, config(tight)) as box:
        for n in range(20):
            wait_until(lambda: box.receiver.associations == 0, 10, "place given back")
            scanner = Scanner(box.port, ECHO).open()
            if n % 2:
                scanner.close()
            else:
                scanner.release()


@pytest.mark.requirement("space")
@pytest.mark.requirement("conformance: rejections")
@pytest.mark.requirement("conformance: verification")
@pytest.mark.requirement("I1")
def test_the_states_of_the_space_as_a_scanner_sees_them(tmp_path: Path):
    peers = (Peer(id="trauma", titles=("TRAUMA",), priority="trauma"),)
    size = 9 << 20
    large = [objects.dx(n, size=size) for n in range(4)]
    store = [*STORE, (objects.DX, objects.EXPLICIT)]
    with receiving(tmp_path, config(peers=peers), size=size * 9 // 2) as box:
        with Scanner(box.port, store) as inside:
            assert [inside.store(instance) for instance in large[:3]] == [0, 0, 0]
            wait_until(lambda: box.intake.outstanding == 0, 10, "rows")
            # Red: less is free than twice the largest object.
            assert ask(box.port, store, calling="ROUTINE") == LOCAL_LIMIT
            assert ask(box.port, ECHO) is None
            assert "red" in next(knock.text for knock in knocks(box, 2) if knock.verdict == "reject")
            with Scanner(box.port, store, calling="TRAUMA") as urgent:    # low-priority senders are refused first
                assert urgent.echo() == 0
            # What does not fit any more: A700 on an association that is in, after its data set was read.
            assert inside.store(large[3]) == 0
            assert inside.store(objects.dx(9, size=size // 2)) == 0xA700
            assert inside.store(objects.sr(1)) == 0
            assert inside.echo() == 0
        box.spool.size = 400 * size                                       # room again: it recovers by itself
        with Scanner(box.port, store) as again:
            assert again.store(objects.dx(9, size=size // 2)) == 0
        wait_until(box.quiet, 10, "done")
        assert len(box.held()) == 6 and not box.intake.out_of_intake


PRIVATE_SYNTAX = "1.2.826.0.1.3680043.9.9999.1"


@pytest.mark.requirement("conformance: storage classes")
@pytest.mark.requirement("conformance: presentation contexts")
@pytest.mark.parametrize(("sop_class", "syntax"), [
    (objects.PRIVATE, objects.EXPLICIT), (objects.SR, PRIVATE_SYNTAX), ("1.2.840.10008.5.1.4.1.1.6", IMPLICIT),
    (objects.CT, objects.BIG), (objects.CT, "1.2.840.10008.1.2.4.90")],
    ids=["private class", "private syntax", "retired class", "big-endian", "JPEG 2000"])
def test_every_storage_class_and_every_syntax_is_taken(tmp_path: Path, sop_class: str, syntax: str):
    odd = objects.Instance(sop_class, objects.uid(sop_class, syntax), syntax, (b"\x08\0\x05\0CS\x0a\0ISO_IR 100",))
    with receiving(tmp_path) as box:
        with session(box.port, odd) as scanner:
            assert scanner.store(odd) == 0
        (custody, data), = box.held()
        assert (custody.class_text, custody.uid_text, custody.transfer_syntax) == (sop_class, odd.sop_instance, syntax)
        assert data == b"".join(bytes(part) for part in odd.parts)


@pytest.mark.requirement("hazard: crafted query")
@pytest.mark.requirement("conformance: storage classes")
def test_services_that_are_not_served_are_not_accepted(tmp_path: Path):
    find = "1.2.840.10008.5.1.4.1.2.2.1"
    with receiving(tmp_path) as box, Scanner(box.port, [(find, IMPLICIT), *STORE]) as scanner:
        assert set(scanner.accepted) == set(STORE)
        assert scanner.echo() == 0
