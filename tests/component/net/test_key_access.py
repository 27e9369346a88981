"""Who may read a private key: the services that talk TLS, and nobody else. Real users, as the appliance has them."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.net import certificates
from appliance.net.certstore import Store, Writer
from appliance.net.tls import PROFILES, client_context, server_context
from appliance.policy.certificates import Check, Wanted, examine
from tests.support.pki import Authority, pem
from tests.support.users import as_user

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")

KEEPER, RECEIVER, MANAGER = 61001, 61002, 61003
KEYS = 61010
"""The group of those who talk TLS."""


@pytest.fixture
def state() -> Iterator[Path]:
    """A state folder of the keeper, and in it the store as the image makes it."""
    folder = Path(tempfile.mkdtemp(prefix="dg-"))       # pytest's folders are closed to others
    os.chmod(folder, 0o755)
    os.chown(folder, KEEPER, KEEPER)
    store = folder / "certificates"
    store.mkdir()
    os.chown(store, KEEPER, KEYS)
    store.chmod(0o2750)
    yield folder
    shutil.rmtree(folder)


def fill(state: Path) -> Callable[[], object]:
    ca = Authority()
    pair = ca.leaf("box")

    def work() -> object:
        writer = Writer(state)
        for _ in range(2):
            writer.put("box", trust=pem(ca.certificate), crl=ca.crl(), request=b"r", next_key=b"k", est_key=b"e")
            writer.note("box", est_password=b"p", est_json=b"{}")
            writer.install("box", pair.key_pem(), pair.chain_pem())
        with writer.enrolling("box") as alone:
            return alone

    return work


def sandboxed(work: Callable[[], object]) -> Callable[[], object]:
    """As in the keeper's unit: UMask=0007, RestrictSUIDSGID=yes, and no chown (SystemCallFilter=~@privileged)."""
    def no(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    def chmod(path: str, mode: int, **more: bool) -> None:
        if mode & 0o6000:
            no()
        real(path, mode, **more)

    real = os.chmod

    def inside() -> object:
        os.umask(0o007)
        os.chown = os.lchown = os.fchown = no  # type: ignore[assignment]
        os.chmod = chmod  # type: ignore[assignment]
        return work()
    return inside


def talks(state: Path) -> Callable[[], object]:
    def work() -> object:
        material = Store(state).material("box")
        server_context(PROFILES["bcp195"], material)
        context = client_context(PROFILES["bcp195"], material, material)
        return context.lists is not None and len(context.get_ca_certs()) == 1
    return work


def opens(path: Path, mode: str) -> Callable[[], object]:
    def work() -> object:
        with path.open(mode):
            return "yes"
    return work


@pytest.mark.requirement("conformance: private keys")
@pytest.mark.parametrize("who", ["keeper", "keeper in its unit", "root"])
def test_keys_are_for_those_who_talk_tls_alone(state: Path, who: str) -> None:
    """Written by the keeper, or by `dcmgate cert` as root: the same in the end."""
    work = fill(state)
    assert (work() if who == "root" else as_user(KEEPER, [KEYS], sandboxed(work) if "unit" in who else work)) is True
    folder = state / "certificates" / "box"
    for path in folder.rglob("*"):
        if path.is_symlink():
            continue
        found = path.stat()
        mode, shared = stat.S_IMODE(found.st_mode), path.name in ("key.pem", "chain.pem", "trust.pem", "crl.pem")
        assert found.st_uid == KEEPER, path
        assert mode == (0o2750 if path.is_dir() else 0o640 if shared else 0o600), path
        assert not (shared or path.is_dir()) or found.st_gid == KEYS, path
    key = folder / "000002" / "key.pem"
    assert key.exists()
    assert as_user(RECEIVER, [KEYS], talks(state)) is True, "receiver, forwarder, tunnels"
    assert as_user(RECEIVER, [KEYS], opens(key, "r+b")) == "no", "and it cannot change them"
    assert as_user(RECEIVER, [KEYS], opens(folder / "new", "wb")) == "no"
    for name in ("est-password", "est-key.pem", "next-key.pem", "est.json"):
        assert as_user(RECEIVER, [KEYS], opens(folder / name, "rb")) == "no", name
        assert as_user(KEEPER, [KEYS], opens(folder / name, "rb")) == "yes", name
    assert as_user(MANAGER, [MANAGER], opens(key, "rb")) == "no"
    assert as_user(MANAGER, [MANAGER], opens(folder / "trust.pem", "rb")) == "no"
    assert as_user(MANAGER, [MANAGER], lambda: os.listdir(state / "certificates")) == "no"


def test_under_one_user_nobody_else_reads_anything(state: Path) -> None:
    (state / "certificates").rmdir()
    assert as_user(KEEPER, [KEYS], fill(state)) is True
    assert as_user(KEEPER, [], talks(state)) is True
    assert as_user(RECEIVER, [KEYS, KEEPER], talks(state)) != True  # noqa: E712  whatever is said instead, it does not talk
    assert {stat.S_IMODE(path.stat().st_mode) for path in (state / "certificates").rglob("*")} == {0o700, 0o600}


def test_the_image_makes_the_store_so() -> None:
    system = Path(__file__).parents[3] / "rootfs" / "usr" / "lib"
    folders = [line.split() for line in (system / "tmpfiles.d" / "dcmgate.conf").read_text().splitlines()]
    store = next(line for line in folders if line[1:2] == ["/var/lib/dcmgate/certificates"])
    assert store == ["d", "/var/lib/dcmgate/certificates", "2750", "dcmgate-keeper", "dcmgate-keys", "-"]
    members = [line.split()[1] for line in (system / "sysusers.d" / "dcmgate.conf").read_text().splitlines()
               if line.split()[2:] == ["dcmgate-keys"]]
    assert sorted(members) == ["dcmgate-forwarder", "dcmgate-keeper", "dcmgate-receiver", "dcmgate-tunnel"]


def test_a_key_that_everybody_can_read_is_an_alarm(state: Path) -> None:
    fill(state)()
    held = certificates.held(Store(state).material("box"))
    assert held.open == ""
    (state / "certificates" / "box" / "current" / "key.pem").chmod(0o644)
    [finding] = [f for f in examine(certificates.held(Store(state).material("box")), Wanted(), 0, False)
                 if f.check is Check.OPEN_KEY]
    assert "key.pem" in finding.text
