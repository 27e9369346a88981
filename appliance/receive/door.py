"""Door: who may come in, and who knocked.

The decision is `policy.admit`'s, and `policy.storage_admitted`'s where storage is
proposed; this is what hands them configuration, the admissions of persons and
the room there is. Who was refused, held or let in without being known is
remembered with what it proposed. The clerk's thread writes that to the ledger,
never the accept path: who is new within a second, who came before at the tick.
It sleeps while nobody knocks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from appliance.clock import SECOND
from appliance.config.settings import Config, Listener, Peer
from appliance.dicom import uids
from appliance.dicom.negotiation import is_storage, unacceptable
from appliance.dicom.pdu import AssociateRequest, title_text
from appliance.errors import LedgerError, SpoolError
from appliance.model import Priority, escape
from appliance.net import sidedoor
from appliance.net.tls import CURRENT_SUITES, CURRENT_VERSIONS
from appliance.policy import Admission, Space, Verdict, admit, canary, storage_admitted
from appliance.policy.admission import CALLING_NOT_RECOGNISED
from appliance.policy.handshakes import LEGACY, REFUSED, by_legacy, refused
from appliance.receive.asking import Asker
from appliance.receive.front import Arrival
from appliance.receive.guard import now_ns
from appliance.spool.rows import Admitted, Knock
from appliance.telemetry.log import Log

LOCAL_LIMIT = (2, 3, 2)
"""Rejected transient, by the service provider (presentation), local limit exceeded (PS3.8 9.3.4)."""

REMEMBERED = 512
"""Different callers that are remembered; further ones between two writes are only counted."""

STUCK = 10
"""Seconds after which a write or sync that has not returned closes the door to storage."""

LOG_AGAIN = {REFUSED: 60, LEGACY: 86400}
"""Seconds until the same handshake of the same caller is logged again."""

PAUSE = 1.0
"""Seconds between two writes of knocks."""

ASK_SECONDS = 0.5
"""Longest wait for whom a person admitted; after it, what was known before counts. An echo has no more time than that."""

ROOM_SECONDS = 5.0
"""Longest wait for the room; after it, the disk hangs."""

log = Log("receive")


@dataclass(frozen=True, slots=True)
class Answer:
    """What an association request gets. `code` is (result, source, reason) of the A-ASSOCIATE-RJ, None where it is accepted."""

    code: tuple[int, int, int] | None
    text: str
    peer: str = ""
    idle_seconds: float = 3600.0
    own: bool = False
    """The receiver's call to itself: not worth a line of the log."""


class Room(Protocol):
    """`spool.Intake`, as the door uses it."""

    @property
    def out_of_intake(self) -> str: ...
    def room(self) -> Space: ...
    def stuck_since(self) -> int: ...


class Book(Protocol):
    """`spool.Ledger`, as the door uses it."""

    def admitted(self) -> Iterable[Admitted]: ...
    def knocked(self, knocks: list[Knock], /) -> object: ...


class Door:
    """One to a process; `config` may be replaced at any time."""

    def __init__(self, config: Config, intake: Room, book: Book, wall_ns: Callable[[], int] = time.time_ns) -> None:
        self.config = config
        self._intake = intake
        self._book = book
        self._wall_ns = wall_ns
        self._knocks: dict[tuple[str, str, str], Knock] = {}
        self._seen: set[tuple[str, str, str, str]] = set()
        self._unwritten = 0
        self._lock = threading.Lock()
        self._logged: dict[tuple[str, str, str], int] = {}
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._asker = Asker()
        self._admitted: set[tuple[str, str]] = set()

    def start(self) -> None:
        self._asker.start()
        self._thread = threading.Thread(target=self._write_knocks, name="clerk", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what is left and end."""
        self._stopped.set()
        self._wake.set()
        self._asker.stop()
        if self._thread is not None:
            self._thread.join(15)

    @property
    def alive(self) -> bool:
        """Whether its threads live. What the disk keeps from them is another matter."""
        return self._asker.alive and self._thread is not None and self._thread.is_alive()

    # -- the decision ------------------------------------------------------------------------------------------------

    def answer(self, arrival: Arrival, request: AssociateRequest, proven: frozenset[str] = frozenset()) -> Answer:
        """Accept or reject, and remember it where the caller is not simply a known peer that comes in.

        `proven` is what its certificate says of it, in the words of `[[peer]] certificates`.
        """
        calling, called = title_text(request.calling), title_text(request.called)
        code = unacceptable(request)
        if code is not None:
            return Answer(code, "protocol version or application context is not that of DICOM")
        if arrival.listener == canary.LISTENER:
            return self._by_the_side(arrival, request)
        config = self.config
        listener = next((entry for entry in config.listeners if entry.id == arrival.listener), None)
        if listener is None:
            return Answer(LOCAL_LIMIT, f"[[listener]] {arrival.listener} was taken out of the configuration")
        admission = self._admission(listener, config, calling, called, arrival.address, proven)
        answer = self._judge(admission, config, request)
        if answer.text:
            outcome = "reject" if answer.code is not None else str(admission.verdict)
            self._remember(Knock(calling, called, arrival.address, outcome, f"{answer.text} {_proposal(request)}"))
        return answer

    def _by_the_side(self, arrival: Arrival, request: AssociateRequest) -> Answer:
        """One of our own canaries, or somebody on this box who has found the port. Images go before."""
        if not sidedoor.opens(request, arrival.token):
            text = "It came by the side door for canaries, without what opens it."
            self._remember(Knock(title_text(request.calling), title_text(request.called), arrival.address, "reject", text))
            return Answer(CALLING_NOT_RECOGNISED, text)
        closed = self._no_storage(Priority.BACKFILL)
        return Answer(LOCAL_LIMIT, closed) if closed else Answer(None, "", idle_seconds=10.0)

    def refused(self, arrival: Arrival, check: str, text: str) -> None:
        """Count and remember one with whom there was no TLS, by address and reason."""
        self._remember(Knock("", refused(REFUSED, arrival.listener, check), arrival.address, REFUSED, text))

    def by_legacy(self, arrival: Arrival, calling: str, version: str, suite: str) -> None:
        """Count and remember an association by the retired profile: what keeps its listener from a current one."""
        needed = version not in CURRENT_VERSIONS or suite not in CURRENT_SUITES
        text = f"speaks {version} with {suite}: " + ("it needs the retired profile." if needed else "bcp195 would do for it.")
        called = by_legacy(arrival.listener, version, suite, needed=needed)
        self._remember(Knock(calling, called, arrival.address, LEGACY, text))

    def _admission(self, listener: Listener, config: Config, calling: str, called: str, address: str,
                   proven: frozenset[str]) -> Admission:
        admission = admit(listener, config.peers, (), calling, called, address, proven)
        if admission.peer_id:
            return admission
        try:
            self._admitted = self._asker.ask(lambda: {(entry.title, entry.address) for entry in self._book.admitted()},
                                             ASK_SECONDS)
        except (LedgerError, SpoolError) as e:
            log.error("who was admitted by a person cannot be read: it is as before", error=e.message)
        by_person = admit(listener, config.peers, self._admitted, calling, called, address, proven)
        # A person knows it: no need to remember that it knocked.
        return admission if by_person == admission else replace(by_person, text="")

    def _judge(self, admission: Admission, config: Config, request: AssociateRequest) -> Answer:
        if admission.verdict is Verdict.REJECT:
            return Answer((admission.result, admission.source, admission.reason), admission.text, admission.peer_id)
        peer = config.peer(admission.peer_id) or Peer(id="")
        if any(is_storage(context.abstract) for context in request.contexts):
            closed = self._no_storage(Priority[peer.priority.upper()])
            if closed:
                return Answer(LOCAL_LIMIT, closed, admission.peer_id)
        return Answer(None, admission.text, admission.peer_id, peer.idle_seconds)

    def _no_storage(self, priority: Priority) -> str:
        """Why no image can be taken now; empty if it can. Better said at the association than by A700 in mid-study."""
        intake = self._intake
        if intake.out_of_intake:
            return f"out of intake: {intake.out_of_intake}."
        if stuck := self.stuck():
            return stuck
        try:
            room = self._asker.ask(intake.room, ROOM_SECONDS)
        except (SpoolError, LedgerError) as e:
            return f"the room in the spool is not known: {e.message}."
        if storage_admitted(room, priority):
            return ""
        return f"the spool is {room.state}: {room.free} of {room.total} bytes are free."

    def stuck(self) -> str:
        """Says that the disk hangs; empty where it does not. Does not block."""
        since = self._intake.stuck_since()
        return f"the disk has not answered for more than {STUCK} s." if since and now_ns() - since > STUCK * SECOND else ""

    # -- who knocked -------------------------------------------------------------------------------------------------

    def _remember(self, knock: Knock) -> None:
        now = self._wall_ns()
        key = (knock.title, knock.called, knock.address)
        with self._lock:
            known = self._knocks.get(key)
            if known is None and len(self._knocks) >= REMEMBERED:
                self._unwritten += 1
                return
            count, first = (known.count, known.first_wall) if known else (0, now)
            self._knocks[key] = replace(knock, count=count + 1, first_wall=first, last_wall=now)
            new = (*key, knock.verdict) not in self._seen
            if new:
                if len(self._seen) >= REMEMBERED:
                    self._seen.clear()
                self._seen.add((*key, knock.verdict))
        if new:
            self._wake.set()

    def tick(self) -> None:
        """Have those written down who have knocked again."""
        if self._knocks:
            self._wake.set()

    def _write_knocks(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            with self._lock:
                knocks, self._knocks = list(self._knocks.values()), {}
                unwritten, self._unwritten = self._unwritten, 0
            if unwritten:
                log.warning("too many different callers to remember", callers=unwritten)
            if knocks:
                for knock in filter(self._worth_a_line, knocks):
                    log.warning("a caller to look at", title=knock.title, called=knock.called,
                                address=knock.address, outcome=knock.verdict, count=knock.count, why=knock.text)
                try:
                    self._book.knocked(knocks)
                except LedgerError as e:
                    log.error("who knocked cannot be written down", error=e.message)
            if self._stopped.wait(PAUSE):
                if not self._knocks:
                    return
                self._wake.set()


    def _worth_a_line(self, knock: Knock) -> bool:
        """A peer without good TLS may try ten times a second, for days."""
        again = LOG_AGAIN.get(knock.verdict, 0) * SECOND
        if not again:
            return True
        now, key = now_ns(), (knock.title, knock.address, knock.called)
        if now - self._logged.get(key, -again) < again:
            return False
        if len(self._logged) >= REMEMBERED:
            self._logged.clear()
        self._logged[key] = now
        return True


def _proposal(request: AssociateRequest) -> str:
    """What a caller proposed, in a few words and bounded: storage classes are counted, other services named."""
    contexts = request.contexts
    storage = sum(1 for context in contexts if is_storage(context.abstract))
    others = [("Verification" if context.abstract == uids.VERIFICATION else escape(context.abstract)[:64])
              for context in contexts if not is_storage(context.abstract)]
    parts = ([f"{storage} storage contexts"] if storage else []) + others[:4] + (["…"] if len(others) > 4 else [])
    name = escape(request.implementation_version)[:16]
    return f"[proposes {', '.join(parts) or 'nothing'}{f'; {name}' if name else ''}]"
