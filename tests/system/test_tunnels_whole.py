"""Tunnels of a whole gateway: run, watched, told of, taken up, and ended with it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.tunnel.place import Place
from tests.support import measure, peers, pki
from tests.support.gateway import COMMAND, ROOT, Gateway, to_folder
from tests.support.tunnels import echo, options_of
from tests.support.waiting import free_port, listening, wait_listening, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]


class Site:
    """A gateway with one tunnel to a server of DCMTK's."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.ca = pki.Authority("Cloud CA")
        self.state = folder / "gateway" / "state"
        pki.place(self.state, "box", self.ca.leaf("box"), trust=[self.ca])
        (folder / "trust.pem").write_bytes(pki.pem(self.ca.certificate))
        self.tls = options_of(self.ca.leaf("far", addresses=["127.0.0.1"]).write(folder, "far"), folder / "trust.pem")
        self.far, self.near = free_port(), free_port()
        self.gateway = stack.enter_context(Gateway(
            folder / "gateway", [to_folder(folder / "archive")],
            extra=[("[certificate]", {"id": "box"}), ("[tunnel]", self.tunnel("ris", self.near))]))

    def tunnel(self, id: str, port: int, **settings: object) -> dict[str, object]:
        return {"id": id, "listen": f"127.0.0.1:{port}", "connect": f"127.0.0.1:{self.far}", "certificate": "box",
                "check": "echo", "called": "STORESCP", **settings}

    @contextmanager
    def server(self) -> Iterator[peers.Destination]:
        with peers.storescp(self.folder / "scp", options=self.tls, port=self.far) as scp:
            yield scp

    def told(self, id: str = "ris") -> dict[str, Any]:
        return next(t for t in self.gateway.json("status")["tunnels"] if t["tunnel"] == id)

    def stunnel(self, id: str = "ris") -> int:
        running = Place(self.gateway.run, id).running()
        return running.pid if running else 0


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(tmp_path, stack)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_up_and_down_with_an_alarm(site: Site) -> None:
    with site.server():
        site.gateway.start("run")
        wait_until(lambda: site.told()["state"] == "up", 40, "up", every=0.5)
        assert "C-ECHO is answered through the tunnel" in site.told()["text"]
        assert echo(site.near).returncode == 0
        assert "ris" in site.gateway.command("status", "--once")
    os.kill(site.stunnel(), signal.SIGKILL)     # another process is looked at at once; the far end is gone
    alarms = wait_until(lambda: [a for a in site.gateway.json("status")["alarms"] if a["key"] == "tunnel-down:ris"], 90,
                        "down", every=1)
    assert "tunnel ris is down at tcp" in alarms[0]["text"] and alarms[0]["mend"]
    told = site.told()
    assert (told["state"], told["hop"], told["cause"]) == ("down", "tcp", "refused"), told


def test_it_is_started_again_and_ends_with_the_gateway(site: Site) -> None:
    with site.server():
        site.gateway.start("run")
        wait_listening([site.near], 20)
        first = wait_until(site.stunnel, 10)
        os.kill(first, signal.SIGKILL)
        second = wait_until(lambda: site.stunnel() not in (0, first) and site.stunnel(), 20, "started again", every=0.1)
        wait_until(lambda: echo(site.near).returncode == 0, 20, every=0.2)
        site.gateway.kill("run")               # SIGKILL to the whole group; stunnel is ended by the kernel in any case
        wait_until(lambda: not alive(int(second)) and not listening(site.near), 10, "ended with its parent")
        site.gateway.start("run")
        wait_until(lambda: echo(site.near).returncode == 0, 20, every=0.2)
        site.gateway.stop("run")
        assert not listening(site.near)


def test_a_parent_that_is_killed_alone_takes_its_tunnels_along(site: Site) -> None:
    site.gateway.start("run")
    wait_listening([site.near], 20)
    pid = site.stunnel()
    os.kill(site.gateway.pid(), signal.SIGKILL)
    wait_until(lambda: not alive(pid), 10, "ended by the kernel")


def test_configuration_and_certificate_are_taken_up(site: Site) -> None:
    with site.server():
        site.gateway.start("run")
        wait_until(lambda: echo(site.near).returncode == 0, 20, every=0.2)
        pid, written = site.stunnel(), Place(site.gateway.run, "ris").last()
        pki.place(site.state, "box", site.ca.leaf("box"))
        wait_until(lambda: Place(site.gateway.run, "ris").last() != written, 30, "the new certificate", every=0.5)
        assert site.stunnel() == pid
        wait_until(lambda: echo(site.near).returncode == 0, 10, every=0.2)
        moved, second = free_port(), free_port()
        site.gateway._extra[1:] = [("[tunnel]", site.tunnel("ris", moved)),
                                   ("[tunnel]", site.tunnel("hl7", second, check="tcp"))]
        site.gateway.write_config()
        site.gateway.json("reload")
        for port in (moved, second):
            wait_until(lambda port=port: echo(port).returncode == 0, 40, "moved, and a new one", every=0.5)  # type: ignore[misc]
        assert not listening(site.near)
        del site.gateway._extra[2]
        site.gateway.write_config()
        site.gateway.json("reload")
        wait_until(lambda: not listening(second), 20, "taken away")
        assert [t["tunnel"] for t in site.gateway.json("status")["tunnels"]] == ["ris"]


def test_a_tunnel_without_its_certificate_says_so(site: Site) -> None:
    site.gateway._extra += [("[certificate]", {"id": "none"}),
                            ("[tunnel]", site.tunnel("bare", free_port(), certificate="none"))]
    site.gateway.write_config()
    with site.server():
        site.gateway.start("run")
        told = wait_until(lambda: site.told("bare")["cause"] and site.told("bare"), 40, every=0.5)
        assert (told["hop"], told["cause"]) == ("tunnel", "setup") and "no certificate and key" in told["text"]
        wait_until(lambda: site.told()["state"] == "up", 40, every=0.5)


# --- as the service manager runs it -------------------------------------------------------------------------------------


@contextmanager
def started(site: Site, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`dcmgate tunnel`, as a unit starts it."""
    with (site.folder / "tunnel.log").open("ab") as log:
        process = subprocess.Popen([*COMMAND, "--config", str(site.gateway.config), "tunnel", *arguments],
                                   stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def test_the_command_becomes_stunnel(site: Site) -> None:
    with site.server(), started(site, "ris") as process:
        wait_listening([site.near], 20, lambda: process.poll() is None)
        assert Path(f"/proc/{process.pid}/exe").resolve().name.startswith("stunnel")
        assert site.stunnel() == process.pid
        assert echo(site.near).returncode == 0
        assert measure.pss_bytes(process.pid) < 12 << 20
        with started(site, "ris") as second:
            assert second.wait(20) == 3 and process.poll() is None
        assert f"runs already, as process {process.pid}" in (site.folder / "tunnel.log").read_text()
        # the gateway beside it finds it, and leaves it alone
        written = Place(site.gateway.run, "ris").last()
        pki.place(site.state, "box", site.ca.leaf("box"))
        assert site.gateway.json("tunnel", "ris", "--reload") == {"tunnel": "ris", "pid": process.pid}
        assert Place(site.gateway.run, "ris").last() != written
        wait_until(lambda: echo(site.near).returncode == 0, 10, every=0.2)
        process.terminate()
        assert process.wait(10) is not None


def test_the_keeper_takes_up_for_a_tunnel_that_the_service_manager_runs(site: Site) -> None:
    with site.server(), started(site, "ris") as process:
        wait_listening([site.near], 20, lambda: process.poll() is None)
        site.gateway.start("keeper")
        wait_until(lambda: site.told()["state"] == "up", 40, every=0.5)
        written = Place(site.gateway.run, "ris").last()
        pki.place(site.state, "box", site.ca.leaf("box"))
        wait_until(lambda: Place(site.gateway.run, "ris").last() != written, 30, every=0.5)
        assert process.poll() is None and site.stunnel() == process.pid


def test_a_bad_file_leaves_the_last_configuration(site: Site) -> None:
    with site.server():
        with started(site, "ris") as process:
            wait_listening([site.near], 20, lambda: process.poll() is None)
        site.gateway.config.write_text(site.gateway.config.read_text().replace("default = true", "default = 7"))
        site.gateway.spool.rename(site.gateway.spool.with_name("away"))     # nor does the ledger say what is in force
        wait_until(lambda: not listening(site.near), 10)
        with started(site, "ris") as process:
            wait_listening([site.near], 20, lambda: process.poll() is None)
            assert echo(site.near).returncode == 0
        assert "goes by its last one" in (site.folder / "tunnel.log").read_text()


def test_shown_without_the_password(site: Site) -> None:
    text = site.gateway.command("tunnel", "ris", "--print")
    assert "verifyChain = yes" in text and "checkIP = 127.0.0.1" in text
    site.gateway.command("tunnel", "nobody", status=2)
    site.gateway.command("tunnel", "ris", "--reload", status=2)
    began = time.monotonic()
    site.gateway.command("tunnel", "ris", "--pin", str(site.folder / "trust.pem"), status=2)
    assert time.monotonic() - began < 20
