"""Bad configuration files: named with file, line, key and mend, at start and on a running gateway, which goes on as before."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import objects, peers
from tests.support.faults import Journal, echo, refusal, wait_alarm, wait_log
from tests.support.gateway import STAGES, Gateway, to_peer
from tests.support.peers import Destination
from tests.support.waiting import free_port, listening, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(120)]


@dataclass(frozen=True)
class Bad:
    """One mistake: `old` in the good file becomes `new`. What is said of it: line of `at`, key, and words of the mend."""

    old: str
    new: str
    at: str
    key: str
    says: str

    def text(self, good: str) -> str:
        assert self.old in good
        return good.replace(self.old, self.new, 1)

    def place(self, path: Path, text: str) -> str:
        lines = [number for number, line in enumerate(text.splitlines(), 1) if line.startswith(self.at)]
        return f"{path}:{lines[0]}: {self.key}: "


PACS = "destination.storescp"
MISTAKES = {
    "syntax": Bad('id = "storescp"\n', 'id = "storescp\n', 'id = "storescp', "id", "ends in the line in which it began"),
    "unknown key": Bad("called = ", "caled = ", "caled", f"{PACS}.caled", '"called"'),
    "unknown table": Bad("[control]", "[contrl]", "[contrl]", "contrl", '"control"'),
    "wrong type": Bad("receivers = 1", 'receivers = "one"', "receivers", "spool.receivers", "receivers = "),
    "out of range": Bad('"STORESCP"\n', '"STORESCP"\nprogress_seconds = -3\n', "progress", f"{PACS}.progress_seconds",
                        "at least"),
    "no default": Bad("default = true", "default = false", "default = false", f"{PACS}.default", "default = true"),
    "unknown destination": Bad("[spool]", '[[rule]]\nid = "all"\ndestinations = ["storscp"]\n[spool]', "destinations",
                               "rule.all.destinations[1]", '"storescp"'),
}


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[Destination]:
    with peers.storescp(tmp_path / "pacs") as pacs:
        yield pacs


@pytest.fixture
def site(tmp_path: Path, pacs: Destination) -> Iterator[Gateway]:
    with Gateway(tmp_path / "site", [to_peer(pacs)]) as site:
        yield site


@pytest.mark.requirement("configuration")
def test_a_running_gateway_keeps_the_last_good_generation_whatever_the_file_says(site: Gateway, pacs: Destination) -> None:
    """One mistake after the other by SIGHUP, `reload` and `config check`; images come and go all the while."""
    journal = Journal()
    good = site.config.read_text()
    site.start()
    for number, (name, bad) in enumerate(MISTAKES.items()):
        text = bad.text(good)
        place = bad.place(site.config, text)
        site.config.write_text(text)
        os.kill(site.pid(), signal.SIGHUP)
        line = wait_log(site, f"last good generation stays in force.*{re.escape(place)}", 10)
        assert bad.says.replace('"', "'") in line, f"{name}: {line}"   # the log's own quotes
        told = refusal(site, "reload", status=(1, 4))   # 4: a keeper was found, and refused
        assert place in told and bad.says in told, f"{name}: {told}"
        found = site.json("config", "check", status=1)["errors"][0]
        assert f'{found["file"]}:{found["line"]}: {found["key"]}: ' == place and bad.says in found["mend"], f"{name}: {found}"
        status = site.json("status")
        assert status["generation"] == 1 and place in status["problem"], f"{name}: {status['problem']}"
        assert journal.send(site.port, [objects.ct(number, "config", side=64)]) == ["0000"]
    alarm = wait_alarm(site, "^configuration .*generation 1 stays in force")
    assert str(site.config) in alarm["text"] and alarm["mend"], alarm
    assert echo(site.port) == 0

    port = free_port()
    site.config.write_text(good.replace(f"[{site.port}]", f"[{site.port}, {port}]"))
    os.kill(site.pid(), signal.SIGHUP)
    wait_until(lambda: listening(port), 15, "the new port is open")
    assert journal.send(port, [objects.ct(100, "config", side=64)]) == ["0000"]
    status = site.json("status")
    assert (status["generation"], status["problem"]) == (2, "")
    pacs.wait_for(journal.acknowledged)
    site.wait_settled(30)
    assert site.stop() == 0
    assert site.balance()["unaccounted"] == 0


@pytest.mark.requirement("configuration")
@pytest.mark.parametrize("name", MISTAKES)
def test_a_gateway_that_starts_on_a_bad_file_works_by_the_last_good_generation(name: str, site: Gateway,
                                                                               pacs: Destination) -> None:
    """Even where the file is no TOML at all: where the spool is can still be made out, and in it lies the generation."""
    journal = Journal()
    bad = MISTAKES[name]
    text = bad.text(site.config.read_text())
    site.config.write_text(text)
    site.start()
    wait_log(site, f"last good generation stays in force.*{re.escape(bad.place(site.config, text))}", 10)
    assert journal.send(site.port, objects.ct_study(2, "start", side=64)) == ["0000"] * 2
    pacs.wait_for(journal.acknowledged)
    alarm = wait_alarm(site, "^configuration ")
    assert bad.place(site.config, text) in alarm["text"] and bad.says in alarm["mend"], alarm
    assert site.stop() == 0


def test_files_that_are_no_configuration_at_all(site: Gateway) -> None:
    """Gone, a folder, not text, endless: a running gateway goes on, and a command says what is the matter with the file."""
    good = site.config.read_text()
    site.start()

    def gone() -> None:
        site.config.unlink()

    def folder() -> None:
        site.config.mkdir()

    def binary() -> None:
        site.config.rmdir()
        site.config.write_bytes(objects.noise(5000, 3))

    def endless() -> None:
        site.config.unlink()
        site.config.symlink_to("/dev/zero")

    for make, says in ((gone, "there is no such file"), (folder, "cannot be read"), (binary, "is not UTF-8 text"),
                       (endless, "is longer than 1 MiB")):
        make()
        os.kill(site.pid(), signal.SIGHUP)
        line = wait_log(site, f"last good generation stays in force.*{says}", 10)
        assert str(site.config) in line
        told = refusal(site, "config", "check", status=1)
        assert str(site.config) in told and says in told and " — " in told, told
        assert echo(site.port) == 0
        assert Journal().send(site.port, [objects.ct(1, says, side=64)]) == ["0000"]
    site.config.unlink()
    site.config.write_text(good)
    os.kill(site.pid(), signal.SIGHUP)
    wait_log(site, "configuration is in force.*changed=False", 10)
    assert site.stop() == 0


def test_without_any_good_generation_nothing_starts(site: Gateway) -> None:
    """A rebuilt ledger has no generation while the file is bad: every stage names the mistake and ends."""
    good = site.config.read_text()
    (site.spool / "ledger.sqlite").unlink()
    bad = MISTAKES["unknown key"]
    site.config.write_text(bad.text(good))
    site.command("spool", "rebuild")
    for stage in ("run", *STAGES):
        told = refusal(site, stage, status=1)
        assert bad.place(site.config, bad.text(good)) in told and bad.says in told, told
    site.config.write_text(good)
    site.start()
    assert Journal().send(site.port, [objects.ct(1, "mended", side=64)]) == ["0000"]
