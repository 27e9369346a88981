"""Studies under way while something happens to the box: each service restarts; memory is short; the power goes, often."""

from __future__ import annotations

import json
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from cuts import cut_under_load
from dicom import arrived, content, pacs, send, sender, study
from gateway import GatewayStrategy, echo
from memory import held, left
from rootshell import RootShellProtocol
from volatile import VolatileDisk
from waiting import wait_until

CUTS = 20


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


@pytest.mark.full(minutes=40)
@pytest.mark.timeout(7200)
def test_no_power_cut_of_many_under_load_loses_an_image(volatile: VolatileDisk, serving: GatewayStrategy,
                                                        figures: dict[str, Any], tmp_path: Path) -> None:
    """Twenty of them, at any moment. Three, each in the middle of an update, are in test_update."""
    chance = random.Random(5)
    cut_under_load([lambda: time.sleep(chance.uniform(0, 15))] * CUTS, serving, volatile, tmp_path, figures)
