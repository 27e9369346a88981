"""Wiring: finds and opens the spool, takes the configuration in force, and builds each stage on them.

A bad or missing file leaves the last good generation in force: the spool is
found by whatever can still be made out of the file (`load.survivors`), and the
generation lies in the spool's ledger.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import random
from typing import TYPE_CHECKING, Protocol

from appliance.clock import Clock, SystemClock
from appliance.config import load
from appliance.config.settings import Config, Control
from appliance.config.settings import Spool as SpoolSettings
from appliance.errors import ConfigError, SpoolRefused
from appliance.manage import generations
from appliance.manage.control import SOCKET, Either, Verb, is_answering, this_user
from appliance.manage.generations import InForce, Source
from appliance.net import kick
from appliance.spool.layout import Spool, open_configured
from appliance.spool.ledger import Ledger
from appliance.telemetry.log import ROOT, Log

if TYPE_CHECKING:
    from appliance.cli.context import Site
    from appliance.forward.engine import Forwarder
    from appliance.health.monitor import Monitor
    from appliance.spool.index import Index

_log = Log("services")
logging.getLogger(ROOT).addHandler(logging.NullHandler())      # a command says what a person needs; only a stage logs


@dataclass(frozen=True, slots=True)
class Place:
    """What a file says of where things are. `problem` is why it is not a good configuration, None where it is."""

    path: str
    text: str
    spool: SpoolSettings
    control: Control
    problem: ConfigError | None


def locate(path: str) -> Place:
    """Read the file, good or bad. Never raises: a missing file leaves the defaults."""
    try:
        text = load.read(path)
    except ConfigError as e:
        return Place(path, "", *load.survivors(""), e)
    problem = None
    try:
        config = generations.parse(text, path)
    except ConfigError as e:
        problem = e
    else:
        return Place(path, text, config.spool, config.control, None)
    return Place(path, text, *load.survivors(text), problem)


def open_spool(place: Place) -> Spool:
    """The spool that the file means. SpoolRefused; where the file is bad, that comes first, and is the ConfigError."""
    try:
        return open_configured(place.spool)
    except SpoolRefused as e:
        if place.problem is not None:
            raise place.problem from e
        raise


@dataclass(slots=True)
class Opened:
    """A spool for reading, with the configuration in force. `problem`: why the file is not what is in force."""

    place: Place
    spool: Spool
    ledger: Ledger
    config: Config
    problem: ConfigError | None = None
    stale: bool = False
    _index: Index | None = field(default=None, repr=False)

    def index(self) -> Index | None:
        """What people search by; None where there is none yet (the forwarder makes it)."""
        if self._index is None and self.spool.index_path.exists():
            from appliance.spool.index import Index
            self._index = Index.open(self.spool.index_path, read_only=True)
        return self._index

    @property
    def run(self) -> Path:
        return Path(self.config.control.run)

    def keeper_answers(self) -> bool:
        return is_answering(self.run / SOCKET)

    def close(self) -> None:
        if self._index is not None:
            self._index.close()
        self.ledger.close()


def open_site(path: str, clock: Clock | None = None) -> Opened:
    """For the commands that look: the ledger is opened for reading only."""
    place = locate(path)
    spool = open_spool(place)
    ledger = Ledger.open(spool.ledger_path, clock or SystemClock(), read_only=True)
    try:
        config = generations.published(ledger)
        if config is None:
            if place.problem is not None:
                raise place.problem
            return Opened(place, spool, ledger, generations.parse(place.text, path))
        latest = ledger.latest()
        stale = place.problem is None and latest is not None and latest[1] != place.text
        return Opened(place, spool, ledger, config, place.problem, stale)
    except ConfigError:
        ledger.close()
        raise


# --- verbs ---------------------------------------------------------------------------------------------------------------

def asking(site: Site) -> Either:
    """The verbs of the running keeper; where none runs, the same ones on the spool itself."""
    place = locate(site.config_path)

    def here() -> Mapping[str, Verb]:
        opened = open_for_work(place)
        site.on_close(opened.ledger.close)
        return opened.verbs()

    return Either(place.control.run, here)


@dataclass(slots=True)
class Working:
    """A spool for work: the ledger can be written, and the configuration in force is followed."""

    place: Place
    spool: Spool
    ledger: Ledger
    source: Source

    @property
    def run(self) -> Path:
        return Path(self.source().control.run)

    def reload(self, by: str) -> InForce:
        """Put the file in force. ConfigError: then nothing has changed."""
        return generations.publish_file(self.ledger, self.place.path, by)

    def kick(self) -> None:
        kick.send(self.run / kick.FORWARDER)

    def verbs(self) -> Mapping[str, Verb]:
        from appliance.manage.verbs import Desk, handlers
        return handlers(Desk(self.spool, self.ledger, self.source, self.reload, self.kick))


def open_for_work(place: Place, clock: Clock | None = None, *, publish: bool = False, who: str = "dcmgate") -> Working:
    """For stages and for verbs without a keeper.

    `publish` puts a changed file in force (the keeper's task); without it that
    happens only where there is no generation yet. A bad file is logged and leaves
    the last good generation in force; without one it is raised. `who`: as others
    hear of it where we meet an I/O error.
    """
    spool = open_spool(place)
    spool.latch.attach(Path(place.control.run), who)
    ledger = Ledger.open(spool.ledger_path, clock or SystemClock(), latch=spool.latch)
    try:
        return Working(place, spool, ledger, Source(ledger, _in_force(place, ledger, publish)))
    except ConfigError:
        ledger.close()
        raise


def _in_force(place: Place, ledger: Ledger, publish: bool) -> Config:
    if publish and place.problem is None:
        return generations.publish_text(ledger, place.text, place.path, this_user()).config
    config = generations.published(ledger)
    if config is None and place.problem is None:
        config = generations.publish_text(ledger, place.text, place.path, this_user()).config
    if config is None:
        assert place.problem is not None
        raise place.problem
    if place.problem is not None:
        _log.error("the configuration file is bad: the last good generation stays in force", generation=config.generation,
                   error=str(place.problem))
    return config


# --- stages --------------------------------------------------------------------------------------------------------------

class Stage(Protocol):
    """What a stage is to whoever runs it."""

    def start(self) -> None: ...

    def stop(self) -> object: ...


ALL = ("keeper", "tunnels", "forwarder", "receiver")
"""In the order of their start: whoever takes in comes last, and stops first."""


class Box:
    """Some stages of one gateway in this process."""

    def __init__(self, path: str, names: tuple[str, ...], clock: Clock | None = None) -> None:
        self._path = path
        self._names = tuple(name for name in ALL if name in names)
        self._clock = clock or SystemClock()
        self._working: Working | None = None
        self._stages: dict[str, Stage] = {}

    def start(self) -> None:
        """Open, build and start in order; where one fails, those before it are stopped again."""
        who = "dcmgate run" if len(self._names) > 1 else self._names[0]
        working = open_for_work(locate(self._path), self._clock, publish="keeper" in self._names, who=who)
        self._working = working
        with ExitStack() as undo:
            undo.callback(self.stop)
            working.run.mkdir(mode=0o750, parents=True, exist_ok=True)
            working.spool.latch.attach(working.run, who)
            for name in self._names:
                stage = _BUILDERS[name](working, self._clock, len(self._names) > 1)
                stage.start()
                self._stages[name] = stage
            undo.pop_all()

    @property
    def config(self) -> Config:
        assert self._working is not None
        return self._working.source()

    def reload(self) -> None:
        """SIGHUP: the keeper puts the file in force, every stage looks at what is. A bad file changes nothing and is logged."""
        assert self._working is not None
        if "keeper" in self._stages:
            try:
                result = self._working.reload(this_user())
                _log.info("configuration is in force", generation=result.config.generation, changed=result.changed)
            except ConfigError as e:
                _log.error("the configuration file is bad: the last good generation stays in force", error=str(e))
        for stage in self._stages.values():
            look: Callable[[], None] | None = getattr(stage, "reload", None)
            if look is not None:
                look()
        self._working.kick()

    def stop(self) -> None:
        """Drain and end, the last started first; one that fails at it does not keep the others up."""
        with ExitStack() as ends:
            if self._working is not None:
                ends.callback(self._working.ledger.close)
                self._working = None
            for stage in self._stages.values():
                ends.callback(stage.stop)
            self._stages.clear()


def _keeper(working: Working, clock: Clock, together: bool) -> Stage:
    from appliance.keeper import Keeper
    return Keeper(working.source, working.spool, clock, reload=working.reload)


def _forwarder(working: Working, clock: Clock, together: bool) -> Stage:
    from appliance.forward.engine import Forwarder
    from appliance.forward.router import minute_of_day
    from appliance.health.canaries import Canaries
    from appliance.health.monitor import Monitor
    forwarder = Forwarder(working.source, working.spool, clock)
    canaries = Canaries(working.spool, clock, working.run, random, partial(minute_of_day, clock))
    return _Beside(forwarder, Monitor(working.source, clock, working.run, forwarder.traffic, forwarder.troubled,
                                      canaries=canaries))


class _Beside:
    """The forwarder, and what looks after the destinations' health by its side."""

    def __init__(self, forwarder: Forwarder, monitor: Monitor) -> None:
        self._forwarder = forwarder
        self._monitor = monitor
        self.reload = forwarder.reload

    def start(self) -> None:
        with ExitStack() as undo:
            self._forwarder.start()
            undo.callback(self._forwarder.stop)
            self._monitor.start()
            undo.pop_all()

    def stop(self) -> object:
        self._monitor.stop()
        return self._forwarder.stop()


def _tunnels(working: Working, clock: Clock, together: bool) -> Stage:
    from appliance.tunnel.runner import Runner
    return Runner(working.source, clock)


def _receiver(working: Working, clock: Clock, together: bool) -> Stage:
    from appliance.receive.receiver import Receiver
    workers = working.source().spool.receivers or 1 if together else None
    return Receiver(working.source, working.spool, clock, working.run, workers=workers)


_BUILDERS: Mapping[str, Callable[[Working, Clock, bool], Stage]] = {
    "keeper": _keeper, "tunnels": _tunnels, "forwarder": _forwarder, "receiver": _receiver}
