"""`dcmgate observe`: looks at the box every ten seconds, and shows it: console, page on the scanners' side, figures.

It changes nothing, and needs nobody: without keeper, spool or configuration it says so. What it writes is read by the two
small services that are called from outside (`appliance.net.page`).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance import __version__
from appliance.cli import exits
from appliance.cli.context import Site
from appliance.clock import SECOND, SystemClock
from appliance.errors import DcmgateError
from appliance.model import Alarm, Severity, SpaceState

if TYPE_CHECKING:
    from appliance.cli.observe_figures import Machine
    from appliance.cli.status_command import Look
    from appliance.config.settings import Config
    from appliance.policy.verdict import Standing, Verdict

EVERY_SECONDS = 10.0
PUBLIC = "/run/dcmgate-public"
FIGURES = "/run/dcmgate-figures"
SYSTEM = Path("/run/dcmgate-system")
TEST_KEYS = Path("/usr/lib/dcmgate/test-keys")
RECOVERY_KEY = "recovery-key"
WRITING_SECONDS = 900.0
"""So long after set-up the screen is left alone, while the recovery key has not been written down."""

UNITS = ("receiver", "forwarder", "keeper")


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    one = commands.add_parser("observe", help="look at the box, and show it on console, page and figures", parents=[common])
    one.add_argument("--once", action="store_true", help="one look, then end")
    one.add_argument("--public", metavar="FOLDER", default=PUBLIC, help="where the verdict and the console's text are written")
    one.add_argument("--figures", metavar="FOLDER", default=FIGURES, help="where the figures for Prometheus are written")
    one.set_defaults(run=observe)


def observe(site: Site, arguments: argparse.Namespace) -> int:
    from appliance.telemetry import log, notify
    log.set_up()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    observer = Observer(site.config_path, Path(arguments.public), Path(arguments.figures))
    while True:
        shown = observer.look()
        site.emit({"colour": str(shown.verdict.colour), "sentence": shown.verdict.sentence, "console": shown.lines})
        if not site.as_json and not (observer.leaves_screen() and not arguments.once):
            site.out.write(shown.text if not arguments.once or site.is_terminal else "\n".join(shown.lines) + "\n")
            site.out.flush()
        notify.notify(READY=1, WATCHDOG=1, STATUS=shown.verdict.sentence)
        if arguments.once or stop.wait(EVERY_SECONDS):
            return exits.OK


@dataclass(frozen=True, slots=True)
class Shown:
    verdict: Verdict
    lines: list[str]
    text: str


class Observer:
    """`look` at each round. What was opened stays open until it fails: then it is opened anew at the next round."""

    def __init__(self, config_path: str, public: Path, figures: Path) -> None:
        self._path = config_path
        self._public = public
        self._figures = figures
        self._clock = SystemClock()
        self._site: Site | None = None
        self._look: Look | None = None

    def leaves_screen(self) -> bool:
        """Whether somebody may be writing the recovery key down, which provisioning has shown on this very screen."""
        from appliance.cli.services import locate
        try:
            there = (Path(locate(self._path).spool.state) / RECOVERY_KEY).stat().st_size > 0
            return there and 0 <= time.time() - Path(self._path).stat().st_mtime < WRITING_SECONDS
        except OSError:
            return False

    def look(self) -> Shown:
        """Find, judge, write. Never raises but for a fault of the program."""
        from appliance.cli import observe_console, observe_figures
        from appliance.policy.verdict import verdict
        facts, fault = self._facts()
        config = self._config()
        machine = self._machine(config)
        found = verdict(self._standing(facts, fault, machine))
        lines = observe_console.console(
            socket.gethostname(), __version__, _addresses(), config, facts, found, notices=_notices(), wall=machine.wall)
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._write(self._public / "verdict.json", json.dumps({"colour": str(found.colour), "sentence": found.sentence,
                                                               "at": now}) + "\n")
        self._write(self._public / "console.txt", "\n".join(lines) + "\n")
        self._write(self._figures / "metrics.prom", observe_figures.figures(facts, machine))
        return Shown(found, lines, observe_console.coloured(lines, found.colour))

    # --- what there is --------------------------------------------------------------------------------------------------

    def _facts(self) -> tuple[dict[str, Any] | None, str]:
        """Those of `status`, and why there are none."""
        from appliance.cli.status_command import Look
        if not Path(self._path).exists():
            return None, ""
        try:
            if self._site is None or self._look is None:
                self._site = Site(self._path)
                self._look = Look(self._site, self._site.opened())
            facts = self._look.facts(1)
        except (DcmgateError, OSError) as e:
            self._forget()
            return None, str(e)
        if facts["stale"] or facts["generation"] != self._site.opened().config.generation:
            self._forget()
        return facts, ""

    def _forget(self) -> None:
        if self._site is not None:
            self._site.close()
        self._site = self._look = None

    def _config(self) -> Config | None:
        from appliance.cli.services import locate
        from appliance.manage import generations
        if self._site is not None:
            return self._site.opened().config
        place = locate(self._path)
        return generations.parse(place.text, self._path) if place.problem is None else None

    def _standing(self, facts: Mapping[str, Any] | None, fault: str, machine: Machine) -> Standing:
        from appliance.policy.verdict import Standing
        state = machine.units.get("dcmgate-receiver.service", ("unknown", 0))[0]
        answers = state in ("active", "reloading", "unknown")
        if facts is None:
            return Standing(Path(self._path).exists(), answers, fault)
        alarms = [Alarm(alarm["key"], Severity(alarm["severity"]), alarm["text"]) for alarm in facts["alarms"]]
        if any(alarm.key == "out-of-intake" for alarm in alarms):
            fault = "the disk is out of intake"
        away = [told for told in facts["destinations"] if told["state"] in ("down", "removed") and told["owed"]]
        return Standing(True, answers, fault, SpaceState(facts["state"]), sum(told["owed"] for told in away), len(away), alarms)

    def _machine(self, config: Config | None) -> Machine:
        import psutil

        from appliance.cli.observe_figures import Machine
        from appliance.keeper.certificates import ends
        memory = psutil.virtual_memory()
        run = Path(config.control.run) if config else Path("/run/dcmgate")
        named = {certificate.id for certificate in config.certificates} if config else set()
        return Machine(__version__, _units(), _refused(), {id: end for id, end in ends(run).items() if id in named},
                       _temperatures(), memory.total, memory.available, self._clock.boot_ns() / SECOND, self._clock.wall_ns(),
                       self._clock.trusted())

    @staticmethod
    def _write(path: Path, text: str) -> None:
        """In one step. A folder that is not there is nobody's loss: then nobody reads it."""
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                os.fchmod(descriptor, 0o644)
            beside.rename(path)
        except OSError as e:
            sys.stderr.write(f"cannot write {path}: {e.strerror or e}\n")


def _notices() -> list[str]:
    """What an image says of itself."""
    try:
        return [line for line in TEST_KEYS.read_text().splitlines() if line]
    except OSError:
        return []


def _addresses() -> list[tuple[str, str]]:
    """(interface, address) but the loopback and what is of the link alone."""
    import psutil
    return [(name, entry.address) for name, entries in sorted(psutil.net_if_addrs().items()) if name != "lo"
            for entry in entries
            if entry.family in (socket.AF_INET, socket.AF_INET6) and not entry.address.startswith("fe80:")]


def _temperatures() -> dict[str, float]:
    import psutil
    try:
        found = psutil.sensors_temperatures()
    except (OSError, AttributeError):
        return {}
    return {f"{chip}_{entry.label or nth}": entry.current for chip, entries in found.items()
            for nth, entry in enumerate(entries)}


def _units() -> dict[str, tuple[str, int]]:
    """State and restarts of our units; empty where no service manager answers."""
    names = [f"dcmgate-{unit}.service" for unit in UNITS]
    try:
        done = subprocess.run(["systemctl", "show", "--property=Id,ActiveState,NRestarts", *names], capture_output=True,
                              text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    units = {}
    for block in done.stdout.split("\n\n"):
        told = dict(line.partition("=")[::2] for line in block.splitlines())
        if told.get("Id"):
            units[told["Id"]] = (told.get("ActiveState", ""), int(told.get("NRestarts") or 0))
    return units


def _refused() -> dict[str, int]:
    """Packets by side, as dcmgate-refusals.service counted them last."""
    try:
        found = json.loads((SYSTEM / "refused.json").read_text())["nftables"]
        return {entry["counter"]["name"].removeprefix("refused_"): int(entry["counter"]["packets"])
                for entry in found if "counter" in entry}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
