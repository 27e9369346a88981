"""The image boots, is set up from a stick, and is what it says."""

from __future__ import annotations

import json
import re
from typing import Any

from gateway import GatewayStrategy, echo
from memory import held

UNITS = ("receiver", "forwarder", "keeper")


def test_boots_is_set_up_and_serves(serving: GatewayStrategy) -> None:
    assert echo()


def test_the_system_is_running_and_nothing_failed(serving: GatewayStrategy) -> None:
    failed = serving.run("systemctl --failed --plain --no-legend --no-pager || true")
    assert serving.run("systemctl is-system-running --wait || true", 180) == "running", failed


def test_the_root_is_verity_and_cannot_be_written(serving: GatewayStrategy, figures: dict[str, Any]) -> None:
    source, kind, options = serving.run("findmnt -no SOURCE,FSTYPE,OPTIONS /").split()
    assert (source, kind) == ("/dev/mapper/root", "erofs")
    assert "ro" in options.split(",")
    figures["root bytes"] = int(serving.run("findmnt -bnvo SIZE /"))
    assert serving.run("lsblk -no TYPE,NAME | grep -c crypt || true").isdigit()


def test_what_is_the_box_s_own_is_on_the_disk(serving: GatewayStrategy) -> None:
    for place in ("/var", "/var/spool/dcmgate"):
        assert set(serving.run(f"findmnt -no FSTYPE {place}").split()) == {"xfs"}     # again, read-only, in a session


def test_each_unit_of_ours_is_sandboxed(serving: GatewayStrategy, figures: dict[str, Any]) -> None:
    """`systemd-analyze security`, the image's own: at most 2.0, for whatever of ours is running."""
    table = serving.run("systemctl list-units --plain --no-legend --state=running 'dcmgate-*.service'")
    running = [line.split()[0] for line in table.splitlines()]
    assert {f"dcmgate-{unit}.service" for unit in UNITS} <= set(running)
    worst = {}
    for unit in running:
        text = serving.run(f"systemd-analyze security --no-pager {unit} | tail -1")
        worst[unit] = float(re.search(r"(\d+\.\d+)", text)[1])  # type: ignore[index]
    figures["exposure, worst unit"] = max(worst.values())
    figures["exposure"] = worst
    assert max(worst.values()) <= 2.0


def test_nobody_is_root_and_nobody_has_a_password(serving: GatewayStrategy) -> None:
    assert serving.run("id -un") == "engineer"
    assert serving.run("cut -d: -f1,2 /etc/passwd | grep -v ':[x*!]' || true") == ""
    code = serving.ssh.run("cat /etc/shadow", timeout=60)[2]
    assert code != 0


def test_no_host_key_came_with_the_image(serving: GatewayStrategy) -> None:
    """A key that came with the image would be the same in every box."""
    assert serving.run("ls /etc/ssh/ssh_host_* 2>/dev/null || true") == ""


def test_memory_of_each_service_at_idle(serving: GatewayStrategy, figures: dict[str, Any]) -> None:
    memory = held(serving.run)
    figures["memory bytes at idle"] = memory
    figures["startup"] = serving.run("systemd-analyze time | head -1")
    assert memory.keys() >= set(UNITS)
    assert max(memory.values()) < 100 << 20


def test_the_ledger_balances(serving: GatewayStrategy) -> None:
    assert json.loads(serving.run("dcmgate balance --json", 120))["unaccounted"] == 0
