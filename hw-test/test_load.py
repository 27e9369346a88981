"""A study under way while something happens to the box: each service restarts; the power goes, with what was not flushed."""

from __future__ import annotations

import json
import random
import re
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from conftest import FOLDER, ROOT
from dicom import arrived, content, pacs, send, sender, study
from gateway import GatewayStrategy, echo
from memory import held, left
from rootshell import RootShellProtocol
from volatile import VolatileDisk
from waiting import seconds_until, wait_until

CUTS, CUTS_AT_LENGTH = 3, 20
SENT = re.compile(r"Sending file: (\S+)|Received Store Response \((\w+)")


def acknowledged(said: str) -> set[str]:
    """The files that a storescu has had a success for, by what it said."""
    done, file = set(), ""
    for name, status in SENT.findall(said):
        if name:
            file = name
        elif status == "Success":
            done.add(file)
    return done


@pytest.mark.parametrize("service", ["receiver", "forwarder", "keeper", "tunnel@archive"])
def test_a_study_arrives_although_a_service_restarts(service: str, serving: GatewayStrategy, root: RootShellProtocol,
                                                     tmp_path: Path) -> None:
    """No connection is refused meanwhile; where an association broke off, the scanner sends again, as scanners do."""
    sent = study(tmp_path / "sent", 40)
    with pacs(tmp_path / "pacs") as folder:
        with subprocess.Popen(sender(sent), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as scanner:
            assert scanner.stdout is not None
            for line in scanner.stdout:
                if "Store Response" in line:
                    break
            root.run(f"systemctl restart --no-block dcmgate-{service}.service")
            assert echo(seconds=60), "it waits in the socket's queue, and is not refused"
            scanner.communicate(timeout=120)
        if scanner.returncode:
            assert send(sent).returncode == 0
        assert arrived(folder, len(sent)) == dict(content(path) for path in sent)
    wait_until(lambda: root.run(f"systemctl is-active dcmgate-{service}.service || true") == "active", 60,
               lambda: root.run(f"systemctl status dcmgate-{service}.service || true"))
    assert json.loads(serving.run("dcmgate balance --json", 120))["unaccounted"] == 0


SCANNERS = 4


def test_memory_of_each_service_under_load(serving: GatewayStrategy, root: RootShellProtocol, figures: dict[str, Any],
                                           tmp_path: Path) -> None:
    """Four scanners at once, and all goes on to the PACS meanwhile: the most that each service has held. None was killed."""
    studies = [study(tmp_path / f"sent{number}", 30) for number in range(SCANNERS)]
    most, least = held(root.run), left(root.run)
    with pacs(tmp_path / "pacs") as folder:
        scanners = [subprocess.Popen(sender(paths), stdout=subprocess.DEVNULL) for paths in studies]
        try:
            while any(scanner.poll() is None for scanner in scanners):
                now = held(root.run)
                most |= {name: max(most.get(name, 0), now[name]) for name in now}
                least = min(least, left(root.run))
        finally:
            for scanner in scanners:
                scanner.terminate()
                scanner.wait()
        assert [scanner.returncode for scanner in scanners] == [0] * SCANNERS
        wanted = dict(content(path) for paths in studies for path in paths)
        assert arrived(folder, len(wanted), 400) == wanted
    figures["memory bytes under load"], figures["memory bytes left under load"] = most, least
    assert most.keys() >= {"receiver", "forwarder", "keeper"}
    killed = root.run("find /sys/fs/cgroup -path '*dcmgate*' -name memory.events -exec grep -H '^oom_kill [^0]' {} + || true")
    assert killed == ""
    assert least > 512 << 20, "of 2 GiB"
    assert json.loads(serving.run("dcmgate balance --json", 120))["unaccounted"] == 0


class Scanner(threading.Thread):
    """Sends one small study after the other, as long as it is open. `acknowledged`: what of them, as storescu has seen it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self._over = threading.Event()
        self._now: subprocess.Popen[str] | None = None
        self.acknowledged: list[Path] = []

    def run(self) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            paths = study(self._folder / str(number), 6)
            with subprocess.Popen(sender(paths), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as self._now:
                said = self._now.communicate(timeout=600)[0]
            self.acknowledged += [Path(name) for name in acknowledged(said)]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        if self._now is not None:
            self._now.terminate()
        self.join(120)
        assert not self.is_alive()


def cut_under_load(cuts: int, box: GatewayStrategy, folder: Path, figures: dict[str, Any], seed: int = 20261122) -> None:
    """Every image that was acknowledged before a cut is there after it, as it was; it always boots; the balance is exact."""
    chance, identity = random.Random(seed), box.run("cat /etc/machine-id")
    kept: list[Path] = []
    with VolatileDisk(box, ROOT, FOLDER) as disk:
        disk.on()
        for number in range(cuts):
            with Scanner(folder / f"cut{number}") as scanner:
                wait_until(lambda scanner=scanner: scanner.acknowledged, 120, "a first image is acknowledged", every=0.2)
                time.sleep(chance.uniform(0, 15))
                disk.cut()
            kept += scanner.acknowledged
            disk.on()
            assert box.run("cat /etc/machine-id; hostname").split() == [identity, "gate1"], "it is set up once"
            assert json.loads(box.run("dcmgate balance --json", 120))["unaccounted"] == 0
        with pacs(folder / "pacs") as store:
            wanted = dict(content(path) for path in kept)
            seconds_until(lambda: wanted.keys() <= arrived(store, len(wanted), 20).keys(), 600, every=0)
            got = arrived(store, len(wanted), 20)
        lost = [uid for uid in wanted if uid not in got]
        altered = [uid for uid, data in wanted.items() if uid in got and got[uid] != data]
        figures[f"{cuts} cuts under load"] = {"acknowledged": len(wanted), "lost": len(lost), "altered": len(altered)}
        assert (lost, altered) == ([], [])
        assert json.loads(box.run("dcmgate balance --json", 120))["unaccounted"] == 0


@pytest.mark.timeout(1800)
def test_no_power_cut_under_load_loses_an_image(serving: GatewayStrategy, figures: dict[str, Any], tmp_path: Path) -> None:
    cut_under_load(CUTS, serving, tmp_path, figures)


@pytest.mark.full(minutes=40)
@pytest.mark.timeout(7200)
def test_no_power_cut_of_many_under_load_loses_an_image(serving: GatewayStrategy, figures: dict[str, Any],
                                                        tmp_path: Path) -> None:
    cut_under_load(CUTS_AT_LENGTH, serving, tmp_path, figures, seed=5)
