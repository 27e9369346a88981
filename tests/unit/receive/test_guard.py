"""The guard's decisions, one look at a time."""

from __future__ import annotations

import threading

import pytest

from appliance.clock import SECOND
from appliance.receive.guard import CLOSING, FIRST, IDLE, MESSAGE, PDU, SEND, STORE, WRITE, Guard, now_ns
from appliance.receive.limits import Limits
from tests.support.waiting import wait_until

LIMITS = Limits(pdu=30, progress=60, store=18, send=30, closing=3, scan=1, tick=10)


class Member:
    def __init__(self, phase: int = IDLE) -> None:
        self.phase = phase
        self.moves = 0
        self.idle_seconds = 3600.0
        self.deadline = now_ns() + 10 * SECOND
        self.overdue_in: list[int] = []
        self.cuts = 0

    def overdue(self, phase: int) -> None:
        self.overdue_in.append(phase)

    def cut(self) -> None:
        self.cuts += 1


def watched(phase: int) -> tuple[Guard, Member, int]:
    guard, member = Guard(LIMITS), Member(phase)
    guard.watch(member)
    start = now_ns()
    guard.look(start)
    return guard, member, start


@pytest.mark.parametrize(("phase", "seconds"), [(IDLE, 3600), (FIRST, 10), (PDU, 30), (MESSAGE, 60), (WRITE, 18), (STORE, 18),
                                                (SEND, 30), (CLOSING, 3)])
def test_each_phase_has_its_limit_and_is_called_once(phase: int, seconds: int):
    guard, member, start = watched(phase)
    guard.look(start + (seconds - 1) * SECOND)
    assert member.overdue_in == []
    guard.look(start + (seconds + 1) * SECOND)
    guard.look(start + (seconds + 2) * SECOND)
    assert member.overdue_in == [phase]


@pytest.mark.requirement("I1")
def test_a_peer_that_the_disk_keeps_in_mid_object_is_cut_off():
    """It may be blocked in sending: an abort that it does not read would leave it in silence. Within 25 s, and once."""
    guard, member, start = watched(WRITE)
    guard.look(start + 19 * SECOND)
    assert (member.overdue_in, member.cuts) == ([WRITE], 0)
    guard.look(start + 22 * SECOND)
    guard.look(start + 23 * SECOND)
    assert member.cuts == 1


@pytest.mark.parametrize("phase", [PDU, MESSAGE, STORE, SEND])
def test_whoever_reads_is_not_cut_off(phase: int):
    guard, member, start = watched(phase)
    for seconds in range(100):
        guard.look(start + seconds * SECOND)
    assert member.overdue_in == [phase] and member.cuts == 0


@pytest.mark.parametrize("phase", [PDU, MESSAGE, WRITE, SEND])
def test_progress_begins_the_limit_anew(phase: int):
    guard, member, start = watched(phase)
    for n in range(1, 20):
        member.moves += 1
        guard.look(start + n * 15 * SECOND)
    assert member.overdue_in == []


def test_a_change_of_phase_alone_is_no_progress():
    """Bytes that trickle in make the phase flicker; only a whole PDU counts."""
    guard, member, start = watched(PDU)
    for n in range(1, 32):
        member.phase = WRITE if n % 2 else PDU
        guard.look(start + n * SECOND)
        assert bool(member.overdue_in) == (n >= 30)
    assert member.overdue_in == [PDU]                              # nor has the disk been slow


def test_the_first_pdu_has_one_deadline_whatever_moves():
    guard, member, start = watched(FIRST)
    for n in range(1, 12):
        member.moves += 1
        guard.look(start + n * SECOND)
        assert bool(member.overdue_in) == (n >= 10)


def test_it_looks_only_while_something_is_under_way():
    guard, member, start = watched(IDLE)
    assert not guard.look(start + SECOND)
    member.moves += 1                                              # a whole message came and went between two looks
    assert guard.look(start + 2 * SECOND)
    assert not guard.look(start + 3 * SECOND)
    member.phase = PDU
    assert guard.look(start + 4 * SECOND)


def test_armed_it_scans_and_then_rests_again():
    ticks = threading.Event()
    guard, member = Guard(Limits(scan=0.01, tick=0.05), ticks.set), Member()
    guard.start()
    try:
        assert ticks.wait(10)
        guard.watch(member)
        wait_until(lambda: not guard.armed, 10, "rests")
        member.phase = PDU
        guard.arm()
        before = guard.scans
        wait_until(lambda: guard.scans > before + 5, 10, "scans")
        assert guard.armed and guard.moving()
        member.phase = IDLE
        wait_until(lambda: not guard.armed, 10, "rests again")
    finally:
        guard.stop()


def test_it_says_that_an_association_is_stuck_but_not_for_the_disks_sake():
    guard, member, start = watched(SEND)
    guard._beat = now_ns()
    guard._marks[member].since = start - 31 * SECOND
    guard.look(start)
    assert guard.moving()                                          # overdue, and about to end
    guard._marks[member].called_at = start - 200 * SECOND
    assert not guard.moving()                                      # it did not end
    guard._marks[member].phase = STORE
    assert guard.moving()


def test_a_guard_that_does_not_run_does_not_move():
    guard = Guard(LIMITS)
    guard._beat = now_ns() - 31 * SECOND
    assert not guard.moving()
