"""Intake: what one receiver process needs to take images into custody.

    start   own number of the process, recovery of dead owners' numbers, first slots, maintenance thread
    take    a writer for one instance; pops a ready slot, touches neither folders nor the ledger
    stop    last group of rows, unused numbers closed

One maintenance thread makes slots ahead of need and commits the ledger rows that
are owed, a group at a time. With nothing to do it sleeps without a time-out.

On failure: any SpoolFault or ledger error closes intake for as long as the
process lives (I6), and so does an I/O error that another process met on the same
disk (latch.py): `out_of_intake` says why, for the receiver to log; `take` and
`finish` raise SpoolFault, delivery goes on elsewhere. What is owed by then gets
its rows when the disk is healthy again (settle.py). A full disk closes nothing,
nor does a ledger that is not to be had just now: what is owed stays owed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from appliance.clock import SECOND, Clock
from appliance.errors import DcmgateError, LedgerBusy, LedgerError, LedgerFault, SpoolError, SpoolFault, SpoolFull
from appliance.model import Custody, SpaceState
from appliance.policy import Space
from appliance.spool import ballast
from appliance.spool.buffers import Buffer, BufferPool
from appliance.spool.debt import Debt
from appliance.spool.latch import Mark
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from appliance.spool.owners import OwnerLock
from appliance.spool.recover import Recovery, recover
from appliance.spool.settle import settle
from appliance.spool.slots import Slot, SlotPool
from appliance.spool.space import Gauge, held
from appliance.spool.writer import SlotWriter

SLOT_SECONDS = 5.0
"""Longest wait for a ready slot: a small object may have arrived whole before it, and what follows has 18 s (I1)."""

DEBT_SECONDS = 12.0
"""Longest wait for the ledger to catch up: with the sync before it, a status within 25 s of the last byte (I1)."""

RECOVER_AGAIN = 60 * SECOND
"""So long after the start it is looked once more for owners that have died: one that is only just dying holds its lock
while its files are closed, and what it had acknowledged must not wait for the next start."""

QUIET = SECOND
"""So long after the last instance began, nobody sends: slots that are made for later are in no scanner's way."""

QUIET_PAUSE = SECOND // 4
"""Between two batches of them: making them all at once would keep a small box's disk busy at every start."""

SETTLE_SECONDS = (2.0, 60.0)
"""First and longest pause before what a closed intake owes is looked at: each pause is twice the one before."""

AGAIN_AFTER = SECOND // 2
"""A group that the ledger did not take (LedgerBusy) is committed again after this."""


class Intake:
    """See the module. `ledger` is used from the caller's and the maintenance thread; `on_accepted` is called after each
    group of rows, on the maintenance thread, and must not block. `questions`: a connection of its own for what others ask
    meanwhile, so that they do not wait for a group that the disk keeps waiting. `mark`: of the spool's latch, when the receiver
    started; without it, I/O errors of other processes count from this intake's start on."""

    def __init__(self, spool: Spool, ledger: Ledger, clock: Clock, *, ready: int = 64, max_debt: int = 256,
                 max_debt_seconds: float = 1.0, on_accepted: Callable[[], None] = lambda: None,
                 questions: Ledger | None = None, mark: Mark | None = None) -> None:
        self.spool = spool
        self.clock = clock
        self.boot = 0
        self.direct = True
        self.owner = 0
        self.recovery = Recovery()
        self.error: Exception | None = None            # what ended the maintenance thread, if it was none of our errors
        self._ledger = ledger
        self._questions = questions or ledger
        self._on_accepted = on_accepted
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)   # the maintenance thread waits here
        self._turn = threading.Condition(self._lock)   # everybody else does
        self._slots = SlotPool(spool, self._granted, ready)
        self._debt = Debt(max_debt, max_debt_seconds)
        self._buffers = BufferPool()
        self._gauge: Gauge | None = None
        self._owner_lock: OwnerLock | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._in_flight = 0
        self._syncing: dict[int, int] = {}
        self._recover_at = -1                          # boot ns; -1: not any more
        self._not_before = 0                           # boot ns: the ledger was busy, and is left alone until then
        self._out = ""
        self._begun = 0                                # boot ns at which the last instance began
        self._ahead_at = 0                             # boot ns before which no slots are made for later
        self._settle_at = -1                           # closed: boot ns
        self._settle_pause = SETTLE_SECONDS[0]
        self._spare: list[int] = []                    # closed: numbers that were never used
        self._settled = False                          # closed, and nothing is owed any more
        self._mark = mark

    # The receiver's side

    def start(self) -> None:
        """Open intake. SpoolFault or LedgerError where it cannot be; a full disk is no reason not to start."""
        self.boot = self._ledger.boot
        if self._mark is None:
            self._mark = self.spool.latch.mark()
        try:
            self._own()
            self.recovery = self._recovered()
            held_bytes, largest = held(self._ledger)
            self._gauge = Gauge(self.spool, held_bytes, largest)
            try:
                self._slots.put(self._slots.make())
            except SpoolFull as e:
                self._slots.failure = e
        except BaseException as e:
            if isinstance(e, SpoolFault | LedgerFault):
                self.spool.latch.report(e)         # others may have the disk open for intake
            self._slots.close()
            self._disown()
            raise
        self._begun = self.clock.boot_ns()
        self._recover_at = self._begun + RECOVER_AGAIN
        self._thread = threading.Thread(target=self._maintain, name="intake", daemon=True)
        self._thread.start()

    def take(self) -> SlotWriter:
        """A writer for one instance. SpoolFull where there is no room, SpoolFault or LedgerError where intake is closed."""
        if self._gauge is not None and self._gauge.left <= 0 and self.room().state is SpaceState.BLACK:
            raise SpoolFull("the spool is full", mend="Free some space, or enlarge the spool.")
        self._look()
        slot = self._slot()
        return SlotWriter(self, slot, self._buffers.take())

    def room(self) -> Space:
        """The room there is, asked afresh. SpoolFault, LedgerError."""
        gauge = self._gauge
        if gauge is None:
            raise SpoolFault("intake is not started")
        if not self.spool.size:
            return gauge.refresh()
        owed = self._debt.bytes
        held_bytes, largest = held(self._questions)
        return gauge.count(held_bytes + owed, largest)

    def space(self) -> SpaceState:
        """The state of the room; black where the disk cannot even say."""
        try:
            return self.room().state
        except (SpoolFault, LedgerError):
            return SpaceState.BLACK

    @property
    def out_of_intake(self) -> str:
        """Why intake is closed; empty while it is open."""
        self._look()
        return self._out

    @property
    def outstanding(self) -> int:
        """Durable objects whose ledger row is still owed."""
        return self._debt.outstanding

    @property
    def in_flight(self) -> int:
        """Instances that were begun and neither finished nor given up."""
        return self._in_flight

    @property
    def ready(self) -> int:
        """Slots that wait for an instance."""
        return len(self._slots)

    def stuck_since(self) -> int:
        """Boot ns at which the oldest write or sync still running began; 0 if none: a hung disk shows here (I1, 25 s)."""
        return min(self._syncing.copy().values(), default=0)

    def stop(self, deadline: float = 5.0) -> bool:
        """Close intake and settle the ledger within `deadline` seconds. False where instances or rows were left open.

        What is left is judged at the next start-up; the owner's lock stays held
        then, because a writer of this process may still be at it.
        """
        with self._lock:
            self._stopping = True
            self._work.notify_all()
            self._turn.notify_all()
        if self._thread is not None:
            self._thread.join(deadline)
            if self._thread.is_alive():
                return False
        with self._lock:
            clean = (not self._out or self._settled) and self._in_flight == 0 and self._debt.size == 0
            unused = self._slots.close()
        if clean and unused:
            try:
                self._ledger.void([(number, "unused") for number in unused])
            except LedgerError as e:
                self._close(f"ledger: {e}", e)
                clean = False
        if self._in_flight == 0:
            self._disown()
        return clean

    # The writers' side (writer.Host)

    def reserve(self, slot: Slot, size: int) -> None:
        """See `writer.Host`. SpoolFault once intake is closed: nothing is begun on a disk that failed."""
        self._look()
        if self._out:
            raise SpoolFault(self._out)
        gauge = self._gauge
        if gauge is None:
            return
        try:
            gauge.reserve(slot, size)
        except SpoolFull:
            if not self.spool.size:
                raise
            with suppress(LedgerError):
                self.room()          # of a quota only the ledger knows what was deleted since
            gauge.reserve(slot, size)

    def owe(self, custody: Custody) -> None:
        """See `writer.Host`. The wait ends when the row is in the ledger, or when the debt is within its bound again."""
        with self._lock:
            if self._settled:
                raise SpoolFault(self._out)
            now = self.clock.boot_ns()
            ticket = self._debt.owe(custody, now)
            if self._debt.size == 1 or self._debt.due(now) == 0:
                self._work.notify()
            if self._gauge is not None:
                self._gauge.accepted(custody.length)
            settled = self._turn.wait_for(
                lambda: bool(self._out) or not self._debt.must_wait(ticket, self.clock.boot_ns()), DEBT_SECONDS)
            self._look()
            if self._out:
                raise SpoolFault(self._out)
        if not settled:
            raise SpoolFault("the ledger does not keep up")

    def done(self, slot: Slot, buffer: Buffer, void: str = "") -> None:
        """See `writer.Host`."""
        self._buffers.give(buffer)
        if self._gauge is not None:
            self._gauge.release(slot)
        with self._lock:
            self._in_flight -= 1
            if void:
                self._debt.void(slot.number, void, self.clock.boot_ns())
                if self._debt.size == 1:
                    self._work.notify()
            elif slot.fd >= 0 and not slot.touched:
                self._slots.put([slot])
                self._turn.notify()
            if self._stopping and self._in_flight == 0:
                self._work.notify()

    def fault(self, error: SpoolFault) -> None:
        """See `writer.Host`."""
        self._close(error.message, error)

    def syncing(self, slot: Slot, since: int) -> None:
        """See `writer.Host`. One key for each slot, so that single operations need no lock."""
        if since:
            self._syncing[slot.number] = since
        else:
            self._syncing.pop(slot.number, None)

    # Inside

    def _own(self) -> None:
        """A number for this process, locked. Somebody who recovers may hold a fresh number for a moment: then take another."""
        for _ in range(8):
            owner = self._ledger.register_owner("receiver")
            lock = self.spool.lock_owner(owner)
            if lock.held:
                self.owner, self._owner_lock = owner, lock
                return
            lock.release()
        raise SpoolFault("no owner number could be locked", mend="Look for another process that holds the spool's owners file.")

    def _disown(self) -> None:
        """From now on whoever starts judges what this process left open."""
        if self._owner_lock is not None:
            self._owner_lock.release()
            self._owner_lock = None

    def _granted(self, count: int) -> int:
        return self._ledger.grant(self.owner, count)

    def _look(self) -> None:
        """Whether another process met an I/O error on this disk since we started. Costs no system call."""
        if not self._out and self._mark is not None and (why := self.spool.latch.since(self._mark)):
            self._close(why)

    def _close(self, reason: str, error: DcmgateError | None = None) -> None:
        if isinstance(error, SpoolFault | LedgerFault):
            self.spool.latch.report(error)
        with self._lock:
            if not self._out:
                self._out = reason or "unknown fault"
            self._work.notify_all()
            self._turn.notify_all()

    def _slot(self) -> Slot:
        with self._lock:
            self._check_open()
            slot = self._slots.pop()
            self._begun = self.clock.boot_ns()
            if self._slots.low:
                self._work.notify()
            if slot is None:
                slot = self._await_slot()
            self._in_flight += 1
            return slot

    def _await_slot(self) -> Slot:
        """The pool is empty: wait until the maintenance thread made slots, or failed to. Under the lock."""
        pool = self._slots
        pool.starved()
        pool.failure = None
        self._work.notify()
        self._turn.wait_for(lambda: len(pool) or pool.failure or self._out or self._stopping, SLOT_SECONDS)
        self._check_open()
        slot = pool.pop()
        if slot is None:
            raise pool.failure or SpoolFull("no slot was ready in time", mend="The disk is too slow for what is sent to it.")
        return slot

    def _check_open(self) -> None:
        if self._out:
            raise SpoolFault(self._out)
        if self._stopping or self._thread is None:
            raise SpoolFault("intake is not running")

    # The maintenance thread

    def _maintain(self) -> None:
        try:
            while self._maintain_once():
                pass
        except DcmgateError as e:
            self._close(e.message, e)
        except Exception as e:  # noqa: BLE001  top of the thread: whatever it is, nothing may be accepted after it
            self.error = e
            self._close(f"{type(e).__name__}: {e}")
        while self._settle_once():
            pass

    def _settle_once(self) -> bool:
        """Closed: wait, then see to what is owed, if nobody writes any more. False when there is no more to do."""
        with self._lock:
            now = self.clock.boot_ns()
            if self._stopping:
                return False
            if self._settle_at < 0 or (self._in_flight and now >= self._settle_at):
                self._settle_at = now + int(self._settle_pause * SECOND)
            if now < self._settle_at:
                self._work.wait((self._settle_at - now) / SECOND)
                return True
            self._settle_at, self._settle_pause = -1, min(2 * self._settle_pause, SETTLE_SECONDS[1])
            self._spare = self._slots.close() or self._spare
        try:
            with Ledger.open(self.spool.ledger_path, self.clock, latch=self.spool.latch) as ledger:
                done = settle(self.spool, ledger, self.owner, self._spare)
        except (SpoolError, LedgerError, OSError):
            return True
        with self._lock:
            self._debt.forgive()
            self._settled = True
        if done.adopted:
            self._on_accepted()
        return False

    def _maintain_once(self) -> bool:
        """Wait for work and do one piece of it; False when it is time to end."""
        work: Callable[[], None]
        with self._lock:
            while True:
                if self._out:
                    return False
                now = self.clock.boot_ns()
                due = 0 if self._stopping and self._debt.size else self._debt.due(now)
                due = due if due < 0 else max(due, self._not_before - now)
                if due == 0:
                    rows, voids = self._debt.collect()
                    work = partial(self._commit, rows, voids)
                    break
                if self._stopping and self._in_flight == 0:
                    return False
                if self._slots.low and self._slots.failure is None and not self._stopping:
                    work = partial(self._make_slots, self._slots.make)
                    break
                ahead = self._ahead(now)
                if ahead == 0:
                    self._ahead_at = now + QUIET_PAUSE
                    work = partial(self._make_slots, self._slots.make_ahead)
                    break
                again = max(0, self._recover_at - now) if self._recover_at >= 0 else -1
                if again == 0:
                    self._recover_at = -1
                    work = self._recover_again
                    break
                waits = [each for each in (due, again, ahead) if each >= 0]
                self._work.wait(min(waits) / SECOND if waits else None)
        work()
        return True

    def _recovered(self) -> Recovery:
        """Recovery at the start. What not even the ballast makes room for (a note in quarantine) is left for later."""
        for _ in range(2):
            try:
                return recover(self.spool, self._ledger)
            except SpoolFull:
                ballast.give_up(self.spool.path)
        return Recovery()

    def _recover_again(self) -> None:
        """What start-up could not judge yet. It may fail: start-up looked at what matters most, and the next one will again."""
        try:
            if recover(self.spool, self._ledger).adopted:
                self._on_accepted()
        except SpoolFull:
            self._recover_at = self.clock.boot_ns() + RECOVER_AGAIN
        except (SpoolError, LedgerError) as e:
            if isinstance(e, SpoolFault | LedgerFault) and e.io:
                self._close(e.message, e)

    def _ahead(self, now: int) -> int:
        """Nanoseconds until slots may be made for later; -1: none are wanted."""
        if not self._slots.wanting or self._slots.failure is not None or self._stopping:
            return -1
        return max(0, self._begun + QUIET - now, self._ahead_at - now)

    def _make_slots(self, make: Callable[[], list[Slot] | None]) -> None:
        failure: SpoolError | None = None
        made: list[Slot] = []
        try:
            made = make() or []
        except SpoolFull as e:
            failure = e
        except LedgerBusy as e:
            failure = SpoolFault(e.message, mend=e.mend)
        with self._lock:
            self._slots.failure = failure
            self._slots.put(made)
            self._turn.notify_all()

    def _commit(self, rows: list[Custody], voids: list[tuple[int, str]]) -> None:
        """One group into the ledger. A failure closes intake: the objects are durable, the next start-up adopts them."""
        try:
            if voids:
                self._ledger.void(voids)
            if rows:
                self._ledger.accepted(rows)
        except LedgerBusy:
            with self._lock:
                self._debt.still_owed(rows, voids)
                self._not_before = self.clock.boot_ns() + AGAIN_AFTER
            return
        with self._lock:
            self._debt.settled(rows)
            self._turn.notify_all()
        if rows:
            self._on_accepted()
        with suppress(SpoolFault):
            self.room()

