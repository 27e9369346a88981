"""Lane: one thread, one transport, one association at a time to one destination.

Takes a claimed window from the desk, sends it, makes the outcomes durable in one
transaction, and takes the next. Between any two objects it gives way to what is
more urgent, to closed windows of the day, to rate limits and to the end.

On failure: whatever the transport raises ends in an outcome for the object it
happened to, and every other claim is given back. A ledger that cannot be
written keeps the lane from sending, because no claim would be durable; what is
known by then is kept and written first when it works again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, groupby

from appliance.clock import SECOND, Clock
from appliance.config.settings import Destination
from appliance.errors import DeliveryError, LedgerError, ObjectDamaged, SpoolError
from appliance.forward.desk import Desk
from appliance.forward.transport import Transport
from appliance.forward.underway import Note
from appliance.forward.work import Batch, Pause, Probe, Result
from appliance.model import Fault, Outcome
from appliance.schedule import Backoff
from appliance.spool.rows import Queued
from appliance.telemetry.log import Log

FLUSH = 5 * SECOND
"""Outcomes are durable after this time at the latest, however long the window takes."""

SHORT_PAUSE = 5.0
"""Seconds for which claimed objects are kept in hand when a rate limit makes them wait; beyond, they are given back."""

SHARE = 9
"""Of objects that gave way, one goes after so many urgent ones."""

LEDGER_BACKOFF = Backoff(cap=60 * SECOND)
LAST_WRITES = 3
"""Tries of a leaving lane to write its outcomes; then the next start finds its claims."""

log = Log("forward")


class Lane:
    """`step` until it returns None; `run` does that, in a thread of its own."""

    def __init__(self, desk: Desk, make_transport: Callable[[], Transport], clock: Clock, name: str,
                 note: Note | None = None, on_settled: Callable[[], None] = lambda: None,
                 on_ended: Callable[[], None] = lambda: None) -> None:
        self.name = name
        self.desk = desk
        self.event = threading.Event()
        self.moved = clock.boot_ns()
        """Boot ns of the last progress: an object came to an outcome, or there was nothing to do."""
        self._make_transport = make_transport
        self._transport = make_transport()
        self._clock = clock
        self._note = note or Note(None, 0, "")
        self._on_settled = on_settled
        self._on_ended = on_ended
        self._in_transport = False
        self._leaving = False
        self._aborted = False
        self._used_at: int | None = None
        self._hand: dict[int, Queued] = {}     # claimed, without an outcome, in the order in which they go
        self._gave_way: set[int] = set()       # of these, the ones that more urgent objects went before
        self._urgent = 0                       # how many of those went since one of these did
        self._results: list[Result] = []       # known, not durable yet
        self._oldest = 0
        self._stopped = False
        self._told = False                     # the last outcome was a fault
        self._let_go = ""                      # why what is in hand is given back at once
        self._ledger_faults = 0
        self._thread = threading.Thread(target=self.run, name=name, daemon=True)

    # --- life -------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.desk.join(self.event)
        self._thread.start()

    def leave(self) -> None:
        """Ask the lane to end at the next instance boundary. Returns at once."""
        self._leaving = True
        self.event.set()

    def abort(self) -> None:
        """Cut off what is under way; it is sent again another time."""
        self._leaving = self._aborted = True
        self._transport.abort()
        self.event.set()

    def wait_ended(self, seconds: float) -> bool:
        """Whether the thread ended within that time."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def busy(self) -> bool:
        """Whether objects are in hand, and it is the lane's turn: a transport bounds its own time without progress."""
        return bool(self._hand or self._results) and not self._in_transport

    @property
    def moves(self) -> int | None:
        """Grows with the transport's progress; None while it is not its turn, or where nothing can be said of it."""
        return self._transport.moves if self._in_transport else None

    def run(self) -> None:
        """The thread."""
        try:
            while True:
                self.event.clear()
                pause = self.guarded_step()
                if pause is None:
                    break
                if pause > 0:
                    self._clock.wait(self.event, pause)
        except Exception:  # noqa: BLE001  top of a stage's thread: the forwarder sees its end, and puts another in its place
            log.crash("a lane died", lane=self.name)
        finally:
            self._transport.close()
            self.desk.ended(self.name)
            self.desk.leave(self.event)
            if not self._hand and not self._results:
                self._on_ended()

    @property
    def owes(self) -> bool:
        """Whether the thread has ended and left claims or outcomes behind, for want of a ledger that took them."""
        return not self._thread.is_alive() and bool(self._hand or self._results)

    def give_back(self) -> None:
        """Settle what the ended thread left behind. LedgerError."""
        self._settle(give_back=True, reason="its lane ended")
        self._on_ended()

    def guarded_step(self) -> float | None:
        """`step`, where no error ends the lane."""
        try:
            pause = self.step()
            self._ledger_faults = 0
            return pause
        except LedgerError as error:
            self._ledger_faults += 1
            log.error("the ledger cannot be used: nothing is sent", lane=self.name, why=str(error))
            if self._leaving and self._ledger_faults >= LAST_WRITES:
                return None
            return LEDGER_BACKOFF.ceiling(self._ledger_faults) / SECOND if not self._leaving else 0.1
        except Exception as error:  # noqa: BLE001  top of a stage's thread: one object must not end a destination
            log.crash("fault of the program in a lane", lane=self.name)
            self._program_error(f"{type(error).__name__}: {error}")
            return 1.0

    def _program_error(self, why: str) -> None:
        """What was under way gets the blame, as an object; everything else is given back at the next step."""
        self._transport.abort()
        row = next(iter(self._hand.values()), None)
        if row is not None:
            text = f"fault of the program while it was sent ({why[:200]}) — report it with the log"
            self._took(row, Outcome(row.number, Fault.OBJECT, text=text))
            self.desk.refused(row, text)
        self._stopped = False
        self.desk.ended(self.name)
        self.desk.unproved()
        self._transport = self._make_transport()  # last, because it may fail: then this lane ends

    # --- one step -----------------------------------------------------------------------------------------------------------

    def step(self) -> float | None:
        """Do the next thing; seconds until there may be another (0: at once), None at the end. LedgerError."""
        give_back = self._leaving or not self._stopped
        if self._due() or (self._hand and give_back):
            self._settle(give_back=give_back)
        if self._leaving:
            self.desk.ended(self.name)
            return None
        if self._hand:
            return self._go_on()
        offer = self.desk.next(self.name, claiming=self._claiming)
        if isinstance(offer, Pause):
            return self._idle(offer.seconds)
        if isinstance(offer, Probe):
            self._probe()
        else:
            self._send(offer.objects)
        return 0.0

    def _go_on(self) -> float:
        """There are objects in hand that gave way: what is more urgent goes first, then these."""
        hand = list(self._hand.values())
        wait = self.desk.hold_up(hand[0])
        offer = self.desk.next(self.name, above=min(row.priority for row in hand), claiming=self._claiming)
        if isinstance(offer, Batch):
            self._gave_way.update(row.number for row in hand)
            self._send(offer.objects if wait else interleave(offer.objects, hand, self._urgent))
        elif wait > SHORT_PAUSE:
            self._settle(give_back=True)
        elif wait:
            self.moved = self._clock.boot_ns()
            return wait
        else:
            self._send(hand)
        return 0.0

    def _idle(self, seconds: float) -> float:
        """Nothing to do: an open association is kept for `linger_seconds`, then ended in order."""
        now = self._clock.boot_ns()
        self.moved = now
        if self._used_at is None:
            return seconds
        left = self._used_at / SECOND + self.desk.destination.linger_seconds - now / SECOND
        if left <= 0:
            self._transport.close()
            self.desk.ended(self.name)
            self._used_at = None
            return seconds
        return min(seconds, left)

    def _probe(self) -> None:
        """Half-open: one C-ECHO, then one object."""
        self._used_at = None
        self.desk.ended(self.name)
        try:
            with self._its_turn():
                finding = self._transport.probe()
        except DeliveryError as error:
            if self._aborted:
                self.desk.unproved()
            else:
                self.desk.failed(Fault(error.fault), error.message)
            return
        if finding.fault is not None:
            self.desk.failed(finding.fault, finding.text)
            return
        try:
            offer = self.desk.next(self.name, probed=True, claiming=self._claiming)
            if isinstance(offer, Batch):
                self._send(offer.objects)
            elif isinstance(offer, Pause) and offer.seconds:
                self.desk.there()
        finally:
            self.desk.unproved()

    @contextmanager
    def _its_turn(self) -> Iterator[None]:
        self._in_transport = True
        try:
            yield
        finally:
            self._in_transport = False

    # --- sending ------------------------------------------------------------------------------------------------------------

    def _claiming(self, numbers: Sequence[int]) -> None:
        self._note.window([*self._hand, *numbers])

    def _send(self, batch: Sequence[Queued]) -> None:
        objects = together(batch, self.desk.destination)
        behind = {number: row for number, row in self._hand.items() if number not in {row.number for row in objects}}
        self._hand = {row.number: row for row in objects}
        self._stopped = self._told = False
        self._let_go = ""
        self._note.under_way(objects[0].number)
        lost = False
        try:
            with self._its_turn():
                self._transport.send(objects, self._emit)
            if self._hand and not self._stopped:
                self._failed(Fault.DESTINATION, None, "the transport gave no outcome — report it with the log")
        except DeliveryError as error:
            lost = True
            if self._aborted:
                self._let_go = "the forwarder stopped"
            elif not self._told and self.desk.crowded(self.name, error.message):
                self._let_go = error.message
            else:
                self._failed(Fault(error.fault), error.status, error.message)
        except ObjectDamaged as error:
            self._let_go = "the association ended because of another object"
            self._damaged(error)
        except SpoolError as error:
            self._failed(Fault.DESTINATION, None, f"an object cannot be read: {error}")
        finally:
            self._note.under_way(0)
            self._hand.update(behind)
        if lost:
            self.desk.ended(self.name)
        self._used_at = None if lost else self._clock.boot_ns()
        self._stopped = bool(self._hand) and not self._let_go
        if self._let_go or self._due():
            self._settle(give_back=bool(self._let_go) or self._leaving, reason=self._let_go)

    def _due(self) -> bool:
        """Whether what is known has to become durable now: at the end of a window, or after a while."""
        return bool(self._results) and (not self._hand or self._leaving or self._clock.boot_ns() - self._oldest >= FLUSH)

    def _emit(self, outcome: Outcome) -> bool:
        """Takes one outcome from the transport; True: stop at this instance boundary."""
        row = self._hand.get(outcome.number)
        if row is None:
            return self._stopped
        self._told = outcome.fault is not None
        if outcome.fault is Fault.DESTINATION and outcome.status is None and self.desk.crowded(self.name, outcome.text):
            self._let_go, self._stopped = outcome.text or "refused", True
            return True
        self._took(row, outcome)
        if outcome.fault is None:
            self.desk.stored(row, self.name)
        elif outcome.fault is Fault.DESTINATION and outcome.status is not None:
            if self.desk.short(row, outcome.fault, outcome.text):
                self._let_go = outcome.text or "refused"
        elif outcome.fault is not Fault.OBJECT:
            self.desk.failed(outcome.fault, outcome.text)
            self._let_go = outcome.text or "refused"
        elif self.desk.refused(row, outcome.text):
            self._let_go = outcome.text or "refused"
        stop = bool(self._let_go)
        try:
            if self._hand and self._due():
                self._settle(give_back=False)
            stop = stop or self._leaving or self.desk.interrupt(list(self._hand.values()))
        except LedgerError as error:
            # Not the transport's matter: stop in order, and let the next step meet the ledger again.
            log.error("the ledger cannot be used: stopping here", lane=self.name, why=str(error))
            stop = True
        self._stopped = stop
        self._note.under_way(0 if stop else next(iter(self._hand), 0))
        return stop

    def _took(self, row: Queued, outcome: Outcome, *, touched: bool = True) -> None:
        self._hand.pop(row.number, None)
        if row.number in self._gave_way:
            self._gave_way.remove(row.number)
            self._urgent = 0
        elif self._gave_way:
            self._urgent += 1
        if not self._results:
            self._oldest = self._clock.boot_ns()
        self._results.append(Result(row, outcome, touched))
        self.moved = self._clock.boot_ns()

    def _failed(self, fault: Fault, status: int | None, text: str) -> None:
        """The attempt failed as a whole. If no object has just told of it, the first one bears witness in the ledger."""
        self._let_go = text or str(fault)
        if self._told:
            return
        self.desk.failed(fault, text)
        row = next(iter(self._hand.values()), None)
        if row is not None:
            self._took(row, Outcome(row.number, fault, status, text), touched=False)

    def _damaged(self, error: ObjectDamaged) -> None:
        row = self._hand.get(error.number)
        if row is not None:
            self.desk.damaged(row, error.message)
            del self._hand[error.number]

    def _settle(self, *, give_back: bool, reason: str = "") -> None:
        rest = list(self._hand.values()) if give_back else []
        if not self._results and not rest:
            return
        self.desk.settle(self._results, rest, reason)
        self._results = []
        for row in rest:
            del self._hand[row.number]
            self._gave_way.discard(row.number)
        self._on_settled()


def together(batch: Sequence[Queued], destination: Destination) -> tuple[Queued, ...]:
    """The batch as a transport will send it: neighbours of one priority with the same AE titles go together.

    Only where the scanner's titles are used are there several; an association has one pair of titles.
    """
    if destination.called and destination.calling:
        return tuple(batch)
    order: list[Queued] = []
    for _, neighbours in groupby(batch, key=lambda row: row.priority):
        by_titles: dict[tuple[str, str], list[Queued]] = {}
        for row in neighbours:
            by_titles.setdefault((row.source.called, row.source.calling), []).append(row)
        order += chain.from_iterable(by_titles.values())
    return tuple(order)


def interleave(urgent: Sequence[Queued], hand: Sequence[Queued], already: int = 0) -> list[Queued]:
    """Urgent objects first, but one of those that gave way after every ninth, so that no flood of urgent ones stops them.

    `already` is how many urgent ones have gone since one of the others did.
    """
    order: list[Queued] = []
    waiting = list(hand)
    for row in urgent:
        if already >= SHARE and waiting:
            order.append(waiting.pop(0))
            already = 0
        order.append(row)
        already += 1
    return order + waiting
