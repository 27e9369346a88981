"""Random verbs in random order: the events alone always make the same tables, nothing is lost, everything adds up."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from appliance.clock import SECOND, ManualClock
from appliance.config.settings import Destination
from appliance.model import DeliveryState, Fault, Outcome, Priority, Source
from appliance.policy.decisions import object_state
from appliance.spool.derived import ORDER, UNSENT
from appliance.spool.keeping import TICK_NS
from appliance.spool.ledger import Ledger
from appliance.spool.rows import Confirmation, Deferral, Knock, Parking, Routing
from tests.support.ledgers import SOURCE, custody

pytestmark = [pytest.mark.requirement("I2"), pytest.mark.slow]

DESTINATIONS = [Destination(id="a"), Destination(id="b", resend="never"), Destination(id="c", conflict="hold"),
                Destination(id="d", required=False)]
IDS = [d.id for d in DESTINATIONS]
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

HOW = ["sent", "sent", "warn", "defer", "park", "again", "leave", "unclaim"]

some = st.sampled_from(["a", "a", "b", "c", "d"])
pick = st.integers(min_value=0, max_value=10_000)


routing = {"destinations": st.sampled_from([("a",), ("a",), ("b",), ("a", "b"), ("c",), ("a", "d"), ("d",), ()]),
           "hold": st.sampled_from([False, False, False, True]), "priority": st.sampled_from(Priority)}


def routing_of(number: int, destinations: tuple[str, ...], hold: bool, priority: Priority) -> Routing:
    return Routing(number, 1, ("r",), destinations, priority, hold, f"S{number % 2}" if hold else "")


class Verbs(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory(dir=MEMORY)
        self.clock = ManualClock()
        self.path = Path(self.folder.name) / "ledger.sqlite"
        self.ledger = Ledger.open(self.path, self.clock)
        self.owner = self.ledger.register_owner("receiver")
        self.numbers: list[int] = []
        self.open: list[int] = []

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()
            self.folder.cleanup()

    def number(self, at: int) -> int:
        return self.numbers[at % len(self.numbers)]

    @rule(count=st.integers(1, 3), void=st.booleans())
    def grant(self, count: int, void: bool) -> None:
        first = self.ledger.grant(self.owner, count)
        self.open += range(first, first + count)
        if void:
            self.ledger.void([(self.open.pop(), "unused"), (999_999, "never granted")])

    @rule(data=st.lists(st.tuples(st.sampled_from("xxxy"), st.sampled_from(["ES", "ES", "ES", "IS"]), st.integers(0, 4)),
                        min_size=1, max_size=3), seconds=st.integers(0, 2000), route=st.booleans(), **routing)
    def arrive(self, data: list[tuple[str, str, int]], seconds: int, route: bool, **how: Any) -> None:
        self.clock.advance(seconds)
        first = self.ledger.grant(self.owner, len(data))
        batch = []
        for number, (content, syntax, other) in enumerate(data, first):
            source = SOURCE if other else Source(listener="main", calling="MR\\1", called="OTHER", address="10.0.0.9")
            batch.append(custody(self.ledger, number, "1.2", content, syntax=syntax, source=source, length=7))
        self.ledger.accepted(batch)
        self.numbers += [c.number for c in batch]
        if route:
            self.ledger.route([routing_of(row.number, **how) for row in self.ledger.unrouted(10)], DESTINATIONS)

    @precondition(lambda self: self.ledger.counts().unrouted)
    @rule(**routing)
    def route(self, **how: Any) -> None:
        self.ledger.route([routing_of(row.number, **how) for row in self.ledger.unrouted(2)], DESTINATIONS)

    @rule(destination=some, limit=st.integers(1, 4), how=st.lists(st.sampled_from(HOW), min_size=4, max_size=4))
    def attempt(self, destination: str, limit: int, how: list[str]) -> None:
        numbers = [q.number for q in self.ledger.load(destination, 0, limit)]
        claimed = self.ledger.claim(destination, numbers)
        assert claimed == numbers
        fault = {"sent": None, "warn": None, "defer": Fault.DESTINATION, "park": Fault.OBJECT, "again": Fault.OBJECT}
        done = [(n, h) for n, h in zip(claimed, how, strict=False) if h in fault]
        self.ledger.outcomes(destination, [Outcome(n, fault[h], 0, "text", h == "warn") for n, h in done],
                             {n: Parking("five tries") if h == "park" else Deferral(self.clock.boot_ns() + SECOND)
                              for n, h in done if h in ("park", "defer")})
        self.ledger.unclaim(destination, [n for n, h in zip(claimed, how, strict=False) if h == "unclaim"])

    @rule()
    def crash(self) -> None:
        self.ledger.unclaim_after_crash()

    @rule(destination=some, limit=st.integers(1, 4))
    def confirm(self, destination: str, limit: int) -> None:
        sent = self.ledger.to_confirm(destination, limit)
        self.ledger.confirm([Confirmation(s.number, s.destination, "read back") for s in sent])

    @precondition(lambda self: self.numbers)
    @rule(at=pick, destination=some)
    def unconfirm(self, at: int, destination: str) -> None:
        self.ledger.unconfirm([(self.number(at), destination)], "not there")

    @rule(age=st.integers(0, 3000), unlinked=st.booleans())
    def retire(self, age: int, unlinked: bool) -> None:
        numbers = [r.number for r in self.ledger.retirable(self.ledger.powered_on(), age * SECOND, 3)]
        allowed = self.ledger.retiring(numbers)
        assert allowed == numbers
        if unlinked:
            self.ledger.retired(self.ledger.unfinished())

    @precondition(lambda self: self.numbers)
    @rule(at=pick)
    def retire_anything(self, at: int) -> None:
        """Whatever is asked for, only what may go goes: see `nothing_undelivered_goes`."""
        self.ledger.retiring([self.number(at)])

    @rule(destination=some)
    def deliver_all(self, destination: str) -> None:
        """The good day: everything that waits is sent, and confirmed."""
        claimed = self.ledger.claim(destination, [q.number for q in self.ledger.load(destination)])
        self.ledger.outcomes(destination, [Outcome(n, None, 0) for n in claimed])
        self.ledger.confirm([Confirmation(s.number, s.destination, "read back") for s in self.ledger.to_confirm(destination)])

    @precondition(lambda self: self.numbers)
    @rule(at=pick, verb=st.sampled_from(["quarantine", "discard", "hold", "release", "requeue"]), where=st.none() | some)
    def person(self, at: int, verb: str, where: str | None) -> None:
        number = self.number(at)
        match verb:
            case "quarantine":
                self.ledger.quarantine(number, "digest differs")
            case "discard":
                self.ledger.discard([number], "anna", "test images")
            case "hold":
                self.ledger.hold([number], "anna", "look first", where)
            case "release":
                self.ledger.release([number], "anna", where)
            case _:
                self.ledger.requeue([number], "anna", None, where)

    @precondition(lambda self: self.numbers)
    @rule(at=pick, to=some, source=st.none() | some)
    def send_elsewhere(self, at: int, to: str, source: str | None) -> None:
        self.ledger.requeue([self.number(at)], "anna", to, source)

    @rule(what=some, to=st.none() | some)
    def move_queue(self, what: str, to: str | None) -> None:
        if to != what:
            self.ledger.requeue(what, "anna", to)

    @rule()
    def small_things(self) -> None:
        self.ledger.seen("anna", "list")
        self.ledger.admit("CT9", "10.0.0.1", "anna")
        self.ledger.knocked([Knock("CT9", "GATE", "10.0.0.2", "reject", "unknown")])
        self.ledger.publish("x = 1", "anna")
        self.ledger.swept(self.ledger.unswept())

    @rule(seconds=st.integers(1, 100_000), reboot=st.booleans())
    def time_passes(self, seconds: int, reboot: bool) -> None:
        before = self.ledger.powered_on()
        self.clock.advance(seconds)
        self.ledger.tick()
        if reboot:
            self.ledger.close()
            self.clock.reboot()
            self.ledger = Ledger.open(self.path, self.clock)
            self.owner = self.ledger.register_owner("receiver")
        assert before + (seconds - 1) * SECOND - TICK_NS <= self.ledger.powered_on() <= before + (seconds + 1) * SECOND

    # What must hold after each step

    @invariant()
    def events_make_the_same_tables(self) -> None:
        if hasattr(self, "ledger"):
            assert self.ledger.differences() == []
            assert self.ledger.verify_chain().whole

    @invariant()
    def balanced(self) -> None:
        if hasattr(self, "ledger"):
            c = self.ledger.counts()
            assert c.granted == c.open + c.void + c.accepted
            assert c.accepted == len(self.numbers) == sum(c.states.values())
            assert c.open == len(self.open)

    @invariant()
    def queues_are_counted(self) -> None:
        if not hasattr(self, "ledger"):
            return
        kept = {key: (q.count, q.bytes) for key, q in self.ledger.counts().queues.items() if q.count or q.bytes}
        counted: dict[tuple[str, DeliveryState], tuple[int, int]] = {}
        for number in self.numbers:
            row = self.ledger.object(number)
            assert row is not None
            for d in self.ledger.deliveries(number):
                count, size = counted.get((d.destination, d.state), (0, 0))
                counted[d.destination, d.state] = count + 1, size + row.custody.length
        assert kept == counted
        for destination in IDS:
            places = [q.seq for q in self.ledger.load(destination)]
            assert len(places) == len(set(places)), "two deliveries share a place in the queue"

    @invariant()
    def nothing_undelivered_goes(self) -> None:
        """I4: a file that goes was discarded by a person, or every required destination confirmed it or its twin."""
        if not hasattr(self, "ledger"):
            return
        for number in self.numbers:
            row = self.ledger.object(number)
            assert row is not None
            if row.file == 0 or row.state == "discarded":
                continue
            deliveries = self.ledger.deliveries(number)
            required = [d for d in deliveries if d.required] or deliveries
            assert required
            for d in required:
                proof = any(e.kind == "confirmed" and e.destination == d.destination
                            for n in (number, d.twin) if n is not None for e in self.ledger.history(n))
                assert proof, f"{number} went, but {d.destination} never confirmed it"

    @invariant()
    def nothing_is_called_done_that_is_not(self) -> None:
        """I2: an object stands where the pure core says, at its least advanced required destination."""
        if not hasattr(self, "ledger"):
            return
        for number in self.numbers:
            row = self.ledger.object(number)
            assert row is not None
            if row.state in ("retired", "quarantined", "discarded"):
                continue
            deliveries = self.ledger.deliveries(number)
            counted = [d for d in deliveries if d.required] or deliveries
            said = object_state((d.state, d.required) for d in deliveries)
            # Of what a twin covers the core alone cannot say whether it is there.
            if any(d.state == DeliveryState.COVERED and d.confirmed_on is None for d in counted):
                assert row.state in ("waiting", "duplicate")
            else:
                assert row.state == said, f"{number} is {row.state}: {[(d.destination, d.state) for d in deliveries]}"

    @invariant()
    def nothing_is_forgotten(self) -> None:
        """What a duplicate relies on is still on its way, and what waits behind another waits for somebody."""
        if not hasattr(self, "ledger"):
            return
        for number in self.numbers:
            row = self.ledger.object(number)
            assert row is not None
            if row.file or row.state in ("quarantined", "discarded"):
                continue
            for d in self.ledger.deliveries(number):
                if d.twin is None:
                    assert d.state != DeliveryState.COVERED
                    continue
                twin = self.ledger.object(d.twin)
                there = next((t for t in self.ledger.deliveries(d.twin) if t.destination == d.destination), None)
                assert twin is not None and there is not None
                if d.state == DeliveryState.COVERED and d.confirmed_on is None:
                    assert twin.file == 0 and twin.state not in ("quarantined", "discarded")
                    assert there.state in UNSENT or there.state == DeliveryState.SENT
                if d.state == DeliveryState.COVERED:
                    assert d.confirmed_on is None or there.confirmed_on is not None
                if d.state == DeliveryState.HELD:
                    assert d.reason == ORDER
                    assert there.state in ("waiting", "sending", "deferred") or (
                        there.state == "held" and there.reason == ORDER)


CHECKS = (Verbs.events_make_the_same_tables, Verbs.balanced, Verbs.queues_are_counted, Verbs.nothing_undelivered_goes,
          Verbs.nothing_is_called_done_that_is_not, Verbs.nothing_is_forgotten)
ENDS = ["sent"] * 4 + ["defer", "park", "again", "leave", "unclaim"]


@pytest.mark.parametrize("seed", range(int(os.environ.get("DCMGATE_WALKS", "16"))))
def test_long_walk(seed: int) -> None:
    """The same verbs, weighted like a bad month: hypothesis shrinks well, but rarely gets deep."""
    r = random.Random(seed)
    machine = Verbs()
    machine.begin()

    def where() -> str:
        return r.choice(["a", "a", "a", "b", "c", "d"])

    def arrive() -> None:
        machine.arrive([(r.choice("xxxxy"), r.choice(["ES"] * 4 + ["IS"]), r.randrange(5)) for _ in range(r.randint(1, 3))],
                       r.randrange(2000), r.random() < 0.9,
                       destinations=r.choice([("a",)] * 4 + [("a", "b"), ("c",), ("a", "d"), ()]),
                       hold=r.random() < 0.1, priority=Priority.ROUTINE)

    def person() -> None:
        machine.person(r.randrange(10_000), r.choice(["quarantine", "quarantine", "discard", "hold", "release", "requeue"]),
                       r.choice([None, where()]))

    steps = [
        (8, arrive),
        (6, lambda: machine.attempt(where(), r.randint(1, 4), [r.choice(ENDS) for _ in range(4)])),
        (3, lambda: machine.confirm(where(), r.randint(1, 3))),
        (1, lambda: machine.deliver_all(where())),
        (5, person),
        (2, lambda: machine.unconfirm(r.randrange(10_000), where())),
        (2, lambda: machine.send_elsewhere(r.randrange(10_000), where(), r.choice([None, where()]))),
        (1, lambda: machine.move_queue(where(), r.choice([None, where()]))),
        (1, lambda: machine.retire(r.randrange(3000), r.random() < 0.5)),
        (2, lambda: machine.retire_anything(r.randrange(10_000))),
        (1, machine.crash),
        (1, lambda: machine.time_passes(r.randint(1, 100_000), r.random() < 0.3)),
        (1, machine.small_things),
    ]
    try:
        arrive()
        for _ in range(80):
            r.choices([step for _, step in steps], [weight for weight, _ in steps])[0]()
            for check in CHECKS:
                check(machine)
    finally:
        machine.teardown()


TestVerbs = Verbs.TestCase
TestVerbs.settings = settings(max_examples=int(os.environ.get("DCMGATE_EXAMPLES", "30")), stateful_step_count=50, deadline=None,
                              suppress_health_check=list(HealthCheck), derandomize=True, print_blob=True)
