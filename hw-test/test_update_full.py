"""Updates, at length: ten power cuts that lose what was not flushed, and a version whose kernel hangs."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
from dicom import arrived, content, pacs, send, study
from gateway import GatewayStrategy
from releases import URL, Maker, next_version
from volatile import VolatileDisk
from waiting import wait_until

pytestmark = pytest.mark.timeout(7200)
CUTS = 10
HANGS = ("rd.systemd.unit=kernel-command-line.target "
         "rd.systemd.run=\"/bin/sh -c 'echo 0 >/proc/sys/kernel/panic; echo c >/proc/sysrq-trigger'\"")
"""In the initrd: the root takes no units out of its command line."""


def installing(box: GatewayStrategy, name: str) -> None:
    box.run(f"dcmgate update install --again --no-wait --from {URL}/{name}")

    def begun() -> bool:
        stage = box.updates()["progress"].get("stage")
        assert stage not in ("refused", "failed"), box.updates()["progress"]
        return stage in ("installing", "draining", "restarting")

    wait_until(begun, 600, box.updates)


@pytest.mark.full(minutes=35)
def test_ten_power_cuts_in_an_update(volatile: VolatileDisk, serving: GatewayStrategy, maker: Maker, version: str,
                                     tmp_path: Path, figures: dict[str, Any], seed: int = 5) -> None:
    """It always boots what ran or, where the update was whole, the new version; no image is lost; it is blessed in the end."""
    fourth, before = next_version(version, 3), serving.updates()["running"]
    maker.variant("fourth", fourth)
    sent = study(tmp_path / "sent", 5)
    assert send(sent).returncode == 0
    moments = random.Random(seed)
    ran: list[str] = []
    for _ in range(CUTS):
        if serving.updates()["running"] == fourth:
            break
        installing(serving, "fourth")
        time.sleep(moments.uniform(0, 25))
        volatile.cut()
        volatile.on()
        ran.append(serving.updates()["running"])
        assert ran[-1] in (before, fourth)
        assert json.loads(serving.run("dcmgate balance --json", 120))["unaccounted"] == 0
    figures["power cuts in an update"] = len(ran)
    if serving.updates()["running"] != fourth:
        serving.run(f"dcmgate update install --again --no-wait --from {URL}/fourth")
        serving.console.expect(f"{fourth} is good", timeout=1200)
        serving.restarted()
    good = {"version": fourth, "state": "good", "tries": None}
    wait_until(lambda: good in serving.updates()["menu"], 300, serving.updates, every=2)
    with pacs(tmp_path / "pacs") as folder:
        assert dict(content(path) for path in sent).items() <= arrived(folder, len(sent), 400).items()


@pytest.mark.full(minutes=9)
def test_a_kernel_that_hangs_ends_its_tries_by_the_watchdog(serving: GatewayStrategy, maker: Maker, version: str,
                                                            figures: dict[str, Any]) -> None:
    fifth, before = next_version(version, 4), serving.updates()["running"]
    maker.variant("fifth", fifth, HANGS)
    began = time.monotonic()
    serving.run(f"dcmgate update install --no-wait --from {URL}/fifth")
    for _ in range(2):
        serving.console.expect("Kernel panic - not syncing: sysrq triggered crash", timeout=900)
    serving.console.expect(r"Reached target .*multi-user\.target", timeout=900)
    serving.restarted()
    figures["seconds until a version that hangs is gone"] = round(time.monotonic() - began, 1)
    found = serving.updates()
    assert found["running"] == before
    assert found["history"][-1]["what"] == "back"
    assert "never came far enough to say why" in found["history"][-1]["text"]
