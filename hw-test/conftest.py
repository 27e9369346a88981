"""What all suites share: the device in a state, the stick, named checks and figures in build/vm.json (by the environment file).

Sides, as the cables are: scanners 10.99.1.0/24, uplink 10.99.2.0/24, management 10.99.3.0/24; the box is .2, we are .10.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from collector import Collector
from gateway import GatewayStrategy
from labgrid.binding import BindingError, StateError
from labgrid.exceptions import NoDriverFoundError
from lanes import REST_MINUTES, THE_REST, shared_out
from machine import DEVICE, IMAGES
from pki import Authority
from releases import Maker, served
from rootshell import RootShellProtocol
from volatile import VolatileDisk

ROOT = Path(os.environ["LG_DCMGATE_ROOT"])
FOLDER = Path(os.environ["LG_DCMGATE_VM"])
LOG = Path(os.environ["DCMGATE_LOG"])
LAST_WORDS = ("export SYSTEMD_COLORS=0 SYSTEMD_URLIFY=0; cat /proc/mdstat; systemctl --failed; systemctl list-jobs; "
              "journalctl -n 4000 -o short-precise --no-pager")
LAST_SECONDS = 180.0
OUTCOMES: dict[str, dict[str, Any]] = {}
FIGURES: dict[str, Any] = {}

CONFIGURATION = """\
[[listener]]
id = "scanners"
ports = [104, 11112]
titles = ["DCMGATE"]

[[peer]]
id = "ct1"
titles = ["CT1"]
addresses = ["10.99.1.0/24"]

[[destination]]
id = "pacs"
default = true
address = "10.99.2.10"
port = 11113
called = "PACS"
calling = "DCMGATE"

# Over TLS, with the certificate from the stick.
[[listener]]
id = "secure"
ports = [2762]
titles = ["DCMGATE"]
tls = "bcp195"
certificate = "box"

[[tunnel]]
id = "archive"
listen = "10.99.1.2:11120"
connect = "10.99.2.10:2763"
certificate = "box"
check = "echo"
called = "PACS"

[[certificate]]
id = "box"
names = ["gate1", "10.99.1.2"]
key_type = "rsa-3072"
crl_fetch = false

[time]
servers = ["10.99.2.10"]
nts_servers = []

# The firewall lets it fetch from there; when, the tests say.
[update]
url = "http://10.99.2.10:8000"
check_hours = 0

[log]
forward = "https://10.99.3.10:19532"
certificate = "box"
"""

NETWORK = """\
[Match]
MACAddress=52:54:00:99:0{side}:02

[Link]
Group={side}

[Network]
Address=10.99.{side}.2/24
Address=fd00:99:{side}::2/64
LinkLocalAddressing=no
IPv6AcceptRA=no
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also what takes hours")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full"):
        _leave_out(config, items, [bool(item.get_closest_marker("full")) for item in items])
    number, _, lanes = os.environ.get("DCMGATE_LANE", "1/1").partition("/")
    pieces = [piece(item) for item in items]
    lane_of = shared_out(dict(pieces), int(lanes))
    _leave_out(config, items, [lane_of[name] != int(number) - 1 for name, _ in pieces])


def piece(item: pytest.Item) -> tuple[str, float]:
    """What a check shares its lane with, and the minutes that takes: a long one stands alone, as does a module that says so."""
    if full := item.get_closest_marker("full"):
        return item.nodeid, full.kwargs["minutes"]
    if apart := item.get_closest_marker("apart"):
        return item.nodeid.partition("::")[0], apart.kwargs["minutes"]
    return THE_REST, REST_MINUTES


def _leave_out(config: pytest.Config, items: list[pytest.Item], out: list[bool]) -> None:
    config.hook.pytest_deselected(items=[item for item, left in zip(items, out, strict=True) if left])
    items[:] = [item for item, left in zip(items, out, strict=True) if not left]


def image() -> Path:
    """The newest image that was built for devices of this type."""
    found = sorted(IMAGES.glob("dcmgate_*.raw"), key=lambda path: path.stat().st_mtime)
    found = [path for path in found if path.name.count(".") <= 3 and not path.stem.endswith(("esp", "root", "verity"))]
    assert found, f"there is no image for {DEVICE}: run `make image`"
    return found[-1]


def keys() -> Path:
    """The folder of the keys that signed the image."""
    return Path(subprocess.run([ROOT / "image-build" / "keys"], capture_output=True, text=True, check=True).stdout.strip())


def in_tools(*command: str | os.PathLike[str], works: tuple[Path, ...] = ()) -> str:
    """Run a program of the tools tree in our folder; what it says."""
    work = [word for folder in (FOLDER, *works) for word in ("--work", folder)]
    done = subprocess.run([ROOT / "image-build" / "enter", *work, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def enroll_keys(empty: str, variables: Path) -> None:
    """UEFI variables of a box that boots what the builder has signed, and nothing else: Secure Boot is on. `empty` are those of
    a board as it is made."""
    owner, certificate = "3d1b9a52-6f0e-4a3b-8f0c-5a1c1d7e9b44", str(keys() / "secure-boot.crt")
    enrolled = [word for kind in ("--set-pk", "--add-kek", "--add-db") for word in (kind, owner, certificate)]
    in_tools("virt-fw-vars", "--input", empty, "--output", variables, *enrolled, "--secure-boot",
             works=(keys(),))


@pytest.fixture(scope="session", autouse=True)
def machine_files(env: Any) -> None:
    """The disk of a new box, UEFI variables with the builder's keys, a key for the person, and the stick."""
    for name in ("disk.raw", "key", "key.pub"):
        (FOLDER / name).unlink(missing_ok=True)
    if variables := env.config.get_option("variables", ""):
        enroll_keys(variables, FOLDER / "vars.fd")
    subprocess.run(["cp", "--sparse=always", image(), FOLDER / "disk.raw"], check=True)
    os.truncate(FOLDER / "disk.raw", 8 << 30)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", FOLDER / "key"], check=True)
    stick = FOLDER / "stick"
    shutil.rmtree(stick, ignore_errors=True)
    for folder in ("network", "persons", "certificates/box"):
        (stick / folder).mkdir(parents=True)
    authority = Authority(FOLDER / "pki")
    box = authority.issue("gate1", "DNS:gate1", "IP:10.99.1.2")
    for name in ("scanner", "pacs", "logs"):
        authority.issue(name, "IP:10.99.1.10", "IP:10.99.2.10", "IP:10.99.3.10")
    for path, name in (*zip(box, ("key.pem", "chain.pem"), strict=True), (authority.trust, "trust.pem")):
        shutil.copyfile(path, stick / "certificates" / "box" / name)
    (stick / "dcmgate.toml").write_text(CONFIGURATION)
    (stick / "hostname").write_text("gate1\n")
    for side in (1, 2, 3):
        (stick / "network" / f"10-side{side}.network").write_text(NETWORK.format(side=side))
    shutil.copyfile(FOLDER / "key.pub", stick / "persons" / "engineer.pub")
    made = "rm -f stick.img; truncate -s 16M stick.img; mkfs.vfat -n DCMGATE-SET stick.img; mcopy -s -i stick.img stick/* ::"
    subprocess.run([ROOT / "image-build" / "enter", "--work", FOLDER, "bash", "-ec", made], check=True, capture_output=True)
    FIGURES["image bytes"] = image().stat().st_blocks * 512


@pytest.fixture(scope="session")
def collector(machine_files: None) -> Collector:
    """Takes the journal of the box from its first moment."""
    pki = FOLDER / "pki"
    return Collector(("10.99.3.10", 19532), pki / "logs.key", pki / "logs.pem", pki / "ca.pem")


@pytest.fixture(scope="session")
def box(target: Any, machine_files: None, collector: Collector) -> Iterator[GatewayStrategy]:
    strategy: GatewayStrategy = target.get_driver("GatewayStrategy")
    strategy.stick_image = FOLDER / "stick.img"
    yield strategy
    FIGURES.update({f"seconds from {name}": round(value, 1) for name, value in strategy.figures.items()})
    strategy.transition("off")


@pytest.fixture(scope="session")
def volatile_disk(box: GatewayStrategy) -> VolatileDisk:
    return VolatileDisk(box, ROOT, FOLDER)


@pytest.fixture
def volatile(volatile_disk: VolatileDisk) -> VolatileDisk:
    """The device serves on a disk that loses at a power cut what was not flushed. To be asked for before `serving`."""
    volatile_disk.on()
    return volatile_disk


@pytest.fixture
def serving(box: GatewayStrategy) -> GatewayStrategy:
    box.transition("serving")
    return box


@pytest.fixture
def root(target: Any, serving: GatewayStrategy) -> RootShellProtocol:
    """A root shell in the serving device; a device without one leaves the test out."""
    return root_shell(target)


def root_shell(target: Any) -> RootShellProtocol:
    """That of the device that is on."""
    try:
        shell: RootShellProtocol = target.get_driver(RootShellProtocol, activate=False)
    except NoDriverFoundError:
        pytest.skip("this device has no root shell")
    target.activate(shell)
    return shell


@pytest.fixture(scope="session")
def version() -> str:
    """Of the image under test."""
    return image().name.removeprefix("dcmgate_").removesuffix(".raw")


@pytest.fixture(scope="module")
def maker(version: str) -> Iterator[Maker]:
    """Makes releases in a folder that the box reaches from its uplink side."""
    one = Maker(ROOT, FOLDER / "releases", keys(), version)
    with served(one.folder):
        yield one


@pytest.fixture(scope="session")
def figures() -> dict[str, Any]:
    """Figures for build/vm.json, by name."""
    return FIGURES


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node: Any, report: Any) -> None:
    """A check has failed: what the device can still tell goes beside what its console said."""
    target = getattr(node, "funcargs", {}).get("target")
    if target is None or not isinstance(report, pytest.TestReport):
        return
    name = f"{node.name}-{report.when}".replace("/", "_")
    try:
        shell: RootShellProtocol = target.get_driver(RootShellProtocol, activate=False)
        target.activate(shell)
        said = shell.run(LAST_WORDS, LAST_SECONDS)
    except (NoDriverFoundError, BindingError, StateError, RuntimeError, OSError) as error:
        said = f"the device says nothing more: {error!r}"
    (LOG / f"{name}.txt").write_text(said + "\n")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    name = report.nodeid.partition("::")[2].removeprefix("test_").replace("_", " ")
    if report.when == "call" or report.outcome != "passed":
        reason = "" if report.outcome == "passed" else str(report.longrepr)[-2000:]
        OUTCOMES[name] = {"outcome": report.outcome, "seconds": round(report.duration, 1), "reason": reason}


def pytest_sessionfinish() -> None:
    count = {kind: sum(1 for one in OUTCOMES.values() if one["outcome"] == kind) for kind in ("passed", "failed", "skipped")}
    reasons = {name: one["reason"] for name, one in OUTCOMES.items() if one["outcome"] != "passed"}
    checks = {name: {"outcome": one["outcome"], "seconds": one["seconds"]} for name, one in OUTCOMES.items()}
    result = {"checks": checks, "figures": FIGURES, "totals": {**count, "reasons": reasons}}
    Path(f"{FOLDER}.json").write_text(json.dumps(result, indent=1) + "\n")
