"""The C-STORE transport: what it proposes, what becomes of each object, and that I5 holds on the wire."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.config.settings import Destination, Limits
from appliance.dicom import pdu, uids
from appliance.errors import DeliveryError, ObjectDamaged
from appliance.forward import dimse
from appliance.forward.dimse import DimseTransport
from appliance.model import Fault, Outcome, Priority
from tests.support import objects
from tests.support.dicom_peer import Connection, DicomPeer, Script, dicom_peer, hang
from tests.support.held import Held
from tests.support.waiting import free_port, wait_until

CT, EXPLICIT, IMPLICIT, J2K = uids.CT_IMAGE_STORAGE, uids.EXPLICIT_LE, uids.IMPLICIT_LE, uids.JPEG_2000_LOSSLESS


def serving(takes: Callable[[str, str], bool] = lambda abstract, syntax: True, statuses: tuple[int, ...] = ()) -> Script:
    def script(connection: Connection) -> None:
        connection.associate(takes)
        connection.serve(statuses)
    return script


class Bench:
    def __init__(self, held: Held, destination: Destination) -> None:
        self.held = held
        self.transport = DimseTransport(destination, held.spool, Limits(child_seconds=20.0))
        self.outcomes: list[Outcome] = []
        self.stop_after = 0

    def emit(self, outcome: Outcome) -> bool:
        self.outcomes.append(outcome)
        return len(self.outcomes) == self.stop_after

    def send(self, *batch: object) -> list[Outcome]:
        self.outcomes.clear()
        self.transport.send(batch, self.emit)  # type: ignore[arg-type]
        return self.outcomes


@contextmanager
def bench(tmp_path: Path, peer: DicomPeer | int, **settings: object) -> Iterator[Bench]:
    port = peer if isinstance(peer, int) else peer.port
    destination = Destination(id="pacs", address="127.0.0.1", port=port, called="PACS", calling="GATE", connect_seconds=2.0,
                              progress_seconds=2.0)
    made = Bench(Held(tmp_path / "held"), replace(destination, **settings))  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.transport.close()


@pytest.mark.requirement("conformance: data sets as received")
@pytest.mark.requirement("hazard: bytes, not objects")
@pytest.mark.requirement("I3")
def test_a_batch_goes_out_verbatim_on_one_association_that_is_kept(tmp_path: Path):
    with dicom_peer(serving()) as peer, bench(tmp_path, peer) as b:
        first = [b.held.keep(bytes([n]) * size) for n, size in enumerate((0, 1, 16377, 16378, 16379, 500_000), 1)]
        outcomes = b.send(*first)
        assert [o.number for o in outcomes] == [q.number for q in first]
        assert all(o.fault is None and o.status == 0 and not o.warning for o in outcomes)
        second = b.held.keep(b"later")
        assert b.send(second)[0].fault is None
        assert peer.connections == 1
        assert [s.data for s in peer.stored] == [bytes([n]) * size for n, size in
                                                 enumerate((0, 1, 16377, 16378, 16379, 500_000), 1)] + [b"later"]
        assert [s.command.sop_instance for s in peer.stored] == [q.sop_instance for q in (*first, second)]


def test_the_next_object_is_fetched_while_one_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fetched: list[int] = []
    monkeypatch.setattr(dimse, "expect", lambda spool, number: fetched.append(number))
    with dicom_peer(serving()) as peer, bench(tmp_path, peer) as b:
        batch = [b.held.keep(bytes([n])) for n in range(3)]
        b.send(*batch)
        assert fetched == [queued.number for queued in batch[1:]]


@pytest.mark.requirement("conformance: contexts proposed")
@pytest.mark.requirement("hazard: proposing all 170 storage classes × 45 syntaxes")
def test_exactly_what_the_batch_needs_is_proposed(tmp_path: Path):
    with dicom_peer(serving()) as peer, bench(tmp_path, peer) as b:
        b.send(b.held.keep(b"a"), b.held.keep(b"b", syntax=J2K),
               b.held.keep(b"c", sop_class="1.2.840.113619.4.30", syntax=IMPLICIT), b.held.keep(b"d"))
        assert [(c.id, c.abstract, c.syntaxes) for c in peer.requests[0].contexts] == [
            (1, CT, (EXPLICIT,)), (3, CT, (IMPLICIT,)), (5, CT, (J2K,)),
            (7, "1.2.840.113619.4.30", (IMPLICIT,)), (9, "1.2.840.113619.4.30", (EXPLICIT,))]
        b.send(b.held.keep(b"e"))
        assert peer.connections == 1
        b.send(b.held.keep(b"f", sop_class=uids.MR_IMAGE_STORAGE))
        assert peer.connections == 2, "another class needs another association"
        assert [s.syntax for s in peer.stored] == [EXPLICIT, J2K, IMPLICIT, EXPLICIT, EXPLICIT, EXPLICIT]


def test_more_than_128_contexts_need_more_associations(tmp_path: Path):
    with dicom_peer(serving()) as peer, bench(tmp_path, peer) as b:
        batch = [b.held.keep(b"x", sop_class=f"1.2.3.{n}", syntax=J2K) for n in range(130)]
        assert len(b.send(*batch)) == 130
        assert [len(r.contexts) for r in peer.requests] == [128, 2]


@pytest.mark.requirement("conformance: a blank title")
def test_titles_are_the_scanners_where_none_are_set_and_objects_are_grouped_by_them(tmp_path: Path):
    with dicom_peer(serving()) as peer, bench(tmp_path, peer, called="", calling="") as b:
        one, two, three, blank = (b.held.keep(b"1", calling="CT1", called="A"), b.held.keep(b"2", calling="CT2", called="A"),
                                  b.held.keep(b"3", calling="CT1", called="A"), b.held.keep(b"4", calling="", called="B"))
        urgent = b.held.keep(b"0", calling="CT2", called="A", priority=Priority.TRAUMA)
        assert b.transport.probe().fault is None, "no titles are known yet: nothing is asked"
        assert peer.connections == 0
        outcomes = b.send(urgent, one, two, three, blank)
        assert [o.number for o in outcomes] == [q.number for q in (urgent, one, three, two, blank)]
        assert [(pdu.title_text(r.calling), pdu.title_text(r.called)) for r in peer.requests] == [
            ("CT2", "A"), ("CT1", "A"), ("CT2", "A"), ("DCMGATE", "B")]
        assert [s.command.priority for s in peer.stored] == [1, 0, 0, 0, 0]


@pytest.mark.requirement("PS3.4 B.2.3")
def test_statuses_are_classified_object_by_object(tmp_path: Path):
    with dicom_peer(serving(statuses=(0, 0xB000, 0xC000, 0xA900, 0x0122, 0x0110))) as peer, bench(tmp_path, peer) as b:
        outcomes = b.send(*(b.held.keep(b"x") for _ in range(7)))
        assert [(o.fault, o.status, o.warning) for o in outcomes] == [
            (None, 0, False), (None, 0xB000, True), (Fault.OBJECT, 0xC000, False), (Fault.OBJECT, 0xA900, False),
            (Fault.OBJECT, 0x0122, False), (Fault.OBJECT, 0x0110, False), (None, 0, False)]
        assert peer.connections == 1


@pytest.mark.parametrize("status", [0xA700, 0xA7FF, 0x0213])
def test_whether_a_destination_without_room_is_sent_more_is_the_lanes_decision(tmp_path: Path, status: int):
    with dicom_peer(serving(statuses=(0, status, 0))) as peer, bench(tmp_path, peer) as b:
        assert [(o.fault, o.status) for o in b.send(*(b.held.keep(b"x") for _ in range(3)))] == [
            (None, 0), (Fault.DESTINATION, status), (None, 0)]
        assert peer.connections == 1


def test_0122_for_everything_is_the_destinations_fault(tmp_path: Path):
    with dicom_peer(serving(statuses=(0x0122,))) as peer, bench(tmp_path, peer) as b:
        assert [o.fault for o in b.send(b.held.keep(b"x"))] == [Fault.DESTINATION]


def test_emit_stops_at_an_instance_boundary(tmp_path: Path):
    with dicom_peer(serving()) as peer, bench(tmp_path, peer) as b:
        b.stop_after = 2
        batch = [b.held.keep(b"x") for _ in range(4)]
        assert len(b.send(*batch)) == 2
        assert len(b.send(*batch[2:])) == 2
        assert peer.connections == 1


def test_no_context_is_the_objects_fault_and_the_others_go_on(tmp_path: Path):
    def takes(abstract: str, syntax: str) -> bool:
        return syntax != J2K and abstract != uids.MR_IMAGE_STORAGE
    with dicom_peer(serving(takes)) as peer, bench(tmp_path, peer) as b:
        outcomes = b.send(b.held.keep(b"1"), b.held.keep(b"2", syntax=J2K), b.held.keep(b"3", sop_class=uids.MR_IMAGE_STORAGE),
                          b.held.keep(b"4", sop_class=b"../../etc/passwd"), b.held.keep(b"5", sop_class=b"\xff\0"),
                          b.held.keep(b"6"))
        assert [o.fault for o in outcomes] == [None, *[Fault.OBJECT] * 4, None]
        assert J2K in outcomes[1].text
        assert peer.connections == 1
        assert {c.abstract for r in peer.requests for c in r.contexts} == {CT, uids.MR_IMAGE_STORAGE}


def test_no_context_at_all_is_the_destinations_fault(tmp_path: Path):
    with dicom_peer(serving(lambda abstract, syntax: False)) as peer, bench(tmp_path, peer) as b:
        with pytest.raises(DeliveryError):
            b.send(b.held.keep(b"1"), b.held.keep(b"2"))
        assert [o.fault for o in b.outcomes] == [Fault.DESTINATION]


@pytest.mark.requirement("hazard: UID ../../x, NUL, 65 characters")
@pytest.mark.parametrize("uid", [b"../../x", b"$(id)", b"1" * 65, b"\xff\xfe\1"])
def test_hostile_instance_uids_are_passed_on_as_they_are(tmp_path: Path, uid: bytes):
    with dicom_peer(serving()) as peer, bench(tmp_path, peer) as b:
        assert b.send(b.held.keep(b"x", uid=uid))[0].fault is None
        assert peer.stored[0].command.sop_instance == uid


@pytest.mark.requirement("I5")
@pytest.mark.parametrize("size", [10, 300_000])
def test_a_damaged_object_never_arrives_whole(tmp_path: Path, size: int):
    ends: list[str] = []

    def script(connection: Connection) -> None:
        connection.associate()
        connection.store()
        try:
            connection.store()
        except (AssertionError, EOFError, OSError) as e:
            ends.append(type(e).__name__)
    with dicom_peer(script, serving()) as peer, bench(tmp_path, peer) as b:
        good, bad, rest = b.held.keep(b"x"), b.held.keep(bytes(size)), b.held.keep(b"y")
        b.held.damage(bad)
        with pytest.raises(ObjectDamaged) as caught:
            b.send(good, bad, rest)
        assert caught.value.number == bad.number
        assert [o.number for o in b.outcomes] == [good.number]
        wait_until(lambda: ends, 5)
        assert len(peer.stored) == 1
        assert b.send(rest)[0].fault is None
        assert [s.data for s in peer.stored] == [b"x", b"y"]


@pytest.mark.requirement("I5")
def test_an_object_that_is_another_than_the_ledger_says_is_not_sent(tmp_path: Path):
    with dicom_peer(serving()) as peer, bench(tmp_path, peer) as b:
        one, two = b.held.keep(b"one"), b.held.keep(b"two")
        with pytest.raises(ObjectDamaged):
            b.send(replace(one, digest=two.digest))
        b.held.object_path(two.number).unlink()
        with pytest.raises(ObjectDamaged):
            b.send(two)
        assert peer.stored == []


def _aborting(connection: Connection) -> None:
    connection.associate()
    connection.command()
    connection.sock.sendall(connection.layer.abort(2, 0))


def test_an_object_on_which_the_destination_aborts_does_not_keep_the_others(tmp_path: Path):
    with dicom_peer(_aborting, serving()) as peer, bench(tmp_path, peer) as b:
        outcomes = b.send(b.held.keep(b"poison"), b.held.keep(b"good"))
        assert [o.fault for o in outcomes] == [Fault.OBJECT, None]
        assert peer.connections == 2


@pytest.mark.parametrize("how", ["hang", "close", "nonsense"])
def test_an_association_that_breaks_ends_the_batch_and_the_object_under_way_has_an_outcome(tmp_path: Path, how: str):
    def script(connection: Connection) -> None:
        connection.associate()
        connection.store()
        connection.store(status=None)
        if how == "hang":
            hang(connection)
        elif how == "nonsense":
            connection.sock.sendall(b"\x99" * 20)
            hang(connection)
    with dicom_peer(script) as peer, bench(tmp_path, peer, progress_seconds=0.3) as b:
        with pytest.raises(DeliveryError) as caught:
            b.send(*(b.held.keep(b"x") for _ in range(4)))
        assert caught.value.fault == Fault.DESTINATION
        assert [o.fault for o in b.outcomes] == [None, Fault.DESTINATION]


def test_a_destination_that_is_not_there_leaves_the_objects_untouched(tmp_path: Path):
    with bench(tmp_path, free_port()) as b:
        with pytest.raises(DeliveryError, match="refuses"):
            b.send(b.held.keep(b"x"))
        assert b.outcomes == []
        assert b.transport.probe().fault is Fault.DESTINATION


@pytest.mark.parametrize("how", ["close", "abort", "release"])
def test_an_association_that_ended_while_idle_costs_no_attempt(tmp_path: Path, how: str):
    def script(connection: Connection) -> None:
        connection.associate()
        connection.store()
        if how != "close":
            connection.sock.sendall(connection.layer.abort() if how == "abort" else connection.layer.release())
        connection.sock.recv(10) if how == "release" else None
    with dicom_peer(script, serving()) as peer, bench(tmp_path, peer) as b:
        assert b.send(b.held.keep(b"1"))[0].fault is None
        assert b.transport._association is not None
        time_out = time.monotonic() + 5
        while b.transport._association.is_usable() and time.monotonic() < time_out:
            pass
        assert b.send(b.held.keep(b"2"))[0].fault is None
        assert [s.data for s in peer.stored] == [b"1", b"2"]


def test_an_association_that_ends_just_as_it_is_used_again_costs_no_attempt(tmp_path: Path):
    def script(connection: Connection) -> None:
        connection.associate()
        connection.store()
        connection.command()  # the second object has begun
    with dicom_peer(script, serving()) as peer, bench(tmp_path, peer) as b:
        assert b.send(b.held.keep(b"1"))[0].fault is None
        assert b.send(b.held.keep(b"2"))[0].fault is None
        assert [s.data for s in peer.stored] == [b"1", b"2"]


@pytest.mark.requirement("A relay that accepts a syntax its destination refuses owns the conversion")
@pytest.mark.parametrize(("stored", "taken"), [(EXPLICIT, IMPLICIT), (IMPLICIT, EXPLICIT)])
def test_the_other_uncompressed_syntax_is_made_on_the_way(tmp_path: Path, stored: str, taken: str):
    def data(syntax: str) -> bytes:
        return (objects.element(0x00080018, "UI", "1.2.3", syntax) + objects.element(0x00100010, "PN", "A^B", syntax)
                + objects.element(0x00280010, "US", 512, syntax) + objects.element(0x7FE00010, "OW", bytes(300_000), syntax))
    with dicom_peer(serving(lambda abstract, syntax: syntax == taken)) as peer, bench(tmp_path, peer) as b:
        outcomes = b.send(b.held.keep(data(stored), syntax=stored), b.held.keep(data(stored), syntax=stored))
        assert [o.fault for o in outcomes] == [None, None], outcomes
        assert [(s.syntax, s.data) for s in peer.stored] == [(taken, data(taken))] * 2


def test_what_cannot_be_re_encoded_is_the_objects_fault(tmp_path: Path):
    good = objects.element(0x00100010, "PN", "A^B", EXPLICIT)
    with dicom_peer(serving(lambda abstract, syntax: syntax == IMPLICIT)) as peer, bench(tmp_path, peer) as b:
        outcomes = b.send(b.held.keep(b"this is no data set" * 10), b.held.keep(good))
        assert [o.fault for o in outcomes] == [Fault.OBJECT, None]
        assert [s.data for s in peer.stored] == [objects.element(0x00100010, "PN", "A^B", IMPLICIT)]


@pytest.mark.requirement("I5")
def test_a_damaged_object_is_not_re_encoded(tmp_path: Path):
    with dicom_peer(serving(lambda abstract, syntax: syntax == IMPLICIT)) as peer, bench(tmp_path, peer) as b:
        bad = b.held.keep(objects.element(0x00100010, "PN", "A^B", EXPLICIT))
        b.held.damage(bad)
        with pytest.raises(ObjectDamaged):
            b.send(bad)
        assert peer.stored == []


def test_probe(tmp_path: Path):
    def rejecting(connection: Connection) -> None:
        connection.requested()
        connection.sock.sendall(connection.layer.reject(1, 1, 7))

    def without_echo(connection: Connection) -> None:
        connection.associate(lambda abstract, syntax: False)
        connection.serve()
    with dicom_peer(serving(), without_echo, rejecting, hang) as peer, bench(tmp_path, peer, connect_seconds=0.4) as b:
        assert b.transport.probe().fault is None
        assert [c.abstract for c in peer.requests[0].contexts] == [uids.VERIFICATION]
        assert b.transport.probe().fault is None, "Verification is not accepted: nothing is said against it"
        assert b.transport.probe().fault is Fault.CONFIGURATION
        assert b.transport.probe().fault is Fault.DESTINATION


@pytest.mark.parametrize("where", ["association", "answer"])
def test_abort_ends_what_is_blocked(tmp_path: Path, where: str):
    reached = threading.Event()

    def script(connection: Connection) -> None:
        if where == "answer":
            connection.associate()
            connection.store(status=None)
        else:
            connection.requested()
        reached.set()
        hang(connection)
    with dicom_peer(script) as peer, bench(tmp_path, peer, connect_seconds=60.0, progress_seconds=60.0) as b:
        threading.Thread(target=lambda: (reached.wait(10), b.transport.abort()), daemon=True).start()
        begun = time.monotonic()
        with pytest.raises(DeliveryError):
            b.send(b.held.keep(b"x"))
        assert time.monotonic() - begun < 10
        with pytest.raises(DeliveryError):
            b.send(b.held.keep(b"y"))
        assert peer.connections == 1


def test_descriptors_are_given_back(tmp_path: Path):
    with dicom_peer(_aborting) as peer, bench(tmp_path, peer) as b:
        queued = b.held.keep(b"x")
        b.send(queued)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            b.send(queued)
        b.transport.close()
        wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before, 5)
