"""`make run`: a whole gateway with an embedded archive and a simulated scanner, to watch and to send to.

    python -m appliance.demo [--once] [--address ADDRESS] [--port PORT] [--folder FOLDER]

Starts `dcmgate run` on a spool and an archive of its own, sends a real study
from a simulated scanner (pydicom's bundled files and a synthetic CT), takes the
archive away in the middle and gives it back, and shows the table until
everything is confirmed and the balance is exact. Then it stays up for whoever
wants to send to it; `--once` ends there, its last line being the balance's.

It uses the gateway only as its users do: through `dcmgate` and through DICOM.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from appliance.demo_scanner import SLICES, TITLE, Scanner

AWAY_SECONDS = 4.0
"""How long the archive is away after the gateway has noticed."""

SETTLE_SECONDS = 300.0
"""Longest time for everything to be confirmed; a failure afterwards."""

QUOTA = 4 << 30

Draw = Callable[[str], None]


class DemoFailed(Exception):
    """Something did not happen; the message names it and where to look."""


# --- the gateway ----------------------------------------------------------------------------------------------------------

class Gateway:
    """`dcmgate` in a folder of its own, seen from outside."""

    def __init__(self, folder: Path, run: Path, address: str, port: int) -> None:
        self.folder = folder
        self.archive = folder / "archive"
        self.away = folder / "archive.taken-away"
        self.config = folder / "dcmgate.toml"
        self.log = folder / "gateway.log"
        self.port = port
        self._command = [sys.executable, "-m", "appliance.cli.main", "--config", str(self.config)]
        self._environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        self._process: subprocess.Popen[bytes] | None = None
        self.config.write_text(_config(folder, run, self.archive, address, port))

    def command(self, *arguments: str, check: bool = True) -> str:
        """What a command says; DemoFailed where its exit status is not 0 and `check` is set."""
        done = subprocess.run([*self._command, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              env=self._environment, timeout=120, check=False)
        if check and done.returncode:
            raise DemoFailed(f"dcmgate {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def facts(self, *arguments: str) -> dict[str, Any]:
        """A command's answer in JSON."""
        answer: dict[str, Any] = json.loads(self.command("--json", *arguments, check=False))
        return answer

    @contextmanager
    def running(self) -> Iterator[None]:
        """`dcmgate run`, from ready to drained."""
        self.command("spool", "init")
        self.command("archive", "init", str(self.archive))
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C is ours, and the gateway is asked to drain.
            self._process = subprocess.Popen([*self._command, "--json", "run"], stdin=subprocess.DEVNULL, stdout=log,
                                             stderr=log, env=self._environment, start_new_session=True)
        try:
            self._wait(lambda: b'{"ready": ' in self.log.read_bytes(), 60, "the gateway is not ready")
            yield
        finally:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)

    def _wait(self, condition: Callable[[], bool], seconds: float, text: str) -> None:
        end = time.monotonic() + seconds
        pause = threading.Event()
        while not condition():
            self.look()
            if time.monotonic() > end:
                raise DemoFailed(f"{text}: see {self.log}")
            pause.wait(0.05)

    def look(self) -> None:
        """DemoFailed where the gateway ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-5:])
            raise DemoFailed(f"the gateway ended with status {self._process.returncode}:\n{tail}")

    def settled(self, sent: int) -> bool:
        """Whether everything is confirmed by the archive and accounted for."""
        found = self.facts("balance")
        return int(found["accepted"]) >= sent and not any(
            found[part] for part in ("in_flight", "waiting", "sent", "unaccounted"))

    def take_archive_away(self) -> None:
        self.archive.rename(self.away)

    def give_archive_back(self) -> None:
        self.away.rename(self.archive)

    def archive_state(self) -> str:
        """What the gateway thinks of the archive, in its own words."""
        found = self.facts("status", "--once")["destinations"]
        return next((str(entry["state"]) for entry in found if entry["destination"] == "archive"), "unknown")


def _config(folder: Path, run: Path, archive: Path, address: str, port: int) -> str:
    """The demo's configuration: anybody who reaches the port may send, one archive takes everything."""
    return f"""# Made by `make run`.
[[listener]]
id = "scanners"
address = {json.dumps(address)}
ports = [{port}]
unknown = "admit"

[[destination]]
id = "archive"
type = "folder"
path = {json.dumps(str(archive))}
default = true
proof = "readback"

[spool]
path = {json.dumps(str(folder / "spool"))}
state = {json.dumps(str(folder / "state"))}
size = {QUOTA}
receivers = 1

[control]
run = {json.dumps(str(run))}
"""


# --- what is seen ---------------------------------------------------------------------------------------------------------

class Screen:
    """On a terminal the table is drawn over itself; elsewhere a line a second says what has changed."""

    def __init__(self, gateway: Gateway, scanner: Scanner) -> None:
        self._gateway = gateway
        self._scanner = scanner
        self._live = sys.stdout.isatty()
        self._last = ""
        self.headline = ""

    def say(self, text: str) -> None:
        """A line that stays."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def news(self, text: str) -> None:
        """What happens now."""
        self.headline = text
        if not self._live:
            self.say(f"-- {text}")

    def draw(self) -> None:
        """The table as `dcmgate status` shows it, or one line of it."""
        if self._live:
            table = self._gateway.command("status", "--once", check=False)
            columns, rows = shutil.get_terminal_size()
            lines = [f"make run — {self.headline}", "", *table.splitlines()]
            sys.stdout.write("\x1b[H\x1b[2J" + "\n".join(line[:columns] for line in lines[:rows - 1]) + "\n")
            sys.stdout.flush()
            return
        facts = self._gateway.facts("status", "--once")
        entry = facts["destinations"][0]
        line = (f"scanner sent {self._scanner.sent}, accepted {facts['accepted']}, archive {entry['state']}: "
                f"owed {entry['owed']}, confirmed {entry['confirmed']}")
        if line != self._last:
            self._last = line
            self.say("   " + line)

    def table(self) -> None:
        """The whole table once, to stay."""
        sys.stdout.write("\n" + self._gateway.command("status", "--once", check=False) + "\n")
        sys.stdout.flush()


def addresses() -> list[str]:
    """This machine's own IPv4 addresses, the loopback left out."""
    return [entry.address for entries in psutil.net_if_addrs().values() for entry in entries
            if entry.family == socket.AF_INET and not entry.address.startswith("127.")]


def how_to_send(gateway: Gateway, address: str) -> str:
    """Exact lines for whoever wants to send something to it now."""
    program = "dcmgate" if shutil.which("dcmgate") else _short(Path(sys.executable).with_name("dcmgate"))
    reached = [a for a in addresses() if address in ("0.0.0.0", a)]
    lines = [f"Send to it with DCMTK:   storescu -v -aec {TITLE} 127.0.0.1 {gateway.port} IMAGE.dcm",
             f"or without:              {program} send --called {TITLE} 127.0.0.1:{gateway.port} IMAGE.dcm"]
    if reached:
        lines.append(f"From a real scanner:     host {' or '.join(reached)}, port {gateway.port}, called AE title {TITLE}, "
                     "any calling title")
    else:
        lines.append("From a real scanner:     start it as `make run ADDRESS=0.0.0.0`: it listens on this machine only; then "
                     f"host {' or '.join(addresses()) or '(this machine)'}, port {gateway.port}, called AE title {TITLE}")
    lines += [f"Look at it:              {program} --config {_short(gateway.config)} status",
              f"What arrived:            {_short(gateway.archive)}"]
    return "\n".join(lines)


def _short(path: Path) -> str:
    """A path as a person here would type it."""
    with suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


# --- the play -------------------------------------------------------------------------------------------------------------

def play(gateway: Gateway, scanner: Scanner, screen: Screen) -> None:
    """Everything up to the exact balance. DemoFailed."""
    pause = threading.Event()

    def until(condition: Callable[[], bool], seconds: float, text: str) -> None:
        end = time.monotonic() + seconds
        while not condition():
            gateway.look()
            if scanner.error is not None:
                raise DemoFailed(f"the scanner could not send: {scanner.error}")
            if time.monotonic() > end:
                screen.table()
                raise DemoFailed(f"{text} within {seconds:.0f} s: see {gateway.log}")
            screen.draw()
            pause.wait(0.5)

    screen.news(f"a scanner sends pydicom's files and a CT of {SLICES} slices")
    scanner.start()
    until(scanner.half_way.is_set, 120, "the scanner did not come half way")
    gateway.take_archive_away()
    screen.news("the archive is taken away; the scanner sends on")
    scanner.may_go_on.set()
    until(lambda: scanner.done, 120, "the scanner did not come to its end")
    until(lambda: gateway.archive_state() != "up", 60, "the gateway did not notice that the archive is away")
    until_seen = time.monotonic() + AWAY_SECONDS
    until(lambda: time.monotonic() > until_seen, 60, "time")
    gateway.give_archive_back()
    screen.news("the archive is back")
    until(lambda: gateway.settled(scanner.sent), SETTLE_SECONDS, "not everything was confirmed")
    screen.news("everything is confirmed")
    screen.draw()


def main() -> int:
    """The program; 0 when the balance was exact."""
    arguments = _arguments()
    warnings.simplefilter("ignore")   # pydicom has something to say on some of its own files

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    base = Path(arguments.folder or tempfile.gettempdir()).resolve()
    base.mkdir(parents=True, exist_ok=True)
    try:
        # Sockets are elsewhere: their paths may have 107 bytes, wherever the tree lies.
        with (tempfile.TemporaryDirectory(prefix="demo-", dir=base, ignore_cleanup_errors=True) as folder,
              tempfile.TemporaryDirectory(prefix="dcmgate-") as run):
            gateway = Gateway(Path(folder), Path(run), arguments.address, arguments.port or _port(arguments.address))
            return _demonstrate(gateway, arguments)
    except DemoFailed as error:
        sys.stdout.flush()
        sys.stderr.write(f"make run: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stdout.write("\n")
        return 0


def _demonstrate(gateway: Gateway, arguments: argparse.Namespace) -> int:
    scanner = Scanner(gateway.port)
    screen = Screen(gateway, scanner)
    with gateway.running():
        play(gateway, scanner, screen)
        screen.table()
        screen.say(f"The scanner sent {scanner.sent} objects, {scanner.refused} of them were refused. The archive was away in "
                   "the middle; the gateway kept what it owed and delivered it afterwards.\n")
        screen.say(how_to_send(gateway, arguments.address))
        if not arguments.once:
            screen.say("\nIt stays up until Ctrl-C.")
            screen.headline = f"port {gateway.port}, AE title {TITLE}; Ctrl-C ends it"
            _stay(gateway, screen)
    screen.say("")
    balance = gateway.command("balance", check=False)
    screen.say(balance.rstrip("\n"))
    return 0 if re.search(r"^unaccounted 0$", balance, re.MULTILINE) and not scanner.refused else 1


def _stay(gateway: Gateway, screen: Screen) -> None:
    """Until Ctrl-C, the table is shown whenever something has changed."""
    pause = threading.Event()
    before: object = None
    with suppress(KeyboardInterrupt):
        while True:
            gateway.look()
            now = [gateway.facts("balance"), gateway.archive_state()]
            if before is not None and now != before:
                screen.table()
            before = now
            pause.wait(2.0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make run", description="A gateway with an embedded archive and a simulated scanner.")
    parser.add_argument("--once", action="store_true", help="end after the balance")
    parser.add_argument("--address", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=0, help="port (default: 11112, or a free one where that is taken)")
    parser.add_argument("--folder", default="", help="where spool and archive are made, and removed at the end")
    return parser.parse_args()


def _port(address: str) -> int:
    """11112 (registered for DICOM) where it is free, else any."""
    for wanted in (11112, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind((address, wanted))
                return int(probe.getsockname()[1])
    raise DemoFailed(f"no port can be opened on {address}")


if __name__ == "__main__":
    sys.exit(main())
