"""Tunnels as the appliance runs them: stunnel, the keeper and whoever may not look are different users."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.config.settings import Config, Control, Spool, Tunnel
from appliance.net.certstore import Writer
from appliance.net.proxy import Proxy
from appliance.tunnel import health, program
from appliance.tunnel.place import Place
from appliance.tunnel.setup import Maker
from appliance.tunnel.through import Found
from appliance.tunnel.watch import Watch
from tests.support import pki
from tests.support.users import as_user
from tests.support.waiting import free_port, wait_listening, wait_until

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")]

KEEPER, TUNNEL, STRANGER = 61001, 61004, 61005
KEYS, DCMGATE = 61010, 61011
"""The group of those who talk TLS, and that of all services."""


class Box:
    """State and run folder as the image makes them, and the tunnel of a plain server."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.state, self.run = folder, folder / "state", folder / "run"
        for path, mode, group in ((self.state, 0o2750, DCMGATE), (self.state / "certificates", 0o2750, KEYS),
                                  (self.run, 0o2770, DCMGATE)):
            path.mkdir()
            os.chown(path, KEEPER, group)
            path.chmod(mode)
        self.ca = pki.Authority()
        self.port = free_port()
        self.entry = Tunnel(id="in", side="server", listen=f"127.0.0.1:{self.port}", connect="127.0.0.1:9", certificate="box")
        self.renew()

    def config(self) -> Config:
        return Config(tunnels=(self.entry,), spool=Spool(state=str(self.state)), control=Control(run=str(self.run)))

    def renew(self) -> pki.Pair:
        pair = self.ca.leaf("box", addresses=["127.0.0.1"])

        def work() -> object:
            writer = Writer(self.state)
            writer.install("box", pair.key_pem(), pair.chain_pem())
            writer.put("box", trust=pki.pem(self.ca.certificate))
            return True

        assert self.keeper(work) is True
        return pair

    def keeper(self, work: Callable[[], object]) -> object:
        return as_user(KEEPER, [KEYS, DCMGATE], work)

    def tunnel(self, work: Callable[[], object]) -> object:
        return as_user(TUNNEL, [KEYS, DCMGATE], work)

    def round(self) -> object:
        """The keeper's; what it published, and the alarms."""
        def work() -> object:
            watch = Watch(self.config, SystemClock(), self.run, look=lambda tunnel, state: Found(True, "looked at"))
            watch.step()
            watch.join(10)
            return [[c.state, c.pid] for c in health.read(self.run)] + [alarm.text for alarm in watch.alarms()]
        return self.keeper(work)

    def starts(self) -> int:
        """As its unit would, in a process of its own: the process."""
        child = os.fork()
        if child:
            return child
        try:
            os.setgroups([KEYS, DCMGATE])
            os.setgid(TUNNEL)
            os.setuid(TUNNEL)
            os.umask(0o007)
            place, setup = Place(self.run, "in"), Maker(self.state, self.run).setup(self.entry)
            program.check(setup)
            claim, listening = place.claim(), program.listen(setup)
            place.write(setup)
            place.sign(claim, os.getpid(), setup)
            program.become(place.configuration, listening, claim)
        finally:
            os._exit(1)

    def shown(self) -> str:
        """Fingerprint of the certificate that the port shows."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(socket.create_connection(("127.0.0.1", self.port), 10)) as sock:
            return sha256(sock.getpeercert(True) or b"").hexdigest()


@pytest.fixture
def box() -> Iterator[Box]:
    folder = Path(tempfile.mkdtemp(prefix="dg-"))       # pytest's folders are closed to others
    folder.chmod(0o755)
    yield Box(folder)
    shutil.rmtree(folder)


@pytest.mark.requirement("certificates: renewal drops nothing")
def test_the_keeper_sees_asks_and_the_tunnels_own_user_takes_up(box: Box) -> None:
    pid = box.starts()
    try:
        wait_listening([box.port], 20, lambda: os.waitpid(pid, os.WNOHANG) == (0, 0))
        assert box.round() == [["up", pid]]
        asked = box.run / "tunnels" / "in.reload"
        assert not asked.exists()
        renewed = box.renew()
        assert box.round() == [["unknown", pid]] and asked.exists()     # looked at again when that has had its time
        assert box.shown() != renewed.fingerprint            # the keeper may not do it itself

        def reload() -> object:
            place = Place(box.run, "in")
            running = place.running()
            assert running is not None and running.ours
            place.take_up(running, Maker(box.state, box.run).setup(box.entry))
            return True

        assert box.keeper(lambda: Place(box.run, "in").running().ours) is False  # type: ignore[union-attr]
        assert box.tunnel(reload) is True
        wait_until(lambda: box.shown() == renewed.fingerprint, 10, "the new certificate is shown", every=0.1)
        at = asked.stat().st_mtime_ns
        assert box.round() == [["up", pid]] and asked.stat().st_mtime_ns == at
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_passwords_and_configurations_are_for_those_who_need_them(box: Box) -> None:
    proxy = Proxy("proxy.example.org:3128", box.state)
    for work in (box.keeper, lambda work: work()):           # the keeper's user, and `dcmgate proxy password` as root
        work(lambda: Writer(box.state).keep(proxy.file, b"clinic:secret\n"))
        assert box.tunnel(lambda: proxy.credentials().decode()) == "clinic:secret"
        assert as_user(STRANGER, [DCMGATE], lambda: proxy.file.read_bytes().decode()) == "no"
        shutil.rmtree(proxy.file.parent)
    pid = box.starts()
    try:
        wait_listening([box.port], 20, lambda: os.waitpid(pid, os.WNOHANG) == (0, 0))
        written = Place(box.run, "in").configuration
        for user in (KEEPER, STRANGER):
            assert as_user(user, [DCMGATE], lambda: written.read_bytes().decode()) == "no"
        assert as_user(STRANGER, [DCMGATE], lambda: Place(box.run, "in").running() is not None) is True
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
