"""Faults of what lies in the spool: another spool, an empty folder in its place, a damaged or old ledger, flipped bits.

Nothing is ever started fresh, nothing is ever delivered altered, and what mends it stands in the message.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import faults, objects, peers
from tests.support.faults import HEAD, Journal, refusal, wait_alarm, wait_log
from tests.support.gateway import STAGES, Gateway, to_peer
from tests.support.peers import Destination
from tests.support.waiting import free_port, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(120)]

FIRST_GRANT = 64
"""Numbers that a receiver is granted first; the next grants are larger."""


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[Destination]:
    with peers.storescp(tmp_path / "pacs") as pacs:
        yield pacs


@pytest.fixture
def site(tmp_path: Path, pacs: Destination) -> Iterator[Gateway]:
    with Gateway(tmp_path / "site", [to_peer(pacs)]) as site:
        yield site


def everything_arrives(site: Gateway, pacs: Destination, journal: Journal) -> None:
    """All that was acknowledged is at the destination, unaltered, and accounted for by events, files and tables."""
    pacs.wait_for(journal.acknowledged, 60)
    assert set(pacs.arrived()) == set(journal.acknowledged)
    site.wait_settled(60)
    assert site.stop() == 0
    balance = site.json("balance", "--deep")
    assert (balance["unaccounted"], balance["discrepancies"]) == (0, []), balance


def tree(folder: Path) -> list[tuple[str, int]]:
    """Everything below a folder: names and sizes."""
    return sorted((str(path.relative_to(folder)), path.lstat().st_size) for path in folder.rglob("*"))


# --- the wrong spool --------------------------------------------------------------------------------------------------


@pytest.mark.requirement("design: Spool, SPOOL-ID")
def test_anything_but_the_expected_spool_is_refused_and_left_alone(site: Gateway, pacs: Destination, tmp_path: Path) -> None:
    """A foreign spool, an empty folder, none, one with something else in it, a broken identity: then the right one again."""
    journal = Journal()
    site.start("receiver")
    journal.send(site.port, objects.ct_study(4, "held", side=64))
    site.stop("receiver")
    expected = (site.folder / "state" / "spool-uuid").read_text().strip()
    away = tmp_path / "away"
    site.spool.rename(away)
    with Gateway(tmp_path / "other", [to_peer(pacs)]) as other:
        foreign = other.spool.rename(site.spool)

    before = tree(site.spool)
    for stage in ("run", *STAGES):
        told = refusal(site, stage, status=3)
        assert f"{site.spool} is another spool" in told and expected in told and "`dcmgate spool adopt`" in told, told
    refusal(site, "status", status=3)
    assert tree(site.spool) == before
    shutil.rmtree(foreign)

    wrong: list[tuple[Callable[[], object], str, str]] = [
        (lambda: None, "does not exist", "`dcmgate spool init`"),
        (lambda: site.spool.mkdir(), "is empty", "Mount the spool's disk"),
        (lambda: (site.spool / "lost+found").mkdir(), "is empty", "Mount the spool's disk"),
        (lambda: (site.spool / "notes.txt").write_text("mine"), "holds no spool", "Mount the spool's disk"),
        (lambda: shutil.copytree(away / "objects", site.spool / "objects"), "holds no spool", "Mount the spool's disk"),
        (lambda: (site.spool / "SPOOL-ID").write_text('{"uuid": "' + expected), "cannot be read", "`dcmgate spool check`"),
    ]
    for make, what, mend in wrong:
        make()
        before = tree(site.spool) if site.spool.exists() else []
        for command in (("run",), ("spool", "rebuild")):
            told = refusal(site, *command, status=3)
            assert str(site.spool) in told and what in told and mend in told, told
        assert (tree(site.spool) if site.spool.exists() else []) == before
    assert str(site.spool) in refusal(site, "spool", "init", status=3)   # not over what is there either

    shutil.rmtree(site.spool)
    away.rename(site.spool)
    site.start()
    everything_arrives(site, pacs, journal)


@pytest.mark.requirement("design: Spool, SPOOL-ID")
def test_a_disk_that_is_not_mounted_is_refused(pacs: Destination, tmp_path: Path) -> None:
    """What is under the mount point is never written to, and with the disk everything is there again."""
    mount = tmp_path / "site" / "spool"
    journal = Journal()
    with faults.file_system(mount) as disk:
        site = Gateway(tmp_path / "site", [to_peer(pacs)]).make()
        with site:
            site.start("receiver")
            journal.send(site.port, objects.ct_study(4, "mounted", side=64))
            site.stop("receiver")
            faults.run("umount", mount)
            for stage in ("run", *STAGES):
                told = refusal(site, stage, status=3)
                assert f"{mount} is empty" in told and "Mount the spool's disk" in told, told
            assert not list(mount.iterdir())
            disk.mend()
            site.start()
            everything_arrives(site, pacs, journal)


@pytest.mark.requirement("I5")
def test_a_mount_that_goes_away_under_a_running_gateway_damages_no_object(tmp_path: Path) -> None:
    """That a file is not found says nothing of the object where the whole spool is not there. It comes back by itself."""
    port = free_port()
    journal = Journal()
    destination = to_peer(Destination("pacs", "PACS", port, Path()), connect_seconds=1.0)
    with (faults.file_system(tmp_path / "site" / "spool") as disk,
          Gateway(tmp_path / "site", [destination]).make() as site):
        site.start()
        assert set(journal.send(site.port, objects.ct_study(6, "gone", side=64))) == {"0000"}
        site.wait_settled(10, accepted=6, states=())
        with disk.gone(), peers.storescp(tmp_path / "early", port=port) as pacs:
            assert str(disk.mount) in refusal(site, "status", status=3)
            wait_log(site, "is not there any more")
            assert pacs.arrived() == []
        with peers.storescp(tmp_path / "pacs", port=port) as pacs:
            pacs.wait_for(journal.acknowledged, 60)
            assert site.balance()["quarantined"] == 0
            everything_arrives(site, pacs, journal)


# --- the ledger -------------------------------------------------------------------------------------------------------


def _ledger(site: Gateway) -> Path:
    return site.spool / "ledger.sqlite"


def _overwrite(path: Path, start: int, end: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[start:end] = random.Random(1).randbytes(len(raw[start:end]))
    path.write_bytes(raw)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "header": lambda ledger: _overwrite(ledger, 0, 4096),
    "pages": lambda ledger: _overwrite(ledger, 4096, 1 << 30),
    "cut": lambda ledger: os.truncate(ledger, ledger.stat().st_size // 2 + 100),
    "empty": lambda ledger: os.truncate(ledger, 0),
    "missing": lambda ledger: ledger.unlink(),
}


@pytest.mark.requirement("design: Spool, a lost ledger")
@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_or_missing_ledger_is_refused_and_rebuilt_from_the_objects(how: str, site: Gateway,
                                                                             pacs: Destination) -> None:
    journal = Journal()
    site.start()
    journal.send(site.port, objects.ct_study(3, "sent", side=64))
    site.wait_settled(30, accepted=3)
    assert "in use" in refusal(site, "spool", "rebuild", status=3)   # never under a running gateway
    site.kill()
    site.start("receiver")
    journal.send(site.port, objects.ct_study(3, "waiting", side=64))
    site.stop("receiver")
    assert len(journal.acknowledged) == 6
    ledger = _ledger(site)
    DAMAGE[how](ledger)
    damaged = ledger.read_bytes() if ledger.exists() else None
    for command in ("run", *STAGES, "status", "balance"):
        told = refusal(site, command, status=1)
        assert "ledger" in told and ("damaged" in told or "missing" in told) and "spool rebuild`" in told, told
    found = site.json("spool", "check", status=1)
    assert not found["good"] and "spool rebuild`" in found["problems"][0]
    assert (ledger.read_bytes() if ledger.exists() else None) == damaged   # looked at, not touched
    assert not journal.missing(site)
    pacs.clear()   # a rebuild costs re-sends: everything goes out again
    rebuilt = site.json("spool", "rebuild")
    assert rebuilt["accepted"] == 6
    if damaged is not None:
        assert Path(rebuilt["moved"]).read_bytes() == damaged   # evidence
    site.start()
    everything_arrives(site, pacs, journal)


@pytest.mark.requirement("design: Spool, the chain of hashes")
def test_an_edited_ledger_is_found_out(site: Gateway, pacs: Destination) -> None:
    """One letter of one event, which no database notices: the chain of hashes does, and nothing acts on it."""
    journal = Journal()
    site.start()
    journal.send(site.port, objects.ct_study(3, "edited", side=64))
    everything_arrives(site, pacs, journal)
    assert site.json("spool", "check")["good"]
    ledger = _ledger(site)
    raw = ledger.read_bytes()
    at = raw.index(b'"calling":"SCANNER"') + len('"calling":"')
    ledger.write_bytes(raw[:at] + b"s" + raw[at + 1:])
    found = site.json("spool", "check", status=1)
    assert any("chain" in problem and "evidence" in problem for problem in found["problems"]), found


@pytest.mark.requirement("I2")
def test_a_ledger_rolled_back_by_moments_adopts_what_it_had_granted(site: Gateway, pacs: Destination) -> None:
    """A copy made while the receiver ran knows the numbers, not what became of them: start-up looks at each."""
    journal = Journal()
    site.start("receiver")
    journal.send(site.port, objects.ct_study(2, "before", side=64))
    site.wait_settled(10, accepted=2, states=())
    copies = [(path, path.read_bytes()) for path in site.spool.glob("ledger.sqlite*")]
    journal.send(site.port, objects.ct_study(5, "after", side=64))
    site.kill("receiver")
    for path, raw in copies:
        path.write_bytes(raw)
    site.start()
    assert site.balance()["accepted"] == 7
    everything_arrives(site, pacs, journal)


@pytest.mark.requirement("I2")
@pytest.mark.parametrize("mend", ["rebuild", "restart"])
def test_a_ledger_older_than_the_objects_is_refused_and_overwrites_none(mend: str, site: Gateway, pacs: Destination) -> None:
    """The numbers that it would grant next exist already: they are never written to.

    `rebuild` is the mend of the message. Restarts, as systemd does them, are as good, each for as many numbers as one grant
    has: they are open numbers of a dead receiver then, and each is judged by its file. The receiver has made files ahead
    here, of its second grant, so it takes one more.
    """
    journal = Journal()
    old = _ledger(site).read_bytes()
    site.start()
    journal.send(site.port, objects.ct_study(5, "newer", side=64))
    site.wait_settled(30, accepted=5)

    def last() -> int:
        return max(int(path.stem, 16) for path in site.spool.glob("objects/*/*.dcm"))

    wait_until(lambda: last() > FIRST_GRANT, 30, "a file of the second grant")
    assert site.stop() == 0
    files = faults.files(site.spool)
    for path in site.spool.glob("ledger.sqlite-*"):
        path.unlink()
    _ledger(site).write_bytes(old)
    told = refusal(site, "run", status=3)
    assert "the ledger is older than the objects" in told and "`dcmgate spool check`" in told and "rebuild" in told, told
    assert faults.files(site.spool) == files
    pacs.clear()
    if mend == "rebuild":
        assert site.json("spool", "rebuild")["accepted"] == 5
    else:
        for _ in range((last() - 1) // FIRST_GRANT):
            refusal(site, "run", status=3)
    site.start()
    if mend == "restart":   # after a rebuild, which somebody asked for, it is what is to be expected
        alarm = wait_alarm(site, "ledger-rolled-back")
        assert alarm["severity"] == "critical" and str(site.folder / "state") in alarm["mend"], alarm
    assert site.balance()["accepted"] == 5
    everything_arrives(site, pacs, journal)
    assert ("ledger-rolled-back" in {alarm["key"] for alarm in faults.alarms(site)}) == (mend == "restart")


# --- flipped bits -----------------------------------------------------------------------------------------------------


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        place = file.tell()
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 4]))


@pytest.mark.requirement("I5")
def test_a_damaged_object_is_never_delivered_and_its_twin_steps_in(site: Gateway, pacs: Destination) -> None:
    """Bits flipped in head, middle and end, small and large; a byte short, a byte long; two files exchanged."""
    journal = Journal()
    slices = objects.ct_study(9, "bits", side=64)
    large = objects.dx(1, "bits", size=3_000_000)
    twin = objects.ct(100, "bits", side=64)
    site.start("receiver")
    journal.send(site.port, [*slices, large, twin, twin])
    assert site.stop("receiver") == 0
    where = {key: paths[0] for key, paths in faults.files(site.spool).items()}
    flips = [(slices[0], 300), (slices[1], HEAD - 1), (slices[2], HEAD), (slices[3], HEAD + 4000), (slices[4], -1),
             (large, -1), (twin, HEAD + 4000)]
    for instance, at in flips:
        _flip(where[instance.key], at)
    os.truncate(where[slices[5].key], where[slices[5].key].stat().st_size - 1)
    with where[slices[6].key].open("ab") as file:
        file.write(b"\0")
    whole = slices[7:]
    exchanged = objects.ct_study(2, "exchanged", side=64)
    site.start("receiver")
    journal.send(site.port, exchanged)
    assert site.stop("receiver") == 0
    one, two = (faults.files(site.spool)[instance.key][0] for instance in exchanged)
    both = one.read_bytes(), two.read_bytes()
    one.write_bytes(both[1])
    two.write_bytes(both[0])

    site.start()
    pacs.wait_for([*(instance.key for instance in whole), twin.key], 30)
    wait_until(lambda: site.balance(status=None)["quarantined"] == 11, 30, "11 objects in quarantine", every=0.3)
    assert set(pacs.arrived()) == {*(instance.key for instance in whole), twin.key}
    alarm = wait_alarm(site, "quarantine")
    assert alarm["severity"] == "critical" and "11 objects" in alarm["text"], alarm
    wait_log(site, "damaged.*0000000000000001")
    aside = site.spool / "quarantine"
    wait_until(lambda: len(list(aside.glob("*.dcm"))) == 11, 30, "the files are put aside")
    assert "digest is wrong" in (aside / where[large.key].with_suffix(".json").name).read_text()
    assert site.balance()["unaccounted"] == 0

    # The scanner, asked to send them again, does: nothing that was damaged covers what is whole.
    again = [*slices[:7], large, *exchanged]
    assert set(Journal().send(site.port, again)) == {"0000"}
    pacs.wait_for(journal.acknowledged, 30)
    assert set(pacs.arrived()) == set(journal.acknowledged)
    site.wait_settled(30, accepted=24)
    assert site.json("balance", "--deep")["unaccounted"] == 0


@pytest.mark.requirement("I5")
def test_an_object_that_rots_after_it_was_sent_is_found_and_not_confirmed_away(site: Gateway, pacs: Destination) -> None:
    """`verify` reads every digest: it names the object, puts it in quarantine, and a later look finds nothing more."""
    journal = Journal()
    site.start()
    study = objects.ct_study(3, "rot", side=64)
    journal.send(site.port, study)
    pacs.wait_for(journal.acknowledged, 30)
    rotten = faults.files(site.spool)[study[1].key][0]
    _flip(rotten, HEAD + 100)
    found = site.json("verify", status=1)
    assert [entry["number"] for entry in found["damaged"]] == [rotten.stem] == found["quarantined"]
    assert site.json("verify")["damaged"] == []
    assert (site.spool / "quarantine" / rotten.name).exists()
    wait_alarm(site, "quarantine")
    assert site.balance()["unaccounted"] == 0


@pytest.mark.requirement("I2")
def test_an_object_that_was_deleted_by_hand_is_unaccounted(site: Gateway, pacs: Destination) -> None:
    """Whatever the states say: the balance counts files, and names the number."""
    journal = Journal()
    site.start("receiver")
    study = objects.ct_study(3, "deleted", side=64)
    journal.send(site.port, study)
    site.stop("receiver")
    gone = faults.files(site.spool)[study[1].key][0]
    gone.unlink()
    site.start()
    pacs.wait_for([study[0].key, study[2].key], 30)
    wait_alarm(site, "quarantine")
    balance = site.balance(status=1)
    assert balance["unaccounted"] == 1
    assert gone.stem in balance["discrepancies"][0]
