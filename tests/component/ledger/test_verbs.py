"""Verbs of forwarder, persons and keeper, one by one; and that the questions that are asked often stay cheap."""

from __future__ import annotations

import multiprocessing
import multiprocessing.synchronize
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.clock import SECOND, ManualClock, SystemClock
from appliance.config.settings import Destination
from appliance.errors import DcmgateError, LedgerError, UsageError
from appliance.model import Custody, DeliveryState, Fault, ObjectState, Outcome, Source
from appliance.spool.custody import KNOCKS_KEPT
from appliance.spool.keeping import TICK_NS
from appliance.spool.ledger import Ledger
from appliance.spool.rows import Confirmation, Deferral, Knock, Parking, Routing
from tests.support.ledgers import Bench, custody


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    found = Bench(tmp_path)
    yield found
    found.check()
    found.ledger.close()


def clock_of(bench: Bench) -> ManualClock:
    assert isinstance(bench.clock, ManualClock)
    return bench.clock


# --- custody -------------------------------------------------------------------------------------------------------------

def test_numbers_are_used_once_over_owners_and_restarts(bench: Bench) -> None:
    first = bench.ledger.grant(bench.owner, 10)
    bench.ledger.void([(first + n, "unused") for n in range(10)])
    bench.reopen()
    other = bench.ledger.register_owner("receiver")
    assert bench.ledger.grant(other, 5) == first + 10
    assert bench.ledger.open_numbers(other) == list(range(first + 10, first + 15))
    assert bench.ledger.dead_owners(lambda owner: False) == [other]
    assert bench.ledger.dead_owners(lambda owner: True) == []
    with pytest.raises(LedgerError):
        bench.ledger.grant(999, 1)


def test_what_the_head_says_comes_back_as_it_was(bench: Bench) -> None:
    source = Source("main", "CT\\1 é", "GATE", b"CT\\1\xe9".ljust(16), b"GATE".ljust(16), "fe80::1", 11112, "ct1", "ab" * 32,
                    "ACME")
    number = bench.ledger.grant(bench.owner, 1)
    given = Custody(number, 1, 5, 6, b"1.2\x00\xff\\", b"../../etc \xe4\n", "1.2.3", 7, bytes(range(32)), source)
    bench.ledger.accepted([given])
    row = bench.ledger.object(number)
    assert row is not None and row.custody == given


# --- forwarder -----------------------------------------------------------------------------------------------------------

def test_a_lane_loads_what_came_since_and_misses_nothing(bench: Bench) -> None:
    numbers = [bench.take() for _ in range(5)]
    seen = bench.ledger.load("pacs", 0, 3)
    assert [q.number for q in seen] == numbers[:3]
    rest = bench.ledger.load("pacs", seen[-1].seq, 3)
    assert [q.number for q in rest] == numbers[3:]
    bench.ledger.claim("pacs", numbers[:1])
    bench.ledger.outcomes_of("pacs", numbers[:1], Deferral(bench.clock.boot_ns() + SECOND))
    assert bench.ledger.load("pacs", rest[-1].seq) == [], "who deferred it knows of it"
    bench.ledger.hold([numbers[1]], "anna", "look")
    bench.ledger.release([numbers[1]], "anna")
    assert [q.number for q in bench.ledger.load("pacs", rest[-1].seq)] == [numbers[1]], "nobody else tells the lane"


@pytest.mark.requirement("I7")
def test_a_deferred_delivery_is_due_after_a_reboot(bench: Bench) -> None:
    number = bench.take()
    until = bench.clock.boot_ns() + 300 * SECOND
    bench.ledger.claim("pacs", [number])
    bench.ledger.outcomes("pacs", [Outcome(number, Fault.DESTINATION, text="no route")], {number: Deferral(until)})
    assert bench.ledger.load("pacs")[0].until == until
    bench.reopen()
    assert bench.ledger.load("pacs")[0].until == until, "a restart of the program is no reboot"
    clock_of(bench).reboot()
    bench.reopen()
    assert bench.ledger.load("pacs")[0].until == 0


def test_only_what_still_waits_is_claimed(bench: Bench) -> None:
    held, discarded, quarantined, good = (bench.take() for _ in range(4))
    bench.ledger.hold([held], "anna", "look")
    bench.ledger.discard([discarded], "anna", "phantom")
    bench.ledger.quarantine(quarantined, "digest")
    assert bench.ledger.claim("pacs", [held, discarded, quarantined, good, 999]) == [good]
    assert bench.ledger.claim("pacs", [good]) == [], "nobody claims it twice"
    assert bench.ledger.deliveries(good)[0].attempts == 1


def test_two_crashes_on_one_object_park_it_but_not_a_power_cut(bench: Bench) -> None:
    number = bench.take()
    for _ in range(3):
        bench.ledger.claim("pacs", [number])
        clock_of(bench).reboot()
        bench.reopen()
        assert bench.ledger.unclaim_after_crash() == [(number, "pacs", False)]
    for parked in (False, True):
        assert bench.ledger.claim("pacs", [number]) == [number]
        bench.reopen()
        assert bench.ledger.unclaim_after_crash("pacs") == [(number, "pacs", parked)]
    assert bench.delivery(number) == "parked"
    assert [d.number for d in bench.ledger.stuck(DeliveryState.PARKED)] == [number]
    assert bench.ledger.requeue("pacs", "anna") == 1
    assert bench.queue() == [number] and bench.ledger.load("pacs")[0].crashes == 0


def test_object_faults_are_counted_and_a_destinations_are_not(bench: Bench) -> None:
    number = bench.take()
    for fault in (Fault.DESTINATION, Fault.OBJECT, Fault.CONFIGURATION, Fault.OBJECT):
        bench.ledger.claim("pacs", [number])
        bench.ledger.outcomes("pacs", [Outcome(number, fault, 0xA900, "no")])
    assert (bench.ledger.load("pacs")[0].faults, bench.ledger.load("pacs")[0].attempts) == (2, 4)


def test_a_success_counts_even_where_a_person_held_it_meanwhile(bench: Bench) -> None:
    number = bench.take()
    bench.ledger.claim("pacs", [number])
    bench.ledger.hold([number], "anna", "wait")
    bench.ledger.outcomes("pacs", [Outcome(number, Fault.OBJECT, text="late failure")], {number: Parking("x")})
    assert bench.delivery(number) == "held"
    bench.ledger.outcomes("pacs", [Outcome(number, None, 0xB000, "coerced", True, "2026/1.dcm")])
    row = bench.ledger.deliveries(number)[0]
    assert (row.state, row.warning, row.reference, row.text) == ("sent", True, "2026/1.dcm", "coerced")
    kinds = [e.kind for e in bench.ledger.history(number)]
    assert kinds == ["granted", "accepted", "routed", "attempt", "held", "sent"]


def test_an_object_is_as_far_as_its_least_advanced_required_destination(bench: Bench) -> None:
    number = bench.take("", "", "a", "b", Destination(id="c", required=False))
    bench.send(number, "a")
    assert bench.state(number) == "waiting"
    bench.send(number, "b")
    assert bench.state(number) == "sent"
    bench.confirm(number, "a")
    assert bench.state(number) == "sent" and not bench.complete(number)
    bench.confirm(number, "b")
    assert bench.state(number) == "confirmed" and bench.complete(number)


@pytest.mark.requirement("I2")
@pytest.mark.parametrize("done_elsewhere", [False, True])
@pytest.mark.parametrize("how", ["held", "parked", "deferred"])
def test_what_no_destination_has_is_not_done(bench: Bench, how: str, done_elsewhere: bool) -> None:
    """Nor is what one destination has, and another one that is required has not."""
    number = bench.take("", "", *(["pacs", "other"] if done_elsewhere else ["pacs"]))
    if done_elsewhere:
        bench.send(number, "other")
        bench.confirm(number, "other")
    if how == "held":
        bench.ledger.hold([number], "anna", "look first", "pacs")
    else:
        decision = Parking("five tries") if how == "parked" else Deferral(5 * SECOND)
        assert bench.ledger.claim("pacs", [number]) == [number]
        bench.ledger.outcomes("pacs", [Outcome(number, Fault.OBJECT, 0xC000, "no")], {number: decision})
    assert bench.delivery(number) == how
    assert bench.state(number) == "waiting" and not bench.complete(number)
    counts = bench.ledger.counts()
    assert counts.states[ObjectState.WAITING] == 1 and counts.states[ObjectState.CONFIRMED] == 0
    assert bench.ledger.retirable(bench.ledger.powered_on() + 1, 0) == []


# --- persons -------------------------------------------------------------------------------------------------------------

def test_a_removed_destinations_queue_goes_where_a_person_says(bench: Bench) -> None:
    waiting, held, sent, confirmed = (bench.take("", "", "old") for _ in range(4))
    there = bench.take("", "", "old", "new")
    bench.ledger.hold([held], "anna", "look", "old")
    bench.send(sent, "old")
    bench.send(confirmed, "old")
    bench.confirm(confirmed, "old")
    assert bench.ledger.requeue("old", "anna", "new") == 3
    assert bench.queue("old") == [] and sorted(bench.queue("new")) == sorted([waiting, held, there])
    assert bench.delivery(sent, "old") == "sent"
    assert bench.ledger.requeue([sent, confirmed], "anna", "new") == 2
    assert [d.destination for d in bench.ledger.deliveries(sent)] == ["new"], "it need not be proved there any more"
    assert bench.delivery(confirmed, "old") == "confirmed", "what was proved stays proved"
    assert bench.state(confirmed) == "waiting", "and it is required at the new one too"
    with pytest.raises(UsageError):
        bench.ledger.requeue("new", "anna", "new")
    with pytest.raises(DcmgateError):
        bench.ledger.requeue([sent], "anna", "two\nlines")


@pytest.mark.requirement("I4")
def test_what_is_being_deleted_is_not_sent_again(bench: Bench) -> None:
    number = bench.take()
    bench.send(number)
    bench.confirm(number)
    assert bench.ledger.retiring([number]) == [number]
    assert bench.ledger.requeue([number], "anna") == 0
    assert bench.ledger.unconfirm([(number, "pacs")], "missing") == 0
    assert not bench.ledger.quarantine(number, "file is missing")
    assert bench.ledger.discard([number], "anna", "x") == []
    bench.ledger.retired([number])
    assert bench.ledger.requeue([number], "anna") == 0
    assert bench.state(number) == "retired"


@pytest.mark.requirement("I4")
def test_between_question_and_row_the_object_may_be_wanted_again(bench: Bench) -> None:
    number = bench.take()
    bench.send(number)
    bench.confirm(number)
    found = bench.ledger.retirable(bench.ledger.powered_on() + 1, 0)
    assert [r.number for r in found] == [number]
    bench.ledger.requeue([number], "anna")
    assert bench.ledger.retiring([r.number for r in found]) == []


def test_a_discard_needs_a_person_and_a_reason(bench: Bench) -> None:
    number = bench.take()
    for by, reason in (("", "x"), ("anna", "")):
        with pytest.raises(UsageError):
            bench.ledger.discard([number], by, reason)
    bench.ledger.seen("anna", "list patient ?")
    bench.ledger.admit("CT9", "10.0.0.9", "anna")
    last = bench.ledger.events(bench.ledger.head()[0] - 2)
    assert [(e.kind, "anna" in e.body) for e in last] == [("seen", True), ("admitted", True)]
    assert [(a.title, a.address, a.by) for a in bench.ledger.admitted()] == [("CT9", "10.0.0.9", "anna")]


def test_knocks_are_bounded(bench: Bench) -> None:
    bench.ledger.knocked([Knock(f"T{n}", "GATE", "10.0.0.1", "reject", "unknown", 2, n + 1, n + 1)
                          for n in range(KNOCKS_KEPT + 50)])
    bench.ledger.knocked([Knock("T9999", "GATE", "10.0.0.1", "reject", "unknown")])
    found = bench.ledger.knocks(10_000)
    assert len(found) == KNOCKS_KEPT and found[0].title == "T9999"
    bench.ledger.knocked([Knock("T9999", "GATE", "10.0.0.1", "hold", "held", 3)])
    assert (bench.ledger.knocks(1)[0].count, bench.ledger.knocks(1)[0].verdict) == (4, "hold")


# --- time, figures -------------------------------------------------------------------------------------------------------

@pytest.mark.requirement("I7")
def test_powered_on_time_outlives_reboots_and_loses_little(bench: Bench) -> None:
    clock = clock_of(bench)
    for _ in range(3):
        before = bench.ledger.powered_on()
        clock.advance(86400)
        bench.ledger.tick()
        clock.step_wall(-10**8)
        clock.advance(300)
        bench.ledger.close()
        clock.reboot()
        bench.reopen_closed()
        lost = before + 86700 * SECOND - bench.ledger.powered_on()
        assert -2 * SECOND <= lost <= TICK_NS
    assert bench.ledger.boot == 4


def test_backlog_and_studies(bench: Bench) -> None:
    clock = clock_of(bench)
    old = bench.accept()
    clock.advance(100)
    unrouted = bench.accept()
    bench.route(old, "a", study="S1")
    found = {b.destination: b for b in bench.ledger.backlog()}
    assert (found["a"].count, found[""].count) == (1, 1)
    assert found[""].oldest_on - found["a"].oldest_on == 100 * SECOND
    bench.ledger.claim("a", [old])
    assert bench.ledger.backlog()[1].oldest_on == found["a"].oldest_on, "what is being sent is owed too"
    bench.ledger.outcomes("a", [Outcome(old, None, 0)])
    assert [b.destination for b in bench.ledger.backlog()] == [""]
    bench.route(unrouted, "a", "b", study="S1")
    bench.confirm(old, "a")
    rows = {s.destination: s for s in bench.ledger.studies()}
    a, b = rows["a"], rows["b"]
    assert (a.received, a.waiting, a.sent, a.confirmed, b.received, b.waiting) == (2, 1, 0, 1, 1, 1)
    assert a.since_wall == b.since_wall == a.last_wall > a.first_wall


def test_a_habit_is_learned_from_the_long_gaps_only(bench: Bench) -> None:
    clock = clock_of(bench)
    for _ in range(3):
        for _ in range(4):
            clock.advance(60)
            bench.accept()
        clock.advance(14 * 3600)
    [arrival] = bench.ledger.arrivals()
    assert (arrival.source, arrival.count, sum(arrival.habit)) == ("ct1", 12, 2)


def statements(bench: Bench, work: Callable[[Ledger], object]) -> list[str]:
    """Every statement that a verb runs."""
    found: list[str] = []

    def trace(_: object, sql: str, __: object) -> bool:
        found.append(sql)
        return True

    bench.ledger._db.set_exec_trace(trace)
    try:
        work(bench.ledger)
    finally:
        bench.ledger._db.set_exec_trace(None)
    return [sql for sql in found if sql.split()[0] in ("SELECT", "UPDATE", "DELETE")]


OFTEN: dict[str, Callable[[Ledger], object]] = {
    "load": lambda ledger: ledger.load("pacs", 3, 10),
    "unrouted": lambda ledger: ledger.unrouted(10),
    "accepted": lambda ledger: ledger.accepted([custody(ledger, ledger.grant(1, 1), "1.2.new")]),
    "route": lambda ledger: ledger.route([Routing(row.number, 1, (), ("pacs",), study="S") for row in ledger.unrouted()]),
    "claim": lambda ledger: ledger.claim("pacs", [q.number for q in ledger.load("pacs")]),
    "outcomes": lambda ledger: ledger.outcomes("pacs", [Outcome(3, None, 0)]),
    "crash": lambda ledger: ledger.unclaim_after_crash("pacs"),
    "to_confirm": lambda ledger: ledger.to_confirm("pacs", 10, after=(0, 0), until=10**18),
    "confirm": lambda ledger: ledger.confirm([Confirmation(1, "pacs", "x")]),
    "retirable": lambda ledger: ledger.retirable(10**18, 0, 10),
    "retiring": lambda ledger: ledger.retiring([2]),
    "unfinished": lambda ledger: ledger.unfinished(),
    "quarantine": lambda ledger: ledger.quarantine(3, "x"),
    "counts": lambda ledger: ledger.counts(),
    "backlog": lambda ledger: ledger.backlog(),
    "history": lambda ledger: ledger.history(1),
    "present": lambda ledger: ledger.present(1, 10),
    "stuck": lambda ledger: ledger.stuck(DeliveryState.PARKED, "pacs"),
}


@pytest.mark.parametrize("name", OFTEN)
def test_questions_that_are_asked_often_look_at_no_more_than_they_need(bench: Bench, name: str) -> None:
    """With 100,000 waiting rows a scan or a sort would be felt: no statement on a large table does either."""
    for _ in range(6):
        bench.take("", "", "pacs", "other")
    bench.take("1.2.3.1", "other content")
    bench.accept()
    for number in (1, 2):
        for destination in ("pacs", "other"):
            bench.send(number, destination)
    for destination in ("pacs", "other"):
        bench.confirm(2, destination)
    found = statements(bench, OFTEN[name])
    assert found
    for sql in found:
        plan = "\n".join(row[3] for row in bench.ledger.ask(
            lambda db, sql=sql: db.execute("EXPLAIN QUERY PLAN " + sql, [None] * sql.count("?")).fetchall()))
        if SMALL_SET.search(plan) or sql.endswith("DESC LIMIT 1"):
            continue
        assert not re.search(r"SCAN (o|d|objects|deliveries|events|open_numbers|studies|voids)\b", plan), f"{sql}\n{plan}"
        assert "TEMP B-TREE" not in plan, f"{sql}\n{plan}"


SMALL_SET = re.compile("INDEX (deliveries_twin|deliveries_sending|objects_unrouted|objects_retiring|objects_discarded)")
"""One object's twins, what is under way just now, what waits for the router or for retire: these may be scanned and sorted."""


# --- two receivers at once -----------------------------------------------------------------------------------------------

def receive(path: Path, batches: int, go: multiprocessing.synchronize.Event) -> None:
    """A receiver process: the same study as the other one, in group commits."""
    with Ledger.open(path, SystemClock()) as ledger:
        owner = ledger.register_owner("receiver")
        go.wait(20)
        for batch in range(batches):
            first = ledger.grant(owner, 8)
            ledger.accepted([custody(ledger, first + n, f"1.2.{batch}.{n}", f"{batch}.{n}") for n in range(7)])
            ledger.void([(first + 7, "unused")])


@pytest.mark.requirement("I2")
def test_two_receivers_take_the_same_study_at_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path, SystemClock())
    context = multiprocessing.get_context("spawn")
    go = context.Event()
    both = [context.Process(target=receive, args=(bench.path, 20, go)) for _ in range(2)]
    for process in both:
        process.start()
    go.set()
    while any(process.is_alive() for process in both):
        for row in bench.ledger.unrouted(50):
            bench.route(row.number)
        both[0].join(0.01)
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    for row in bench.ledger.unrouted(10_000):
        bench.route(row.number)
    counts = bench.ledger.counts()
    assert (counts.granted, counts.open, counts.void, counts.accepted) == (320, 0, 40, 280)
    assert counts.states[ObjectState.WAITING] == counts.states[ObjectState.DUPLICATE] == 140, "each object is sent once"
    assert len({q.sop_instance for q in bench.ledger.load("pacs")}) == 140
    bench.check()
    bench.ledger.close()
