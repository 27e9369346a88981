"""The confirming stage: a thread for each destination looks for what was sent there, by the proof that it declares.

    status      sent is as good as confirmed after `status_days` of powered-on time
    readback    a folder's files are read and digested again; an archive is queried
    commitment  storage commitment, not in this release: stays `sent`

Promises: `confirmed` is written only on evidence; an object that a destination
answers not to have, time and again, is sent again, and nothing that is not
confirmed is ever deleted. A destination that cannot be asked says nothing.
Destinations do not wait for one another.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random

from appliance.clock import Clock
from appliance.config.settings import Config, Destination
from appliance.confirm.proof import Proof
from appliance.confirm.query import QueryProof
from appliance.confirm.watch import ByEvidence, ByTime, Watch
from appliance.errors import DcmgateError, SpoolError
from appliance.model import Alarm
from appliance.net.tlserrors import TlsError
from appliance.policy.handshakes import REFUSED_THERE, refused
from appliance.spool.index import Index, Located
from appliance.spool.layout import Spool
from appliance.spool.ledger import Ledger
from appliance.spool.rows import Knock
from appliance.telemetry.log import Log

POLL_SECONDS = 10.0
"""How often a destination's thread looks for newly sent objects when nobody kicks it."""

RETRY_SECONDS = 30.0

log = Log("confirm")


class Confirmer:
    """`start`, `kick` when something was sent, `configure` when the configuration changed, `stop`.

    `config` gives the configuration in force. Any thread may call. `changed` is
    called after objects were confirmed or are to be sent again.
    """

    def __init__(self, spool: Spool, ledger: Ledger, clock: Clock, config: Callable[[], Config],
                 changed: Callable[[], None] = lambda: None) -> None:
        self._spool = spool
        self._ledger = ledger
        self._clock = clock
        self._config = config
        self._changed = changed
        self._runners: dict[str, _Runner] = {}
        self._lock = threading.Lock()

    def start(self) -> None:
        self.configure()

    def configure(self) -> None:
        """Let the threads be those of the configuration's destinations."""
        with self._lock:
            wanted = {d.id: d for d in self._config().destinations}
            for id, runner in list(self._runners.items()):
                if wanted.get(id) != runner.destination:
                    runner.end()
                    del self._runners[id]
            for id, destination in wanted.items():
                if id not in self._runners and (watch := self.watch(destination)) is not None:
                    self._runners[id] = _Runner(destination, watch, self._clock, self._changed)

    def watch(self, destination: Destination) -> Watch | None:
        """What looks after one destination; None where its proof is not for us to find."""
        if destination.proof == "status":
            return ByTime(destination, self._ledger, self._clock)
        if destination.proof == "readback":
            return ByEvidence(destination, self._ledger, self._clock, self._proof(destination), Random())
        return None

    def kick(self) -> None:
        """Something may have been sent."""
        with self._lock:
            for runner in self._runners.values():
                runner.kick()

    def stop(self, seconds: float = 10.0) -> bool:
        """End all threads; False if one did not end in that time."""
        with self._lock:
            runners, self._runners = list(self._runners.values()), {}
        for runner in runners:
            runner.end()
        ended = [runner.join(seconds) for runner in runners]
        return all(ended)

    def alarms(self) -> list[Alarm]:
        """What a person should know: destinations that lack what they said they stored, or cannot be asked."""
        with self._lock:
            return [alarm for runner in self._runners.values() for alarm in runner.watch.alarms()]

    def moved(self) -> dict[str, int]:
        """Boot ns of the last round of each destination's thread."""
        with self._lock:
            return {id: runner.moved for id, runner in self._runners.items()}

    def dead(self) -> list[str]:
        """Destinations whose thread has ended without being told to."""
        with self._lock:
            return [id for id, runner in self._runners.items() if runner.join(0)]

    def _proof(self, destination: Destination) -> Proof:
        if destination.type == "folder":
            from appliance.confirm.reread import RereadProof
            return RereadProof(destination)
        return QueryProof(destination, self._locate, state=self._config().spool.state, rivalled=self._ledger.rivalled,
                          refused=self._refused)

    def _refused(self, destination: Destination, error: TlsError) -> None:
        """A handshake failed: counted beside those that failed at our own door."""
        knock = Knock("", refused(REFUSED_THERE, destination.id, error.check), f"{destination.address}:{destination.port}",
                      REFUSED_THERE, error.text)
        try:
            self._ledger.knocked([knock])
        except DcmgateError as e:
            log.error("a failed handshake cannot be written down", destination=destination.id, error=str(e))

    def _locate(self, numbers: Sequence[int]) -> dict[int, Located]:
        with suppress(SpoolError), Index.open(self._spool.index_path, read_only=True) as index:
            return index.locate(numbers)
        return {}


class _Runner:
    """The thread of one destination."""

    def __init__(self, destination: Destination, watch: Watch, clock: Clock, changed: Callable[[], None]) -> None:
        self.destination = destination
        self.watch = watch
        self.moved = clock.boot_ns()
        self._clock = clock
        self._changed = changed
        self._kicked = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"confirm-{destination.id}", daemon=True)
        self._thread.start()

    def kick(self) -> None:
        self._kicked.set()

    def end(self) -> None:
        self._stopping = True
        self._kicked.set()

    def join(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping:
            self.moved = self._clock.boot_ns()
            try:
                done = self.watch.step()
                if done:
                    self._changed()
                wait = min(POLL_SECONDS, self.watch.wait())
            except DcmgateError as error:
                log.error("cannot confirm now", destination=self.destination.id, error=str(error))
                wait = RETRY_SECONDS
            except Exception:  # noqa: BLE001 - top of the stage: nothing is confirmed by accident, and others go on
                log.crash("confirming failed", destination=self.destination.id)
                wait = RETRY_SECONDS
            if wait > 0 and not self._stopping:
                self._clock.wait(self._kicked, wait)
                self._kicked.clear()
        self.watch.close()
