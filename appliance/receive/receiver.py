"""Receiver: the acceptor of a box, in one process or several.

Opens the listeners (or takes those of systemd's socket activation), hands what comes in to the workers, and looks at the
configuration once a tick. A new configuration opens and closes ports; listeners
that stay are not touched, associations that are in stay in. A port that cannot
be opened is an error at the start, and a problem that the log names afterwards:
it never takes the others down.
"""

from __future__ import annotations

import os
import resource
import socket
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path

from appliance.clock import SECOND, Clock
from appliance.config.settings import Config, Listener
from appliance.errors import ConfigError, DcmgateError
from appliance.net import kick, sidedoor, sockets, tls
from appliance.policy import canary
from appliance.receive import health, selfecho
from appliance.receive.crew import Crew
from appliance.receive.front import Arrival, Bound, Front
from appliance.receive.guard import Guard, now_ns
from appliance.receive.limits import Limits
from appliance.receive.places import Places
from appliance.receive.process import Setup
from appliance.receive.worker import Worker
from appliance.spool.layout import Spool
from appliance.telemetry.log import Log
from appliance.telemetry.notify import alive, watchdog_seconds

ConfigSource = Callable[[], Config]
"""Gives the configuration in force; cheap where it has not changed. `generation` grows with every change."""

MOST_BY_DEFAULT = 4
"""Receiver processes where `[spool] receivers` is 0 and there are more cores than that."""

_SIDE = Listener(id=canary.LISTENER, address="127.0.0.1", max_associations=16, max_per_address=16)

log = Log("receive")


def raise_descriptor_limit() -> int:
    """Let this process and its children open as many files as the system allows; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Receiver:
    """`start`, then `stop`, once. `workers`: number of processes; None: as `[spool] receivers` says; 1: this one alone."""

    def __init__(self, config_source: ConfigSource, spool: Spool, clock: Clock, run_dir: Path, *, workers: int | None = None,
                 limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._source = config_source
        self._config = config_source()
        self._spool = spool
        self._clock = clock
        self._run_dir = run_dir
        self._places = Places()
        self._places.configure(self._config.peers)
        self._tickets = count(1)
        self._held: dict[int, tuple[str, str]] = {}
        self._bound: dict[tuple[str, str, int], Bound] = {}
        self._side: Bound | None = None
        self._problems: dict[tuple[str, str, int], str] = {}
        self._given: sockets.Inherited = {}
        self._front = Front(self.limits, self._take)
        chosen = workers or self._config.spool.receivers or min(os.cpu_count() or 1, MOST_BY_DEFAULT)
        self._worker: Worker | None = None
        self._crew: Crew | None = None
        self._guard: Guard | None = None
        self._processes = chosen
        self._ticked = threading.Event()
        self._stopped = False
        self._heard = 0
        self._condition: health.Condition | None = None
        self._thread: threading.Thread | None = None
        self._token = selfecho.new_token() if watchdog_seconds() is not None else ""
        self._echo = selfecho.SelfEcho(self._own_ports, self._token) if self._token else None
        self._changed = threading.Event()
        self._teller: threading.Thread | None = None

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Open intake and every port. ConfigError for a port that cannot be opened, SpoolError and LedgerError from intake."""
        raise_descriptor_limit()
        self._spool.latch.attach(self._run_dir, "receiver")
        self._given = sockets.inherited()
        self._announce(self._config)
        self._open_ports(self._config)
        if self._problems:
            (listener, address, port), why = next(iter(self._problems.items()))
            self._close_ports()
            raise ConfigError(f"cannot listen on {address}:{port}: {why}", key=f"listener.{listener}.ports",
                              mend="Choose another port, or stop what uses it.")
        self._front.start()
        try:
            self._start_workers()
        except DcmgateError:
            self._front.stop()
            self._close_ports()
            raise
        self._open_side_door(self._config)
        self._front.listen(self._ports())
        self._heard = now_ns()
        self._tell()
        self._thread = threading.Thread(target=self._run, name="receiver", daemon=True)
        self._thread.start()
        if self._echo is not None:
            self._echo.start()
        self._teller = threading.Thread(target=self._tell_changes, name="receiver-tells", daemon=True)
        self._teller.start()
        log.info("receiver is ready", ports=" ".join(f"{bound.listener}:{bound.port}" for bound in self._bound.values()),
                 processes=self._processes)

    def _start_workers(self) -> None:
        mark = self._spool.latch.mark()      # recovery looks at the disk from now on: what was before is over
        if self._processes == 1:
            worker = Worker(self._spool, self._clock, self._run_dir, self.limits, self._config, on_ended=self._ended,
                            on_tick=self._beat, mark=mark, token=self._token)
            worker.start()
            self._worker, self._guard = worker, worker.guard
            return
        setup = Setup(self._spool.path, self._spool.uuid, self._spool.size, self._run_dir, self.limits, self._config,
                      mark, self._token)
        crew = Crew(self._processes, setup, self.limits, self._front, self._ended)
        crew.start()
        self._crew, self._guard = crew, Guard(self.limits, self._beat)
        self._guard.start()

    def stop(self, drain: float = 5.0) -> bool:
        """Take nothing more, give what is under way `drain` seconds, and end. True if nothing was cut off."""
        if self._echo is not None:
            self._echo.stop()
        self._front.listen([])
        clean = True
        if self._worker is not None:
            clean = self._worker.stop(drain)
        if self._crew is not None:
            clean = self._crew.stop(drain)
        if self._guard is not None:
            self._guard.stop()
        self._stopped = True
        self._ticked.set()
        self._changed.set()
        for thread in (self._thread, self._teller):
            if thread is not None:
                thread.join(10)
        health.write(self._run_dir, "", ())      # the next one finds out for itself how the disk is
        self._front.stop()
        self._close_ports()
        return clean

    # -- what others ask ---------------------------------------------------------------------------------------------

    @property
    def addresses(self) -> list[tuple[str, str, int]]:
        """(listener id, address, port) of every open port: the actual ones where the configuration says 0."""
        return [(listener, address, bound.port) for (listener, address, _), bound in self._bound.items()]

    @property
    def problems(self) -> list[str]:
        """Ports that a later configuration asked for and that cannot be opened, in words; and an accepting thread that died."""
        found = [f"[[listener]] {listener}: cannot listen on {address}:{port}: {why}"
                 for (listener, address, port), why in self._problems.items()]
        if self._thread is not None and not self._front.alive and not self._stopped:
            found.append("nothing is accepted on any port: the accepting thread died; restart the receiver, and report its log")
        return found

    @property
    def associations(self) -> int:
        """Associations there are now."""
        return self._places.taken()

    @property
    def silent(self) -> int:
        """Connections that have not spoken yet."""
        return self._front.silent

    @property
    def pids(self) -> list[int]:
        """Process numbers of the workers; this process's own where it is the only one."""
        return self._crew.pids if self._crew is not None else [os.getpid()]

    @property
    def out_of_intake(self) -> str:
        """Why nothing, or not everything, is taken in any more; empty where all is well (I6)."""
        if self._crew is not None:
            return self._crew.out_of_intake
        return self._worker.out_of_intake if self._worker is not None else ""

    def progress(self) -> bool:
        """Whether the accept loop and every worker that is not idle have moved lately: only then the watchdog is fed."""
        late = now_ns() - int(3 * self.limits.tick * SECOND)
        if not self._front.alive or self._heard < late or self._guard is None or not self._guard.moving():
            return False
        if self._echo is not None and not self._echo.answered():
            return False
        if self._worker is not None and not self._worker.moving():
            return False
        return self._crew is None or self._crew.moving()

    def reload(self) -> None:
        """Look at the configuration now rather than at the next tick."""
        if self._guard is not None:
            self._guard.poke()

    # -- the tick (a thread of its own: reading the configuration may wait for the disk) -----------------------------

    def _run(self) -> None:
        while True:
            self._ticked.wait()
            self._ticked.clear()
            if self._stopped:
                return
            try:
                self._tick()
            except Exception:  # noqa: BLE001 top of the receiver's thread: the last configuration stays in force until the next
                log.crash("a look at configuration and workers failed")

    def _beat(self) -> None:
        """The guard's tick. The accepting thread hears of it whatever this thread or the disk are at."""
        crew = self._crew
        if crew is not None:
            self._front.call(crew.pulse)
        self._front.call(self._hear)
        self._ticked.set()
        self._look()

    def _hear(self) -> None:
        """Called by the front: its loop goes round. It feeds the watchdog, and nothing else does."""
        self._heard = now_ns()
        if self.progress():
            alive("receiver")

    def _tick(self) -> None:
        try:
            config = self._source()
        except DcmgateError as e:
            log.error("the configuration cannot be read: the last one stays in force", error=e.message)
            config = self._config
        asked = self._side_wanted(config) != (self._side is not None)
        if config.generation != self._config.generation or self._problems or asked:
            self._configure(config)
        if self._crew is not None:
            self._front.call(self._crew.tick)
        self._look()

    def _look(self) -> None:
        """Have what changed told. Does not block."""
        if self._found() != self._condition:
            self._changed.set()

    def _found(self) -> health.Condition:
        return health.Condition(self.out_of_intake, tuple(self.problems))

    def _tell_changes(self) -> None:
        """A thread of its own: the tick may hang on the disk of which there is something to tell."""
        while True:
            self._changed.wait()
            self._changed.clear()
            if self._stopped:
                return
            try:
                self._tell()
            except Exception:  # noqa: BLE001 top of a thread: what comes next is told all the same
                log.crash("the state of intake could not be told")

    def _tell(self) -> None:
        """Publish whether anything is taken in, where that has changed; the keeper raises the alarm."""
        condition = self._found()
        if condition == self._condition:
            return
        if condition.out_of_intake:
            log.error("out of intake", why=condition.out_of_intake)
        self._condition = condition
        health.write(self._run_dir, condition.out_of_intake, condition.problems)
        kick.send(self._run_dir / kick.KEEPER)

    def _configure(self, config: Config) -> None:
        if config.listeners != self._config.listeners:
            self._announce(config)
        self._config = config
        self._places.configure(config.peers)
        if self._worker is not None:
            self._worker.configure(config)
        crew = self._crew
        if crew is not None:
            self._front.call(lambda: crew.configure(config))
        before = dict(self._problems)
        self._open_ports(config)
        self._open_side_door(config)
        self._front.listen(self._ports())
        for problem in self.problems if self._problems != before else []:
            log.error(problem)

    # -- ports -------------------------------------------------------------------------------------------------------

    def _announce(self, config: Config) -> None:
        for listener in config.listeners:
            tls.announce(listener)

    def _open_ports(self, config: Config) -> None:
        """Have exactly the ports of that configuration; those that are open already stay as they are."""
        wanted = {(listener.id, listener.address, port) for listener in config.listeners for port in listener.ports}
        bound = {key: self._bound[key] for key in wanted if key in self._bound}
        gone = {(address, port): key for key, (_, address, port) in ((k, k) for k in self._bound) if key not in wanted}
        self._problems = {}
        for key in sorted(wanted - bound.keys()):
            listener, address, port = key
            moved = gone.get((address, port))
            if moved is not None:        # the same port under another [[listener]]
                bound[key] = Bound(listener, self._bound[moved].sock)
                continue
            try:
                bound[key] = Bound(listener, sockets.listen(address, port, self._given))
            except OSError as e:
                self._problems[key] = e.strerror or str(e)
        for key, each in bound.items():
            each.secure = any(entry.id == key[0] and entry.tls != "off" for entry in config.listeners)
        self._bound = bound

    def _side_wanted(self, config: Config) -> bool:
        return any(destination.canary_minutes > 0 for destination in config.destinations) or sidedoor.asked(self._run_dir)

    def _open_side_door(self, config: Config) -> None:
        """The way in for our own canaries, where something wants some; the front closes it where nothing does any more."""
        if not self._side_wanted(config):
            self._side = None
        elif self._side is None:
            try:
                sock, door = sidedoor.make(self._run_dir)
            except OSError as e:
                log.error("there is no way in for canaries", why=e)
            else:
                self._side = Bound(canary.LISTENER, sock, token=door.token)

    def _ports(self) -> list[Bound]:
        return [*self._bound.values(), *([self._side] if self._side is not None else [])]

    def _own_ports(self) -> list[selfecho.Port]:
        """Where it calls itself: one without TLS if there is one, where it gets an answer to a C-ECHO."""
        found = [(address, bound.port, bound.secure) for (_, address, _), bound in list(self._bound.items())]
        return [port for port in found if not port[2]] or found

    def _close_ports(self) -> None:
        for bound in self._bound.values():
            bound.sock.close()
        self._bound = {}

    # -- the front's thread ------------------------------------------------------------------------------------------

    def _take(self, sock: socket.socket, arrival: Arrival) -> bool:
        listener = self._listener(arrival.listener)
        if listener is None:
            return False
        full = self._places.take(listener, arrival.address)
        if full and self._crew is not None:
            self._crew.settle()
            full = self._places.take(listener, arrival.address)
        if full:
            log.warning("association rejected: local limit exceeded", why=full)
            return False
        ticket = next(self._tickets)
        self._held[ticket] = (listener.id, arrival.address)
        taken = self._crew.take(sock, arrival, ticket) if self._crew is not None else (
            self._worker is not None and self._worker.take(sock, arrival, ticket))
        if not taken:
            self._ended(ticket)
        return taken

    def _listener(self, id: str) -> Listener | None:
        if id == canary.LISTENER:
            return _SIDE
        return next((listener for listener in self._config.listeners if listener.id == id), None)

    def _ended(self, ticket: int) -> None:
        held = self._held.pop(ticket, None)
        if held is not None:
            self._places.give_back(*held)
