"""`dcmgate degraded`, `watch`, `escalate` and `boot`, as the service manager runs them: real processes, without a spool."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.cli import watchdog_commands
from appliance.clock import SystemClock
from appliance.health.checks import State, Verdict, verdict
from appliance.spool.layout import Spool
from tests.support.scu import IMPLICIT, VERIFICATION, Lost, Scanner
from tests.support.waiting import wait_until

CT = "1.2.840.10008.5.1.4.1.1.2"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


@pytest.fixture
def site(tmp_path: Path) -> tuple[Path, int]:
    port = free_port()
    (tmp_path / "none").mkdir()
    config = tmp_path / "dcmgate.toml"
    config.write_text(f"""
[[listener]]
id = "a"
address = "127.0.0.1"
ports = [{port}]
[[peer]]
id = "ct"
titles = ["CT"]
[[destination]]
id = "pacs"
default = true
address = "127.0.0.1"
[spool]
path = "{tmp_path}/none"
state = "{tmp_path}"
[control]
run = "{tmp_path}"
""")
    return config, port


def command(config: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "appliance.cli.main", "--config", str(config), *words]


@contextmanager
def running(config: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command(config, *words), stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.requirement("Watchdog chain: degraded mode answers out of resources")
def test_degraded_answers_without_a_spool_and_ends_when_told(site: tuple[Path, int]) -> None:
    config, port = site
    with running(config, "degraded", "--why", "a test") as process:
        def answered() -> bool:
            try:
                with Scanner(port, [(VERIFICATION, IMPLICIT)], calling="CT") as scanner:
                    return scanner.echo() == 0
            except Lost:
                return False

        wait_until(answered, 60, "an echo")
        with pytest.raises(Lost, match="result 2 source 3 reason 2"):
            Scanner(port, [(CT, IMPLICIT)], calling="CT").open()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr is not None
        said = process.stderr.read().decode()
        assert "degraded mode: nothing is taken in" in said


def test_watch_tells_that_there_is_no_spool(site: tuple[Path, int], tmp_path: Path) -> None:
    config, _ = site
    with running(config, "watch", "--folder", str(tmp_path)) as process:
        wait_until(lambda: {v.check: v.state for v in verdict.read(tmp_path)}.get("spool") is State.BAD, 60, "the verdict")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not list((tmp_path / "none").iterdir()), "nothing is written where no spool is"


@pytest.mark.requirement("Watchdog chain: the spool's disk is probed from the first day")
def test_a_box_that_is_set_up_while_watch_runs_is_looked_after_at_once(site: tuple[Path, int], tmp_path: Path) -> None:
    config, _ = site
    text = config.read_text().replace("/none", "/spool")
    config.unlink()
    watched = watchdog_commands._Watched(str(config))
    assert watched.look() is None
    config.write_text(text)
    assert watched.look() is None, "its spool is being made, which is no fault"
    Spool.init(tmp_path / "spool", clock=SystemClock())
    assert watched.look() == Verdict("spool", State.GOOD)
    (tmp_path / "spool").rename(tmp_path / "gone")
    found = watched.look()
    assert found is not None
    assert found.state is State.BAD


def test_what_is_no_service_is_not_escalated(site: tuple[Path, int]) -> None:
    done = subprocess.run(command(site[0], "--json", "escalate", "cloud"), capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.returncode == 2
    assert "receiver" in json.loads(done.stdout)["mend"]
