"""Dcmgate itself as its users start it: subprocesses with a generated configuration, killed and started again at will.

`Gateway(...)` writes the configuration, makes the spool and the archives;
`start` runs the whole ("run") or one stage, and returns when it is ready. At
the end of the `with` block nothing is left running.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from appliance.net import kick
from tests.support import measure
from tests.support.peers import Destination
from tests.support.waiting import free_port, wait_until

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "appliance.cli.main")
STAGES = ("receiver", "forwarder", "keeper")

Table = Mapping[str, Any]


def toml(tables: Iterable[tuple[str, Table]]) -> str:
    """Tables in TOML; a name in brackets is one of a list ("[listener]")."""
    return "\n".join(f"[{name}]\n" + "".join(f"{key} = {_value(value)}\n" for key, value in table.items())
                     for name, table in tables)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_value(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(inner) for inner in value) + "]"
    return json.dumps(str(value) if isinstance(value, Path) else value)


def to_peer(destination: Destination, **settings: Any) -> dict[str, Any]:
    """A `[[destination]]` for one of the real programs; patient enough for tests, and quick to try again."""
    return {"id": destination.kind, "type": "dimse", "address": "127.0.0.1", "port": destination.port,
            "called": destination.title, "calling": "DCMGATE", "default": True, "status_days": 0.0, **settings}


def to_folder(path: Path, **settings: Any) -> dict[str, Any]:
    return {"id": "archive", "type": "folder", "path": path, "default": True, "proof": "readback", **settings}


QUOTA = 4 << 30        # so that no test goes by how full the disk of this machine is


class Gateway:
    """One Dcmgate. `port` takes associations from anybody unless `peers` says who may call."""

    def __init__(self, folder: Path, destinations: Iterable[Table], *, receivers: int = 1, peers: Iterable[Table] = (),
                 rules: Iterable[Table] = (), listener: Table | None = None, spool: Table | None = None,
                 extra: Iterable[tuple[str, Table]] = (), size: int = QUOTA) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.spool = folder / "spool"
        self.config = folder / "dcmgate.toml"
        self.port = free_port()
        self.run = Path(tempfile.mkdtemp(prefix="dg-"))   # a socket's path may have 107 bytes: pytest's folders are longer
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._logged: dict[str, int] = {}
        self.destinations = [dict(destination) for destination in destinations]
        self._listener = {"id": "modality", "address": "127.0.0.1", "ports": [self.port], "unknown": "admit",
                          **(listener or {})}
        self._peers = [dict(peer) for peer in peers]
        self._rules = [dict(rule) for rule in rules]
        self._spool = {"path": self.spool, "state": folder / "state", "receivers": receivers, "keep_min_hours": 24.0,
                       "size": size, **(spool or {})}
        self._extra = list(extra)
        self.write_config()

    def write_config(self) -> None:
        """The configuration from `destinations` and the rest as they are now."""
        tables: list[tuple[str, Table]] = [("[listener]", self._listener)]
        tables += [("[peer]", peer) for peer in self._peers]
        tables += [("[destination]", destination) for destination in self.destinations]
        tables += [("[rule]", rule) for rule in self._rules]
        tables += [("spool", self._spool), ("control", {"run": self.run}), *self._extra]
        self.config.write_text(toml(tables))

    def make(self) -> Self:
        """`spool init`, and `archive init` for every folder destination."""
        self.command("spool", "init")
        for destination in self.destinations:
            if destination.get("type") == "folder" and not Path(destination["path"]).exists():
                self.command("archive", "init", str(destination["path"]))
        return self

    def __enter__(self) -> Self:
        return self.make() if not self.spool.exists() else self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for name in list(self.processes):
            self.kill(name)
        shutil.rmtree(self.run, ignore_errors=True)
        if kind is not None:
            sys.stderr.write(self.log_tail())

    # processes

    def start(self, *names: str) -> Gateway:
        """Start "run", or stages by name, and wait until each is ready."""
        self.launch(*names)
        for name in names or ("run",):
            self.wait_ready(name)
        return self

    def launch(self, *names: str) -> None:
        """Start them, and wait for nothing."""
        for name in names or ("run",):
            assert name not in self.processes, f"{name} is running already"
            with self.log(name).open("ab") as out:
                self._logged[name] = out.tell()
                self.processes[name] = subprocess.Popen(
                    [*COMMAND, "--config", str(self.config), "--json", name], stdin=subprocess.DEVNULL, stdout=out,
                    stderr=out, cwd=ROOT, env=self._environment(), start_new_session=True)

    def start_stages(self) -> Gateway:
        return self.start(*STAGES)

    def wait_ready(self, name: str, seconds: float = 60.0) -> None:
        """Until the stage says so; fails at once where it ended."""
        process = self.processes[name]

        def ready() -> bool:
            assert process.poll() is None, f"{name} ended with {process.returncode}\n{self.log_tail()}"
            with self.log(name).open("rb") as log:
                log.seek(self._logged[name])
                return b'{"ready": ' in log.read()

        wait_until(ready, seconds, f"{name} is ready")

    def kill(self, name: str = "run") -> None:
        """SIGKILL to a stage and its children."""
        process = self.processes.pop(name)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)

    def stop(self, name: str = "run", seconds: float = 30.0) -> int:
        """SIGTERM, as systemd does; the exit status."""
        process = self.processes.pop(name)
        process.terminate()
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
            raise AssertionError(f"{name} did not stop within {seconds:g} s of SIGTERM\n{self.log_tail()}") from None

    def restart(self, name: str = "run") -> None:
        """kill -9, and start again."""
        self.kill(name)
        self.start(name)

    def nudge(self) -> None:
        """Have every stage do now what it would do at its next tick or round (SIGHUP, and a kick to the keeper)."""
        for process in self.processes.values():
            process.send_signal(signal.SIGHUP)
        kick.send(self.run / kick.KEEPER)

    def pid(self, name: str = "run") -> int:
        return self.processes[name].pid

    def pss(self) -> int:
        """Summed PSS of everything that runs, in bytes."""
        return sum(measure.pss_bytes(process.pid) for process in self.processes.values())

    def cpu(self) -> float:
        """Processor seconds of everything that runs."""
        return sum(measure.cpu_seconds(process.pid) for process in self.processes.values())

    def log(self, name: str = "run") -> Path:
        return self.folder / f"{name}.log"

    def log_tail(self, size: int = 3000) -> str:
        logs = {path.name: path.read_text(errors="replace")[-size:] for path in sorted(self.folder.glob("*.log"))}
        return "\n".join(f"--- {name} ---\n{text}" for name, text in logs.items())

    # commands

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), "DCMGATE_CONFIG": str(self.config)}

    def command(self, *arguments: str, status: int | None = 0, seconds: float = 120.0) -> str:
        """What a `dcmgate` command prints; AssertionError where its exit status is another one."""
        done = subprocess.run([*COMMAND, "--config", str(self.config), *arguments], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, cwd=ROOT, env=self._environment(), timeout=seconds, check=False)
        if status is not None and done.returncode != status:
            raise AssertionError(f"dcmgate {' '.join(arguments)}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def json(self, *arguments: str, status: int | None = 0) -> Any:
        text = self.command("--json", *arguments, status=status)
        try:
            return json.loads(text)
        except ValueError:
            raise AssertionError(f"dcmgate {' '.join(arguments)} did not answer in JSON: {text[:500]!r}") from None

    def balance(self, status: int | None = 0) -> dict[str, Any]:
        """The balance (I2); AssertionError where anything is unaccounted."""
        answer: dict[str, Any] = self.json("balance", status=status)
        return answer

    def wait_settled(self, seconds: float = 120.0, *, accepted: int = 0,
                     states: Iterable[str] = ("waiting",)) -> dict[str, Any]:
        """The balance as soon as nothing is in one of these states any more, and at least `accepted` were taken.

        Objects whose rows are still on their way into the ledger (`in_flight`) count as not settled.
        """
        last: dict[str, Any] = {}

        def settled() -> bool:
            nonlocal last
            last = self.balance(status=None)
            return (last["unaccounted"] == 0 and last["in_flight"] == 0 and last["accepted"] >= accepted
                    and all(last[state] == 0 for state in states))

        begin = time.monotonic()
        try:
            wait_until(settled, seconds, "settled", every=0.2)
        except AssertionError:
            raise AssertionError(f"not settled after {time.monotonic() - begin:.0f} s: {last}\n{self.log_tail()}") from None
        return last


@contextmanager
def gateway(folder: Path, destinations: Iterable[Table], **settings: Any) -> Iterator[Gateway]:
    """A whole gateway in one process, ready."""
    with Gateway(folder, destinations, **settings) as made:
        made.start("run")
        yield made
