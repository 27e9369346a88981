"""The soak: some seconds of it, and that it can fail."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from tests.proof import soak, soak_watch
from tests.proof.figures import Budget, CannotRun
from tests.proof.oracle import Entry, Journal, entry_of
from tests.proof.soak_site import DYING, Pacs
from tests.proof.soak_watch import MB, Sample
from tests.support import objects

LIMITS = soak.LIMITS


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.xdist_group("serial")
@pytest.mark.timeout(240)
@pytest.mark.requirement("I1")
@pytest.mark.requirement("I2")
def test_some_seconds_of_everything_at_once(tmp_path: Path) -> None:
    try:
        figures = soak.run(Budget(tmp_path / "work", tmp_path / "state", 7, True, 37.0, 2, "test", print))
    except CannotRun as reason:
        pytest.skip(str(reason))
    print(figures.as_json())
    assert figures.holds, figures.failures + figures.notes
    assert figures.acknowledged > 50
    assert figures.counts["hostile"] and figures.counts["echoes"]
    assert not Path("/proc/self/mounts").read_text().count(str(tmp_path)), "nothing stays mounted"


def sample(at: float, pss: float, *, descriptors: int = 70, threads: int = 30) -> Sample:
    return Sample(at, int(pss * MB), descriptors, threads, 0, 0)


def test_a_leak_shows_through_what_comes_and_goes() -> None:
    busy = [sample(at, 80 + 30 * ((at * 7919) % 13 < 9)) for at in range(0, 1200, 5)]
    assert abs(soak_watch.slope(busy, lambda s: s.pss)) < 5 * MB
    leaking = [sample(s.at, s.pss / MB + 90 * s.at / 3600) for s in busy]
    growth = soak_watch.slope(leaking, lambda s: s.pss)
    assert growth == pytest.approx(90 * MB, rel=0.1)
    idle = sample(0, 80)
    wrong = soak_watch.verdict(growth, idle, sample(1200, 110), 110 * MB, LIMITS)
    assert wrong == ["memory grows by 90 MB an hour, more than 60"]
    assert soak_watch.verdict(growth, idle, sample(1200, 110), 0.0, {k: v for k, v in LIMITS.items() if k != "growth_mb"}) == []


@pytest.mark.parametrize(("after", "what"), [
    (sample(9, 200), "memory is 200 MB"), (sample(9, 80, descriptors=100), "100 descriptors"),
    (sample(9, 80, threads=45), "45 threads")])
def test_what_is_not_given_back_is_a_failure(after: Sample, what: str) -> None:
    wrong = soak_watch.verdict(0.0, sample(0, 80), after, 100 * MB, LIMITS)
    assert len(wrong) == 1 and what in wrong[0]


def test_a_peak_is_judged_too() -> None:
    wrong = soak_watch.verdict(0.0, sample(0, 80), sample(9, 82), 190 * MB, LIMITS)
    assert wrong == ["memory is 190 MB at its peak, it was 80"]


def test_descriptors_of_slots_are_not_counted_and_others_are(tmp_path: Path) -> None:
    slots = tmp_path / "objects" / "00"
    slots.mkdir(parents=True)
    before = soak_watch.look([os.getpid()], tmp_path, 0.0).descriptors
    descriptors = [os.open(slots / f"{n}.dcm", os.O_CREAT | os.O_RDWR) for n in range(5)]
    descriptors += [os.open(tmp_path / "other", os.O_CREAT | os.O_RDWR) for _ in range(3)]
    try:
        assert soak_watch.look([os.getpid()], tmp_path, 0.0).descriptors == before + 3
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def test_what_arrived_is_read_before_it_is_thrown_away(tmp_path: Path) -> None:
    """Whole objects go; what is torn by a kill is set apart, and anything else is for the oracle to judge."""
    journal = Journal()
    folder = tmp_path / "pacs"
    folder.mkdir()
    pacs = Pacs(folder, journal)
    whole, torn, changed = (objects.ct(n, "site", side=16) for n in range(1, 4))
    for instance in (whole, torn, changed):
        journal.offer(instance)
    whole.write(folder / "whole")
    whole.write(folder / "again")
    torn.write(folder / "torn")
    changed.write(folder / "changed")
    os.truncate(folder / "torn", (folder / "torn").stat().st_size - 100)
    raw = (folder / "changed").read_bytes()
    (folder / "changed").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    pacs.collect()
    assert sorted(path.name for path in folder.iterdir()) == ["changed", "torn"]
    assert pacs.store == {entry_of(whole)} and pacs.copies == 2
    written = (folder / "torn").stat().st_mtime
    assert len(pacs.rest()) == 3 and pacs.torn == 0, "nobody was killed, so nothing may be torn"
    pacs._killed_at = [written + DYING / 2]
    rest = pacs.rest()
    assert pacs.torn == 1 and len(rest) == 2
    assert {entry.instance for entry in rest} == {whole.sop_instance, changed.sop_instance}
    assert all(isinstance(entry, Entry) for entry in rest) and not rest <= set(journal.offered)


@pytest.mark.system
def test_a_destination_that_comes_and_goes(tmp_path: Path) -> None:
    pacs = Pacs(tmp_path / "pacs", Journal())
    pacs.start()
    process = pacs.destination.process
    assert process is not None
    try:
        over = threading.Event()
        over.set()
        pacs.hang(10, over)
        assert process.poll() is None
        pacs.kill()
        assert process.returncode == -signal.SIGKILL and pacs.kills == 1
        pacs.start()
        assert pacs.destination.port == pacs._port
    finally:
        pacs.kill()
