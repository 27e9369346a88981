"""Confirm: only evidence confirms, what is missing is sent again, and nothing is deleted on a lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from blake3 import blake3

from appliance.clock import SECOND, ManualClock
from appliance.config.settings import Config, Destination
from appliance.confirm import Confirmer, confirmer
from appliance.confirm import watch as watches
from appliance.confirm.proof import PAUSES, Evidence, Unavailable, Verdict, pause
from appliance.confirm.query import QueryProof
from appliance.confirm.reread import RereadProof
from appliance.confirm.watch import ByEvidence, ByTime
from appliance.dicom.part10 import build_head
from appliance.model import Attributes, Custody, DeliveryState, ObjectState, Outcome
from appliance.net import archive as folders
from appliance.spool import index as ix
from appliance.spool.index import Index
from appliance.spool.ledger import Ledger
from appliance.spool.rows import Routing, Sent
from tests.support import spools
from tests.support.archives import QueryArchive, query_archive
from tests.support.waiting import free_port, wait_until

DATA = b"a data set"


class Box:
    """A ledger with objects that were sent to `archive`."""

    def __init__(self, path: Path, destination: Destination) -> None:
        self.clock = ManualClock()
        self.destination = destination
        self.spool = spools.fresh(path / "spool")
        self.ledger = Ledger.open(self.spool.ledger_path, self.clock)
        self._owner = self.ledger.register_owner("test")

    def sent(self, uid: bytes = b"1.2.3.4", reference: str = "") -> Custody:
        data = DATA + uid
        number = self.ledger.grant(self._owner, 1)
        custody = Custody(number, self.ledger.boot, self.clock.boot_ns(), self.clock.wall_ns(), spools.CT_CLASS, uid,
                          spools.EXPLICIT, len(data), blake3(data).digest(), spools.SOURCE)
        self.ledger.accepted([custody])
        self.ledger.route([Routing(number, 1, destinations=("archive",))], [self.destination])
        self.send(custody, reference)
        return custody

    def send(self, custody: Custody, reference: str = "") -> None:
        assert self.ledger.claim("archive", [custody.number]) == [custody.number]
        self.ledger.outcomes("archive", [Outcome(custody.number, None, 0, reference=reference)])

    def state(self, custody: Custody) -> DeliveryState:
        return self.ledger.deliveries(custody.number)[0].state

    def close(self) -> None:
        self.ledger.close()


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path, Destination(id="archive", proof="readback"))
    yield box
    box.close()


class Said:
    """A proof that says what the test wants."""

    def __init__(self, verdict: Verdict = Verdict.PRESENT) -> None:
        self.verdict: Verdict | Exception = verdict
        self.looked: list[int] = []
        self.closed = 0

    def look(self, sent: Sequence[Sent]) -> list[Evidence]:
        self.looked += [each.number for each in sent]
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return [Evidence(each.number, self.verdict, "said so") for each in sent]

    def close(self) -> None:
        self.closed += 1


def by_evidence(box: Box, proof: object) -> ByEvidence:
    return ByEvidence(box.destination, box.ledger, box.clock, proof, Random(1))  # type: ignore[arg-type]


def later(box: Box, watch: ByEvidence | ByTime) -> int:
    """Let the time pass until the watch wants to do something, and do it."""
    wait = watch.wait()
    assert wait < float("inf")
    box.clock.advance(wait + 0.001)
    return watch.step()


# --- by time ----------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("I7")
def test_status_counts_powered_on_time_only(box: Box) -> None:
    watch = ByTime(Destination(id="archive", proof="status", status_days=14), box.ledger, box.clock)
    assert watch.wait() == float("inf")
    custody = box.sent()
    box.clock.step_wall(365 * 86400)
    assert watch.step() == 0
    box.clock.advance(13 * 86400)
    assert watch.step() == 0
    assert 86000 < watch.wait() <= 86400
    assert later(box, watch) == 1
    assert box.state(custody) is DeliveryState.CONFIRMED
    assert "14 days" in box.ledger.history(custody.number)[-1].body


def test_status_of_no_days_is_at_once(box: Box) -> None:
    watch = ByTime(Destination(id="archive", status_days=0.0), box.ledger, box.clock)
    custodies = [box.sent(b"1.2.%d" % i) for i in range(300)]
    while watch.wait() == 0.0:
        watch.step()
    assert {box.state(c) for c in custodies} == {DeliveryState.CONFIRMED}


# --- by evidence ------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("I4")
def test_found_is_confirmed_with_its_evidence(box: Box) -> None:
    custody, proof = box.sent(), Said()
    watch = by_evidence(box, proof)
    assert watch.step() == 0, "archives take a moment"
    assert later(box, watch) == 1
    assert box.state(custody) is DeliveryState.CONFIRMED
    assert "said so" in box.ledger.history(custody.number)[-1].body
    assert watch.alarms() == []


@pytest.mark.requirement("lying archive: a success that is not true never leads to deletion")
def test_missing_is_looked_for_patiently_and_then_sent_again(box: Box) -> None:
    custody, proof = box.sent(), Said(Verdict.MISSING)
    watch = by_evidence(box, proof)
    watch.step()
    for _ in PAUSES:
        assert box.state(custody) is DeliveryState.SENT
        later(box, watch)
    assert proof.looked == [custody.number] * len(PAUSES)
    assert box.state(custody) is DeliveryState.WAITING
    assert box.ledger.retirable(1 << 60, 0) == []
    assert box.ledger.retiring([custody.number]) == []
    [alarm] = watch.alarms()
    assert alarm.key == "readback-missing:archive"
    box.send(custody)
    proof.verdict = Verdict.PRESENT
    watch.step()
    later(box, watch)
    assert box.state(custody) is DeliveryState.CONFIRMED
    assert watch.alarms() == []


@pytest.mark.requirement("lying archive: a success that is not true never leads to deletion")
def test_a_lying_archive_is_sent_to_less_and_less_often(box: Box) -> None:
    custody, proof = box.sent(), Said(Verdict.MISSING)
    watch = by_evidence(box, proof)
    durations = []
    for _ in range(6):
        begun = box.clock.boot_ns()
        watch.step()
        while box.state(custody) is DeliveryState.SENT:
            later(box, watch)
        durations.append((box.clock.boot_ns() - begun) // SECOND)
        box.send(custody)
    assert durations == sorted(durations)
    assert durations[-1] > 10 * durations[0]
    row = box.ledger.object(custody.number)
    assert row is not None and row.state is ObjectState.SENT
    assert pause(len(PAUSES) - 1, 1000) == 86400 * SECOND


def test_a_destination_that_cannot_be_asked_says_nothing(box: Box) -> None:
    custody, proof = box.sent(), Said()
    proof.verdict = Unavailable("no route")
    watch = by_evidence(box, proof)
    watch.step()
    for _ in range(50):
        later(box, watch)
    assert box.state(custody) is DeliveryState.SENT
    assert watch.wait() <= 300
    assert [a.key for a in watch.alarms()] == ["readback-unavailable:archive"]
    proof.verdict = Verdict.PRESENT
    later(box, watch)
    assert box.state(custody) is DeliveryState.CONFIRMED
    assert watch.alarms() == []


@pytest.mark.requirement("I4")
def test_what_cannot_be_proved_stays_sent(box: Box) -> None:
    custody, proof = box.sent(), Said(Verdict.UNKNOWN)
    watch = by_evidence(box, proof)
    watch.step()
    for _ in range(20):
        later(box, watch)
    assert box.state(custody) is DeliveryState.SENT
    assert watch.alarms()


def test_tries_start_anew_after_a_restart_and_nothing_is_missed(box: Box) -> None:
    first, second = box.sent(b"1.1"), box.sent(b"1.2")
    old = by_evidence(box, Said(Verdict.MISSING))
    old.step()
    later(box, old)
    new = by_evidence(box, Said())
    new.step()
    while box.state(second) is not DeliveryState.CONFIRMED:
        later(box, new)
    assert box.state(first) is DeliveryState.CONFIRMED


def test_large_numbers_are_taken_in_pieces(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "BATCH", 10)
    monkeypatch.setattr(watches, "MOST_PENDING", 25)
    custodies = [box.sent(b"1.2.%d" % i) for i in range(60)]
    watch = by_evidence(box, Said())
    watch.step()
    while (wait := watch.wait()) < float("inf"):
        box.clock.advance(wait)
        watch.step()
        assert len(watch._pending) <= 35
    assert {box.state(c) for c in custodies} == {DeliveryState.CONFIRMED}


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(box: Box, tmp_path: Path) -> Path:
    folders.init(tmp_path / "archive")
    box.destination = replace(box.destination, type="folder", path=str(tmp_path / "archive"))
    return tmp_path / "archive"


def put(box: Box, folder: Path, uid: bytes = b"1.2.3.4") -> tuple[Custody, Path]:
    """Deliver one object into the folder as the forwarder does."""
    data = DATA + uid
    name = blake3(data).hexdigest()
    custody = box.sent(uid, f"objects/{name[:2]}/{name}.dcm")
    path = folder / "objects" / name[:2] / f"{name}.dcm"
    path.write_bytes(build_head(custody) + data)
    return custody, path


def test_a_folder_is_read_again(box: Box, folder: Path) -> None:
    _, path = put(box, folder)
    proof = RereadProof(box.destination)
    [row] = box.ledger.to_confirm("archive")
    assert [e.verdict for e in proof.look([row])] == [Verdict.PRESENT]
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + b"X", whole + b"X", b"", whole[:4000], b"X" + whole[1:]):
        path.write_bytes(damaged)
        assert [e.verdict for e in proof.look([row])] == [Verdict.MISSING]
    path.unlink()
    assert [e.verdict for e in proof.look([row])] == [Verdict.MISSING]
    path.symlink_to("/etc/passwd")
    assert [e.verdict for e in proof.look([row])] == [Verdict.MISSING]


def test_a_folder_that_is_not_mounted_says_nothing(box: Box, folder: Path) -> None:
    put(box, folder)
    (folder / folders.MARKER).unlink()
    with pytest.raises(Unavailable, match="not mounted"):
        RereadProof(box.destination).look(box.ledger.to_confirm("archive"))


@pytest.mark.parametrize("reference", ["", "/etc/passwd", "../../etc/passwd", "objects/aa/nothing.dcm"])
def test_a_reference_that_is_none_proves_nothing(box: Box, folder: Path, reference: str) -> None:
    box.sent(reference=reference)
    [evidence] = RereadProof(box.destination).look(box.ledger.to_confirm("archive"))
    assert evidence.verdict is Verdict.UNKNOWN


# --- archives that can be asked ---------------------------------------------------------------------------------------


@pytest.fixture
def archive() -> Iterator[QueryArchive]:
    with query_archive() as archive:
        yield archive


def queried(box: Box, archive: QueryArchive) -> QueryProof:
    box.destination = replace(box.destination, type="dimse", address="127.0.0.1", port=archive.port, called="ARCHIVE",
                              connect_seconds=10.0, progress_seconds=10.0)
    return QueryProof(box.destination, Confirmer(box.spool, box.ledger, box.clock, Config)._locate)


@pytest.mark.requirement("conformance: read-back")
def test_one_query_for_each_series(box: Box, archive: QueryArchive) -> None:
    proof = queried(box, archive)
    custodies = [box.sent(b"1.2.3.%d" % i) for i in range(6)]
    stranger, odd = box.sent(b"7.7.7"), box.sent(b"../../x")
    with Index.open(box.spool.index_path) as index:
        index.add([(c.number, Attributes({ix.STUDY_UID: "1.2", ix.SERIES_UID: f"1.2.{i % 2}"}))
                   for i, c in enumerate(custodies)])
    for i, custody in enumerate(custodies[:5]):
        archive.put("1.2", f"1.2.{i % 2}", custody.uid_text)
    try:
        found = {e.number: e.verdict for e in proof.look(box.ledger.to_confirm("archive"))}
    finally:
        proof.close()
    assert [found[c.number] for c in custodies] == [Verdict.PRESENT] * 5 + [Verdict.MISSING]
    assert found[stranger.number] is Verdict.UNKNOWN, "without study and series an archive need not answer"
    assert found[odd.number] is Verdict.UNKNOWN
    assert sorted(archive.asked) == [("", "", ("7.7.7",)), ("1.2", "1.2.0", ()), ("1.2", "1.2.1", ())]
    assert set(archive.titles) == {("ARCHIVE", "CT1")}, "as the scanner that sent them"


def test_an_object_without_study_is_proved_where_the_archive_answers(box: Box, archive: QueryArchive) -> None:
    proof, custody = queried(box, archive), box.sent(b"7.7.7")
    archive.put("8.8", "8.8.8", "7.7.7")
    [evidence] = proof.look(box.ledger.to_confirm("archive"))
    proof.close()
    assert evidence.verdict is Verdict.PRESENT and evidence.number == custody.number


def test_a_refused_query_says_nothing(box: Box, archive: QueryArchive) -> None:
    proof = queried(box, archive)
    box.sent()
    archive.status = 0xA900
    [evidence] = proof.look(box.ledger.to_confirm("archive"))
    proof.close()
    assert evidence.verdict is Verdict.UNKNOWN and "A900" in evidence.text


def test_nobody_there_says_nothing(box: Box, archive: QueryArchive) -> None:
    queried(box, archive)
    box.sent()
    proof = QueryProof(replace(box.destination, port=free_port(), connect_seconds=2.0), lambda numbers: {})
    with pytest.raises(Unavailable, match="refuses the connection"):
        proof.look(box.ledger.to_confirm("archive"))
    proof.close()


# --- threads ----------------------------------------------------------------------------------------------------------


def test_every_destination_is_looked_after_by_its_own_thread(box: Box, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confirmer, "POLL_SECONDS", 0.02)
    config = Config(destinations=(replace(box.destination, proof="status", status_days=0.0),
                                  Destination(id="other", proof="commitment"), Destination(id="third", proof="status")))
    changed: list[int] = []
    stage = Confirmer(box.spool, box.ledger, box.clock, lambda: config, lambda: changed.append(1))
    box.clock.wait = lambda event, seconds: event.wait(min(seconds, 0.02))  # type: ignore[method-assign]
    stage.start()
    assert set(stage.moved()) == {"archive", "third"}
    custody = box.sent()
    stage.kick()
    wait_until(lambda: box.state(custody) is DeliveryState.CONFIRMED, 20)
    wait_until(lambda: changed, 20)
    config = Config(destinations=(Destination(id="third", proof="status"),))
    stage.configure()
    assert set(stage.moved()) == {"third"}
    assert stage.alarms() == []
    assert stage.stop()
