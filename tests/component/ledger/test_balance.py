"""The balance can fail: whatever is taken away, added or edited shows, by number."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from appliance.dicom.part10 import HEAD
from appliance.model import ObjectState
from appliance.retire import Retirer
from appliance.spool import balance as balancing
from appliance.spool import quarantine
from appliance.spool.balance import Balance, balance
from appliance.spool.ledger import Ledger
from tests.support.filled import Filled

pytestmark = pytest.mark.requirement("I2")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Filled]:
    """1 retired, 2 confirmed, 3 sent, 4 waiting, 5 and 6 twins, 7 quarantined, 8 discarded, 9 to 11 open, 12 void."""
    found = Filled(tmp_path)
    found.complete(2)
    found.accept()
    found.route()
    found.send()
    found.accept()
    found.accept(uid="1.2", content=b"same")
    found.accept(uid="1.2", content=b"same")
    found.accept(2)
    found.route()
    found.ledger.quarantine(7, "digest")
    quarantine.put(found.spool, 7, "digest")
    found.ledger.discard([8], "anna", "phantom")
    Retirer(found.spool, found.ledger)._delete(found.ledger.retiring([8, 1]))
    first = found.ledger.grant(found.owner, 4)
    found.spool.object_path(first).touch()
    found.spool.object_path(first + 1).write_bytes(b"\1" * (HEAD + 7))
    found.ledger.void([(first + 3, "unused")])
    yield found
    found.close()


def edit(site: Filled, sql: str) -> None:
    db = apsw.Connection(str(site.spool.ledger_path))
    db.execute(sql)
    db.close()


def named(found: Balance) -> str:
    return "\n".join(str(d) for d in found.discrepancies)


def test_a_spool_in_order_balances(site: Filled) -> None:
    found = balance(site.spool, site.ledger, deep=True)
    assert found.balanced and not found.discrepancies, named(found)
    assert found.granted == found.free + found.in_flight + found.void + found.accepted + found.derived == 12
    assert (found.free, found.in_flight, found.void, found.accepted, found.in_quarantine) == (2, 1, 1, 8, 1)
    assert found.accepted == sum(found.states.values())
    assert found.states[ObjectState.DUPLICATE] == found.states[ObjectState.RETIRED] == found.states[ObjectState.CONFIRMED] == 1


BROKEN: dict[str, tuple[Callable[[Filled], object], str]] = {
    "a file is gone": (lambda s: s.spool.object_path(4).unlink(), f"{4:016x}: its file is missing"),
    "a confirmed file is gone": (lambda s: s.spool.object_path(2).unlink(), f"{2:016x}: its file is missing"),
    "a file is shorter": (lambda s: os.truncate(s.spool.object_path(4), HEAD + 10),
                          f"{4:016x}: its file has {HEAD + 10} bytes"),
    "a file has another name": (lambda s: s.spool.object_path(4).rename(s.spool.object_path(999)),
                                 f"{4:016x}: its file is missing"),
    "a file without a number": (lambda s: s.spool.object_path(999).touch(),
                                f"{999:016x}: a file without a granted number"),
    "a retired file is back": (lambda s: s.spool.object_path(1).touch(), f"{1:016x}: retired, but its file is there"),
    "a stray file": (lambda s: (s.spool.objects / "00" / "note.txt").touch(), "a stray file: objects/00/note.txt"),
    "a file in the wrong folder": (lambda s: (s.spool.objects / "01" / f"{4:016x}.dcm").touch(), "a stray file: objects/01/"),
    "a quarantined file is gone": (lambda s: quarantine.path(s.spool, 7).unlink(),
                                   f"{7:016x}: quarantined, but its file is missing"),
    "a void file after the sweep": (lambda s: (Retirer(s.spool, s.ledger).sweep(), s.spool.object_path(12).touch()),
                                    f"{12:016x}: a file of a void number that was swept"),
    "a state is edited": (lambda s: edit(s, "UPDATE objects SET state = 'confirmed', complete_on = 1 WHERE number = 4"),
                          f"{4:016x}: its state is confirmed, its deliveries make it waiting"),
    "a state and its counter are edited": (
        lambda s: edit(s, "UPDATE objects SET state = 'retired', file = 2 WHERE number = 4;"
                          "UPDATE counters SET value = value - 1 WHERE name = 'state:waiting';"
                          "UPDATE counters SET value = value + 1 WHERE name = 'state:retired'"),
        f"{4:016x}: not retired by its events"),
    "a state nobody knows": (lambda s: edit(s, "UPDATE objects SET state = 'lost' WHERE number = 4"),
                           "objects in a known state, and all"),
    "a delivery is edited": (lambda s: edit(s, "UPDATE deliveries SET state = 'confirmed' WHERE number = 4"),
                             f"{4:016x}: confirmed at pacs, but no event says so"),
    "an object's row is gone": (lambda s: edit(s, "DELETE FROM objects WHERE number = 4"),
                                f"{4:016x}: accepted, but has no state"),
    "an event is gone": (lambda s: edit(s, "DELETE FROM events WHERE kind = 'accepted' AND number = 4"),
                         f"{4:016x}: has a state, but no event of acceptance"),
    "an event of retirement is gone": (lambda s: edit(s, "DELETE FROM events WHERE kind = 'retired' AND number = 1"),
                                       f"{1:016x}: not retired by its events"),
    "an event of discarding is gone": (lambda s: edit(s, "DELETE FROM events WHERE kind = 'discarded' AND number = 8"),
                                       f"{8:016x}: its state is discarded, which is not what its events say"),
    "a grant is edited": (lambda s: edit(s, "UPDATE grants SET count = count + 1 WHERE first = 1"),
                          "numbers granted, by event"),
    "an open number is gone": (lambda s: edit(s, "DELETE FROM open_numbers WHERE number = 9"), "numbers granted, and free"),
    "a counter is edited": (lambda s: edit(s, "UPDATE counters SET value = value + 1 WHERE name = 'accepted'"),
                            "objects accepted, counted and kept"),
    "a queue is edited": (lambda s: edit(s, "UPDATE queues SET count = count + 1 WHERE state = 'waiting'"),
                          "deliveries waiting at pacs"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_is_broken_is_named(site: Filled, how: str) -> None:
    break_it, text = BROKEN[how]
    break_it(site)
    found = balance(site.spool, site.ledger)
    assert not found.balanced and found.unaccounted > 0
    assert text in named(found)


def test_what_only_the_events_know_shows_in_depth(site: Filled) -> None:
    edit(site, "UPDATE deliveries SET attempts = 7 WHERE number = 4")
    assert balance(site.spool, site.ledger).balanced
    assert "deliveries: the table has (4, 'pacs', 'waiting'" in named(balance(site.spool, site.ledger, deep=True))


def test_what_changes_while_it_counts_is_looked_at_twice(site: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the scan of the files and the rows: one is accepted, one is retired."""
    scan = balancing._scan

    def scan_and_go_on(spool: object) -> object:
        found = scan(site.spool)
        site.accept(3)
        assert site.ledger.retiring([2]) == [2]
        Retirer(site.spool, site.ledger).finish()
        return found

    monkeypatch.setattr(balancing, "_scan", scan_and_go_on)
    found = balance(site.spool, site.ledger)
    assert found.balanced, named(found)


def test_a_busy_spool_balances_at_every_moment(site: Filled) -> None:
    stop = threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with Ledger.open(site.spool.ledger_path, site.clock) as mine:
                retirer = Retirer(site.spool, mine)
                while not stop.is_set():
                    numbers = site.complete(4)
                    retirer._delete(mine.retiring(numbers[:2]))
        except BaseException as error:  # the test's own thread: the error is raised in the test
            errors.append(error)
            raise

    thread = threading.Thread(target=work)
    thread.start()
    try:
        with Ledger.open(site.spool.ledger_path, site.clock, read_only=True) as mine:
            for _ in range(15):
                found = balance(site.spool, mine)
                assert found.balanced, named(found)
    finally:
        stop.set()
        thread.join(30)
    assert not errors and not thread.is_alive()
